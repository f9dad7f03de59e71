//! The files of a conversation, from its owner to a tool and back, over workers that share nothing but the store.

use std::os::unix::fs::MetadataExt as _;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tests::{
    client::Client,
    on_both_databases,
    servers::Kind,
    system::{Cli, System},
};

on_both_databases!(files_go_from_worker_to_worker_and_to_their_owner_and_back);

async fn bash(client: &Client, session: &str, command: &str) -> anyhow::Result<Value> {
    let message = format!("tool:bash:{command}");
    let id = client.submit(json!({"message": message, "session_id": session, "tools": ["Bash"]})).await?;
    client.ended(&id).await
}

async fn put(client: &Client, path: &str, body: &str) -> anyhow::Result<StatusCode> {
    Ok(client.request(Method::PUT, path).body(body.to_owned()).send().await?.status())
}

async fn text(client: &Client, path: &str) -> anyhow::Result<String> {
    Ok(client.request(Method::GET, path).send().await?.error_for_status()?.text().await?)
}

async fn files_go_from_worker_to_worker_and_to_their_owner_and_back(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Real).await?;
    let api = system.api().await?;
    let session = api.client.session(json!({})).await?;
    let files = format!("/api/sessions/{session}/files");
    assert_eq!(put(&api.client, &format!("{files}/in/greeting.txt"), "hello").await?, StatusCode::CREATED);

    let mut first = system.worker().await?;
    let command = "tr a-z A-Z < in/greeting.txt > out.txt; printf '#!/bin/sh\\necho ran' > run; chmod +x run; ln -s /etc/passwd leak; \
                   ln -s in/greeting.txt link; mkfifo pipe; mkdir -p empty; ls in";
    let job = bash(&api.client, &session, command).await?;
    assert_eq!(job["status"], "completed", "{job}");
    first.kill().await?;

    let list = api.client.get(&files).await?;
    let shown: Vec<String> = list["data"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|file| format!("{} {} {} {}", file["path"], file["kind"], file["executable"], file["target"]).replace('"', ""))
        .collect();
    assert_eq!(
        shown,
        [
            "empty folder false null",
            "in/greeting.txt file false null",
            "leak link false /etc/passwd",
            "link link false in/greeting.txt",
            "out.txt file false null",
            "run file true null",
        ]
    );
    assert_eq!(text(&api.client, &format!("{files}/out.txt")).await?, "HELLO");
    for link in ["leak", "link", "pipe", "empty"] {
        let answer = api.client.request(Method::GET, &format!("{files}/{link}")).send().await?;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{link}");
    }
    assert_eq!(put(&api.client, &format!("{files}/out.txt"), "changed by its owner").await?, StatusCode::OK);

    let _second = system.worker().await?;
    let job = bash(&api.client, &session, "cat out.txt link; ./run; test -d empty && echo folder").await?;
    let said = job["result"]["text"].as_str().unwrap_or_default();
    assert!(["changed by its owner", "hello", "ran", "folder"].iter().all(|word| said.contains(word)), "{job}");
    let shown = api.client.get(&format!("/api/sessions/{session}")).await?;
    assert_eq!((&shown["files"], &shown["workspace_bytes"]), (&json!(3), &json!(20 + 5 + 18)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_fails_leaves_the_files_as_they_were() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Real).await?.with("WORKSPACE_MAX_BYTES", "1000000");
    let (api, _worker) = (system.api().await?, system.worker().await?);
    let session = api.client.session(json!({})).await?;
    assert_eq!(bash(&api.client, &session, "echo kept > a; echo gone > b").await?["status"], "completed");

    let large = bash(&api.client, &session, "rm b; head -c 2000000 /dev/zero > large").await?;
    let sparse = bash(&api.client, &session, "truncate -s 1T sparse").await?;
    let cancelled = {
        let message = json!({"message": "tool:bash:echo x > a; sleep 1000.5", "session_id": session, "tools": ["Bash"], "stream": true});
        let mut stream = api.client.chat_with(message).await?;
        let mut events = Vec::new();
        let started = stream.until("tool.started", &mut events).await?;
        assert_eq!(started.data["name"], "Bash");
        api.client
            .cancel(
                api.client.get(&format!("/api/jobs?session_id={session}&status=running")).await?["data"][0]["id"].as_str().expect("an id"),
            )
            .await?;
        stream.rest().await?.pop().expect("an end").kind
    };

    for job in [large, sparse] {
        assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("workspace_too_large")), "{job}");
    }
    assert_eq!(cancelled, "job.cancelled");
    let job = bash(&api.client, &session, "cat a b; ls").await?;
    let said = job["result"]["text"].as_str().unwrap_or_default();
    assert!(said.contains("kept") && said.contains("gone") && !said.contains("sparse"), "{job}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_fills_its_workspace_is_stopped_while_it_does() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Real).await?.with("WORKSPACE_MAX_BYTES", "1000000");
    let (api, _worker) = (system.api().await?, system.worker().await?);

    // Without a conversation as well: the disk is the worker's.
    let message = "tool:bash:head -c 2000000 /dev/zero > large; setsid sleep 1000.25";
    let id = api.client.submit(json!({"message": message, "tools": ["Bash"]})).await?;
    let job = api.client.ended(&id).await?;

    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("workspace_too_large")), "{job}");
    tests::system::await_process("sleep\x001000.25", false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_without_tools_touches_no_file() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);
    let session = api.client.session(json!({})).await?;
    put(&api.client, &format!("/api/sessions/{session}/files/a"), "x").await?;
    let folder = system.directory().join("workspaces").join(session.trim_start_matches("sess_"));
    let content = || std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").metadata().expect("known").ino());
    let before: Vec<u64> = content().collect();

    let id = api.client.submit(json!({"message": "say:hi", "session_id": session})).await?;
    assert_eq!(api.client.ended(&id).await?["status"], "completed");

    assert_eq!(content().collect::<Vec<_>>(), before);
    assert_eq!(text(&api.client, &format!("/api/sessions/{session}/files/a")).await?, "x");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_tool_said_at_length_is_still_there_in_the_next_turn() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Real).await?;
    let api = system.api().await?;
    let session = api.client.session(json!({})).await?;
    let mut first = system.worker().await?;
    let long = bash(&api.client, &session, "seq 1 40000").await?;
    // The CLI put it into a file of its own, and told the model where.
    let said = long["result"]["text"].as_str().unwrap_or_default();
    let path = said.split_whitespace().find(|word| word.starts_with("/cfg/projects/")).unwrap_or_else(|| panic!("{said}")).to_owned();
    first.kill().await?;

    let _second = system.worker().await?;
    let job = bash(&api.client, &session, &format!("tail -n 1 {path}")).await?;

    assert!(job["result"]["text"].as_str().is_some_and(|text| text.contains("40000")), "{job}");
    Ok(())
}
