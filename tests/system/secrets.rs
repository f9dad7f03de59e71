//! What was confided stays where it belongs: no log at its most talkative and no refusal holds a credential,
//! or anything of what somebody said to the model and was told by it.

use std::fmt;

use anyhow::Context as _;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::{
    client::{Stream, assert_whole},
    on_both_databases,
    servers::Kind,
    system::{Api, Cli, System},
};
use uuid::Uuid;

on_both_databases!(no_secret_is_told_to_anybody_else);

/// All that our crates say, and of the others more than anybody asks for in production.
const LEVEL: &str = "debug,api=trace,shared=trace,worker=trace,migration=trace";

async fn no_secret_is_told_to_anybody_else(kind: Kind) -> anyhow::Result<()> {
    // The relay shows the credential for the real CLI; the scripted one breaks as it is asked to.
    let cli = if kind == Kind::Postgres { Cli::Real } else { Cli::Fake };
    let mut secrets = Secrets::default();
    let credential = secrets.made_up("the provider's credential");
    let system = System::start(kind, cli).await?.with("LOG_LEVEL", LEVEL).with("ANTHROPIC_API_KEY", &credential);
    if let Some(password) = password_of(system.database.url()) {
        secrets.note("the database's password", password);
    }
    let (mut api, mut worker) = (system.api().await?, system.worker().await?);
    secrets.note("a key", &api.key);

    let jobs = [complete(&api, &mut secrets).await?, cancel(&api, &mut secrets).await?, fail(&api, &mut secrets, kind).await?];
    let problems = refusals(&api, &mut secrets).await?;
    for process in [&worker, &api.process] {
        process.signal(Signal::TERM)?;
    }
    let logs = [("worker", worker.whole_log().await?), ("api", api.process.whole_log().await?)];

    assert!(secrets.0.len() > 10, "{secrets:?}");
    for (name, log) in &logs {
        assert_eq!(secrets.told_by(log), Vec::<String>::new(), "in the log of the {name}");
    }
    assert!(logs[1].1.contains("Stopped"), "the log of the api is whole");
    for job in jobs {
        assert!(logs.iter().any(|(_, log)| log.contains(&job)), "the logs know nothing of `{job}`");
    }
    for problem in &problems {
        assert_eq!(secrets.told_by(problem), Vec::<String>::new(), "in a refusal");
    }
    if kind == Kind::Postgres {
        let shown = system.mock.requests().iter().any(|request| request.header("x-api-key") == Some(&credential));
        assert!(shown, "the credential was in use");
    }
    Ok(())
}

/// A job that says what it was told to; its id.
async fn complete(api: &Api, secrets: &mut Secrets) -> anyhow::Result<String> {
    let answer = secrets.made_up("an answer");
    let mut body = confidential(secrets);
    body["message"] = json!(format!("think:{answer}"));

    let events = api.client.chat_with(body).await?.rest().await?;

    assert!(assert_whole(&events).ends_with(&answer));
    id_in(&events.last().context("events")?.data)
}

/// A job that is cancelled while it speaks; its id.
async fn cancel(api: &Api, secrets: &mut Secrets) -> anyhow::Result<String> {
    let mut body = confidential(secrets);
    body["message"] = json!("slow:1000:0.05");
    let mut stream: Stream = api.client.chat_with(body).await?;
    let mut events = Vec::new();
    stream.until("job.started", &mut events).await?;
    stream.until("text.delta", &mut events).await?;

    let list: Value = api.client.request(Method::GET, "/api/jobs?status=running").send().await?.json().await?;
    let id = list["data"][0]["id"].as_str().context("it runs")?.to_owned();
    api.client.cancel(&id).await?;

    assert_eq!(stream.rest().await?.last().context("events")?.kind, "job.cancelled");
    Ok(id)
}

