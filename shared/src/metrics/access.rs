//! Who may read the metrics: whoever has the token, if there is one; else this host alone, unless the
//! operator says otherwise. A proxy on this host speaks for others: what it forwards is not from here.

use std::{fmt, net::IpAddr};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::{
    config::{ExposeSecret as _, Reading},
    settings,
};

/// Whether a header of this name, in small letters, says that somebody stands between us and the client.
pub fn is_of_a_proxy(header: &str) -> bool {
    const OTHERS: [&str; 6] = ["forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip"];
    header.starts_with("x-forwarded") || OTHERS.contains(&header)
}

/// The shortest token that guards anything.
const MIN_TOKEN_LENGTH: usize = 16;

/// Who may read the metrics. Of the token only its SHA-256 is kept.
#[derive(Clone)]
pub enum MetricsAccess {
    /// Whoever shows the token with this hash.
    Token([u8; 32]),
    /// Callers from this host.
    Local,
    /// Anybody.
    Public,
}

/// Who asks, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The other end of the connection, where it has an address.
    pub peer: Option<IpAddr>,
    /// Whether one of its headers [`is_of_a_proxy`].
    pub is_forwarded: bool,
    /// Its `Authorization`.
    pub authorization: Option<&'a [u8]>,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is answered.
    Allowed,
    /// It lacks the token.
    TokenMissing,
    /// Its token is wrong.
    TokenWrong,
    /// It is not from this host.
    NotLocal,
}

impl MetricsAccess {
    /// Read `METRICS_TOKEN` and `METRICS_PUBLIC`.
    pub fn read(reading: &Reading<'_>) -> Self {
        let is_public = reading.switch(&settings::METRICS_PUBLIC);
        match reading.secret(&settings::METRICS_TOKEN) {
            Some(token) => {
                if token.expose_secret().len() < MIN_TOKEN_LENGTH {
                    reading.complain(&settings::METRICS_TOKEN, format_args!("shorter than {MIN_TOKEN_LENGTH} characters"));
                }
                Self::Token(Sha256::digest(token.expose_secret()).into())
            }
            None if is_public => Self::Public,
            None => Self::Local,
        }
    }

    /// Whether `caller` may read the metrics.
    pub fn judge(&self, caller: Caller<'_>) -> Verdict {
        match self {
            Self::Public => Verdict::Allowed,
            Self::Token(hash) => match caller.authorization.and_then(bearer) {
                None => Verdict::TokenMissing,
                Some(token) if bool::from(Sha256::digest(token).as_slice().ct_eq(hash)) => Verdict::Allowed,
                Some(_) => Verdict::TokenWrong,
            },
            Self::Local => {
                // `::ffff:127.0.0.1` is this host, too.
                let is_local = caller.peer.is_some_and(|peer| peer.to_canonical().is_loopback());
                if is_local && !caller.is_forwarded { Verdict::Allowed } else { Verdict::NotLocal }
            }
        }
    }
}

fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

impl fmt::Debug for MetricsAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token(_) => "Token(…)",
            Self::Local => "Local",
            Self::Public => "Public",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Env};

    const TOKEN: &str = "0123456789abcdef";

    fn access(variables: [(&str, &str); 2]) -> MetricsAccess {
        config::read(&Env::of(variables), MetricsAccess::read).expect("valid")
    }

    fn caller(peer: &str, is_forwarded: bool, authorization: Option<&'static str>) -> Caller<'static> {
        Caller { peer: peer.parse().ok(), is_forwarded, authorization: authorization.map(str::as_bytes) }
    }

    #[test]
    fn without_a_token_only_this_host_may_read() {
        let access = access([("METRICS_TOKEN", ""), ("METRICS_PUBLIC", "0")]);

        for local in ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(access.judge(caller(local, false, None)), Verdict::Allowed, "{local}");
            assert_eq!(access.judge(caller(local, true, None)), Verdict::NotLocal, "{local}, forwarded");
        }
        for other in ["10.0.0.1", "::2", "::ffff:10.0.0.1", "nowhere"] {
            assert_eq!(access.judge(caller(other, false, None)), Verdict::NotLocal, "{other}");
        }
    }

    #[test]
    fn a_token_opens_from_anywhere_and_nothing_else_does() {
        // Who set a token wants it asked for, whatever else is set.
        let access = access([("METRICS_TOKEN", TOKEN), ("METRICS_PUBLIC", "1")]);

        assert_eq!(access.judge(caller("10.0.0.1", true, Some("Bearer 0123456789abcdef"))), Verdict::Allowed);
        assert_eq!(access.judge(caller("10.0.0.1", true, Some("bearer  0123456789abcdef"))), Verdict::Allowed);
        for wrong in ["Bearer ", "Bearer 0123456789abcde", "Bearer 0123456789abcdeg", "Bearer 0123456789abcdef0"] {
            assert_eq!(access.judge(caller("127.0.0.1", false, Some(wrong))), Verdict::TokenWrong, "{wrong}");
        }
        for missing in [None, Some("Basic eDp5"), Some("0123456789abcdef")] {
            assert_eq!(access.judge(caller("127.0.0.1", false, missing)), Verdict::TokenMissing, "{missing:?}");
        }
    }

    #[test]
    fn the_public_may_read_where_the_operator_says_so() {
        let access = access([("METRICS_TOKEN", ""), ("METRICS_PUBLIC", "1")]);

        assert_eq!(access.judge(caller("10.0.0.1", true, None)), Verdict::Allowed);
    }

    #[test]
    fn a_token_that_guards_nothing_is_refused_and_none_is_printed() {
        let error = config::read(&Env::of([("METRICS_TOKEN", "hunter2")]), MetricsAccess::read).expect_err("short").to_string();

        assert!(error.contains("`METRICS_TOKEN` is shorter") && !error.contains("hunter2"), "{error}");
        assert_eq!(format!("{:?}", access([("METRICS_TOKEN", TOKEN), ("METRICS_PUBLIC", "")])), "Token(…)");
    }
}
