//! What a job may ask of the CLI, with the real one: each option is seen where it acts, in the request that
//! reaches the model or in how the job ends.

use serde_json::{Value, json};
use tests::{
    servers::Kind,
    system::{Api, Cli, Running, System},
};

/// The smallest picture there is.
const GIF: &str = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";

async fn system() -> anyhow::Result<(System, Api, Running)> {
    let system = System::start(Kind::Sqlite, Cli::Real).await?.with("MAX_BODY_BYTES", "4194304");
    let (api, worker) = (system.api().await?, system.worker().await?);
    Ok((system, api, worker))
}

/// The last request for a message that reached the model.
fn asked(system: &System) -> Value {
    let requests = system.mock.requests();
    let chat = requests.iter().rev().find(|request| request.path.starts_with("/v1/messages")).expect("a request");
    chat.body.clone()
}

#[tokio::test]
async fn a_picture_reaches_the_model_as_it_was_sent() -> anyhow::Result<()> {
    let (system, api, _worker) = system().await?;
    let picture = json!({"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": GIF}});

    let id = api.client.submit(json!({"message": [picture, {"type": "text", "text": "say:a dot"}]})).await?;
    let job = api.client.ended(&id).await?;

    assert_eq!(job["result"]["text"], "a dot", "{job}");
    let content = &asked(&system)["messages"][0]["content"];
    let sent = content.as_array().expect("blocks").iter().find(|block| block["type"] == "image").expect("a picture");
    assert_eq!(sent["source"], picture["source"]);
    Ok(())
}

#[tokio::test]
async fn an_answer_has_the_form_that_was_asked_for() -> anyhow::Result<()> {
    let (_system, api, _worker) = system().await?;
    let schema =
        json!({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name", "age"]});

    for tools in [json!([]), json!(["Read"])] {
        let body = json!({"message": r#"json:{"name":"Ada","age":36}"#, "output_schema": schema, "tools": tools});
        let job = api.client.ended(&api.client.submit(body).await?).await?;
        assert_eq!(job["result"]["structured_output"], json!({"name": "Ada", "age": 36}), "{job}");
    }
    let body = json!({"message": r#"json:{"name":7}"#, "output_schema": schema});
    let job = api.client.ended(&api.client.submit(body).await?).await?;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("structured_output_failed")), "{job}");
    assert!(job["result"].is_null(), "{job}");
    Ok(())
}

#[tokio::test]
async fn prompts_of_any_length_go_in_whole() -> anyhow::Result<()> {
    let (system, api, _worker) = system().await?;
    let long = |mark: &str| format!("{mark} {}", "lorem ipsum ".repeat(80_000));

    let id = api
        .client
        .submit(json!({"message": "say:read", "system_prompt": long("be brief"), "append_system_prompt": long("and kind")}))
        .await?;
    let job = api.client.ended(&id).await?;

    assert_eq!(job["result"]["text"], "read", "{job}");
    let system_prompt = asked(&system)["system"].to_string();
    assert!(system_prompt.contains(&long("be brief")) && system_prompt.contains(&long("and kind")));
    Ok(())
}

#[tokio::test]
async fn the_model_its_effort_and_its_thinking_are_those_of_the_job() -> anyhow::Result<()> {
    let (system, api, _worker) = system().await?;

    let id = api.client.submit(json!({"message": "say:x", "model": "claude-sonnet-4-5", "thinking": "disabled"})).await?;
    let job = api.client.ended(&id).await?;
    assert_eq!(job["model"], "claude-sonnet-4-5", "{job}");
    let request = asked(&system);
    assert_eq!(request["model"], "claude-sonnet-4-5");
    assert!(request.get("thinking").is_none_or(|thinking| thinking["type"] == "disabled"), "{request}");

    let id = api.client.submit(json!({"message": "say:x", "model": "claude-opus-5-5", "effort": "low", "thinking": "adaptive"})).await?;
    api.client.ended(&id).await?;
    let request = asked(&system);
    assert_eq!(request["output_config"]["effort"], "low", "{request}");
    assert_eq!(request["thinking"]["type"], "adaptive", "{request}");
    Ok(())
}

#[tokio::test]
async fn another_model_answers_when_the_first_is_overloaded() -> anyhow::Result<()> {
    let (_system, api, _worker) = system().await?;

    let body = json!({"message": "error:529:3", "model": "claude-opus-5-5", "fallback_model": "claude-sonnet-4-5"});
    let job = api.client.ended(&api.client.submit(body).await?).await?;

    assert_eq!((&job["status"], &job["model"]), (&json!("completed"), &json!("claude-sonnet-4-5")), "{job}");
    Ok(())
}

#[tokio::test]
async fn a_job_ends_at_its_limits() -> anyhow::Result<()> {
    let (_system, api, _worker) = system().await?;

    for (limit, code) in [(json!({"max_turns": 2}), "max_turns"), (json!({"max_budget_usd": 0.000_001}), "budget_exceeded")] {
        let mut body = json!({"message": "loop:bash:true", "tools": ["Bash"]});
        body.as_object_mut().expect("an object").extend(limit.as_object().expect("an object").clone());
        let job = api.client.ended(&api.client.submit(body).await?).await?;
        assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!(code)), "{job}");
    }
    Ok(())
}
