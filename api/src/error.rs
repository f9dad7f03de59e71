//! The one error of the HTTP surface. An [`ApiError`] says what went wrong in a word clients switch on;
//! `envelope` turns every error of every path, poem's own included, into the same problem body
//! (RFC 9457). A 5xx carries fixed text: its cause goes to the log and nowhere else.

use std::{borrow::Cow, fmt};

use poem::{
    error::{MethodNotAllowedError, NotFoundError, ReadBodyError, ResponseError},
    http::{HeaderMap, StatusCode},
};
use poem_openapi::{
    ApiResponse, Object,
    error::{ContentTypeError, ParseParamError, ParsePathError},
    payload::Payload,
    registry::{MetaHeader, MetaMediaType, MetaResponse, MetaResponses, MetaSchemaRef, Registry},
    types::Type,
};
use serde::Serialize;
use shared::{api_key::Scope, workspace::Refused};

/// What went wrong, in a word that never changes its meaning. Adding one is harmless, renaming one
/// breaks clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words say it all")]
pub enum Code {
    BadRequest,
    MalformedJson,
    DuplicateKey,
    MissingCredentials,
    InvalidCredentials,
    TokenExpired,
    KeyExpired,
    InvalidLogin,
    TokenReused,
    OriginNotAllowed,
    AccountDisabled,
    AddressNotAllowed,
    InsufficientScope,
    AdminRequired,
    LoginRequired,
    WrongPassword,
    RegistrationClosed,
    AdminExists,
    NotLocal,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    EmailTaken,
    LastAdmin,
    NotADeadLetter,
    WorkerDead,
    SessionDeleted,
    SessionArchived,
    SessionBusy,
    PathOccupied,
    PositionGone,
    BodyTooLarge,
    WorkspaceFull,
    UnsupportedMediaType,
    InvalidRequest,
    IdempotencyKeyReused,
    UpgradeRequired,
    RateLimited,
    TooManyAttempts,
    BudgetExhausted,
    TooManyJobs,
    QueueFull,
    TooManySockets,
    TooManySubscriptions,
    InternalError,
    Unavailable,
    Draining,
}

