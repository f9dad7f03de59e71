//! The end of a job that somebody asked for: soon, from anywhere, and nothing it started stays.

use std::time::{Duration, Instant};

use serde_json::json;
use tests::{
    client::assert_whole,
    on_both_databases,
    proxy::Proxy,
    servers::Kind,
    system::{Cli, System, await_process, processes_with},
};

on_both_databases!(a_cancelled_tool_leaves_no_process, a_queued_job_is_cancelled_at_once);

async fn a_cancelled_tool_leaves_no_process(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Real).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);
    // A number of seconds that no other process sleeps.
    let mark = format!("sleep 1000.{}", uuid::Uuid::new_v4().as_u128() % 1_000_000_007);
    let command = format!("(trap '' TERM; setsid {mark}) & {mark}");

    let mut stream = api.client.chat_with(json!({"message": format!("tool:bash:{command}"), "tools": ["Bash"], "stream": true})).await?;
    let mut events = Vec::new();
    stream.until("tool.started", &mut events).await?;
    let mark = mark.replace(' ', "\0");
    await_process(&mark, true).await?;
    let id = api.client.only_job().await?;
    api.client.cancel(&id).await?;
    events.extend(stream.rest().await?);

    assert_whole(&events);
    assert_eq!(events.last().expect("events").kind, "job.cancelled");
    assert_eq!(processes_with(&mark)?, Vec::<i32>::new());
    Ok(())
}

async fn a_queued_job_is_cancelled_at_once(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let (api, other) = (system.api().await?, system.api().await?);
    let id = api.client.say("say:never").await?;
    let mut stream = api.client.events(&id, None).await?;

    let job = other.client.cancel(&id).await?;

    assert_eq!(job["status"], "cancelled");
    let events = stream.rest().await?;
    assert_whole(&events);
    // A worker that comes later finds nothing to do, and a second cancel changes nothing.
    let _worker = system.worker().await?;
    assert_eq!(api.client.ended(&api.client.say("say:next").await?).await?["status"], "completed");
    assert_eq!(api.client.cancel(&id).await?["finished_at"], job["finished_at"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_cancelled_at_another_api_long_before_the_next_beat_of_its_worker() -> anyhow::Result<()> {
    const BEAT: Duration = Duration::from_secs(5);
    let system = System::start(Kind::Postgres, Cli::Fake).await?.with("WORKER_BEAT", "5s").with("WORKER_TTL", "20s");
    let (one, other, mut worker) = (system.api().await?, system.api().await?, system.worker().await?);
    // After its first beats, which come with its start.
    worker.said("The CLI is").await?;

    for _ in 0..5 {
        let id = one.client.say("slow:300:0.05").await?;
        let (mut stream, mut events) = (one.client.events(&id, None).await?, Vec::new());
        stream.until("text.delta", &mut events).await?;

        let asked = Instant::now();
        other.client.cancel(&id).await?;
        stream.until("job.cancelled", &mut events).await?;

        assert!(asked.elapsed() < BEAT / 5, "{:?}", asked.elapsed());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_that_no_worker_hears_is_seen_with_the_next_beat() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("WORKER_BEAT", "1s").with("WORKER_TTL", "10s");
    let (proxy, api) = (Proxy::to_redis(system.redis.socket()).await?, system.api().await?);
    let system = system.with("REDIS_URL", &format!("redis://{}", proxy.address()));
    let _worker = system.worker().await?;
    let mut stream = api.client.chat("slow:300:0.05").await?;
    let mut events = Vec::new();
    stream.until("text.delta", &mut events).await?;
    let id = api.client.only_job().await?;

    assert_eq!(proxy.black_hole_subscribers(), 1);
    let asked = Instant::now();
    api.client.cancel(&id).await?;
    stream.until("job.cancelled", &mut events).await?;

    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    Ok(())
}
