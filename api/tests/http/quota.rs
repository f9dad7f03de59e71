//! What a caller may still use: the same on every server, and as much as is then granted.

use poem::http::{Method, StatusCode};
use serde_json::{Value, json};
use shared::{api_key::Scope, api_keys::NewApiKey, audit::By, job::NanoUsd, users::UserChange};

use crate::stage::{Answer, Stage, new_key, post, with};

async fn quota(stage: &Stage) -> Value {
    let answer = stage.get("/api/quota").await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    answer.json()
}

async fn limit(stage: &Stage, change: UserChange) {
    stage.app.users.update(stage.user.id, change, &By::default()).await.expect("no trouble").expect("a user");
}

fn remaining(answer: &Answer) -> &str {
    answer
        .header("ratelimit")
        .and_then(|standing| standing.strip_prefix("\"hour\";r="))
        .and_then(|rest| rest.split(';').next())
        .expect("a standing")
}

#[tokio::test]
async fn two_servers_grant_what_one_quota_says() {
    let settings = ("DEFAULT_RATE_LIMIT_PER_HOUR", "5");
    let stage = Stage::with(settings).await;
    let other = stage.elsewhere(&[settings]).await;

    for left in (0..5).rev() {
        let answer =
            if left % 2 == 0 { stage.get("/api/jobs").await } else { other.call(&stage.key, Method::GET, "/api/jobs", &json!(null)).await };
        assert_eq!((answer.status, remaining(&answer)), (StatusCode::OK, left.to_string().as_str()));
        assert_eq!(quota(&stage).await["user"]["remaining"], left);
    }

    for answer in [stage.get("/api/jobs").await, other.call(&stage.key, Method::GET, "/api/jobs", &json!(null)).await] {
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::TOO_MANY_REQUESTS, "rate_limited"));
        let wait: u32 = answer.header("retry-after").expect("when to come back").parse().expect("seconds");
        assert!((3_500..=3_660).contains(&wait), "{wait}");
    }
    let known = quota(&stage).await;
    assert_eq!(known["user"]["limit"], 5);
    assert_eq!((&known["key"], &known["budget"], &known["jobs"]), (&Value::Null, &Value::Null, &json!({"active": 0, "limit": null})));
}

#[tokio::test]
async fn a_key_narrows_what_its_user_may() {
    let stage = Stage::new().await;
    let new = NewApiKey { rate_limit_per_hour: Some(2), max_concurrent_jobs: Some(1), ..new_key(&stage.user, &[Scope::Chat, Scope::Read]) };
    let (_, narrow) = stage.app.api_keys.create(new, &By::default()).await.expect("a key");
    let ask = async |method, path, body: Value| stage.call(narrow.expose(), method, path, &body).await;

    assert_eq!(ask(Method::POST, "/api/chat", json!({"message": "one"})).await.status, StatusCode::ACCEPTED);
    let second = ask(Method::POST, "/api/chat", json!({"message": "two"})).await;
    assert_eq!((second.status, second.code().as_str()), (StatusCode::TOO_MANY_REQUESTS, "too_many_jobs"));

    let known = ask(Method::GET, "/api/quota", Value::Null).await.json();
    assert_eq!((&known["key"]["limit"], &known["key"]["remaining"]), (&json!(2), &json!(1)), "the refused one cost nothing");
    assert_eq!(known["key_jobs"], json!({"active": 1, "limit": 1}));
    assert_eq!(ask(Method::GET, "/api/jobs", Value::Null).await.status, StatusCode::OK);
    assert_eq!(ask(Method::GET, "/api/jobs", Value::Null).await.code(), "rate_limited");
    assert_eq!(stage.get("/api/jobs").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_request_sent_again_costs_nothing() {
    let stage = Stage::with(("DEFAULT_RATE_LIMIT_PER_HOUR", "3")).await;
    let chat =
        || with(post("/api/chat").content_type("application/json").body(json!({"message": "hi"}).to_string()), "idempotency-key", "k");

    let (first, again) = (stage.ask(chat()).await, stage.ask(chat()).await);

    assert_eq!(first.json()["id"], again.json()["id"]);
    assert_eq!((remaining(&first), remaining(&again)), ("2", "2"));
    assert_eq!(quota(&stage).await["jobs"]["active"], 1);
}

#[tokio::test]
async fn a_budget_holds_on_every_server_and_is_told_to_the_cent() {
    let stage = Stage::new().await;
    let other = stage.elsewhere(&[]).await;
    limit(&stage, UserChange { daily_budget: Some(Some(NanoUsd::from_usd(2.5))), ..UserChange::default() }).await;

    assert_eq!(stage.post("/api/chat", &json!({"message": "a dollar by default"})).await.status, StatusCode::ACCEPTED);
    let body = json!({"message": "half a dollar", "max_budget_usd": 0.5});
    assert_eq!(other.call(&stage.key, Method::POST, "/api/chat", &body).await.status, StatusCode::ACCEPTED);
    assert_eq!(stage.post("/api/chat", &json!({"message": "the last"})).await.status, StatusCode::ACCEPTED);
    let before = quota(&stage).await;
    for refused in [stage.post("/api/chat", &body).await, other.call(&stage.key, Method::POST, "/api/chat", &body).await] {
        assert_eq!((refused.status, refused.code().as_str()), (StatusCode::PAYMENT_REQUIRED, "budget_exhausted"));
    }

    let known = quota(&stage).await;
    assert_eq!(known["budget"]["limit_usd"], 2.5);
    assert_eq!((&known["budget"]["reserved_usd"], &known["budget"]["spent_usd"]), (&json!(2.5), &json!(0.0)));
    assert_eq!(known["budget"]["remaining_usd"], 0.0);
    assert_eq!(known["user"]["remaining"], before["user"]["remaining"], "the refused cost nothing");

    let jobs = stage.get("/api/jobs").await.json();
    let last = jobs["data"][0]["id"].as_str().expect("a job").to_owned();
    assert_eq!(stage.post(&format!("/api/jobs/{last}/cancel"), &json!({})).await.status, StatusCode::ACCEPTED);
    assert_eq!(quota(&stage).await["budget"]["remaining_usd"], 1.0);
}

#[tokio::test]
async fn a_user_has_no_more_jobs_than_their_cap() {
    let stage = Stage::new().await;
    limit(&stage, UserChange { max_concurrent_jobs: Some(Some(1)), ..UserChange::default() }).await;

    let job = stage.submit("one").await;
    let refused = stage.post("/api/chat", &json!({"message": "two"})).await;
    assert_eq!((refused.code().as_str(), refused.header("retry-after")), ("too_many_jobs", Some("5")));

    stage.post(&format!("/api/jobs/{job}/cancel"), &json!({})).await;
    stage.submit("three").await;
}

#[tokio::test]
async fn what_the_limit_decided_is_counted() {
    let stage = Stage::with(("DEFAULT_RATE_LIMIT_PER_HOUR", "1")).await;

    stage.get("/api/jobs").await;
    stage.get("/api/jobs").await;

    let page = stage.get("/health/metrics").await;
    let page = std::str::from_utf8(&page.body).expect("UTF-8");
    for line in [
        "claude_api_limiter_decisions_total{decision=\"granted\"} 1",
        "claude_api_limiter_decisions_total{decision=\"refused\"} 1",
        "claude_api_limiter_fallback_decisions_total 0",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}:\n{page}");
    }
}