impl Code {
    /// Every word, in the order of the statuses they come with.
    pub const ALL: &[Self] = &[
        Self::BadRequest,
        Self::MalformedJson,
        Self::DuplicateKey,
        Self::MissingCredentials,
        Self::InvalidCredentials,
        Self::TokenExpired,
        Self::KeyExpired,
        Self::InvalidLogin,
        Self::TokenReused,
        Self::BudgetExhausted,
        Self::OriginNotAllowed,
        Self::AccountDisabled,
        Self::AddressNotAllowed,
        Self::InsufficientScope,
        Self::AdminRequired,
        Self::LoginRequired,
        Self::WrongPassword,
        Self::RegistrationClosed,
        Self::AdminExists,
        Self::NotLocal,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::EmailTaken,
        Self::LastAdmin,
        Self::NotADeadLetter,
        Self::WorkerDead,
        Self::SessionDeleted,
        Self::SessionArchived,
        Self::SessionBusy,
        Self::PathOccupied,
        Self::PositionGone,
        Self::BodyTooLarge,
        Self::WorkspaceFull,
        Self::UnsupportedMediaType,
        Self::InvalidRequest,
        Self::IdempotencyKeyReused,
        Self::UpgradeRequired,
        Self::RateLimited,
        Self::TooManyAttempts,
        Self::TooManyJobs,
        Self::QueueFull,
        Self::TooManySockets,
        Self::TooManySubscriptions,
        Self::InternalError,
        Self::Unavailable,
        Self::Draining,
    ];

    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::MalformedJson => "malformed_json",
            Self::DuplicateKey => "duplicate_key",
            Self::MissingCredentials => "missing_credentials",
            Self::InvalidCredentials => "invalid_credentials",
            Self::TokenExpired => "token_expired",
            Self::KeyExpired => "key_expired",
            Self::InvalidLogin => "invalid_login",
            Self::TokenReused => "token_reused",
            Self::OriginNotAllowed => "origin_not_allowed",
            Self::AccountDisabled => "account_disabled",
            Self::AddressNotAllowed => "address_not_allowed",
            Self::InsufficientScope => "insufficient_scope",
            Self::AdminRequired => "admin_required",
            Self::LoginRequired => "login_required",
            Self::WrongPassword => "wrong_password",
            Self::RegistrationClosed => "registration_closed",
            Self::AdminExists => "admin_exists",
            Self::NotLocal => "not_local",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RequestTimeout => "request_timeout",
            Self::EmailTaken => "email_taken",
            Self::LastAdmin => "last_admin",
            Self::NotADeadLetter => "not_a_dead_letter",
            Self::WorkerDead => "worker_dead",
            Self::SessionDeleted => "session_deleted",
            Self::SessionArchived => "session_archived",
            Self::SessionBusy => "session_busy",
            Self::PathOccupied => "path_occupied",
            Self::WorkspaceFull => "workspace_full",
            Self::PositionGone => "position_gone",
            Self::BodyTooLarge => "body_too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::InvalidRequest => "invalid_request",
            Self::IdempotencyKeyReused => "idempotency_key_reused",
            Self::UpgradeRequired => "upgrade_required",
            Self::RateLimited => "rate_limited",
            Self::TooManyAttempts => "too_many_attempts",
            Self::BudgetExhausted => "budget_exhausted",
            Self::TooManyJobs => "too_many_jobs",
            Self::QueueFull => "queue_full",
            Self::TooManySockets => "too_many_sockets",
            Self::TooManySubscriptions => "too_many_subscriptions",
            Self::InternalError => "internal_error",
            Self::Unavailable => "unavailable",
            Self::Draining => "draining",
        }
    }

    /// The status it comes with.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest | Self::MalformedJson | Self::DuplicateKey => StatusCode::BAD_REQUEST,
            Self::MissingCredentials
            | Self::InvalidCredentials
            | Self::TokenExpired
            | Self::KeyExpired
            | Self::InvalidLogin
            | Self::TokenReused => StatusCode::UNAUTHORIZED,
            Self::BudgetExhausted => StatusCode::PAYMENT_REQUIRED,
            Self::OriginNotAllowed
            | Self::AccountDisabled
            | Self::AddressNotAllowed
            | Self::InsufficientScope
            | Self::AdminRequired
            | Self::LoginRequired
            | Self::WrongPassword
            | Self::RegistrationClosed
            | Self::AdminExists
            | Self::NotLocal => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::EmailTaken
            | Self::LastAdmin
            | Self::NotADeadLetter
            | Self::WorkerDead
            | Self::SessionDeleted
            | Self::SessionArchived
            | Self::SessionBusy
            | Self::PathOccupied => StatusCode::CONFLICT,
            Self::PositionGone => StatusCode::GONE,
            Self::BodyTooLarge | Self::WorkspaceFull => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::InvalidRequest | Self::IdempotencyKeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::UpgradeRequired => StatusCode::UPGRADE_REQUIRED,
            Self::RateLimited
            | Self::TooManyAttempts
            | Self::TooManyJobs
            | Self::QueueFull
            | Self::TooManySockets
            | Self::TooManySubscriptions => StatusCode::TOO_MANY_REQUESTS,
            Self::InternalError => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// One thing that is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Object)]
pub struct FieldError {
    /// Where: a JSON pointer into the body, `?name` for a query parameter, or a header's name.
    pub pointer: String,
    /// What, in a sentence.
    pub detail: String,
}

impl FieldError {
    /// `detail` is wrong at `pointer`.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), detail: detail.into() }
    }
}

/// Why a request was not answered as asked (RFC 9457).
#[derive(Debug, Serialize, Object)]
pub struct Problem {
    /// Always `about:blank`: `code` says more than an address could.
    #[oai(rename = "type")]
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The status.
    pub status: u16,
    /// What happened, in a sentence. May change; do not parse it.
    pub detail: String,
    /// A stable word to switch on.
    pub code: String,
    /// This request in the server's log; also the `X-Request-Id` header.
    pub request_id: String,
    /// What is wrong where, for a request that was understood and refused.
    #[oai(skip_serializing_if_is_empty, default)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// Why a request was not answered as asked.
#[derive(Debug)]
pub struct ApiError {
    code: Code,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    retry_after_secs: Option<u32>,
    scope: Option<Scope>,
    headers: Option<Box<HeaderMap>>,
    source: Option<shared::error::Cause>,
}

impl ApiError {
    /// `code`, with a sentence for a person.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), retry_after_secs: None, scope: None, headers: None, source: None }
    }

