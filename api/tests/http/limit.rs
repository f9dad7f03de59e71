//! The hourly limit around a request.

use std::sync::Arc;

use api::{
    error::{ApiError, Code},
    limit::{Charge, enforce},
};
use poem::{Endpoint, EndpointExt as _, Request, Response, Result, endpoint::make};
use shared::{
    api_key::ApiKey,
    id::{ApiKeyId, UserId},
    limits::Limits,
    principal::{Credential, Principal},
    time::Timestamp,
    user::{Role, User, UserLimits},
};

use crate::stage::{Stage, get};

/// A user with a limit of their own, or without.
fn user(rate_limit_per_hour: Option<u32>) -> Principal {
    let user = User {
        id: UserId::new(),
        email: "ann@example.com".into(),
        name: None,
        role: Role::User,
        disabled: false,
        limits: UserLimits { rate_limit_per_hour, ..UserLimits::default() },
        created_at: Timestamp::now(),
        last_login_at: None,
    };
    Principal { user: Arc::new(user), credential: Credential::Login(shared::id::FamilyId::new()) }
}

/// The same by a key with a limit of its own, or without.
fn by_key(of: &Principal, rate_limit_per_hour: Option<u32>) -> Principal {
    let key = ApiKey {
        id: ApiKeyId::new(),
        user_id: of.user_id(),
        name: "a key".into(),
        prefix: "cak_00000000".into(),
        scopes: Vec::new(),
        allowed_tools: None,
        allowed_ips: None,
        rate_limit_per_hour,
        max_concurrent_jobs: None,
        expires_at: None,
        revoked_at: None,
        last_used_at: None,
        created_at: Timestamp::now(),
    };
    Principal { credential: Credential::Key(Arc::new(key)), ..of.clone() }
}

/// What is answered: `r` of each policy, or the code of a refusal with its `Retry-After`.
async fn standing(limits: &Limits, principal: &Principal, endpoint: &impl Endpoint<Output = Response>) -> String {
    match enforce(limits, 4, principal, endpoint, get("/api/jobs")).await.map_err(ApiError::from) {
        Ok(response) => left(response.headers()),
        Err(error) => format!("{} {}", error.code().as_str(), left(error.headers().expect("headers"))),
    }
}

fn left(headers: &poem::http::HeaderMap) -> String {
    let items = headers["ratelimit"].to_str().expect("ASCII").split(", ");
    items.map(|item| item.split(';').nth(1).and_then(|r| r.strip_prefix("r=")).expect("what is left")).collect::<Vec<_>>().join("+")
}

fn fine() -> impl Endpoint<Output = Response> {
    make(|_: Request| async { "fine" }).map_to_response()
}

#[tokio::test]
async fn who_is_beyond_the_limit_is_told_when_to_come_back() {
    let stage = Stage::new().await;
    let (limits, ann) = (Limits::new(&stage.app.store, 1), user(Some(2)));

    let answer = enforce(&limits, 4, &ann, &fine(), get("/api/jobs")).await.expect("an answer");
    assert_eq!(answer.headers()["ratelimit-policy"], r#""hour";q=2;w=3600"#);
    assert_eq!(standing(&limits, &ann, &fine()).await, "0");

    let refusal = enforce(&limits, 4, &ann, &fine(), get("/api/jobs")).await.expect_err("refused");
    let refusal = ApiError::from(refusal);
    assert_eq!(refusal.code(), Code::RateLimited);
    let reset = refusal.headers().expect("headers")["ratelimit"].to_str().expect("ASCII").to_owned();
    let retry = refusal.retry_after_secs().expect("when");
    assert_eq!(reset, format!("\"hour\";r=0;t={retry}"));
    assert!((3_600 - 5..=3_660).contains(&retry), "{retry}");
    // What does not count is answered still.
    assert!(enforce(&limits, 4, &ann, &fine(), get("/api/quota")).await.is_ok());
}

#[tokio::test]
async fn a_user_without_a_limit_has_the_default_and_a_key_narrows_it() {
    let stage = Stage::new().await;
    let (limits, ann) = (Limits::new(&stage.app.store, 1), user(None));
    let narrow = by_key(&ann, Some(1));

    assert_eq!(standing(&limits, &ann, &fine()).await, "3");
    assert_eq!(standing(&limits, &by_key(&ann, None), &fine()).await, "2");
    assert_eq!(standing(&limits, &narrow, &fine()).await, "1+0");
    assert_eq!(standing(&limits, &narrow, &fine()).await, "rate_limited 1+0");
    assert_eq!(standing(&limits, &ann, &fine()).await, "0");
    assert_eq!(standing(&limits, &user(None), &fine()).await, "3");
}

#[tokio::test]
async fn what_was_not_served_is_not_counted() {
    let stage = Stage::new().await;
    let (limits, ann) = (Limits::new(&stage.app.store, 1), user(None));
    let says = |code: Code| make(move |_: Request| async move { Result::<&str>::Err(ApiError::new(code, "no").into()) }).map_to_response();
    let status = |status: u16| {
        make(
            move |_: Request| async move { Response::builder().status(poem::http::StatusCode::from_u16(status).expect("a status")).finish() },
        )
    };
    let repeats = make(|request: Request| async move {
        request.data::<Charge>().expect("a charge").waive();
        Response::default()
    });

    assert_eq!(standing(&limits, &ann, &says(Code::Unavailable)).await, "unavailable 4");
    assert_eq!(standing(&limits, &ann, &says(Code::TooManyAttempts)).await, "too_many_attempts 4");
    assert_eq!(standing(&limits, &ann, &status(402)).await, "4");
    assert_eq!(standing(&limits, &ann, &repeats).await, "4");
    assert_eq!(standing(&limits, &ann, &says(Code::NotFound)).await, "not_found 3");
    assert_eq!(standing(&limits, &ann, &status(202)).await, "2");
}
