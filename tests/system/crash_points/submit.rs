//! Rows 1 to 4: an api that dies while it accepts a job.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tests::{
    proxy::Proxy,
    servers::Kind,
    system::{Api, Cli, Running, System},
};

use super::{assert_completed, assert_completed_unseen, at_rest, death, dying_at, recovered_after, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_1_what_was_not_committed_was_not_accepted() -> anyhow::Result<()> {
    let (system, other, _worker) = submit_to_one_that_dies_at("api.before_insert").await?;
    assert_eq!(system.database.count("jobs").await?, 0);

    let job: Value = send(&other).await?.error_for_status()?.json().await?;

    assert_completed_unseen(&system, &other.client, job["id"].as_str().expect("an id"), 1).await?;
    at_rest(&system).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_2_what_was_committed_and_not_rung_for_runs() -> anyhow::Result<()> {
    accepted_once_by_one_that_dies_at("api.after_insert").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_3_what_was_rung_for_and_not_marked_runs_once() -> anyhow::Result<()> {
    accepted_once_by_one_that_dies_at("api.after_ring").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_4_what_was_accepted_and_not_answered_is_answered_to_the_same_key() -> anyhow::Result<()> {
    accepted_once_by_one_that_dies_at("api.before_answer").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ring_whose_answer_is_lost_rings_once() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let proxy = Proxy::to_redis(system.redis.socket()).await?;
    let (_leader, api) = (system.api().await?, system.api_with(&[("REDIS_URL", &proxy.redis_url())]).await?);
    let _worker = system.worker().await?;
    // Redis knows the script by then.
    api.client.ended(&api.client.say("say:first").await?).await?;

    proxy.drop_reply_then_close(b"{q}:idx", 1);
    let id = api.client.say("say:second").await?;

    assert_completed_unseen(&system, &api.client, &id, 1).await?;
    assert_eq!(proxy.lost_replies(), 1);
    at_rest(&system).await
}

async fn accepted_once_by_one_that_dies_at(point: &str) -> anyhow::Result<()> {
    let (system, other, _worker) = submit_to_one_that_dies_at(point).await?;
    let id = other.client.only_job().await?;
    let events = other.client.events(&id, None).await?.rest().await?;
    let moves = assert_completed(&system, &other.client, &id, &events, 1).await?;
    // The one that died may have led.
    within("committed to running", recovered_after(&moves, moves[0].at)?, Duration::from_secs(2));

    let again = send(&other).await?;

    assert_eq!(again.status(), StatusCode::ACCEPTED);
    assert_eq!(again.json::<Value>().await?["id"], json!(id));
    assert_eq!(system.database.count("jobs").await?, 1);
    at_rest(&system).await
}

/// A system whose other api died while it accepted a job.
async fn submit_to_one_that_dies_at(point: &str) -> anyhow::Result<(System, Api, Running)> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let mut dying = system.api_with(&[("FAILPOINTS", &dying_at(point))]).await?;
    let other = system.api().await?;
    let worker = system.worker().await?;
    assert!(send(&dying).await.is_err(), "nobody answers");
    death(&mut dying.process).await?;
    Ok((system, other, worker))
}

/// The same request every time.
async fn send(api: &Api) -> reqwest::Result<reqwest::Response> {
    let request = api.client.request(Method::POST, "/api/chat").header("idempotency-key", "once");
    request.json(&json!({"message": "say:once and no more"})).send().await
}