    /// The request was understood and is wrong in these places.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        Self { errors, ..Self::new(Code::InvalidRequest, "the request is not valid") }
    }

    /// Refuse a request that is wrong in these places, if there are any.
    pub fn refuse(errors: Vec<FieldError>) -> Result<(), Self> {
        if errors.is_empty() { Ok(()) } else { Err(Self::invalid(errors)) }
    }

    /// There is no such thing, or it belongs to somebody else.
    pub fn not_found() -> Self {
        Self::new(Code::NotFound, "there is nothing here")
    }

    /// The credential is right, and not for this.
    pub fn insufficient_scope(scope: Scope) -> Self {
        let detail = format!("this needs a key with the scope `{}`", scope.as_str());
        Self { scope: Some(scope), ..Self::new(Code::InsufficientScope, detail) }
    }

    /// A defect; `source` is for the log.
    pub fn internal(source: impl Into<shared::error::Cause>) -> Self {
        Self { source: Some(source.into()), ..Self::new(Code::InternalError, "an internal error occurred") }
    }

    /// The same request may pass when it is sent again after `retry_after_secs`.
    pub fn unavailable(code: Code, detail: impl Into<Cow<'static, str>>, retry_after_secs: u32) -> Self {
        Self { retry_after_secs: Some(retry_after_secs), ..Self::new(code, detail) }
    }

    /// The same, with `headers` on its answer beside those it has.
    pub fn with_headers(mut self, headers: HeaderMap) -> Self {
        self.headers.get_or_insert_default().extend(headers);
        self
    }

    /// What its answer has beside the usual headers.
    pub fn headers(&self) -> Option<&HeaderMap> {
        self.headers.as_deref()
    }

    /// The word for it.
    pub fn code(&self) -> Code {
        self.code
    }

    /// What is wrong where.
    pub fn errors(&self) -> &[FieldError] {
        &self.errors
    }

    /// When to try again.
    pub fn retry_after_secs(&self) -> Option<u32> {
        self.retry_after_secs
    }

    /// What a client must show to get further, for `WWW-Authenticate` (RFC 6750, section 3).
    pub fn challenge(&self) -> Option<String> {
        let error = if matches!(self.code, Code::InvalidCredentials | Code::TokenExpired | Code::KeyExpired) {
            ", error=\"invalid_token\""
        } else if self.code == Code::InsufficientScope {
            ", error=\"insufficient_scope\""
        } else if self.code.status() == StatusCode::UNAUTHORIZED {
            ""
        } else {
            return None;
        };
        let scope = self.scope.map(|scope| format!(", scope=\"{}\"", scope.as_str())).unwrap_or_default();
        Some(format!("Bearer realm=\"claude-api\"{error}{scope}"))
    }

    /// What only the log may know.
    pub fn cause(&self) -> Option<&shared::error::Cause> {
        self.source.as_ref()
    }

    /// The body for it.
    pub fn problem(&self, request_id: &str) -> Problem {
        let status = self.code.status();
        Problem {
            kind: "about:blank".to_owned(),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: self.detail.clone().into_owned(),
            code: self.code.as_str().to_owned(),
            request_id: request_id.to_owned(),
            errors: self.errors.clone(),
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for ApiError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

impl ResponseError for ApiError {
    fn status(&self) -> StatusCode {
        self.code.status()
    }
}

impl From<shared::Error> for ApiError {
    fn from(error: shared::Error) -> Self {
        match error {
            shared::Error::IdempotencyMismatch => {
                Self::new(Code::IdempotencyKeyReused, "this `Idempotency-Key` was used before with another request")
            }
            shared::Error::EmailTaken => Self::new(Code::EmailTaken, "another account has this email address"),
            shared::Error::WrongPassword => Self::new(Code::WrongPassword, "`current_password` is not your password"),
            shared::Error::LastAdmin => Self::new(Code::LastAdmin, "the last active admin stays one"),
            shared::Error::BudgetExhausted => {
                Self::new(Code::BudgetExhausted, "what is left of your budget of this day (UTC) does not cover the job")
            }
            shared::Error::TooManyJobs => {
                Self::unavailable(Code::TooManyJobs, "as many of your jobs as may be are queued or running: wait until one has ended", 5)
            }
            shared::Error::QueueFull => {
                Self::unavailable(Code::QueueFull, "as many of your jobs as may wait do: wait until one has begun", 5)
            }
            shared::Error::NotADeadLetter => {
                Self::new(Code::NotADeadLetter, "only a job that was given up after all its tries is tried again")
            }
            shared::Error::NoSuchSession => Self::not_found(),
            shared::Error::SessionDeleted => Self::new(Code::SessionDeleted, "this session was deleted"),
            shared::Error::SessionArchived => Self::new(Code::SessionArchived, "this session is archived: nothing is added to it"),
            shared::Error::SessionBusy => {
                Self::new(Code::SessionBusy, "a job of this session runs: its files are that job's until it ends")
            }
            shared::Error::Workspace(Refused::Occupied) => {
                Self::new(Code::PathOccupied, "a folder is at this path, or the path leads through a file")
            }
            shared::Error::Workspace(Refused::Full) => {
                Self::new(Code::WorkspaceFull, "this workspace, or all of yours together, would be larger than may be")
            }
            shared::Error::WorkerDead => Self::new(Code::WorkerDead, "this worker is dead"),
            shared::Error::Unavailable { .. } => {
                let detail = "a service this needs is away: try again";
                Self { source: Some(error.into()), ..Self::unavailable(Code::Unavailable, detail, 2) }
            }
            shared::Error::Fenced | shared::Error::Internal { .. } => Self::internal(error),
        }
    }
}

impl From<poem::Error> for ApiError {
    fn from(error: poem::Error) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(own) => return own,
            Err(error) => error,
        };
        if let Some(ParseParamError { name, reason }) = error.downcast_ref() {
            // Parameters of the query are written small in our contract, headers are not.
            let is_header = name.starts_with(|first: char| first.is_ascii_uppercase());
            let pointer = if is_header { (*name).to_owned() } else { format!("?{name}") };
            return Self::invalid(vec![FieldError::new(pointer, plain_reason(reason))]);
        }
        if error.is::<NotFoundError>() || error.is::<ParsePathError>() || error.is::<poem::error::ParsePathError>() {
            return Self::not_found();
        }
        if error.is::<MethodNotAllowedError>() {
            return Self::new(Code::MethodNotAllowed, "this path does not answer that method: see `Allow`");
        }
        if error.is::<ContentTypeError>() {
            return Self::new(Code::UnsupportedMediaType, "the body must be `application/json`");
        }
        match error.downcast_ref() {
            Some(ReadBodyError::PayloadTooLarge) => Self::new(Code::BodyTooLarge, "the body is too large"),
            _ if error.status().is_client_error() => Self::new(Code::BadRequest, "the request could not be read"),
            _ => Self::internal(error.to_string()),
        }
    }
}

