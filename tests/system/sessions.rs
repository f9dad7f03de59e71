//! Conversations: each turn goes on from the last whole one, on whatever worker, and turns come one at a time.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tests::{
    client::{Client, Event, assert_whole},
    mock_anthropic::Received,
    on_both_databases,
    servers::Kind,
    system::{Cli, System},
};

on_both_databases!(five_turns_on_five_workers_with_a_crash_in_the_third, a_deleted_conversation_leaves_nothing_to_go_on_from,);

/// What a turn of the conversation answered, on a worker that has never seen it and sees nothing more.
async fn turn_on_a_fresh_worker(system: &System, client: &Client, session: &str, message: &str) -> anyhow::Result<Value> {
    let mut worker = system.worker().await?;
    let id = client.submit(json!({"message": message, "session_id": session})).await?;
    let job = client.ended(&id).await?;
    worker.kill().await?;
    Ok(job)
}

async fn five_turns_on_five_workers_with_a_crash_in_the_third(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Real).await?;
    let api = system.api().await?;
    let session = api.client.session(json!({"title": "counting", "system_prompt": "Count.", "metadata": {"of": "five"}})).await?;

    for message in ["say:one", "say:two"] {
        let job = turn_on_a_fresh_worker(&system, &api.client, &session, message).await?;
        assert_eq!((&job["status"], &job["session_id"]), (&json!("completed"), &json!(session)), "{job}");
        assert_eq!(job["metadata"], json!({"of": "five"}));
    }
    let third = "slow:30:0.05";
    let mut doomed = system.worker().await?;
    let mut stream = api.client.chat_with(json!({"message": third, "session_id": session, "stream": true})).await?;
    let mut events = Vec::new();
    stream.until("text.delta", &mut events).await?;
    doomed.kill().await?;
    let mut successor = system.worker().await?;
    events.extend(stream.rest().await?);
    successor.kill().await?;
    let slow = assert_whole(&events);
    assert_eq!(events.last().expect("events").data["job"]["attempt"], 2);
    let ready = |event: &&Event| event.kind == "session.ready" && event.data["session_id"] == json!(session);
    assert_eq!(events.iter().filter(ready).count(), 2, "one in each attempt");
    for message in ["say:four", "say:five"] {
        assert_eq!(turn_on_a_fresh_worker(&system, &api.client, &session, message).await?["status"], "completed");
    }

    let said = [("user", "say:one"), ("assistant", "one"), ("user", "say:two"), ("assistant", "two"), ("user", third)];
    let said = said.into_iter().map(|(role, text)| (role.to_owned(), text.to_owned()));
    let said: Vec<_> = said
        .chain([("assistant".to_owned(), slow.trim_end().to_owned())])
        .chain([("user", "say:four"), ("assistant", "four"), ("user", "say:five")].map(|(role, text)| (role.to_owned(), text.to_owned())))
        .collect();
    let histories: Vec<_> = system.mock.requests().iter().map(|request| history(request)).collect();
    assert_eq!(histories, [&said[..1], &said[..3], &said[..5], &said[..5], &said[..7], &said[..9]].map(<[_]>::to_vec));
    assert!(system.mock.requests().iter().all(|request| request.body["system"].to_string().contains("Count.")));
    shows_the_conversation(&api.client, &session, &slow).await
}

