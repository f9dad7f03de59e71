//! Who is calling. [`authenticate`] verifies what a request shows, once, and puts an `Arc<Principal>` on it;
//! [`Authenticated`] is how an operation asks for one and says what right it needs, and how the contract knows. An
//! operation without that argument is public, and says so in the contract.

use std::{
    fmt,
    marker::PhantomData,
    net::{IpAddr, Ipv4Addr},
    ops::Deref,
    sync::Arc,
};

use poem::{
    Endpoint, Request, RequestBody, Response, Result,
    http::{HeaderMap, HeaderValue, header},
};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaSecurityScheme, Registry},
};
use shared::{
    access::{Access, Refusal},
    api_key::{KeyText, Scope},
    audit::By,
    id::FamilyId,
    principal::{Credential, Principal},
    time::Timestamp,
    user::Role,
};

use crate::{
    app::App,
    client_address::ClientAddress,
    error::{ApiError, Code},
    limit,
    routes::socket,
    token::Rejection,
};

/// Verify the credentials of a request, if it has any: wrong ones are refused here, before anything else of the
/// request is looked at, and so is who has used up the hour. Operations that need some say so by taking [`Authenticated`].
pub async fn authenticate<E: Endpoint<Output = Response>>(next: Arc<E>, mut request: Request) -> Result<Response> {
    if is_guarded(request.uri().path()) {
        let app: &App = request.data().ok_or_else(|| ApiError::internal("the endpoint has no `App`"))?;
        let principal = match identify(app, &request).await {
            // How the house is must be told above all while a part of it is away; to nobody in particular then.
            Err(error) if error.code() == Code::Unavailable && !request.uri().path().starts_with("/api/") => None,
            found => found?,
        };
        if let Some(Verified { principal, expires_at }) = principal {
            let (principal, limits, default) = (Arc::new(principal), app.limits.clone(), app.config.default_rate_limit_per_hour);
            request.set_data(Arc::clone(&principal));
            request.set_data(Expiry(expires_at));
            return limit::enforce(&limits, default, &principal, &*next, request).await;
        }
    }
    next.call(request).await
}

/// Where credentials count. To log in and to go on with a login, the body is the credential: a client whose access
/// token has expired shows it there as everywhere.
fn is_guarded(path: &str) -> bool {
    (path.starts_with("/api/") && !matches!(path, "/api/auth/login" | "/api/auth/refresh")) || path == "/health/detailed"
}

/// Where a request comes from.
pub fn client(request: &Request) -> ClientAddress {
    let known = request.data::<ClientAddress>().copied();
    known.unwrap_or(ClientAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
}

/// Who somebody is, as far as what they showed tells.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Whom they act for.
    pub principal: Principal,
    /// When what they showed ends by itself.
    pub expires_at: Option<Timestamp>,
}

/// On a request: when the credentials it came with end by themselves.
#[derive(Clone, Copy, Debug)]
pub struct Expiry(pub Option<Timestamp>);

/// Whom a request acts for. All that it shows must be right and of one user; a key among it narrows the rights.
async fn identify(app: &App, request: &Request) -> Result<Option<Verified>, ApiError> {
    let from = client(request).0;
    let mut shown = credentials(request.headers())?;
    if request.uri().path() == socket::PATH {
        shown.extend(socket::bearer(request.headers()).map(bearer).transpose()?);
    }
    let mut found: Option<Verified> = None;
    for shown in shown {
        let verified = verify(app, &shown, from).await?;
        found = Some(match found {
            Some(other) => Verified {
                principal: together(other.principal, verified.principal)?,
                expires_at: [other.expires_at, verified.expires_at].into_iter().flatten().min(),
            },
            None => verified,
        });
    }
    Ok(found)
}

/// What two credentials of one request allow.
fn together(one: Principal, other: Principal) -> Result<Principal, ApiError> {
    let contradiction = || ApiError::new(Code::InvalidCredentials, "these credentials do not belong together: show one of them");
    if one.user_id() != other.user_id() {
        return Err(contradiction());
    }
    match (one.api_key_id(), other.api_key_id()) {
        (None, Some(_)) => Ok(other),
        (Some(key), Some(other_key)) if key != other_key => Err(contradiction()),
        (Some(_) | None, None) | (Some(_), Some(_)) => Ok(one),
    }
}