/// A job that fails, and for the scripted CLI one that complains aloud; the id of the first.
async fn fail(api: &Api, secrets: &mut Secrets, kind: Kind) -> anyhow::Result<String> {
    if kind == Kind::Sqlite {
        let complaint = secrets.made_up("words on the CLI's stderr");
        let id = api.client.say(&format!("cli:stderr:{complaint}")).await?;
        api.client.ended(&id).await?;
    }
    let mut body = confidential(secrets);
    body["message"] = json!("error:400");

    let events = api.client.chat_with(body).await?.rest().await?;

    let last = events.last().context("events")?;
    assert_eq!(last.kind, "job.failed");
    assert_eq!(secrets.told_by(&last.data["job"]["error"].to_string()), Vec::<String>::new(), "in a job's error");
    id_in(&last.data)
}

/// A job's body with a secret in each of its texts.
fn confidential(secrets: &mut Secrets) -> Value {
    json!({
        "system_prompt": secrets.made_up("a system prompt"),
        "append_system_prompt": secrets.made_up("the end of a system prompt"),
        "metadata": {"note": secrets.made_up("a note")},
        "stream": true,
    })
}

/// The answers to requests that are refused, each of which holds a secret.
async fn refusals(api: &Api, secrets: &mut Secrets) -> anyhow::Result<Vec<String>> {
    let path = "/api/chat";
    let chat = |body: String| api.client.request(Method::POST, path).header("content-type", "application/json").body(body);
    let stranger = |name: &str, value: String| reqwest::Client::new().get(format!("{}/api/jobs", api.client.base())).header(name, value);
    let mut made_up = || secrets.made_up("part of a wrong request");
    let requests = [
        stranger("x-api-key", made_up()),
        stranger("authorization", format!("Bearer {}", made_up())),
        stranger("authorization", format!("Basic {}", made_up())),
        stranger("authorization", made_up()),
        chat(format!("{{\"message\": \"{}", made_up())),
        chat(json!({"message": {"text": made_up()}}).to_string()),
        chat(json!({"message": "say:x", "max_turns": made_up()}).to_string()),
        chat(json!({"message": "say:x", "effort": made_up()}).to_string()),
        chat(json!({"message": "say:x", "model": made_up()}).to_string()),
        chat(json!({"message": made_up(), "tools": [made_up(), "-"]}).to_string()),
        chat(json!({"message": "say:x"}).to_string()).header("last-event-id", made_up()),
        chat(json!({"message": "say:x"}).to_string()).header("idempotency-key", made_up().repeat(9)),
        api.client.request(Method::GET, &format!("/api/jobs?cursor={}", made_up())),
        api.client.request(Method::GET, &format!("/api/nothing?token={}", made_up())),
    ];
    let mut answers = Vec::new();
    for request in requests {
        let answer = request.send().await?;
        assert!(answer.status().is_client_error(), "{}", answer.status());
        answers.push(answer.text().await?);
    }
    Ok(answers)
}

fn id_in(event: &Value) -> anyhow::Result<String> {
    Ok(event["job"]["id"].as_str().context("a job has an id")?.to_owned())
}

/// The password in the address of a database, where there is one.
fn password_of(url: &str) -> Option<&str> {
    let (user, _) = url.split_once("://")?.1.split_once('@')?;
    user.split_once(':').map(|(_, password)| password)
}

/// Everything that must not be told, and what it is.
#[derive(Default)]
struct Secrets(Vec<(String, &'static str)>);

impl Secrets {
    fn note(&mut self, what: &'static str, secret: &str) {
        self.0.push((secret.to_owned(), what));
    }

    /// A word that stands nowhere else in the world.
    fn made_up(&mut self, what: &'static str) -> String {
        let secret = format!("secret{}", Uuid::new_v4().simple());
        self.note(what, &secret);
        secret
    }

    /// The lines of `text` that tell a secret, after what they tell.
    fn told_by(&self, text: &str) -> Vec<String> {
        let told = |line: &str| self.0.iter().find(|(secret, _)| line.contains(secret)).map(|(_, what)| format!("{what}: {line}"));
        text.lines().filter_map(told).collect()
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(_, what)| what)).finish()
    }
}