/// poem-openapi's words about a parameter without the names of its types.
fn plain_reason(reason: &str) -> String {
    let reason = reason.strip_prefix("failed to parse ").and_then(|rest| rest.split_once(": ")).map_or(reason, |(_, said)| said);
    reason.split_once(" (occurred while parsing").map_or(reason, |(said, _)| said).to_owned()
}

/// What each status of an error means, for the contract.
const STATUSES: &[(u16, &str)] = &[
    (400, "Not readable: malformed JSON, or the same key twice in one object."),
    (401, "No credentials, or wrong ones."),
    (402, "What is left of your budget of this day (UTC) does not cover it."),
    (403, "Not allowed."),
    (404, "Not there, or not yours."),
    (405, "This path does not answer that method."),
    (408, "The body came too slowly."),
    (409, "In conflict with what is there."),
    (410, "That position of the log is no longer kept."),
    (413, "The body is too large."),
    (415, "The body is not `application/json`."),
    (422, "Readable, but wrong: `errors` says where."),
    (426, "A WebSocket: connect to it as to one."),
    (429, "Too much for now: try again after `Retry-After`."),
    (500, "A defect of this server; its log knows the request id."),
    (503, "No capacity, or a dependency is down: try again after `Retry-After`."),
];

impl ApiResponse for ApiError {
    fn meta() -> MetaResponses {
        let response = |&(status, description)| MetaResponse {
            description,
            status: Some(status),
            status_range: None,
            content: vec![MetaMediaType { content_type: ProblemJson::CONTENT_TYPE, schema: Problem::schema_ref() }],
            headers: headers(status),
        };
        MetaResponses { responses: STATUSES.iter().map(response).collect() }
    }