/// Something that a request shows to say who is calling.
#[derive(Debug)]
enum Shown {
    /// An API key.
    Key(KeyText),
    /// What should be an access token.
    Token(String),
}

/// Whom an access token or a key stands for, now. For those who come by another way than a header.
pub async fn verify_text(app: &App, text: &str, from: IpAddr) -> Result<Verified, ApiError> {
    verify(app, &bearer(text)?, from).await
}

async fn verify(app: &App, shown: &Shown, from: IpAddr) -> Result<Verified, ApiError> {
    match shown {
        Shown::Key(key) => {
            let principal = app.access.key(key, from).await?.map_err(|refusal| refused(refusal, Code::KeyExpired))?;
            let expires_at = principal.key().and_then(|key| key.expires_at);
            Ok(Verified { principal, expires_at })
        }
        Shown::Token(token) => {
            let claims = app.tokens.verify(token).map_err(|rejection| match rejection {
                Rejection::Invalid => invalid(),
                Rejection::Expired => expired(),
            })?;
            let principal = app.access.login(claims.sub, claims.fam).await?.map_err(|refusal| refused(refusal, Code::TokenExpired))?;
            Ok(Verified { principal, expires_at: Some(Timestamp::from_unix_ms(claims.exp.saturating_mul(1_000))) })
        }
    }
}

/// How the credential of `principal`, who was let in before, stands now.
pub async fn renew(access: &Access, principal: &Principal) -> Result<Principal, ApiError> {
    access.renew(principal).await?.map_err(|refusal| {
        let expired = if principal.key().is_some() { Code::KeyExpired } else { Code::TokenExpired };
        refused(refusal, expired)
    })
}

/// See that `principal`, whose request took its time, may still act by what it began with.
pub async fn confirm(access: &Access, principal: &Principal) -> Result<(), ApiError> {
    let now = renew(access, principal).await?;
    if principal.user.role == Role::Admin && now.user.role != Role::Admin {
        return Err(ApiError::new(Code::InvalidCredentials, "your rights changed while you asked: ask again"));
    }
    Ok(())
}

/// The access token has had its time.
pub fn expired() -> ApiError {
    ApiError::new(Code::TokenExpired, "this access token has expired: refresh it")
}

fn refused(refusal: Refusal, expired: Code) -> ApiError {
    match refusal {
        Refusal::Unknown | Refusal::Revoked => invalid(),
        Refusal::Expired => ApiError::new(expired, "these credentials have expired"),
        Refusal::Disabled => disabled(),
        Refusal::Address => ApiError::new(Code::AddressNotAllowed, "this key may not be used from this address"),
    }
}

fn invalid() -> ApiError {
    ApiError::new(Code::InvalidCredentials, "these credentials are not valid")
}

/// The account exists and may do nothing.
pub fn disabled() -> ApiError {
    ApiError::new(Code::AccountDisabled, "this account is disabled: ask an admin")
}

/// What a request shows: keys in `X-API-Key`, and either in `Authorization` with the scheme `Bearer`. `Basic` beside an
/// `X-API-Key` is for somebody else: a proxy on the way that asks for a password.
fn credentials(headers: &HeaderMap) -> Result<Vec<Shown>, ApiError> {
    let key = |value: &HeaderValue| value.to_str().ok().and_then(|text| text.parse().ok()).map(Shown::Key).ok_or_else(invalid);
    let mut shown = headers.get_all("x-api-key").iter().map(key).collect::<Result<Vec<_>, _>>()?;
    let has_key = !shown.is_empty();
    for value in headers.get_all(header::AUTHORIZATION) {
        let (scheme, text) = value.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
        if scheme.eq_ignore_ascii_case("bearer") {
            shown.push(bearer(text.trim())?);
        } else if !(has_key && scheme.eq_ignore_ascii_case("basic")) {
            return Err(ApiError::new(Code::InvalidCredentials, "`Authorization` must be `Bearer <access token or key>`"));
        }
    }
    Ok(shown)
}

fn bearer(text: &str) -> Result<Shown, ApiError> {
    if KeyText::is_branded(text) { text.parse().map(Shown::Key).map_err(|_| invalid()) } else { Ok(Shown::Token(text.to_owned())) }
}

