//! The API behind all relays: where it is, what opens it, and one connection pool. The credential
//! exists only here, as a header value that no debug print shows.

use std::time::Duration;

use hyper::{
    HeaderMap, Method,
    header::{self, HeaderName, HeaderValue},
};
use reqwest::{Client, Url, redirect::Policy};
use secrecy::{ExposeSecret as _, SecretString};

/// How long the API may take to accept a connection. Answers may take any time: models think.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long data may lie unacknowledged before a connection counts as dead.
const DEAD_AFTER: Duration = Duration::from_mins(1);
/// What the API wants to see beside an OAuth token.
const OAUTH_BETA: &str = "oauth-2025-04-20";

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const BETA: HeaderName = HeaderName::from_static("anthropic-beta");

/// About one hop alone, or about a message that is sent anew.
const HOP: [HeaderName; 11] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::HOST,
    header::CONTENT_LENGTH,
    header::EXPECT,
];

/// What opens the API.
#[derive(Clone, Debug)]
pub enum Credential {
    /// Sent as `x-api-key`.
    ApiKey(SecretString),
    /// Sent as a bearer token.
    AuthToken(SecretString),
    /// Sent as a bearer token, with the beta header such a token needs.
    OauthToken(SecretString),
}

/// Why requests could not be forwarded with these settings.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The address cannot be used.
    #[error("{0}")]
    Address(&'static str),
    /// The credential has characters no header may have.
    #[error("not a header value")]
    Credential,
    /// The client could not be set up.
    #[error("could not set up the API's client")]
    Client(#[from] reqwest::Error),
}

/// The API. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Upstream {
    client: Client,
    base: String,
    name: HeaderName,
    value: HeaderValue,
    is_oauth: bool,
}

impl Upstream {
    /// The API at `base`, such as `https://api.anthropic.com`, opened by `credential`. Proxies are taken
    /// from the usual variables.
    pub fn new(base: &str, credential: &Credential) -> Result<Self, UpstreamError> {
        check(base)?;
        // An error says that a provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .tcp_user_timeout(DEAD_AFTER)
            // Followed, a redirect would take the credential to wherever it points.
            .redirect(Policy::none())
            .build()?;
        let (name, text) = match credential {
            Credential::ApiKey(secret) => (API_KEY, secret.expose_secret().to_owned()),
            Credential::AuthToken(secret) | Credential::OauthToken(secret) => {
                (header::AUTHORIZATION, format!("Bearer {}", secret.expose_secret()))
            }
        };
        let mut value = HeaderValue::try_from(text).map_err(|_| UpstreamError::Credential)?;
        value.set_sensitive(true);
        let is_oauth = matches!(credential, Credential::OauthToken(_));
        Ok(Self { client, base: base.trim_end_matches('/').to_owned(), name, value, is_oauth })
    }

    /// Send a request to `target`, a path with its query below the API's address.
    pub(super) async fn send(
        &self,
        method: Method,
        target: &str,
        headers: HeaderMap,
        body: reqwest::Body,
    ) -> Result<reqwest::Response, reqwest::Error> {
        let address = format!("{}{target}", self.base);
        self.client.request(method, address).headers(self.with_credential(headers)).body(body).send().await
    }

    fn with_credential(&self, mut headers: HeaderMap) -> HeaderMap {
        remove_hop(&mut headers);
        for credential in [API_KEY, header::AUTHORIZATION, header::COOKIE] {
            headers.remove(credential);
        }
        headers.insert(self.name.clone(), self.value.clone());
        if self.is_oauth {
            let mut betas: Vec<&str> = headers.get_all(BETA).iter().filter_map(|beta| beta.to_str().ok()).collect();
            betas.push(OAUTH_BETA);
            if let Ok(betas) = HeaderValue::try_from(betas.join(",")) {
                headers.insert(BETA, betas);
            }
        }
        headers
    }
}

/// Remove what is about one hop alone, by name or because the message says so.
pub(super) fn remove_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|names| names.to_str().ok())
        .flat_map(|names| names.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.into_iter().chain(HOP) {
        headers.remove(name);
    }
}

/// Whether a credential can be sent.
pub fn check_credential(secret: &str) -> Result<(), UpstreamError> {
    HeaderValue::try_from(secret).map(drop).map_err(|_| UpstreamError::Credential)
}

/// Whether the API can be at `base`.
pub fn check(base: &str) -> Result<(), UpstreamError> {
    let url = Url::parse(base).map_err(|_| UpstreamError::Address("not a URL"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(UpstreamError::Address("neither `http://` nor `https://`"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UpstreamError::Address("with a user name or password in it"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(UpstreamError::Address("with a query or fragment in it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(credential: &Credential, headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect();
        Upstream::new("https://api.example", credential).unwrap().with_credential(headers)
    }

    #[test]
    fn each_credential_replaces_what_the_child_sent() {
        let childs = [("x-api-key", "child"), ("authorization", "Bearer child"), ("cookie", "a=b"), ("anthropic-version", "2023-06-01")];

        let headers = sent(&Credential::ApiKey("real".into()), &childs);
        assert_eq!(headers[API_KEY], "real");
        assert_eq!(headers["anthropic-version"], "2023-06-01");
        assert_eq!(headers.len(), 2);

        let headers = sent(&Credential::AuthToken("real".into()), &childs);
        assert_eq!(headers[header::AUTHORIZATION], "Bearer real");
        assert_eq!(headers.len(), 2);
    }

    #[test]
    fn an_oauth_token_brings_its_beta_along() {
        let credential = Credential::OauthToken("real".into());

        assert_eq!(sent(&credential, &[])[BETA], "oauth-2025-04-20");
        let headers = sent(&credential, &[("anthropic-beta", "a,b")]);
        assert_eq!(headers[BETA], "a,b,oauth-2025-04-20");
        assert_eq!(headers[header::AUTHORIZATION], "Bearer real");
    }

    #[test]
    fn what_concerns_one_hop_is_not_forwarded() {
        let credential = Credential::ApiKey("real".into());

        let headers =
            sent(&credential, &[("connection", "close, x-own"), ("x-own", "1"), ("te", "trailers"), ("host", "child"), ("x-kept", "1")]);

        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-kept", "x-api-key"]);
    }

    #[test]
    fn the_credential_shows_in_no_debug_print() {
        for credential in [Credential::ApiKey("s3cret".into()), Credential::OauthToken("s3cret".into())] {
            let upstream = Upstream::new("https://api.example/", &credential).unwrap();
            assert!(!format!("{credential:?} {upstream:?} {:?}", upstream.with_credential(HeaderMap::new())).contains("s3cret"));
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused_without_repeating_them() {
        let key = Credential::ApiKey("real".into());
        for wrong in ["", "api.example", "ftp://api.example", "https://u:s3cret@api.example", "https://api.example?a=b"] {
            assert!(matches!(Upstream::new(wrong, &key), Err(UpstreamError::Address(_))), "{wrong}");
        }
        assert!(matches!(Upstream::new("https://api.example", &Credential::ApiKey("a\n".into())), Err(UpstreamError::Credential)));
    }
}
