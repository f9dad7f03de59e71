//! Whatever goes wrong, the answer is a problem body with a stable code.

use bytes::Bytes;
use futures_util::stream;
use poem::{
    Body, Request,
    http::{Method, StatusCode},
};
use serde_json::json;

use crate::stage::{Answer, Stage, get, post, with};

const JOB: &str = "job_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b";

#[tokio::test]
async fn every_bad_request_has_its_status_and_its_code() {
    let stage = Stage::new().await;
    let chat = |body: &str| post("/api/chat").content_type("application/json").body(body.to_owned());
    let events = |position: &str| with(get(&format!("/api/jobs/{JOB}/events")), "last-event-id", position);

    for (what, request, status, code) in [
        ("no JSON", chat("{"), 400, "malformed_json"),
        ("an empty body", chat(""), 400, "malformed_json"),
        ("a lone surrogate", chat(r#"{"message":"\ud800"}"#), 400, "malformed_json"),
        ("a key twice", chat(r#"{"message":"a","message":"b"}"#), 400, "duplicate_key"),
        ("no message", chat("{}"), 422, "invalid_request"),
        ("an unknown field", chat(r#"{"message":"a","mesage":"b"}"#), 422, "invalid_request"),
        ("an unknown model", chat(r#"{"message":"a","model":"gpt-5"}"#), 422, "invalid_request"),
        ("a tool beyond the job", chat(r#"{"message":"a","tools":["CronCreate"]}"#), 422, "invalid_request"),
        ("a NUL", chat(r#"{"message":"\u0000"}"#), 422, "invalid_request"),
        ("no content type", post("/api/chat").body("{}"), 415, "unsupported_media_type"),
        ("another content type", post("/api/chat").content_type("text/plain").body("{}"), 415, "unsupported_media_type"),
        ("an unknown path", get("/api/nothing"), 404, "not_found"),
        ("an unknown path outside", get("/nothing"), 404, "not_found"),
        ("an unknown job", get(&format!("/api/jobs/{JOB}")), 404, "not_found"),
        ("an id of another kind", get(&format!("/api/jobs/{}", JOB.replace("job_", "user_"))), 404, "not_found"),
        ("a malformed id", get("/api/jobs/7"), 404, "not_found"),
        ("an id that is not UTF-8", get("/api/jobs/%FF"), 404, "not_found"),
        ("events of an unknown job", get(&format!("/api/jobs/{JOB}/events")), 404, "not_found"),
        ("the end of an unknown job", post(&format!("/api/jobs/{JOB}/cancel")).finish(), 404, "not_found"),
        ("a wrong limit", get("/api/jobs?limit=0"), 422, "invalid_request"),
        ("a wrong status", get("/api/jobs?status=done"), 422, "invalid_request"),
        ("a wrong cursor", get("/api/jobs?cursor=7"), 422, "invalid_request"),
        ("a wrong wait", get(&format!("/api/jobs/{JOB}?wait=61")), 422, "invalid_request"),
        ("a wrong position", get(&format!("/api/jobs/{JOB}/events?after=x")), 422, "invalid_request"),
        ("a wrong last event", events("x"), 422, "invalid_request"),
        ("another method", Request::builder().method(Method::DELETE).uri_str("/api/chat").finish(), 405, "method_not_allowed"),
        ("another method on a page", Request::builder().method(Method::POST).uri_str("/docs").finish(), 405, "method_not_allowed"),
        ("a wrong last event of a message", with(chat(r#"{"message":"a","stream":true}"#), "last-event-id", "x"), 422, "invalid_request"),
        ("an empty idempotency key", with(chat(r#"{"message":"a"}"#), "idempotency-key", ""), 422, "invalid_request"),
        ("a long idempotency key", with(chat(r#"{"message":"a"}"#), "idempotency-key", &"k".repeat(256)), 422, "invalid_request"),
    ] {
        let answer = stage.ask(request).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{what}: {:?}", answer.body);
    }

    // The row comes before all else: without one there is neither a queue entry nor a process.
    let jobs = stage.ask(get("/api/jobs")).await.json();
    assert_eq!(jobs["data"], json!([]), "nothing of it was accepted");
}

#[tokio::test]
async fn a_refused_value_is_pointed_at() {
    let stage = Stage::new().await;

    let body = stage.post("/api/chat", &json!({"message": "a", "max_turns": 0, "tools": ["a b"]})).await.json();
    let pointers: Vec<_> = body["errors"].as_array().expect("errors").iter().map(|error| error["pointer"].clone()).collect();
    assert_eq!(pointers, ["/tools/0", "/max_turns"]);

    let body = stage.get("/api/jobs?limit=101").await.json();
    assert_eq!(body["errors"], json!([{"pointer": "?limit", "detail": "expected a whole number from 1 to 100"}]));

    let body = stage.ask(with(get(&format!("/api/jobs/{JOB}/events")), "last-event-id", "x")).await.json();
    assert_eq!(body["errors"][0]["pointer"], "Last-Event-ID");
}

#[tokio::test]
async fn wrong_credentials_are_refused_before_the_body_is_read() {
    let stage = Stage::new().await;
    let close = format!("Bearer {}x", stage.key);

    for (name, value) in
        [("x-api-key", "wrong"), ("authorization", "Bearer wrong"), ("authorization", "Basic a"), ("authorization", &close)]
    {
        let request = post("/api/chat").header(name, value).content_type("application/json");
        let answer = Answer::of(stage.send(request.body("{")).await).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::UNAUTHORIZED, "invalid_credentials"), "{value}");
    }
    let both = with(with(get("/api/jobs"), "x-api-key", &stage.key), "authorization", "Bearer wrong");
    assert_eq!(stage.send(both).await.status(), StatusCode::UNAUTHORIZED);
    let request = Request::builder().uri_str("/api/jobs").header("authorization", format!("Bearer {}", stage.key));
    assert_eq!(stage.send(request.finish()).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_with_and_without_a_length() {
    let stage = Stage::with(("MAX_BODY_BYTES", "1000")).await;
    let body = |size: usize| json!({"message": "x".repeat(size - r#"{"message":""}"#.len())}).to_string();
    let chat = || post("/api/chat").content_type("application/json");
    let chunked = |text: String| {
        let chunks: Vec<_> = text.into_bytes().chunks(100).map(|chunk| Ok::<_, std::io::Error>(Bytes::copy_from_slice(chunk))).collect();
        chat().body(Body::from_bytes_stream(stream::iter(chunks)))
    };

    assert_eq!(stage.ask(chat().body(body(1000))).await.status, StatusCode::ACCEPTED);
    assert_eq!(stage.ask(chunked(body(1000))).await.status, StatusCode::ACCEPTED);
    for request in [chat().body(body(1001)), chunked(body(1001)), chat().header("content-length", "1001").body("{}")] {
        let answer = stage.ask(request).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"));
    }
}

#[tokio::test]
async fn every_answer_has_its_id_and_the_security_headers() {
    let stage = Stage::new().await;

    for path in ["/health", "/api/jobs", "/nothing", "/docs", "/openapi.yaml", "/", "/admin", "/admin/assets/gone.js"] {
        let answer = stage.ask(with(get(path), "x-request-id", "mine-1")).await;
        assert_eq!(answer.header("x-request-id"), Some("mine-1"), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("x-frame-options"), Some("DENY"), "{path}");
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"), "{path}");
        assert!(answer.header("content-security-policy").is_some_and(|policy| policy.contains("frame-ancestors 'none'")), "{path}");
    }
}

#[tokio::test]
async fn what_a_method_may_be_is_said() {
    let stage = Stage::new().await;

    for (path, allow) in
        [("/api/chat", "POST"), ("/api/jobs", "GET, HEAD"), (&format!("/api/jobs/{JOB}/cancel"), "POST"), ("/docs", "GET, HEAD")]
    {
        let answer = stage.ask(Request::builder().method(Method::PATCH).uri_str(path).finish()).await;
        assert_eq!((answer.status, answer.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, Some(allow)), "{path}");
    }
}

#[tokio::test]
async fn pages_of_the_frontend_may_call_and_others_may_not_read() {
    let stage = Stage::with(("FRONTEND_URL", "https://app.example.com, http://localhost:3030")).await;
    let preflight = |origin: &str| {
        let request = Request::builder().method(Method::OPTIONS).uri_str("/api/chat").header("origin", origin);
        request.header("access-control-request-method", "POST").finish()
    };
    let from = |origin: &str| {
        Request::builder()
            .uri_str("/api/jobs")
            .header("host", "api.example.com")
            .header("x-api-key", &stage.key)
            .header("origin", origin)
            .finish()
    };

    let allowed = Answer::of(stage.send(preflight("https://app.example.com")).await).await;
    assert_eq!(allowed.status, StatusCode::NO_CONTENT);
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://app.example.com"));
    assert!(allowed.header("access-control-allow-headers").is_some_and(|headers| headers.contains("Last-Event-ID")));
    let refused = Answer::of(stage.send(preflight("https://evil.example.com")).await).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::FORBIDDEN, "origin_not_allowed"));

    for (origin, readable) in
        [("http://localhost:3030", Some("http://localhost:3030")), ("https://api.example.com", None), ("https://evil.example.com", None)]
    {
        let answer = Answer::of(stage.send(from(origin)).await).await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (StatusCode::OK, readable), "{origin}");
        assert_eq!(answer.header("vary"), Some("Origin"));
    }
}