/// A right that an operation needs.
pub trait Right: Send + Sync + 'static {
    /// The ways to show it, as the contract names them.
    const SCHEMES: &'static [Scheme];

    /// Whether `principal` has it.
    fn judge(principal: &Principal) -> Result<(), ApiError>;
}

/// A way to show who is calling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// An access token, and never a key.
    Login,
    /// An access token or a key, as a bearer token.
    Bearer,
    /// A key in a header of its own.
    ApiKey,
}

const TOKEN_OR_KEY: &[Scheme] = &[Scheme::Bearer, Scheme::ApiKey];

/// Sending jobs, cancelling them, changing what is one's own.
#[derive(Clone, Copy, Debug)]
pub struct Chat;

/// Looking at what is one's own.
#[derive(Clone, Copy, Debug)]
pub struct Read;

/// What admins may.
#[derive(Clone, Copy, Debug)]
pub struct Admin;

/// One's own account: a key may neither make keys nor change a password.
#[derive(Clone, Copy, Debug)]
pub struct Account;

/// What admins may and no key of theirs: what comes of it would outlive the key.
#[derive(Clone, Copy, Debug)]
pub struct AdminLogin;

/// Whatever needs no more than to be somebody.
#[derive(Clone, Copy, Debug)]
pub struct Anyone;

impl Right for Chat {
    const SCHEMES: &'static [Scheme] = TOKEN_OR_KEY;

    fn judge(principal: &Principal) -> Result<(), ApiError> {
        within(principal, Scope::Chat)
    }
}

impl Right for Read {
    const SCHEMES: &'static [Scheme] = TOKEN_OR_KEY;

    fn judge(principal: &Principal) -> Result<(), ApiError> {
        within(principal, Scope::Read)
    }
}

impl Right for Admin {
    const SCHEMES: &'static [Scheme] = TOKEN_OR_KEY;

    fn judge(principal: &Principal) -> Result<(), ApiError> {
        match principal.user.role {
            Role::Admin => within(principal, Scope::Admin),
            Role::User => Err(ApiError::new(Code::AdminRequired, "this is for admins")),
        }
    }
}

impl Right for Account {
    const SCHEMES: &'static [Scheme] = &[Scheme::Login];

    fn judge(principal: &Principal) -> Result<(), ApiError> {
        match principal.credential {
            Credential::Login(_) => Ok(()),
            Credential::Key(_) => Err(ApiError::new(Code::LoginRequired, "this needs an access token: a key cannot do it")),
        }
    }
}

impl Right for AdminLogin {
    const SCHEMES: &'static [Scheme] = &[Scheme::Login];

    fn judge(principal: &Principal) -> Result<(), ApiError> {
        Account::judge(principal)?;
        Admin::judge(principal)
    }
}

impl Right for Anyone {
    const SCHEMES: &'static [Scheme] = TOKEN_OR_KEY;

    fn judge(_principal: &Principal) -> Result<(), ApiError> {
        Ok(())
    }
}

fn within(principal: &Principal, scope: Scope) -> Result<(), ApiError> {
    if principal.has_scope(scope) { Ok(()) } else { Err(ApiError::insufficient_scope(scope)) }
}

/// The caller of an operation that must not be anonymous, and has the right `R`.
pub struct Authenticated<R> {
    principal: Arc<Principal>,
    from: ClientAddress,
    right: PhantomData<R>,
}

impl<R: Right> Authenticated<R> {
    /// `principal`, who comes from there, if it has the right.
    pub fn of(principal: &Arc<Principal>, from: ClientAddress) -> Result<Self, ApiError> {
        R::judge(principal)?;
        Ok(Self { principal: principal.clone(), from, right: PhantomData })
    }
}

impl<R> Authenticated<R> {
    /// Where the request comes from.
    pub fn from(&self) -> ClientAddress {
        self.from
    }

    /// Who this is.
    pub fn principal(&self) -> &Arc<Principal> {
        &self.principal
    }

    /// Who this is, for the record of what was done.
    pub fn by(&self) -> By {
        By { actor: Some(self.principal.user_id()), api_key: self.principal.api_key_id(), address: Some(self.from.0) }
    }
}

impl Authenticated<Account> {
    /// The login it came by.
    pub fn family(&self) -> Result<FamilyId, ApiError> {
        match self.principal.credential {
            Credential::Login(family) => Ok(family),
            Credential::Key(_) => Err(ApiError::internal("a key passed for a login")),
        }
    }
}

