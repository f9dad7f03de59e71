//! Who is calling. [`authenticate`] verifies a credential once and puts the [`Principal`] on the request;
//! [`Authenticated`] is how an operation asks for one, and how the contract knows that it does. An
//! operation without that argument is public, and says so in the contract.

use std::sync::Arc;

use poem::{
    Endpoint, Request, RequestBody, Response, Result,
    http::{HeaderMap, HeaderValue, header},
};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaSecurityScheme, Registry},
};
use sha2::{Digest as _, Sha256};
use shared::{
    id::{ApiKeyId, UserId},
    user::BOOTSTRAP_USER,
};
use subtle::ConstantTimeEq as _;

use crate::{
    app::App,
    error::{ApiError, Code},
};

/// The SHA-256 of a key: all we keep of one. Keys are random and long, so nothing slower is needed.
#[derive(Clone)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The hash of `key`.
    pub fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Whether this is the hash of `key`; takes equally long for every answer.
    pub fn matches(&self, key: &[u8]) -> bool {
        self.0.ct_eq(&Self::of(key).0).into()
    }
}

impl std::fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

/// Whom a request acts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The user.
    pub user_id: UserId,
    /// The key that was shown, where it is one of the record.
    pub api_key_id: Option<ApiKeyId>,
}

/// Verify the credential of a request, if it has one: a wrong one is refused here, before anything else
/// of the request is looked at. Operations that need one say so by taking [`Authenticated`].
pub async fn authenticate<E: Endpoint<Output = Response>>(next: Arc<E>, mut request: Request) -> Result<Response> {
    if request.uri().path().starts_with("/api/") {
        let app: &App = request.data().ok_or_else(|| ApiError::internal("the endpoint has no `App`"))?;
        let keys = credentials(request.headers())?;
        // Every key that is shown must be right: a client that shows two means both.
        if !keys.iter().all(|key| app.config.bootstrap_key.matches(key)) {
            return Err(ApiError::new(Code::InvalidCredentials, "these credentials are not valid").into());
        }
        if !keys.is_empty() {
            request.set_data(Principal { user_id: BOOTSTRAP_USER, api_key_id: None });
        }
    }
    next.call(request).await
}

/// The keys of a request: those of `X-API-Key`, and of `Authorization` with the scheme `Bearer`. `Basic`
/// beside an `X-API-Key` is for somebody else: a proxy on the way that asks for a password.
fn credentials(headers: &HeaderMap) -> Result<Vec<&[u8]>, ApiError> {
    let mut keys: Vec<&[u8]> = headers.get_all("x-api-key").iter().map(HeaderValue::as_bytes).collect();
    let shown = !keys.is_empty();
    for value in headers.get_all(header::AUTHORIZATION) {
        let begins_with = |scheme: &[u8]| value.as_bytes().get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
        match value.as_bytes() {
            bytes if begins_with(b"bearer ") => keys.push(bytes[7..].trim_ascii()),
            _ if shown && begins_with(b"basic ") => {}
            _ => return Err(ApiError::new(Code::InvalidCredentials, "`Authorization` must be `Bearer <key>`")),
        }
    }
    Ok(keys)
}

/// The caller of an operation that must not be anonymous.
#[derive(Clone, Copy, Debug)]
pub struct Authenticated(pub Principal);

impl<'a> ApiExtractor<'a> for Authenticated {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        let scheme = |ty, description| MetaSecurityScheme {
            ty,
            description: Some(description),
            name: None,
            key_in: None,
            scheme: None,
            bearer_format: None,
            flows: None,
            openid_connect_url: None,
        };
        let bearer = MetaSecurityScheme { scheme: Some("bearer"), ..scheme("http", "An API key as a bearer token.") };
        let header = MetaSecurityScheme { name: Some("X-API-Key"), key_in: Some("header"), ..scheme("apiKey", "An API key.") };
        registry.create_security_scheme("Bearer", bearer);
        registry.create_security_scheme("ApiKey", header);
    }

    fn security_schemes() -> Vec<&'static str> {
        vec!["Bearer", "ApiKey"]
    }

    async fn from_request(request: &'a Request, _body: &mut RequestBody, _options: ExtractParamOptions<()>) -> Result<Self> {
        let missing =
            || ApiError::new(Code::MissingCredentials, "this needs an API key: `Authorization: Bearer <key>` or `X-API-Key: <key>`");
        Ok(Self(*request.data::<Principal>().ok_or_else(missing)?))
    }
}

#[cfg(test)]
mod tests {
    use poem::http::HeaderName;

    use super::*;

    fn found(headers: &[(&'static str, &'static str)]) -> Result<Vec<Vec<u8>>, Code> {
        let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let headers: HeaderMap = headers.collect();
        let keys = credentials(&headers).map_err(|error| error.code())?;
        Ok(keys.into_iter().map(<[u8]>::to_vec).collect())
    }

    #[test]
    fn a_key_is_found_in_either_header_and_in_both() {
        assert_eq!(found(&[("x-api-key", "k1")]), Ok(vec![b"k1".to_vec()]));
        assert_eq!(found(&[("authorization", "Bearer k1")]), Ok(vec![b"k1".to_vec()]));
        assert_eq!(found(&[("authorization", "bearer  k1")]), Ok(vec![b"k1".to_vec()]));
        assert_eq!(found(&[("x-api-key", "k1"), ("authorization", "Bearer k2")]), Ok(vec![b"k1".to_vec(), b"k2".to_vec()]));
        assert_eq!(found(&[("accept", "*/*")]), Ok(vec![]));
    }

    #[test]
    fn another_scheme_is_refused_unless_it_is_for_somebody_else() {
        for wrong in ["Basic dXNlcjpwYXNz", "k1", "Bearer"] {
            assert_eq!(found(&[("authorization", wrong)]), Err(Code::InvalidCredentials), "{wrong}");
        }
        let proxied = |authorization| found(&[("x-api-key", "k1"), ("authorization", authorization)]);
        assert_eq!(proxied("Basic dXNlcjpwYXNz"), Ok(vec![b"k1".to_vec()]));
        assert_eq!(proxied("k1"), Err(Code::InvalidCredentials));
    }

    #[test]
    fn only_the_whole_key_matches() {
        let hash = KeyHash::of(b"0123456789abcdef");

        assert!(hash.matches(b"0123456789abcdef"));
        assert!(!hash.matches(b"0123456789abcde"));
        assert!(!hash.matches(b""));
    }
}
