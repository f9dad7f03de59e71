//! Asking the model: at once, waiting, streaming, and again.

use poem::{Request, http::StatusCode};
use serde_json::{Value, json};

use crate::stage::{Events, Stage, complete, get, post, say, with};

fn chat(body: &Value) -> Request {
    post("/api/chat").content_type("application/json; charset=utf-8").body(body.to_string())
}

#[tokio::test]
async fn a_message_becomes_a_job_that_can_be_found() {
    let stage = Stage::new().await;
    let body = json!({"message": [{"type": "text", "text": "hi"}], "model": "sonnet", "metadata": {"order": "7"}, "priority": "high"});

    let answer = stage.ask(chat(&body)).await;

    assert_eq!(answer.status, StatusCode::ACCEPTED);
    let job = answer.json();
    assert_eq!(answer.header("location"), Some(format!("/api/jobs/{}", job["id"].as_str().expect("an id")).as_str()));
    assert_eq!((&job["status"], &job["model"], &job["metadata"]), (&json!("queued"), &json!("sonnet"), &json!({"order": "7"})));
    assert_eq!(job["queue"]["position"], 0);
    assert_eq!(stage.get(answer.header("location").expect("a location")).await.json()["id"], job["id"]);
}

#[tokio::test]
async fn a_client_that_prefers_to_wait_gets_the_end() {
    let stage = Stage::new().await;
    let mut hand = stage.hand().await;

    let asked = stage.ask(with(chat(&json!({"message": "hi"})), "prefer", "wait=60"));
    let (answer, ()) = tokio::join!(asked, async { complete(hand.take().await, "hello").await });

    assert_eq!((answer.status, answer.header("preference-applied")), (StatusCode::OK, Some("wait=60")));
    assert_eq!(answer.json()["result"]["text"], "hello");

    let answer = stage.ask(with(chat(&json!({"message": "hi"})), "prefer", "wait=1")).await;
    assert_eq!((answer.status, answer.header("preference-applied")), (StatusCode::ACCEPTED, Some("wait=1")));
}

#[tokio::test]
async fn a_streaming_client_gets_the_events_from_the_queue_to_the_end() {
    let stage = Stage::new().await;
    let mut hand = stage.hand().await;

    for request in [chat(&json!({"message": "hi", "stream": true})), with(chat(&json!({"message": "hi"})), "accept", "text/event-stream")] {
        let response = stage.send(with(request, "x-api-key", &stage.key)).await;
        let mut events = Events::of(response);
        assert_eq!(events.status, StatusCode::OK);
        assert_eq!(events.headers["content-type"], "text/event-stream");
        assert_eq!(events.headers["cache-control"], "no-store");
        assert_eq!(events.headers["x-accel-buffering"], "no");
        assert!(events.headers["location"].to_str().expect("ASCII").starts_with("/api/jobs/job_"));

        assert_eq!(events.next().await.expect("a message").retry.as_deref(), Some("2000"));
        let queued = events.next().await.expect("a message");
        assert_eq!((queued.kind(), queued.id.as_deref(), &queued.data["position"]), ("job.queued", None, &json!(0)));
        let lease = hand.take().await;
        assert_eq!(events.until("job.started").await.id.as_deref(), Some("1-0"));
        say(&lease, "hel");
        assert_eq!(events.until("text.delta").await.data["text"], "hel");
        complete(lease, "hello").await;
        let last = events.until("job.completed").await;
        assert_eq!((last.id.as_deref(), &last.data["job"]["result"]["text"]), (Some("1-2"), &json!("hello")));
        assert_eq!(events.next().await, None);
    }
}

#[tokio::test]
async fn the_same_key_never_makes_a_second_job() {
    let stage = Stage::new().await;
    let send = |body: Value| stage.ask(with(chat(&body), "idempotency-key", "order 7"));

    let first = send(json!({"message": "hi", "priority": "low"})).await;
    let again = send(json!({"priority": "low", "message": "hi"})).await;
    let other = send(json!({"message": "ho"})).await;

    assert_eq!((again.status, &again.json()["id"]), (StatusCode::ACCEPTED, &first.json()["id"]));
    assert_eq!((other.status, other.code().as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused"));
}

#[tokio::test]
async fn a_stream_that_is_asked_for_again_goes_on_where_it_was() {
    let stage = Stage::new().await;
    let mut hand = stage.hand().await;
    let body = json!({"message": "hi", "stream": true});
    let again = |last: Option<&str>| {
        let request = with(with(chat(&body), "idempotency-key", "k"), "x-api-key", &stage.key);
        if let Some(last) = last { with(request, "last-event-id", last) } else { request }
    };
    let first = Events::of(stage.send(again(None)).await);
    let lease = hand.take().await;
    say(&lease, "a");
    complete(lease, "a").await;

    assert_eq!(first.rest().await, ["1-0 job.started", "1-1 text.delta", "1-2 job.completed"]);
    assert_eq!(Events::of(stage.send(again(None)).await).rest().await.len(), 3);
    assert_eq!(Events::of(stage.send(again(Some("1-1"))).await).rest().await, ["1-2 job.completed"]);
    assert_eq!(stage.send(again(Some("1-2"))).await.status(), StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_message_is_accepted_while_redis_is_away() {
    let mut stage = Stage::new().await;
    stage.lose_redis().await;

    let answer = stage.ask(chat(&json!({"message": "hi"}))).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{:?}", answer.body);
    let path = answer.header("location").expect("a location").to_owned();
    assert_eq!(stage.ask(get(&path)).await.status, StatusCode::OK);
}
