//! MCP servers, with the real CLI: a job uses those that it may, by name, and nothing of the way to them is in
//! its sandbox.

use serde_json::{Value, json};
use shared::{api_key::Scope, api_keys::ApiKeys, api_keys::NewApiKey, audit::By};
use tests::{
    client::{Client, Event, assert_whole},
    mock_mcp::{MockMcp, TOKEN},
    servers::Kind,
    system::{Api, Cli, Running, System},
};

struct Stage {
    mcp: MockMcp,
    api: Api,
    worker: Running,
    system: System,
}

impl Stage {
    async fn start(cli: Cli) -> anyhow::Result<Self> {
        let mcp = MockMcp::start().await?;
        let system = System::start(Kind::Sqlite, cli).await?;
        let file = system.directory().join("mcp.json");
        let servers = json!({
            "docs": {"url": mcp.url(), "headers": {"Authorization": TOKEN}, "tools": ["echo", "fail"]},
            "broken": {"url": mcp.url(), "headers": {"Authorization": "Bearer wrong"}},
            "listless": {"url": mcp.listless_url(), "headers": {"Authorization": TOKEN}},
        });
        std::fs::write(&file, servers.to_string())?;
        let system = system.with("MCP_SERVERS_FILE", &file.to_string_lossy());
        let (api, worker) = (system.api().await?, system.worker().await?);
        Ok(Self { mcp, api, worker, system })
    }
}

