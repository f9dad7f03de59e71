//! Each place where something may die, freeze or be cut off between two steps of the protocol, one test a place or more.
//! Whatever happens: a job that was accepted ends once, whoever follows it misses nothing, and nothing is left over.
//!
//! | row | what dies, or is lost |
//! |---|---|
//! | 1–4 | an api: before it commits a job, before it rings, before it marks, before it answers |
//! | 5–7 | Redis: away at a submit, without the end of what it wrote down, without anything |
//! | 8 | the answer that tells a worker of a job |
//! | 9–11 | a worker: before it claims what it heard of, while it runs it, after it said something |
//! | 12–14 | a worker: before it commits an end, before it tells it, before it takes the entry away |
//! | 15 | the leader, between the record and the queue |
//! | 16 | the database, for longer than a worker may be silent |
//! | 17–19 | the way: from a worker to Redis, from a worker to the database, from an api to Redis |
//! | 20 | an api that is followed at |
//! | 21 | a worker that freezes, and wakes when its job is another's |
//! | 22 | the clocks |
//!
//! A database that loses what it committed is not among them: only a synchronous standby helps there. Nor is a result
//! that outlives its worker: the job runs again.

#![expect(clippy::print_stdout, reason = "a run says how long it took")]

mod clocks;
mod database;
mod ending;
mod redis;
mod running;
mod server;
mod submit;
mod watch;
mod without;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use serde_json::json;
use shared::time::Timestamp;
use tests::{
    client::{Client, Event, Stream, assert_whole},
    record::{Move, await_rest, moves_of},
    runs::Runs,
    system::{Running, System},
};

/// How long a silent worker is taken for alive here: see [`System::start`].
const TTL: Duration = Duration::from_secs(3);

/// A machine that is busy with other tests is slower than the protocol.
const BUSY: Duration = Duration::from_secs(5);

/// Settings of a process that dies at `point`.
fn dying_at(point: &str) -> String {
    format!("{point}=kill")
}

/// Start a worker with a host's folder of its own, as one on another machine has it, and these settings.
async fn elsewhere(system: &System, own: &[(&str, &str)]) -> anyhow::Result<Running> {
    let jobs = folder(system, "jobs-elsewhere");
    system.worker_with(&[own, &[("JOBS_DIR", jobs.as_str())]].concat()).await
}

fn folder(system: &System, name: &str) -> String {
    system.directory().join(name).to_string_lossy().into_owned()
}

/// Wait for the death of a process that was to die by itself; when that was.
async fn death(process: &mut Running) -> anyhow::Result<i64> {
    let ended = process.ended().await;
    let now = Timestamp::now().unix_ms();
    let is_success = ended.with_context(|| format!("it did not pass the place where it dies; its log:\n{}", process.log()))?;
    ensure!(!is_success, "it ended well; its log:\n{}", process.log());
    Ok(now)
}

/// How long after `since` the last attempt of a job began, as the record has it.
fn recovered_after(moves: &[Move], since: i64) -> anyhow::Result<Duration> {
    let began = moves.iter().rev().find(|one| one.to == "running").context("no attempt began")?.at;
    Ok(Duration::from_millis(u64::try_from(began - since).unwrap_or(0)))
}

/// Assert that `bound`, and what a busy machine adds, was enough; and say what it was.
fn within(what: &str, took: Duration, bound: Duration) {
    println!("{what}: {took:?} (bound {bound:?})");
    assert!(took < bound + BUSY, "{what}: {took:?}, bound {bound:?}");
}

/// Assert that a job completed in `attempt`, with the text that its stream told, once; its moves.
async fn assert_completed(system: &System, client: &Client, id: &str, events: &[Event], attempt: u32) -> anyhow::Result<Vec<Move>> {
    let text = assert_whole(events);
    let job = client.ended(id).await?;
    assert_eq!((&job["status"], &job["attempt"], &job["result"]["text"]), (&json!("completed"), &json!(attempt), &json!(text)), "{job}");
    assert_eq!(events.last().expect("events").data["job"], job);
    let moves = moves_of(system, id).await?;
    let ends: Vec<_> = moves.iter().filter(|one| one.is_terminal()).map(|one| (one.to.as_str(), one.attempt)).collect();
    assert_eq!(ends, [("completed", i32::try_from(attempt)?)]);
    let begun: Vec<_> = moves.iter().filter(|one| one.to == "running").map(|one| one.attempt).collect();
    assert_eq!(begun, (1..=i32::try_from(attempt)?).collect::<Vec<_>>());
    Ok(moves)
}

/// The same of a job that nobody followed from its start.
async fn assert_completed_unseen(system: &System, client: &Client, id: &str, attempt: u32) -> anyhow::Result<Vec<Move>> {
    client.ended(id).await?;
    let events = client.events(id, None).await?.rest().await?;
    assert_completed(system, client, id, &events, attempt).await
}

/// A prompt whose runs are in a ledger, and that ledger. The workers are to be without a sandbox.
fn with_ledger(system: &System, prompt: &str) -> (String, PathBuf) {
    let path = system.directory().join("ledger");
    (format!("@ledger={} {prompt}", path.display()), path)
}

/// Assert that so many runs of a job began, and none while another one lived.
fn assert_apart(ledger: &std::path::Path, count: usize) {
    let runs = Runs::read(ledger);
    assert_eq!((runs.started.len(), runs.overlaps), (count, 0), "{runs:?}");
}

/// Follow a job until `count` pieces of its answer have come.
async fn pieces(stream: &mut Stream, count: usize, events: &mut Vec<Event>) -> anyhow::Result<()> {
    for _ in 0..count {
        stream.until("text.delta", events).await?;
    }
    Ok(())
}

/// Follow a job until its attempt `attempt` begins.
async fn until_attempt(stream: &mut Stream, attempt: u32, events: &mut Vec<Event>) -> anyhow::Result<()> {
    while stream.until("job.started", events).await?.data["attempt"] != attempt {}
    Ok(())
}

/// At rest, within the bound of what looks for strays.
async fn at_rest(system: &System) -> anyhow::Result<()> {
    // Entries idle as long as a worker may be are held against the rows each second, and go once seen twice.
    let took = await_rest(system, TTL + Duration::from_secs(4) + BUSY).await?;
    println!("at rest after {took:?}");
    Ok(())
}
