//! Which pages of a browser may call us: those of `FRONTEND_URL`, and our own. A request from our own
//! origin may carry `Origin` too and always passes; one from elsewhere is answered without the headers
//! that would let its page read the answer.

use std::{fmt, str::FromStr};

use poem::{
    Request,
    http::{HeaderMap, HeaderValue, Method, Uri, header},
};

const METHODS: &str = "GET, POST, PUT, PATCH, DELETE";
const REQUEST_HEADERS: &str = "Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, Prefer, X-API-Key, X-Request-Id";
const RESPONSE_HEADERS: &str = "ETag, Location, Preference-Applied, RateLimit, RateLimit-Policy, Retry-After, X-Request-Id";

/// `scheme://host[:port]`, as browsers send it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(HeaderValue);

/// A text that is not an origin.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("not a list of origins")]
pub struct InvalidOrigin;

impl FromStr for Origin {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        let text = text.trim_end_matches('/').to_ascii_lowercase();
        let uri: Uri = text.parse().map_err(|_| InvalidOrigin)?;
        let whole = uri.scheme().zip(uri.authority()).map(|(scheme, authority)| format!("{scheme}://{authority}"));
        if whole.as_deref() != Some(&text) {
            return Err(InvalidOrigin);
        }
        HeaderValue::try_from(text).map(Self).map_err(|_| InvalidOrigin)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Made of a `String`.
        f.write_str(self.0.to_str().unwrap_or_default())
    }
}

/// Where a request comes from.
#[derive(Debug, PartialEq, Eq)]
pub enum Caller {
    /// Our own page, or no page at all.
    Own,
    /// A page that may call us.
    Listed(HeaderValue),
    /// Another page.
    Stranger,
}

impl Caller {
    /// Who sent `request`, with `listed` as the pages that may.
    pub fn of(request: &Request, listed: &[Origin]) -> Self {
        let Some(origin) = request.headers().get(header::ORIGIN) else { return Self::Own };
        if listed.iter().any(|Origin(one)| one == origin) {
            return Self::Listed(origin.clone());
        }
        // The scheme is not compared: behind a proxy that ends TLS we cannot know our own.
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| request.original_uri().authority().map(poem::http::uri::Authority::as_str));
        let page = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
        if page.is_some() && page == host { Self::Own } else { Self::Stranger }
    }

    /// Let the page read the answer, if it may.
    pub fn mark(&self, headers: &mut HeaderMap) {
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
        if let Self::Listed(origin) = self {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(RESPONSE_HEADERS));
        }
    }

    /// Tell the browser what the page may send.
    pub fn mark_preflight(&self, headers: &mut HeaderMap) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(REQUEST_HEADERS));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
}

/// Whether a browser asks here what its page may send.
pub fn is_preflight(request: &Request) -> bool {
    let headers = request.headers();
    *request.method() == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(origin: Option<&str>) -> Caller {
        let mut request = Request::builder().header("host", "api.example.com:3001");
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let listed = ["http://localhost:3030".parse().expect("an origin")];
        Caller::of(&request.finish(), &listed)
    }

    #[test]
    fn our_own_page_passes_with_or_without_an_origin() {
        assert_eq!(caller(None), Caller::Own);
        assert_eq!(caller(Some("http://api.example.com:3001")), Caller::Own);
        assert_eq!(caller(Some("https://api.example.com:3001")), Caller::Own);
    }

    #[test]
    fn a_listed_page_is_known_and_every_other_is_a_stranger() {
        assert_eq!(caller(Some("http://localhost:3030")), Caller::Listed(HeaderValue::from_static("http://localhost:3030")));
        for other in ["http://localhost:3031", "https://localhost:3030", "null", "http://api.example.com"] {
            assert_eq!(caller(Some(other)), Caller::Stranger, "{other}");
        }
    }

    #[test]
    fn an_origin_has_a_scheme_and_no_path() {
        assert_eq!("HTTPS://App.Example.com/".parse::<Origin>().expect("an origin").to_string(), "https://app.example.com");
        for wrong in ["localhost:3030", "*", "http://", "https://a.b/c", "https://a.b?c"] {
            assert!(wrong.parse::<Origin>().is_err(), "{wrong}");
        }
    }
}
