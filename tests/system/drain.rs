//! A worker that an operator asks to drain: it finishes what it runs, begins nothing more, and ends.

use rustix::process::Signal;
use serde_json::json;
use shared::{
    Error,
    audit::{AuditFilter, AuditLog, By},
    workers::{WorkerState, Workers},
};
use tests::{
    on_both_databases,
    servers::Kind,
    system::{Cli, System},
};

on_both_databases!(a_worker_asked_to_drain_finishes_its_job_begins_none_and_ends);

async fn a_worker_asked_to_drain_finishes_its_job_begins_none_and_ends(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let (api, mut worker, store) = (system.api().await?, system.worker().await?, system.store().await?);
    let workers = Workers::new(&store);
    let mut stream = api.client.chat("slow:40:0.05").await?;
    let mut events = Vec::new();
    stream.until("text.delta", &mut events).await?;
    let active = workers.list(None, 10).await?;
    assert_eq!((active.len(), active[0].state, active[0].running), (1, WorkerState::Active, 1));
    let id = active[0].id;

    for _ in 0..2 {
        let asked = workers.drain(id, &By::default()).await?.expect("it is there");
        assert_eq!((asked.id, asked.state), (id, WorkerState::Draining));
    }
    // It has free slots, and is the only worker.
    let waiting = api.client.say("say:later").await?;
    events.extend(stream.rest().await?);
    assert!(worker.ended().await?, "{}", worker.log());

    let last = events.last().expect("events");
    assert_eq!((last.kind.as_str(), &last.data["job"]["attempt"]), ("job.completed", &json!(1)));
    let job = api.client.job(&waiting).await?;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("queued"), &json!(0)));
    let left = workers.list(None, 10).await?;
    assert_eq!((left[0].id, left[0].state, left[0].running), (id, WorkerState::Dead, 0));
    assert!(matches!(workers.drain(id, &By::default()).await, Err(Error::WorkerDead)));
    let filter = AuditFilter { actor: None, action: Some("worker.drain".into()), before: None, limit: 10 };
    let noted = AuditLog::new(&store).list(filter).await?;
    assert_eq!(noted.iter().map(|entry| entry.target.clone()).collect::<Vec<_>>(), [Some(id.to_string())], "noted once");

    let _next = system.worker().await?;
    assert_eq!(api.client.ended(&waiting).await?["result"]["text"], "later");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_told_twice_to_stop_hands_its_jobs_back_at_once_and_counts_no_failure() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("DRAIN_TIMEOUT", "10m");
    let (api, mut worker) = (system.api().await?, system.worker().await?);
    let mut stream = api.client.chat("slow:40:0.05").await?;
    let mut events = Vec::new();
    stream.until("text.delta", &mut events).await?;
    worker.signal(Signal::TERM)?;
    worker.said("Draining").await?;
    // It has free slots, and is the only worker.
    let waiting = api.client.say("say:later").await?;

    worker.signal(Signal::TERM)?;
    assert!(worker.ended().await?, "{}", worker.log());

    assert_eq!(api.client.job(&waiting).await?["attempt"], json!(0));
    assert_eq!(system.database.count("jobs WHERE failures > 0 OR reclaims > 0 OR state <> 'queued'").await?, 0);
    let _next = system.worker().await?;
    events.extend(stream.rest().await?);
    let started: Vec<_> = events.iter().filter(|event| event.kind == "job.started").map(|event| event.data["reason"].clone()).collect();
    assert_eq!(started, [json!("first"), json!("drained")]);
    assert_eq!(events.last().expect("events").kind, "job.completed");
    assert_eq!(api.client.ended(&waiting).await?["result"]["text"], "later");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_told_twice_to_stop_ends_at_once() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("DRAIN_TIMEOUT", "10m");
    let mut api = system.api().await?;
    // A request that will never be complete.
    let address = api.client.base().trim_start_matches("http://").to_owned();
    let mut socket = tokio::net::TcpStream::connect(address).await?;
    let key = &api.key;
    let head = format!(
        "POST /api/chat HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
    );
    tokio::io::AsyncWriteExt::write_all(&mut socket, head.as_bytes()).await?;
    // Answered after it was read: what came before on another connection was taken up by then.
    api.client.get("/health/alive").await?;

    api.process.signal(Signal::TERM)?;
    api.process.said("connections and streams finish").await?;
    api.process.signal(Signal::TERM)?;

    assert!(api.process.ended().await?, "{}", api.process.log());
    Ok(())
}
