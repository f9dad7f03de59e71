//! Whether the server is well, and who is told how well.

use std::net::SocketAddr;

use poem::{
    Addr, Body, Request, RequestParts,
    http::{self, Method, StatusCode, uri::Scheme},
    web::{LocalAddr, RemoteAddr},
};
use serde_json::json;
use shared::{api_key::Scope, user::Role};

use crate::stage::{Answer, Stage, complete, with};

/// A request as it comes from `peer`.
fn from(peer: &str, path: &str) -> Request {
    let (parts, ()) = http::Request::get(path).body(()).expect("a request").into_parts();
    let peer = RemoteAddr(Addr::from(SocketAddr::new(peer.parse().expect("an address"), 4711)));
    let local = LocalAddr(Addr::custom("tcp", "here"));
    Request::from_parts(RequestParts::from((parts, local, peer, Scheme::HTTP)), Body::empty())
}

async fn metrics(stage: &Stage, request: Request) -> Answer {
    Answer::of(stage.send(request).await).await
}

async fn page(stage: &Stage) -> String {
    let answer = metrics(stage, from("127.0.0.1", "/health/metrics")).await;
    assert_eq!((answer.status, answer.header("cache-control")), (StatusCode::OK, Some("no-store")));
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    String::from_utf8(answer.body.to_vec()).expect("UTF-8")
}

fn has(page: &str, line: &str) -> bool {
    page.lines().any(|found| found == line)
}

#[tokio::test]
async fn metrics_are_for_callers_on_this_host() {
    let stage = Stage::new().await;

    page(&stage).await;
    for (peer, forwarded) in [("10.0.0.1", None), ("127.0.0.1", Some("x-forwarded-for")), ("::1", Some("forwarded")), ("::1", Some("via"))]
    {
        let mut request = from(peer, "/health/metrics");
        if let Some(name) = forwarded {
            request = with(request, name, "127.0.0.1");
        }
        let answer = metrics(&stage, request).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::FORBIDDEN, "not_local"), "{peer} {forwarded:?}");
    }
}

#[tokio::test]
async fn a_metrics_token_is_asked_of_everybody() {
    let stage = Stage::with(("METRICS_TOKEN", "0123456789abcdef")).await;
    let shown = |peer, token: &str| with(from(peer, "/health/metrics"), "authorization", &format!("Bearer {token}"));

    assert_eq!(metrics(&stage, shown("10.0.0.1", "0123456789abcdef")).await.status, StatusCode::OK);
    let missing = metrics(&stage, from("127.0.0.1", "/health/metrics")).await;
    assert_eq!((missing.status, missing.code().as_str()), (StatusCode::UNAUTHORIZED, "missing_credentials"));
    assert!(missing.header("www-authenticate").is_some_and(|challenge| challenge.starts_with("Bearer")));
    let wrong = metrics(&stage, shown("127.0.0.1", "0123456789abcdeF")).await;
    assert_eq!((wrong.status, wrong.code().as_str()), (StatusCode::UNAUTHORIZED, "invalid_credentials"));
}

