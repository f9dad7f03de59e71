//! What dies is made up for: another worker, another API server, the same numbers.

use anyhow::Context as _;
use rustix::process::Signal;
use serde_json::{Value, json};
use shared::time::Timestamp;
use tests::{
    brood::Brood,
    client::{Event, assert_whole},
    servers::Kind,
    system::{Cli, PATIENCE, System, await_process},
};

/// Why each attempt began.
fn begun(events: &[Event]) -> Vec<Value> {
    events.iter().filter(|event| event.kind == "job.started").map(|event| event.data["reason"].clone()).collect()
}

/// Text in many pieces, slowly enough to be caught in its middle.
const SLOW: &str = "slow:40:0.05";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_worker_finishes_what_a_killed_one_began() -> anyhow::Result<()> {
    finish_after_kill(Kind::Postgres, Cli::Real).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_worker_finishes_what_a_killed_one_began_on_sqlite() -> anyhow::Result<()> {
    finish_after_kill(Kind::Sqlite, Cli::Fake).await
}

async fn finish_after_kill(kind: Kind, cli: Cli) -> anyhow::Result<()> {
    let system = System::start(kind, cli).await?;
    let (api, mut first) = (system.api().await?, system.worker().await?);
    let mut stream = api.client.chat(SLOW).await?;
    let mut events = Vec::new();
    stream.until("text.delta", &mut events).await?;
    let _second = system.worker().await?;

    first.kill().await?;
    events.extend(stream.rest().await?);

    let text = assert_whole(&events);
    let job = &events.last().expect("events").data["job"];
    assert_eq!((&job["status"], &job["attempt"], &job["result"]["text"]), (&json!("completed"), &json!(2), &json!(text)));
    assert_eq!(begun(&events), ["first", "worker_lost"]);
    assert!(events.iter().any(|event| event.kind == "retrying"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_goes_on_at_another_api_server() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let (mut one, other, _worker) = (system.api().await?, system.api().await?, system.worker().await?);
    let mut stream = one.client.chat(SLOW).await?;
    let mut events = Vec::new();
    for _ in 0..5 {
        stream.until("text.delta", &mut events).await?;
    }
    let id = other.client.only_job().await?;

    one.process.kill().await?;
    let last = events.last().and_then(|event| event.id.clone()).expect("an id");
    events.extend(other.client.events(&id, Some(&last)).await?.rest().await?);

    let text = assert_whole(&events);
    assert_eq!(events.last().expect("events").data["job"]["result"]["text"], json!(text));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_a_killed_worker_started_lives_on() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Real).await?;
    let (api, mut worker) = (system.api().await?, system.worker().await?);
    let mark = format!("sleep 1000.{}", uuid::Uuid::new_v4().as_u128() % 1_000_000_007);
    api.client.submit(json!({"message": format!("tool:bash:setsid {mark}"), "tools": ["Bash"]})).await?;
    let mark = mark.replace(' ', "\0");
    await_process(&mark, true).await?;

    worker.kill().await?;

    await_process(&mark, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_a_dead_worker_heard_of_and_never_claimed_runs() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let api = system.api().await?;
    let deaf = system.join_and_never_beat().await?;
    let id = api.client.say("say:heard").await?;
    // The leader rings for it where the submit saw no room yet: it may know of this worker later than this does.
    let hearing = async {
        while !system.redis.command(&["XREADGROUP", "GROUP", "w", &deaf, "COUNT", "1", "STREAMS", "{q}:work", ">"])?.contains(&id) {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, hearing).await.context("it was never rung for")??;

    let _worker = system.worker().await?;

    assert_eq!(api.client.ended(&id).await?["result"]["text"], "heard");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_worker_is_fenced_and_its_processes_end() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let (api, mut frozen) = (system.api().await?, system.worker().await?);
    // So that what is looked at are the processes of the job alone.
    frozen.said("The CLI is").await?;
    let mut stream = api.client.chat("slow:200:0.05").await?;
    let mut events = Vec::new();
    stream.until("text.delta", &mut events).await?;
    let brood = Brood::with(&frozen, 1, "fake-claude").await?;

    frozen.signal(Signal::STOP)?;
    let _second = system.worker().await?;
    while events.last().is_none_or(|event| event.data["attempt"] != 2) {
        stream.until("job.started", &mut events).await?;
    }
    // Their supervisors end them: their worker cannot.
    brood.gone().await?;
    frozen.signal(Signal::CONT)?;
    frozen.said("Declared dead").await?;
    events.extend(stream.rest().await?);

    let text = assert_whole(&events);
    let job = &events.last().expect("events").data["job"];
    assert_eq!((&job["status"], &job["attempt"], &job["result"]["text"]), (&json!("completed"), &json!(2), &json!(text)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_worker_finishes_what_it_can_and_hands_the_rest_back() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("DRAIN_TIMEOUT", "2s").with("MAX_WORKERS", "2");
    let (api, mut first) = (system.api().await?, system.worker().await?);
    // Far more, and far less, than it may take.
    let (mut long, mut short) = (api.client.chat("slow:120:0.05").await?, api.client.chat("slow:10:0.05").await?);
    let (mut of_long, mut of_short) = (Vec::new(), Vec::new());
    long.until("text.delta", &mut of_long).await?;
    short.until("text.delta", &mut of_short).await?;

    let asked = Timestamp::now();
    first.signal(Signal::TERM)?;
    assert!(first.ended().await?, "{}", first.log());
    let _second = system.worker().await?;
    of_long.extend(long.rest().await?);
    of_short.extend(short.rest().await?);

    for events in [&of_long, &of_short] {
        let text = assert_whole(events);
        let job = &events.last().expect("events").data["job"];
        assert_eq!((&job["status"], &job["result"]["text"]), (&json!("completed"), &json!(text)));
    }
    assert_eq!((begun(&of_short), begun(&of_long)), (vec![json!("first")], vec![json!("first"), json!("drained")]));
    let finished: Timestamp = serde_json::from_value(of_short.last().expect("events").data["job"]["finished_at"].clone())?;
    assert!(finished >= asked, "it was over before the worker was told to stop");
    Ok(())
}