    fn register(registry: &mut Registry) {
        Problem::register(registry);
    }
}

/// What an answer with this status says besides.
fn headers(status: u16) -> Vec<MetaHeader> {
    let header = |name: &str, description: &str, schema| MetaHeader {
        name: name.to_owned(),
        description: Some(description.to_owned()),
        required: false,
        deprecated: false,
        schema,
    };
    let retry_after = || header("Retry-After", "Seconds to wait before trying again.", u32::schema_ref());
    match status {
        401 => vec![header("WWW-Authenticate", "How to say who you are.", String::schema_ref())],
        429 => vec![
            retry_after(),
            header("RateLimit-Policy", "The hourly limits that hold for you.", String::schema_ref()),
            header("RateLimit", "What is left of each, and for how many seconds it is.", String::schema_ref()),
        ],
        503 => vec![retry_after()],
        _ => Vec::new(),
    }
}

/// The media type of a problem.
pub struct ProblemJson;

impl Payload for ProblemJson {
    const CONTENT_TYPE: &'static str = "application/problem+json";

    fn schema_ref() -> MetaSchemaRef {
        Problem::schema_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_and_their_statuses_never_change() {
        let words: Vec<String> = Code::ALL.iter().map(|code| format!("{} {}", code.status().as_u16(), code.as_str())).collect();

        assert_eq!(
            words,
            [
                "400 bad_request",
                "400 malformed_json",
                "400 duplicate_key",
                "401 missing_credentials",
                "401 invalid_credentials",
                "401 token_expired",
                "401 key_expired",
                "401 invalid_login",
                "401 token_reused",
                "402 budget_exhausted",
                "403 origin_not_allowed",
                "403 account_disabled",
                "403 address_not_allowed",
                "403 insufficient_scope",
                "403 admin_required",
                "403 login_required",
                "403 wrong_password",
                "403 registration_closed",
                "403 admin_exists",
                "403 not_local",
                "404 not_found",
                "405 method_not_allowed",
                "408 request_timeout",
                "409 email_taken",
                "409 last_admin",
                "409 not_a_dead_letter",
                "409 worker_dead",
                "409 session_deleted",
                "409 session_archived",
                "409 session_busy",
                "409 path_occupied",
                "410 position_gone",
                "413 body_too_large",
                "413 workspace_full",
                "415 unsupported_media_type",
                "422 invalid_request",
                "422 idempotency_key_reused",
                "426 upgrade_required",
                "429 rate_limited",
                "429 too_many_attempts",
                "429 too_many_jobs",
                "429 queue_full",
                "429 too_many_sockets",
                "429 too_many_subscriptions",
                "500 internal_error",
                "503 unavailable",
                "503 draining",
            ]
        );
    }

    #[test]
    fn every_word_comes_with_a_documented_status() {
        for code in Code::ALL.iter().copied() {
            assert!(STATUSES.iter().any(|(status, _)| *status == code.status().as_u16()), "{code:?}");
        }
    }

    #[test]
    fn a_client_is_told_what_to_show() {
        let challenge = |code| ApiError::new(code, "").challenge();

        assert_eq!(challenge(Code::MissingCredentials).as_deref(), Some("Bearer realm=\"claude-api\""));
        assert_eq!(challenge(Code::TokenExpired).as_deref(), Some("Bearer realm=\"claude-api\", error=\"invalid_token\""));
        assert_eq!(
            ApiError::insufficient_scope(Scope::Chat).challenge().as_deref(),
            Some("Bearer realm=\"claude-api\", error=\"insufficient_scope\", scope=\"chat\"")
        );
        assert_eq!(challenge(Code::AdminRequired), None);
    }

    #[test]
    fn the_cause_of_a_defect_is_not_in_its_body() {
        let error = ApiError::from(shared::Error::Internal { what: "read jobs", source: "password hunter2".into() });

        let body = serde_json::to_string(&error.problem("r1")).expect("serialise");

        assert!(!body.contains("hunter2") && !body.contains("read jobs"), "{body}");
        assert!(error.cause().is_some_and(|cause| cause.to_string() == "read jobs"));
    }
}
