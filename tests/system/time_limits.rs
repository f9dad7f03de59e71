//! Everything that takes too long ends, each with a word of its own; and what the provider asks us to wait, we wait.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use shared::time::Timestamp;
use tests::{
    brood::Brood,
    client::Event,
    on_both_databases,
    servers::Kind,
    system::{Cli, System},
};

on_both_databases!(a_job_that_no_worker_takes_in_time_fails);

async fn a_job_that_no_worker_takes_in_time_fails(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let api = system.api().await?;

    let id = api.client.submit(json!({"message": "say:x", "queue_timeout_secs": 1})).await?;
    let job = api.client.ended(&id).await?;

    assert_eq!((&job["status"], &job["error"]["code"], &job["attempt"]), (&json!("failed"), &json!("queue_timeout"), &json!(1)), "{job}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cli_that_is_silent_for_too_long_is_ended_and_one_whose_tool_runs_is_not() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("IDLE_TIMEOUT", "1s");
    let (api, worker) = (system.api().await?, system.worker().await?);

    let silent = api.client.say("cli:hang").await?;
    let at_work = api.client.submit(json!({"message": "tool:bash:sleep 3", "tools": ["Bash"]})).await?;

    let job = api.client.ended(&silent).await?;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("idle_timeout")), "{job}");
    let job = api.client.ended(&at_work).await?;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(1)), "{job}");
    assert_eq!(api.client.ended(&api.client.say("say:still here").await?).await?["status"], "completed", "{}", worker.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cli_that_does_not_end_after_its_answer_is_ended_and_the_answer_counts() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let (api, mut worker) = (system.api().await?, system.worker().await?);
    worker.said("The CLI is").await?;
    let mut stream = api.client.chat("seq:cli:linger || slow:10:0.05").await?;
    let mut events = Vec::new();
    stream.until("text.delta", &mut events).await?;
    let (begun, brood) = (Instant::now(), Brood::of(&worker)?);
    assert!(!brood.living().is_empty());

    let completed = stream.until("job.completed", &mut events).await?;

    assert_eq!(completed.data["job"]["attempt"], 1);
    assert_eq!(brood.living(), Vec::<&str>::new());
    // Half a second of answer, two of grace.
    assert!((Duration::from_secs(2)..Duration::from_secs(8)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    Ok(())
}

fn time_of(event: &Event) -> anyhow::Result<Timestamp> {
    Ok(serde_json::from_value(event.data["at"].clone())?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_is_busy_is_asked_again_no_sooner_than_it_said() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);

    for status in [429, 529] {
        let mut stream = api.client.chat(&format!("@retry_after=3 error:{status}")).await?;
        let mut events = Vec::new();
        let first = stream.until("job.started", &mut events).await?;
        let retrying = stream.until("retrying", &mut events).await?;
        let second = stream.until("job.started", &mut events).await?;

        assert_eq!((&retrying.data["reason"], &second.data["attempt"]), (&json!("retry"), &json!(2)), "{status}");
        // By itself it would wait two at most.
        let between_ms = time_of(&second)?.ms_since(time_of(&first)?);
        assert!(between_ms >= 3_000, "{status}: {between_ms} ms");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_tried_again_where_that_may_help_and_not_otherwise() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);

    for (status, code) in
        [(400, "invalid_request"), (401, "upstream_auth"), (403, "upstream_auth"), (404, "model_not_found"), (413, "request_too_large")]
    {
        let job = api.client.ended(&api.client.say(&format!("error:{status}")).await?).await?;
        assert_eq!((&job["status"], &job["error"]["code"], &job["attempt"]), (&json!("failed"), &json!(code), &json!(1)), "{job}");
    }
    for status in [500, 502, 503] {
        let mut stream = api.client.chat(&format!("error:{status}")).await?;
        let retrying = stream.until("retrying", &mut Vec::new()).await?;
        assert_eq!(retrying.data["reason"], "retry", "{status}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_must_not_be_taken_back_makes_a_failure_final() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("DRAIN_TIMEOUT", "1s");
    let (api, mut worker) = (system.api().await?, system.worker().await?);
    let chat = |message: &str| json!({"message": message, "retry_after_output": "never", "stream": true});

    let events = api.client.chat_with(chat("cli:crash")).await?.rest().await?;
    let job = &events.last().expect("events").data["job"];
    assert_eq!((&job["status"], &job["error"]["code"], &job["attempt"]), (&json!("failed"), &json!("cli_crashed"), &json!(1)), "{job}");

    // Nothing was said before this one.
    let mut stream = api.client.chat_with(chat("cli:exit:3")).await?;
    assert_eq!(stream.until("retrying", &mut Vec::new()).await?.data["reason"], "retry");
    drop(stream);

    let mut stream = api.client.chat_with(chat("slow:600:0.05")).await?;
    stream.until("text.delta", &mut Vec::new()).await?;
    worker.signal(Signal::TERM)?;
    let events = stream.rest().await?;
    let job = &events.last().expect("events").data["job"];
    assert_eq!((&job["status"], &job["error"]["code"], &job["attempt"]), (&json!("failed"), &json!("interrupted"), &json!(1)), "{job}");
    assert!(worker.ended().await?);
    Ok(())
}
