//! Rows 9 to 11, 18 and 21: a worker that dies, freezes or is cut off while it has a job.

use std::time::Duration;

use rustix::process::Signal;
use shared::time::Timestamp;
use tests::{
    client::{Event, Stream},
    proxy::Proxy,
    record::ended_by_its_last_holder,
    runs::{Runs, WITHOUT_SANDBOX},
    servers::Kind,
    system::{Api, Cli, Running, System},
};

use super::{
    TTL, assert_apart, assert_completed, at_rest, death, dying_at, elsewhere, folder, pieces, recovered_after, until_attempt, with_ledger,
    within,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_9_what_a_worker_heard_of_and_never_claimed_runs() -> anyhow::Result<()> {
    taken_over_from_one_that_dies_at(Kind::Postgres, "worker.after_hear", 1, &["first"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_10_what_a_worker_claimed_and_never_began_runs() -> anyhow::Result<()> {
    taken_over_from_one_that_dies_at(Kind::Postgres, "worker.after_claim", 2, &["worker_lost"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_10_what_a_worker_claimed_and_never_began_runs_on_sqlite() -> anyhow::Result<()> {
    taken_over_from_one_that_dies_at(Kind::Sqlite, "worker.after_claim", 2, &["worker_lost"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_10_what_a_worker_began_runs() -> anyhow::Result<()> {
    taken_over_from_one_that_dies_at(Kind::Postgres, "worker.after_begin", 2, &["first", "worker_lost"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_11_what_a_worker_had_said_is_void_and_said_again() -> anyhow::Result<()> {
    taken_over_from_one_that_dies_at(Kind::Postgres, "worker.mid_stream", 2, &["first", "worker_lost"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_10_a_worker_whose_session_ended_is_known_to_be_dead_long_before_its_time_is_over() -> anyhow::Result<()> {
    known_early(Kind::Postgres, "jobs-elsewhere").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_10_a_worker_whose_lock_is_free_is_known_to_be_dead_long_before_its_time_is_over() -> anyhow::Result<()> {
    known_early(Kind::Sqlite, "jobs").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_18_a_worker_cut_off_from_the_database_ends_its_jobs_before_others_run_them() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let proxy = Proxy::to_postgres(&system.database).await?;
    let (api, url) = (system.api().await?, system.database.url_over(&proxy)?);
    let mut cut = system.worker_with(&[WITHOUT_SANDBOX, ("DATABASE_URL", &url)]).await?;
    let (prompt, ledger) = with_ledger(&system, "slow:100:0.05");
    let mut stream = api.client.chat(&prompt).await?;
    let mut events = Vec::new();
    pieces(&mut stream, 5, &mut events).await?;
    let id = api.client.only_job().await?;

    proxy.black_hole();
    let since = Timestamp::now().unix_ms();
    let _other = elsewhere(&system, &[WITHOUT_SANDBOX]).await?;
    events.extend(stream.rest().await?);
    proxy.heal();
    cut.said("Declared dead, or cut off").await?;

    let moves = assert_completed(&system, &api.client, &id, &events, 2).await?;
    within("cut off to running", recovered_after(&moves, since)?, TTL + Duration::from_secs(1));
    assert_apart(&ledger, 2);
    at_rest(&system).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_21_a_worker_that_wakes_in_the_middle_of_its_job_says_nothing_more() -> anyhow::Result<()> {
    woken_after_it_froze_at("worker.mid_stream").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_21_a_worker_that_wakes_at_the_end_of_its_job_does_not_end_it() -> anyhow::Result<()> {
    woken_after_it_froze_at("worker.before_settle").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_21_a_worker_that_wakes_before_its_cli_begins_begins_none() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let api = system.api().await?;
    let mut frozen = system.worker_with(&[("FAILPOINTS", "worker.before_cli=stop"), WITHOUT_SANDBOX]).await?;
    let (prompt, ledger) = with_ledger(&system, "slow:20:0.05");
    let (mut stream, mut events) = (api.client.chat(&prompt).await?, Vec::new());
    frozen.said("Started job").await?;
    let _other = elsewhere(&system, &[WITHOUT_SANDBOX]).await?;
    until_attempt(&mut stream, 2, &mut events).await?;

    frozen.signal(Signal::CONT)?;
    frozen.said("Declared dead").await?;
    events.extend(stream.rest().await?);

    let id = api.client.only_job().await?;
    assert_completed(&system, &api.client, &id, &events, 2).await?;
    assert_apart(&ledger, 1);
    at_rest(&system).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_21_a_worker_that_froze_before_all_sessions_ended_keeps_its_job_until_its_clis_are_gone() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let (api, frozen) = (system.api().await?, system.worker_with(&[WITHOUT_SANDBOX]).await?);
    let (prompt, ledger) = with_ledger(&system, "slow:200:0.05");
    let (mut stream, mut events) = (api.client.chat(&prompt).await?, Vec::new());
    stream.until("text.delta", &mut events).await?;
    let _other = elsewhere(&system, &[WITHOUT_SANDBOX]).await?;
    // Until a lock that is free would be taken for a sign again.
    pieces(&mut stream, 80, &mut events).await?;

    frozen.signal(Signal::STOP)?;
    system.database.end_connections().await?;
    until_attempt(&mut stream, 2, &mut events).await?;
    frozen.signal(Signal::CONT)?;
    events.extend(stream.rest().await?);

    let id = api.client.only_job().await?;
    assert_completed(&system, &api.client, &id, &events, 2).await?;
    assert_apart(&ledger, 2);
    at_rest(&system).await
}

/// A worker dies at `point`, and another runs the job in `attempt`; why attempts began is told in `starts`.
async fn taken_over_from_one_that_dies_at(kind: Kind, point: &str, attempt: u32, starts: &[&str]) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let api = system.api().await?;
    let mut dying = system.worker_with(&[("FAILPOINTS", &dying_at(point)), WITHOUT_SANDBOX]).await?;
    let (prompt, ledger) = with_ledger(&system, "slow:20:0.02");

    let mut stream = api.client.chat(&prompt).await?;
    let died = death(&mut dying).await?;
    let _other = elsewhere(&system, &[WITHOUT_SANDBOX]).await?;
    let events = stream.rest().await?;

    let id = api.client.only_job().await?;
    let moves = assert_completed(&system, &api.client, &id, &events, attempt).await?;
    let told: Vec<_> = events.iter().filter(|event| event.kind == "job.started").map(|event| event.data["reason"].clone()).collect();
    assert_eq!(told, starts);
    within("dead to running", recovered_after(&moves, died)?, TTL + Duration::from_secs(1));
    assert_eq!(Runs::read(&ledger).overlaps, 0);
    at_rest(&system).await
}

/// A worker that may be silent for long dies: others know it by what the system let go of.
async fn known_early(kind: Kind, other: &str) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?.with("WORKER_TTL", "25s");
    let api = system.api().await?;
    let mut dying = system.worker_with(&[("FAILPOINTS", &dying_at("worker.after_begin"))]).await?;

    let mut stream = api.client.chat("say:again").await?;
    let died = death(&mut dying).await?;
    let _other = system.worker_with(&[("JOBS_DIR", &folder(&system, other))]).await?;
    let events = stream.rest().await?;

    let id = api.client.only_job().await?;
    let moves = assert_completed(&system, &api.client, &id, &events, 2).await?;
    within("dead to running", recovered_after(&moves, died)?, Duration::from_secs(3));
    at_rest(&system).await
}

async fn woken_after_it_froze_at(point: &str) -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let api = system.api().await?;
    let mut frozen = system.worker_with(&[("FAILPOINTS", &format!("{point}=stop")), WITHOUT_SANDBOX]).await?;
    // No two runs say the same.
    let (prompt, ledger) = with_ledger(&system, "clock:40:0.05");

    let (mut stream, mut events, _other) = wake(&system, &api, &frozen, &prompt).await?;
    frozen.said("Declared dead").await?;
    events.extend(stream.rest().await?);

    let id = api.client.only_job().await?;
    let moves = assert_completed(&system, &api.client, &id, &events, 2).await?;
    assert!(ended_by_its_last_holder(&moves), "{moves:?}");
    assert_apart(&ledger, 2);
    at_rest(&system).await
}

/// Let a worker freeze with a job, and wake once another worker has begun it.
pub(super) async fn wake(system: &System, api: &Api, frozen: &Running, prompt: &str) -> anyhow::Result<(Stream, Vec<Event>, Running)> {
    let mut stream = api.client.chat(prompt).await?;
    let mut events = Vec::new();
    stream.until("job.started", &mut events).await?;
    let other = elsewhere(system, &[WITHOUT_SANDBOX]).await?;
    until_attempt(&mut stream, 2, &mut events).await?;
    frozen.signal(Signal::CONT)?;
    Ok((stream, events, other))
}
