//! Who is calling. [`authenticate`] verifies a credential once and puts the [`Principal`] on the request;
//! [`Authenticated`] is how an operation asks for one, and how the contract knows that it does. An
//! operation without that argument is public, and says so in the contract.

use std::sync::Arc;

use poem::{
    Endpoint, Request, RequestBody, Response, Result,
    http::{HeaderMap, header},
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
    let guarded = request.uri().path().starts_with("/api/");
    if guarded && let Some(key) = credential(request.headers())? {
        let app: &App = request.data().ok_or_else(|| ApiError::internal("the endpoint has no `App`"))?;
        if !app.config.bootstrap_key.matches(key) {
            return Err(ApiError::new(Code::InvalidCredentials, "these credentials are not valid").into());
        }
        request.set_data(Principal { user_id: BOOTSTRAP_USER, api_key_id: None });
    }
    next.call(request).await
}

/// The key of a request: `X-API-Key`, or `Authorization` with the scheme `Bearer`.
fn credential(headers: &HeaderMap) -> Result<Option<&[u8]>, ApiError> {
    if let Some(key) = headers.get("x-api-key") {
        return Ok(Some(key.as_bytes()));
    }
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let bearer = value.as_bytes().split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
    let (_, key) = bearer.ok_or_else(|| ApiError::new(Code::InvalidCredentials, "`Authorization` must be `Bearer <key>`"))?;
    Ok(Some(key.trim_ascii()))
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
    use poem::http::HeaderValue;

    use super::*;

    fn found(name: &'static str, value: &'static str) -> Result<Option<Vec<u8>>, Code> {
        let headers = HeaderMap::from_iter([(header::HeaderName::from_static(name), HeaderValue::from_static(value))]);
        credential(&headers).map(|key| key.map(<[u8]>::to_vec)).map_err(|error| error.code())
    }

    #[test]
    fn a_key_is_found_in_either_header() {
        assert_eq!(found("x-api-key", "k1"), Ok(Some(b"k1".to_vec())));
        assert_eq!(found("authorization", "Bearer k1"), Ok(Some(b"k1".to_vec())));
        assert_eq!(found("authorization", "bearer  k1"), Ok(Some(b"k1".to_vec())));
        assert_eq!(found("accept", "*/*"), Ok(None));
    }

    #[test]
    fn another_scheme_is_refused() {
        for wrong in ["Basic dXNlcjpwYXNz", "k1", "Bearer"] {
            assert_eq!(found("authorization", wrong), Err(Code::InvalidCredentials), "{wrong}");
        }
    }

    #[test]
    fn only_the_whole_key_matches() {
        let hash = KeyHash::of(b"0123456789abcdef");

        assert!(hash.matches(b"0123456789abcdef"));
        assert!(!hash.matches(b"0123456789abcde"));
        assert!(!hash.matches(b""));
    }
}
