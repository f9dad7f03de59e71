//! Rows 12 to 14: a worker that dies while it ends a job; and a job that every worker dies of.

use std::time::Duration;

use serde_json::json;
use shared::time::Timestamp;
use tests::{
    client::assert_whole,
    record::moves_of,
    servers::Kind,
    system::{Cli, System},
};

use super::{TTL, assert_completed, at_rest, death, dying_at, elsewhere, recovered_after, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_12_an_answer_that_was_not_committed_is_asked_for_again() -> anyhow::Result<()> {
    ended_by_one_that_dies_at("worker.before_settle", 2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_13_an_end_that_was_committed_and_not_told_is_told() -> anyhow::Result<()> {
    ended_by_one_that_dies_at("worker.after_settle", 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_14_an_end_that_was_told_leaves_no_entry() -> anyhow::Result<()> {
    ended_by_one_that_dies_at("worker.after_end", 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_costs_three_workers_their_lives_is_given_up() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let api = system.api().await?;
    let mut stream = api.client.chat("say:poison").await?;
    let mut events = Vec::new();

    for attempt in 1..=3 {
        let mut victim = system.worker_with(&[("FAILPOINTS", &dying_at("worker.after_begin"))]).await?;
        super::until_attempt(&mut stream, attempt, &mut events).await?;
        death(&mut victim).await?;
    }
    let _survivor = system.worker().await?;
    events.extend(stream.rest().await?);

    assert_whole(&events);
    let job = &events.last().expect("events").data["job"];
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("attempts_exhausted")));
    let id = job["id"].as_str().expect("an id");
    let moves = moves_of(&system, id).await?;
    assert_eq!(moves.iter().filter(|one| one.to == "running").count(), 3);
    assert_eq!(moves.iter().filter(|one| one.is_terminal()).count(), 1);
    assert_eq!(system.database.count("jobs WHERE dead_letter").await?, 1);
    at_rest(&system).await
}

async fn ended_by_one_that_dies_at(point: &str, attempt: u32) -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let api = system.api().await?;
    let mut dying = system.worker_with(&[("FAILPOINTS", &dying_at(point))]).await?;

    let mut stream = api.client.chat("slow:10:0.02").await?;
    let died = death(&mut dying).await?;
    let _other = elsewhere(&system, &[]).await?;
    let events = stream.rest().await?;
    let told = Duration::from_millis(u64::try_from(Timestamp::now().unix_ms() - died)?);

    let id = api.client.only_job().await?;
    let moves = assert_completed(&system, &api.client, &id, &events, attempt).await?;
    if attempt == 2 {
        within("dead to running", recovered_after(&moves, died)?, TTL + Duration::from_secs(1));
    } else {
        // What has ended is left to its worker for two seconds.
        within("dead to told", told, Duration::from_secs(3));
    }
    at_rest(&system).await
}
