//! A CLI that breaks: the job fails with a word for it, and the worker lives on.

use std::{fs, os::unix::fs::PermissionsExt as _};

use serde_json::{Value, json};
use tests::{
    brood::Brood,
    client::assert_whole,
    servers::Kind,
    system::{Cli, Running, System},
};

async fn error_of(system: &System, message: &str) -> anyhow::Result<(Value, Running)> {
    let (api, worker) = (system.api().await?, system.worker().await?);
    let job = api.client.ended(&api.client.say(message).await?).await?;
    assert_eq!(job["status"], "failed", "{job}");
    Ok((job["error"].clone(), worker))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_has_a_word_and_the_worker_lives_on() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let (api, worker) = (system.api().await?, system.worker().await?);

    // To try again would not help.
    for (message, code) in [
        ("cli:longline:10485760", "cli_line_too_long"),
        ("error:401", "upstream_auth"),
        ("error:400", "invalid_request"),
        ("refuse", "refused"),
        ("maxtok:cut off here", "max_output_tokens"),
    ] {
        let job = api.client.ended(&api.client.say(message).await?).await?;
        let told = (&job["status"], &job["error"]["code"], &job["error"]["retryable"], &job["attempt"]);
        assert_eq!(told, (&json!("failed"), &json!(code), &json!(false), &json!(1)), "{message}: {job}");
    }
    for message in ["cli:exit:3", "cli:crash", "cli:noresult"] {
        let mut stream = api.client.chat(message).await?;
        let mut events = Vec::new();
        stream.until("retrying", &mut events).await?;
        assert_eq!(events.last().expect("events").data["reason"], "retry", "{message}");
    }
    for message in ["cli:garbage", "cli:unknown"] {
        let job = api.client.ended(&api.client.say(message).await?).await?;
        assert_eq!(job["status"], "completed", "what is not understood is passed over: {job}");
    }
    let job = api.client.ended(&api.client.say("say:still here").await?).await?;
    assert_eq!(job["result"]["text"], "still here", "{}", worker.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cli_that_is_missing_or_cannot_run_is_told_apart_from_one_that_breaks() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::At("/nowhere/claude".into())).await?;
    let (error, mut worker) = error_of(&system, "say:x").await?;
    assert_eq!(error["code"], "cli_unavailable");
    worker.said("could not start `/nowhere/claude`: no such file").await?;

    let plain = system.directory().join("plain");
    fs::write(&plain, "x")?;
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o644))?;
    let system = System::start(Kind::Sqlite, Cli::At(plain)).await?;
    let (error, mut worker) = error_of(&system, "say:x").await?;
    assert_eq!(error["code"], "cli_unavailable");
    worker.said("not executable").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_that_the_cli_takes_back_is_withdrawn_and_the_answer_is_right() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Real).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);

    let events = api.client.chat("drop:1").await?.rest().await?;

    assert_whole(&events);
    let withdrawn: Vec<&Value> =
        events.iter().filter(|event| event.kind == "message.withdrawn").map(|event| &event.data["message_id"]).collect();
    let kept: String = events
        .iter()
        .filter(|event| event.kind == "text.delta" && !withdrawn.contains(&&event.data["message_id"]))
        .filter_map(|event| event.data["text"].as_str())
        .collect();
    assert_eq!(events.last().expect("events").data["job"]["result"]["text"], json!(kept));
    assert!(!kept.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_takes_too_long_fails_and_leaves_nothing() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let (api, mut worker) = (system.api().await?, system.worker().await?);
    // So that what is counted later are the processes of the job alone.
    worker.said("The CLI is").await?;

    let id = api.client.submit(json!({"message": "seq:cli:children:6 || cli:hang", "timeout_secs": 3})).await?;
    let brood = Brood::with(&worker, 6, "sleep 1000").await?;
    let job = api.client.ended(&id).await?;

    assert_eq!(job["error"]["code"], "timed_out");
    assert_eq!(brood.living(), Vec::<&str>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_arrives_whole() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);

    let events = api.client.chat("flood:20000").await?.rest().await?;

    let text = assert_whole(&events);
    assert_eq!(events.last().expect("events").data["job"]["result"]["text"], json!(text));
    assert!(events.len() > 20_000);
    Ok(())
}