/// What came of the tool calls of a job, each as `name: output`.
async fn calls(client: &Client, body: Value) -> anyhow::Result<(Vec<String>, Vec<Event>)> {
    let mut body = body;
    body["stream"] = json!(true);
    let events = client.chat_with(body).await?.rest().await?;
    assert_whole(&events);
    let finished = events.iter().filter(|event| event.kind == "tool.finished");
    let calls =
        finished.map(|event| format!("{}: {}", event.data["is_error"], event.data["output"].as_str().unwrap_or_default())).collect();
    Ok((calls, events))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_uses_the_servers_it_names_and_no_tool_beyond() -> anyhow::Result<()> {
    let Stage { mcp, api, mut worker, system } = Stage::start(Cli::Real).await?;
    worker.said("The CLI is").await?;
    let message = "seq:tool:mcp__docs__echo:{\"text\":\"hi\"} || tool:mcp__docs__fail:{} || tool:mcp__docs__hidden:{} || say:done";

    let (chat, _) = calls(&api.client, json!({"message": message, "mcp_servers": ["docs"]})).await?;
    let (agent, _) = calls(&api.client, json!({"message": message, "mcp_servers": ["docs"], "tools": ["Read"]})).await?;

    for calls in [chat, agent] {
        let [echo, fail, hidden] = calls.as_slice() else { panic!("{calls:?}") };
        assert_eq!((echo.as_str(), fail.as_str()), ("false: echo: hi", "true: it broke"));
        assert!(hidden.starts_with("true: ") && hidden.contains("No such tool available"), "{hidden}");
    }
    let heard = mcp.heard();
    assert!(!heard.iter().any(|what| what.contains("hidden") || what == "a stranger"), "{heard:?}");
    assert_eq!(heard.iter().filter(|what| *what == "the end of session-1").count(), 2, "{heard:?}");
    let offered: Vec<String> = system
        .mock
        .requests()
        .iter()
        .flat_map(|request| request.body["tools"].as_array().cloned().unwrap_or_default())
        .filter_map(|tool| tool["name"].as_str().map(str::to_owned))
        .collect();
    assert!(offered.contains(&"mcp__docs__echo".to_owned()) && !offered.iter().any(|name| name.contains("hidden")), "{offered:?}");

    let (none, _) = calls(&api.client, json!({"message": "tool:mcp__docs__echo:{\"text\":\"hi\"}", "tools": ["Read"]})).await?;
    assert!(none[0].starts_with("true: ") && none[0].contains("No such tool available"), "{none:?}");
    assert!(!worker.log().contains("s3cret"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_the_way_to_a_server_is_in_the_sandbox() -> anyhow::Result<()> {
    let Stage { api, .. } = &Stage::start(Cli::Real).await?;
    let command = "cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\\\0' '\\\\n'; cat /cfg/.claude.json; echo end";

    let (said, _) =
        calls(&api.client, json!({"message": format!("tool:bash:{command}"), "mcp_servers": ["docs"], "tools": ["Bash"]})).await?;

    assert!(said[0].contains("end") && said[0].contains("mcp__docs"), "{said:?}");
    assert!(!said[0].contains("s3cret") && !said[0].contains("/mcp\""), "{said:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_fails_holds_no_job_up() -> anyhow::Result<()> {
    let Stage { mcp, api, .. } = &Stage::start(Cli::Real).await?;
    let message = "seq:tool:mcp__docs__echo:{\"text\":\"hi\"} || tool:mcp__listless__echo:{} || say:done";

    let (said, events) = calls(&api.client, json!({"message": message, "mcp_servers": ["broken", "docs", "listless"]})).await?;

    assert_eq!(events.last().expect("an end").kind, "job.completed");
    assert!(said[0] == "false: echo: hi" && said[1].contains("No such tool available"), "{said:?}");
    let heard = mcp.heard();
    assert_eq!(heard.iter().filter(|what| *what == "a stranger").count(), 1, "the CLI asks twice: {heard:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_conversations_bound_the_servers_of_a_job() -> anyhow::Result<()> {
    let Stage { mcp, api, worker: _worker, system } = &Stage::start(Cli::Real).await?;
    let refused = async |client: &Client, body: Value| {
        let answer = client.request(reqwest::Method::POST, "/api/chat").json(&body).send().await?;
        anyhow::Ok((answer.status().as_u16(), answer.json::<Value>().await?["errors"][0]["pointer"].clone()))
    };
    let store = system.store().await?;
    let narrow = NewApiKey {
        user_id: api.client.get("/api/auth/profile").await?["id"].as_str().expect("an id").parse()?,
        name: "narrow".to_owned(),
        scopes: vec![Scope::Chat, Scope::Read],
        allowed_tools: Some(vec!["mcp__docs__echo".to_owned()]),
        allowed_ips: None,
        rate_limit_per_hour: None,
        max_concurrent_jobs: None,
        expires_at: None,
    };
    let (_, key) = ApiKeys::new(&store).create(narrow, &By::default()).await?;
    let narrow = Client::new(api.client.base(), key.expose());

    assert_eq!(refused(&api.client, json!({"message": "a", "mcp_servers": ["docs", "nowhere"]})).await?, (422, json!("/mcp_servers/1")));
    assert_eq!(refused(&narrow, json!({"message": "a", "mcp_servers": ["broken"]})).await?, (422, json!("/mcp_servers/0")));
    let list = narrow.get("/api/mcp-servers").await?;
    assert_eq!(
        list["data"],
        json!([{"name": "broken", "allowed": false}, {"name": "docs", "allowed": true}, {"name": "listless", "allowed": false}])
    );
    let session = api.client.session(json!({"mcp_servers": ["docs"]})).await?;
    let beyond = json!({"message": "a", "session_id": session, "mcp_servers": ["broken"]});
    assert_eq!(refused(&api.client, beyond).await?, (422, json!("/mcp_servers/0")));

    // The conversation's servers, as far as the key allows: one tool of them.
    let message = "seq:tool:mcp__docs__echo:{\"text\":\"hi\"} || tool:mcp__docs__fail:{} || say:done";
    let (said, _) = calls(&narrow, json!({"message": message, "session_id": session})).await?;
    assert_eq!(said[0], "false: echo: hi");
    assert!(said[1].starts_with("true: "), "{said:?}");
    assert!(!mcp.heard().contains(&"tools/call fail".to_owned()), "{:?}", mcp.heard());
    Ok(())
}
