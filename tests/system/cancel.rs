//! The end of a job that somebody asked for: nothing it started stays.

use serde_json::json;
use tests::{
    client::assert_whole,
    on_both_databases,
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
    let api = system.api().await?;
    let id = api.client.say("say:never").await?;
    let mut stream = api.client.events(&id, None).await?;

    let job = api.client.cancel(&id).await?;

    assert_eq!(job["status"], "cancelled");
    let events = stream.rest().await?;
    assert_whole(&events);
    // A worker that comes later finds nothing to do, and a second cancel changes nothing.
    let _worker = system.worker().await?;
    assert_eq!(api.client.ended(&api.client.say("say:next").await?).await?["status"], "completed");
    assert_eq!(api.client.cancel(&id).await?["finished_at"], job["finished_at"]);
    Ok(())
}