/// What the API tells of it is what was said, and what it cost.
async fn shows_the_conversation(client: &Client, session: &str, slow: &str) -> anyhow::Result<()> {
    let messages = client.get(&format!("/api/sessions/{session}/messages?limit=2")).await?;
    let said = |page: &Value| -> Vec<String> {
        let entries = page["data"].as_array().into_iter().flatten();
        entries.map(|entry| format!("{}: {}", entry["role"].as_str().unwrap_or("?"), entry["content"].as_str().unwrap_or("?"))).collect()
    };
    assert_eq!(said(&messages), ["assistant: five", "user: say:five", "assistant: four", "user: say:four"]);
    let cursor = messages["next_cursor"].as_str().expect("more");
    let rest = client.get(&format!("/api/sessions/{session}/messages?cursor={cursor}")).await?;
    assert_eq!(said(&rest)[..2], [format!("assistant: {slow}"), "user: slow:30:0.05".to_owned()]);
    assert_eq!((said(&rest).len(), &rest["next_cursor"]), (6, &Value::Null));

    let shown = client.get(&format!("/api/sessions/{session}")).await?;
    assert_eq!(
        (&shown["jobs"], &shown["turns"], &shown["active_jobs"], &shown["title"]),
        (&json!(5), &json!(5), &json!(0), &json!("counting"))
    );
    let usage = client.get("/api/usage?group_by=session").await?;
    let [group] = usage["data"].as_array().expect("groups").as_slice() else { panic!("{usage}") };
    assert_eq!(group["session_id"], json!(session));
    for (of_session, of_usage) in [(&shown["cost_usd"], &group["cost_usd"]), (&shown["usage"]["output_tokens"], &group["output_tokens"])] {
        assert!(of_session.as_f64().is_some_and(|number| number > 0.0) && of_session == of_usage, "{shown} {group}");
    }
    let jobs = client.get(&format!("/api/jobs?session_id={session}")).await?;
    let costs = jobs["data"].as_array().into_iter().flatten().filter_map(|job| job["cost_usd"].as_f64()).sum::<f64>();
    assert!((costs - shown["cost_usd"].as_f64().expect("a number")).abs() < 1e-9, "{costs} {shown}");
    Ok(())
}

/// Who said what before the model's next word, without what the CLI itself puts in.
fn history(request: &Received) -> Vec<(String, String)> {
    let messages = request.body["messages"].as_array().into_iter().flatten();
    let said = messages.flat_map(|message| {
        let role = message["role"].as_str().unwrap_or_default().to_owned();
        let texts: Vec<String> = match &message["content"] {
            Value::String(text) => vec![text.clone()],
            Value::Array(blocks) => blocks.iter().filter_map(|block| block["text"].as_str()).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        texts.into_iter().map(move |text| (role.clone(), text.trim_end().to_owned()))
    });
    said.filter(|(_, text)| !text.starts_with("<system-reminder>")).collect()
}

async fn a_deleted_conversation_leaves_nothing_to_go_on_from(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Real).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);
    let session = api.client.session(json!({"tools": ["Bash"]})).await?;
    let path = format!("/api/sessions/{session}");
    let first = api.client.submit(json!({"message": "tool:bash:echo kept > kept.txt", "session_id": session})).await?;
    assert_eq!(api.client.ended(&first).await?["status"], "completed");
    let contents = system.directory().join("workspaces").join(session.trim_start_matches("sess_"));
    assert_eq!(std::fs::read_dir(&contents)?.count(), 1);
    let mut running = api.client.chat_with(json!({"message": "slow:600:0.05", "session_id": session, "stream": true})).await?;
    running.until("text.delta", &mut Vec::new()).await?;
    let waiting = api.client.submit(json!({"message": "say:never", "session_id": session})).await?;

    let delete = async || api.client.request(Method::DELETE, &path).send().await;
    assert_eq!(delete().await?.status(), StatusCode::NO_CONTENT);

    assert_eq!(running.rest().await?.last().expect("events").kind, "job.cancelled");
    assert_eq!(api.client.ended(&waiting).await?["status"], "cancelled");
    system.database.none_left("sessions WHERE purged_at IS NULL").await?;
    assert!(!contents.exists());
    assert_eq!(api.client.request(Method::GET, &path).send().await?.status(), StatusCode::NOT_FOUND);
    assert_eq!(delete().await?.status(), StatusCode::NOT_FOUND);
    let answer = api.client.request(Method::POST, "/api/chat").json(&json!({"message": "say:x", "session_id": session})).send().await?;
    assert_eq!((answer.status(), answer.json::<Value>().await?["code"].clone()), (StatusCode::CONFLICT, json!("session_deleted")));
    for table in ["transcripts", "workspaces"] {
        assert_eq!(system.database.count(table).await?, 0, "{table}");
    }
    assert_eq!(system.redis.command(&["KEYS", "s:*"])?.trim(), "");
    Ok(())
}