#[tokio::test]
async fn metrics_are_public_where_the_operator_says_so() {
    let stage = Stage::with(("METRICS_PUBLIC", "1")).await;

    assert_eq!(metrics(&stage, from("10.0.0.1", "/health/metrics")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn jobs_and_streams_are_counted() {
    let stage = Stage::new().await;
    let job = stage.submit("hello").await;
    let mut events = stage.follow(&job, None).await;
    events.next().await.expect("a stream that has begun");

    let before = page(&stage).await;
    assert!(has(&before, "claude_api_jobs_submitted_total 1"), "{before}");
    assert!(has(&before, "claude_api_event_streams_open 1"), "{before}");
    assert!(has(&before, "claude_api_jobs_queued 1.0") && has(&before, "claude_api_workers_alive 0.0"), "{before}");
    assert!(has(&before, "claude_api_http_requests_total{method=\"POST\",route=\"/api/chat\",status=\"202\"} 1"), "{before}");
    assert!(has(&before, "claude_api_http_requests_in_flight 1"), "the scrape itself: {before}");
    assert!(has(&before, "claude_api_redis_connected 1.0"), "{before}");

    let mut hand = stage.hand().await;
    complete(hand.take().await, "hi").await;
    events.rest().await;

    assert!(has(&page(&stage).await, "claude_api_event_streams_open 0"));
}

#[tokio::test]
async fn paths_that_nobody_knows_do_not_make_the_page_grow() {
    let stage = Stage::new().await;
    stage.get("/api/nothing").await;
    stage.get("/api/jobs/nothing").await;
    page(&stage).await;
    let before = page(&stage).await.lines().count();

    for n in 0..50 {
        stage.get(&format!("/api/{n}/x{n}?a={n}")).await;
        stage.get(&format!("/api/jobs/job_{n}")).await;
    }

    assert_eq!(page(&stage).await.lines().count(), before);
}

#[tokio::test]
async fn a_redis_that_is_away_is_named_and_the_metrics_go_on() {
    let mut stage = Stage::new().await;
    assert_eq!(stage.get("/health/ready").await.status, StatusCode::OK);
    stage.lose_redis().await;

    let ready = stage.get("/health/ready").await;
    assert_eq!((ready.status, ready.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "unavailable"));
    assert_eq!(ready.json()["detail"], "redis does not answer");
    let detailed = stage.get("/health/detailed").await;
    assert_eq!((detailed.status, &detailed.json()["status"]), (StatusCode::OK, &json!("degraded")));
    assert_eq!((&detailed.json()["database"]["status"], &detailed.json()["redis"]["status"]), (&json!("up"), &json!("down")));
    assert_eq!(stage.get("/health/alive").await.status, StatusCode::OK);
    assert!(page(&stage).await.contains("claude_api_jobs_queued"));
}

#[tokio::test]
async fn a_server_about_to_stop_is_not_ready_and_says_so_everywhere() {
    let stage = Stage::new().await;
    let _hand = stage.hand().await;
    assert_eq!(stage.get("/health/detailed").await.json()["status"], "ok");

    stage.app.draining.cancel();

    let ready = stage.get("/health/ready").await;
    assert_eq!((ready.status, ready.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "draining"));
    let detailed = stage.get("/health/detailed").await.json();
    assert_eq!((&detailed["status"], &detailed["draining"]), (&json!("degraded"), &json!(true)));
    assert_eq!(stage.get("/health").await.json()["status"], "ok");
}

#[tokio::test]
async fn numbers_are_for_admins_and_states_for_everybody() {
    let stage = Stage::new().await;
    let _hand = stage.hand().await;
    stage.submit("hello").await;
    let admin = stage.account("admin@example.com", Role::Admin).await;
    let ask = async |credential: &str| stage.call(credential, Method::GET, "/health/detailed", &json!(null)).await.json();

    let states = ask("").await;
    let is_told = |value: &serde_json::Value| {
        let names: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
        names.join(" ")
    };
    assert_eq!(is_told(&states), "database draining redis status uptime_secs version workers");
    assert_eq!((&states["database"], &states["redis"]), (&json!({"status": "up"}), &json!({"status": "up"})));
    assert_eq!(states["workers"], json!({"status": "up"}));
    for other in [stage.token_of(&stage.user).await, stage.key_of(&admin, &[Scope::Chat, Scope::Read]).await] {
        assert_eq!(is_told(&ask(&other).await), is_told(&states));
    }

    for admin in [stage.token_of(&admin).await, stage.key_of(&admin, &[Scope::Admin]).await] {
        let told = ask(&admin).await;
        assert!(told["database"]["latency_ms"].as_f64().is_some_and(|ms| ms > 0.0) && told["redis"]["latency_ms"].is_f64(), "{told}");
        assert_eq!(told["database"]["connections"]["max"], 10);
        assert_eq!((&told["workers"]["alive"], &told["workers"]["slots"]), (&json!(1), &json!(100)));
        assert_eq!(
            (&told["queue"]["queued"], &told["queue"]["running"], &told["queue"]["dead_letters"]),
            (&json!(1), &json!(0), &json!(0))
        );
        assert!(told["queue"]["oldest_wait_secs"].is_f64());
    }
}
