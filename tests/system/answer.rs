//! An answer of the real CLI, by every way a client may ask for it.

use reqwest::Method;
use serde_json::{Value, json};
use tests::{
    client::assert_whole,
    on_both_databases,
    servers::Kind,
    system::{Cli, System},
};

on_both_databases!(a_chat_streams_what_the_cli_says, an_answer_comes_by_polling_and_by_waiting, a_tool_runs_when_it_is_asked_for);

async fn a_chat_streams_what_the_cli_says(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Real).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);

    let events = api.client.chat("say:hello world").await?.rest().await?;

    assert_eq!(assert_whole(&events), "hello world");
    let kinds: Vec<&str> = events.iter().filter(|event| event.id.is_some()).map(|event| event.kind.as_str()).collect();
    assert_eq!((kinds.first(), kinds.last()), (Some(&"job.started"), Some(&"job.completed")));
    assert!(kinds.contains(&"message"));
    let job = &events.last().expect("events").data["job"];
    assert_eq!((&job["status"], &job["result"]["text"]), (&json!("completed"), &json!("hello world")));
    assert!(job["cost_usd"].as_f64().is_some_and(|cost| cost > 0.0), "{job}");
    assert!(job["usage"]["output_tokens"].as_u64().is_some_and(|tokens| tokens > 0), "{job}");
    assert!(job["timings"]["first_token_ms"].as_u64().is_some(), "{job}");

    // The CLI came without the key, the request went out with it.
    let requests = system.mock.requests();
    let chats: Vec<_> = requests.iter().filter(|request| request.path.starts_with("/v1/messages")).collect();
    assert!(!chats.is_empty() && chats.iter().all(|request| request.header("x-api-key") == Some("sk-made-up")));

    // The same events, after the end, by the stream and as a list.
    let id = job["id"].as_str().expect("an id");
    let again = api.client.events(id, None).await?.rest().await?;
    assert_eq!(
        again.iter().map(|event| &event.data).collect::<Vec<_>>(),
        events.iter().filter(|event| event.id.is_some()).map(|event| &event.data).collect::<Vec<_>>()
    );
    let last = events.last().and_then(|event| event.id.clone()).expect("an id");
    let after_the_end = api.client.request(Method::GET, &format!("/api/jobs/{id}/events")).header("last-event-id", last).send().await?;
    assert_eq!(after_the_end.status(), 204);
    Ok(())
}

async fn an_answer_comes_by_polling_and_by_waiting(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Real).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);

    let id = api.client.say("think:well || say:x").await?;
    let job = api.client.ended(&id).await?;
    assert_eq!(job["status"], "completed", "{job}");

    let waited =
        api.client.request(Method::POST, "/api/chat").header("prefer", "wait=30").json(&json!({"message": "say:soon"})).send().await?;
    assert_eq!(waited.status(), 200);
    assert!(waited.headers().contains_key("preference-applied"));
    let job: Value = waited.json().await?;
    assert_eq!(job["result"]["text"], "soon");
    Ok(())
}

async fn a_tool_runs_when_it_is_asked_for(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Real).await?;
    let (api, worker) = (system.api().await?, system.worker().await?);

    let events = api.client.chat_with(json!({"message": "tool:bash:id -u; env", "tools": ["Bash"], "stream": true})).await?.rest().await?;

    assert_whole(&events);
    let finished = events.iter().find(|event| event.kind == "tool.finished").expect("the tool ran");
    let output = finished.data["output"].as_str().expect("a text");
    assert!(output.starts_with("1000\n"), "in the sandbox nobody is root: {output}");
    assert!(!output.contains("sk-made-up"), "the credential is not in the tool's environment");
    assert!(!worker.log().contains("tool:bash"), "no prompt in the log");

    let events = api.client.chat("tool:bash:echo hi").await?.rest().await?;
    assert_whole(&events);
    let ran = events.iter().find(|event| event.kind == "tool.finished");
    assert!(ran.is_none_or(|event| event.data["is_error"] == true), "tools are off unless asked for");
    Ok(())
}