impl<R> Deref for Authenticated<R> {
    type Target = Principal;

    fn deref(&self) -> &Principal {
        &self.principal
    }
}

impl<R> fmt::Debug for Authenticated<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Authenticated").field(&self.principal.user_id()).finish()
    }
}

impl<'a, R: Right> ApiExtractor<'a> for Authenticated<R> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        for scheme in R::SCHEMES {
            registry.create_security_scheme(scheme.name(), scheme.meta());
        }
    }

    fn security_schemes() -> Vec<&'static str> {
        R::SCHEMES.iter().map(|scheme| scheme.name()).collect()
    }

    async fn from_request(request: &'a Request, _body: &mut RequestBody, _options: ExtractParamOptions<()>) -> Result<Self> {
        let missing = || {
            let detail = "this needs `Authorization: Bearer <access token or key>`, or `X-API-Key: <key>`";
            ApiError::new(Code::MissingCredentials, detail)
        };
        let principal = request.data::<Arc<Principal>>().ok_or_else(missing)?;
        Ok(Self::of(principal, client(request))?)
    }
}

impl Scheme {
    fn name(self) -> &'static str {
        match self {
            Self::Login => "Login",
            Self::Bearer => "Bearer",
            Self::ApiKey => "ApiKey",
        }
    }

    fn meta(self) -> MetaSecurityScheme {
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
        match self {
            Self::Login => MetaSecurityScheme {
                scheme: Some("bearer"),
                bearer_format: Some("JWT"),
                ..scheme("http", "The access token of a login. Keys are refused.")
            },
            Self::Bearer => MetaSecurityScheme {
                scheme: Some("bearer"),
                ..scheme("http", "The access token of a login, or an API key, as a bearer token.")
            },
            Self::ApiKey => MetaSecurityScheme { name: Some("X-API-Key"), key_in: Some("header"), ..scheme("apiKey", "An API key.") },
        }
    }
}

#[cfg(test)]
mod tests {
    use poem::http::HeaderName;

    use super::*;

    fn found(headers: &[(&'static str, &str)]) -> Result<Vec<String>, Code> {
        let value = |text: &str| HeaderValue::from_str(text).expect("a header value");
        let headers = headers.iter().map(|(name, text)| (HeaderName::from_static(name), value(text)));
        let headers: HeaderMap = headers.collect();
        let shown = credentials(&headers).map_err(|error| error.code())?;
        let text = |shown: Shown| match shown {
            Shown::Key(key) => key.expose().to_owned(),
            Shown::Token(token) => token,
        };
        Ok(shown.into_iter().map(text).collect())
    }

    fn key() -> String {
        KeyText::generate().expect("random bytes").expose().to_owned()
    }

    #[test]
    fn a_credential_is_found_in_either_header_and_in_both() {
        let key = key();

        assert_eq!(found(&[("x-api-key", &key)]), Ok(vec![key.clone()]));
        assert_eq!(found(&[("authorization", &format!("Bearer {key}"))]), Ok(vec![key.clone()]));
        assert_eq!(found(&[("authorization", "bearer  a.b.c")]), Ok(vec!["a.b.c".to_owned()]));
        assert_eq!(found(&[("x-api-key", &key), ("authorization", "Bearer a.b.c")]), Ok(vec![key, "a.b.c".to_owned()]));
        assert_eq!(found(&[("accept", "*/*")]), Ok(vec![]));
    }

    #[test]
    fn another_scheme_is_refused_unless_it_is_for_somebody_else() {
        let key = key();
        for wrong in ["Basic dXNlcjpwYXNz", "k1", "Bearer", "Bearer cak_short", &key] {
            assert_eq!(found(&[("authorization", wrong)]), Err(Code::InvalidCredentials), "{wrong}");
        }
        assert_eq!(found(&[("x-api-key", "a.b.c")]), Err(Code::InvalidCredentials), "a token is no key");
        let proxied = |authorization| found(&[("x-api-key", &key), ("authorization", authorization)]);
        assert_eq!(proxied("Basic dXNlcjpwYXNz"), Ok(vec![key.clone()]));
        assert_eq!(proxied("k1"), Err(Code::InvalidCredentials));
    }
}
