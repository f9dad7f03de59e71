//! Jobs: shown, listed, waited for, ended.

use std::time::Duration;

use poem::http::StatusCode;
use serde_json::{Value, json};

use crate::stage::{Stage, complete, get, with};

#[tokio::test]
async fn a_list_is_walked_newest_first_without_a_gap() {
    let stage = Stage::new().await;
    let mut submitted = Vec::new();
    for n in 0..5 {
        submitted.insert(0, stage.submit(&format!("message {n}")).await);
    }

    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = stage.get(&format!("/api/jobs?limit=2{cursor}")).await.json();
        let jobs = page["data"].as_array().expect("jobs").clone();
        seen.extend(jobs.iter().map(|job| job["id"].as_str().expect("an id").to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        assert_eq!(jobs.len(), 2);
        cursor = format!("&cursor={next}");
    }

    assert_eq!(seen, submitted);
    assert_eq!(stage.get("/api/jobs?status=completed").await.json(), json!({"data": [], "next_cursor": null}));
}

#[tokio::test]
async fn a_page_of_large_jobs_ends_early() {
    let stage = Stage::new().await;
    let large = "x".repeat(1_000_000);
    let mut submitted = Vec::new();
    for _ in 0..10 {
        submitted.insert(0, stage.submit(&large).await);
    }

    let mut seen = Vec::new();
    let first = stage.get("/api/jobs?limit=100").await.json();
    let cursor = first["next_cursor"].as_str().expect("another page");
    let second = stage.get(&format!("/api/jobs?limit=100&cursor={cursor}")).await.json();
    for page in [&first, &second] {
        let jobs = page["data"].as_array().expect("jobs");
        assert!(jobs.len() < 10);
        seen.extend(jobs.iter().map(|job| job["id"].as_str().expect("an id").to_owned()));
    }

    assert_eq!((seen, &second["next_cursor"]), (submitted, &Value::Null));
}

#[tokio::test]
async fn a_waiting_job_shows_its_place() {
    let stage = Stage::new().await;
    stage.submit("first").await;
    let second = stage.submit("second").await;

    let job = stage.get(&format!("/api/jobs/{second}")).await.json();

    assert_eq!(job["status"], "queued");
    assert_eq!(job["queue"], json!({"position": 1, "estimated_wait_ms": null}));
}

#[tokio::test]
async fn a_long_poll_answers_with_the_end() {
    let stage = Stage::new().await;
    let id = stage.submit("hi").await;
    let mut hand = stage.hand().await;

    let path = format!("/api/jobs/{id}?wait=60");
    let (answer, ()) = tokio::join!(stage.get(&path), async { complete(hand.take().await, "hello").await });

    let job = answer.json();
    assert_eq!((job["status"].as_str(), job["result"]["text"].as_str()), (Some("completed"), Some("hello")));
    assert_eq!(job.get("queue"), None);
}

#[tokio::test]
async fn a_long_poll_ends_with_its_time() {
    let stage = Stage::new().await;
    let id = stage.submit("hi").await;
    let begun = std::time::Instant::now();

    let answer = stage.get(&format!("/api/jobs/{id}?wait=1")).await;

    assert_eq!(answer.json()["status"], "queued");
    assert!((Duration::from_secs(1)..Duration::from_secs(10)).contains(&begun.elapsed()));
}

#[tokio::test]
async fn a_job_that_did_not_change_is_not_sent_again() {
    let stage = Stage::new().await;
    let id = stage.submit("hi").await;
    let path = format!("/api/jobs/{id}");
    let first = stage.get(&path).await;
    let tag = first.header("etag").expect("a tag").to_owned();

    let same = stage.ask(with(get(&path), "if-none-match", &format!("\"other\", {tag}"))).await;
    assert_eq!((same.status, same.body.len(), same.header("etag")), (StatusCode::NOT_MODIFIED, 0, Some(tag.as_str())));

    stage.post(&format!("{path}/cancel"), &json!({})).await;
    let changed = stage.ask(with(get(&path), "if-none-match", &tag)).await;
    assert_eq!((changed.status, changed.json()["status"].as_str()), (StatusCode::OK, Some("cancelled")));
}

#[tokio::test]
async fn a_waiting_job_is_cancelled_at_once_and_stays_so() {
    let stage = Stage::new().await;
    let id = stage.submit("hi").await;

    for _ in 0..2 {
        let answer = stage.post(&format!("/api/jobs/{id}/cancel"), &json!({})).await;
        assert_eq!((answer.status, answer.json()["status"].as_str()), (StatusCode::ACCEPTED, Some("cancelled")));
    }
    assert_eq!(stage.follow(&id, None).await.rest().await, ["1-0 job.cancelled"]);
}

#[tokio::test]
async fn a_running_job_shows_that_its_end_was_asked_for() {
    let stage = Stage::new().await;
    let id = stage.submit("hi").await;
    let lease = stage.hand().await.take().await;

    let job = stage.post(&format!("/api/jobs/{id}/cancel"), &json!({})).await.json();

    assert_eq!(job["status"], "running");
    assert!(job["cancel_requested_at"].is_string());
    drop(lease);
}

#[tokio::test]
async fn a_server_that_is_well_says_so_and_one_about_to_stop_too() {
    let mut stage = Stage::new().await;
    assert_eq!(stage.get("/health").await.json()["status"], "ok");
    assert_eq!(stage.get("/health/alive").await.json(), json!({"status": "alive"}));
    assert_eq!(stage.get("/health/ready").await.json(), json!({"status": "ready"}));

    stage.lose_redis().await;
    let down = stage.get("/health/ready").await;
    assert_eq!((down.status, down.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "unavailable"));
    assert_eq!(down.json()["detail"], "redis does not answer");
    assert!(down.header("retry-after").is_some());

    stage.app.draining.cancel();
    assert_eq!(stage.get("/health/ready").await.code(), "draining");
    assert_eq!(stage.get("/health/alive").await.status, StatusCode::OK);
}
