//! What was confided stays where it belongs: no log at its most talkative, no page of metrics, no refusal and
//! nothing in the audit log holds a credential, or anything of what somebody said to the model and was told by it.

use std::fmt;

use anyhow::Context as _;
use reqwest::{Method, RequestBuilder};
use rustix::process::Signal;
use serde_json::{Value, json};
use shared::audit::{AuditFilter, AuditLog};
use tests::{
    client::{Client, Stream, assert_whole},
    collector::{Collector, Manner},
    on_both_databases,
    servers::Kind,
    system::{Api, Cli, Running, System},
};
use uuid::Uuid;

on_both_databases!(no_secret_is_told_to_anybody_else);

/// The address of the first admin.
const ADMIN: &str = "admin@example.com";

/// All that anybody says.
const LEVEL: &str = "trace";

async fn no_secret_is_told_to_anybody_else(kind: Kind) -> anyhow::Result<()> {
    // The relay shows the credential for the real CLI; the scripted one breaks as it is asked to.
    let cli = if kind == Kind::Postgres { Cli::Real } else { Cli::Fake };
    let mut secrets = Secrets::default();
    let credential = secrets.made_up("the provider's credential");
    let metrics_token = secrets.made_up("the token of the metrics");
    let collector = Collector::start(Manner::Polite).await?;
    let collector_token = secrets.made_up("what opens the collector of traces");
    let system = System::start(kind, cli)
        .await?
        .with("LOG_LEVEL", LEVEL)
        .with("ANTHROPIC_API_KEY", &credential)
        .with("JWT_SECRET", &secrets.made_up("what signs access tokens"))
        .with("ADMIN_EMAIL", ADMIN)
        .with("ADMIN_PASSWORD", &secrets.made_up("the first admin's password"))
        .with("METRICS_TOKEN", &metrics_token)
        .with("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
        .with("OTEL_EXPORTER_OTLP_HEADERS", &format!("x-token={collector_token}"))
        .with("WORKER_HTTP_PORT", "0");
    if let Some(password) = password_of(system.database.url()) {
        secrets.note("the database's password", password);
    }
    let (mut api, mut worker) = (system.api().await?, system.worker().await?);
    secrets.note_token("a key", &api.key);
    secrets.note("the hash of a password", "$argon2");

    let jobs = [complete(&api, &mut secrets).await?, cancel(&api, &mut secrets).await?, fail(&api, &mut secrets, kind).await?];
    let mut problems = refusals(&api, &mut secrets).await?;
    problems.extend(accounts(&api, &mut secrets).await?);
    let log_of_operator = operate(&system, &api, &mut secrets).await?;
    let pages = metrics(&api, &mut worker, &metrics_token, &mut problems).await?;
    let audit = AuditLog::new(&system.store().await?).list(AuditFilter { actor: None, action: None, before: None, limit: 1000 }).await?;
    for process in [&worker, &api.process] {
        process.signal(Signal::TERM)?;
    }
    let logs = [("worker", worker.whole_log().await?), ("api", api.process.whole_log().await?), ("operator", log_of_operator)];

    assert!(secrets.0.len() > 30, "{secrets:?}");
    for (name, log) in &logs {
        assert_eq!(secrets.told_by(log), Vec::<String>::new(), "in the log of the {name}");
    }
    assert!(logs[1].1.contains("Stopped"), "the log of the api is whole");
    assert!(collector.headers().iter().all(|headers| headers["x-token"] == *collector_token));
    assert_eq!(secrets.told_by(&collector.words()), Vec::<String>::new(), "in a span");
    for service in ["claude-api", "claude-worker"] {
        assert!(collector.spans().iter().any(|span| span.service == service), "no spans of {service}");
    }
    for job in jobs {
        assert!(collector.words().contains(&job), "the collector knows nothing of `{job}`");
        assert!(logs.iter().any(|(_, log)| log.contains(&job)), "the logs know nothing of `{job}`");
    }
    for problem in &problems {
        assert_eq!(secrets.told_by(problem), Vec::<String>::new(), "in a refusal");
    }
    for page in &pages {
        assert!(page.contains("process_resident_memory_bytes"), "{page}");
        assert_eq!(secrets.told_by(page), Vec::<String>::new(), "in the metrics");
    }
    for action in ["user.register", "login", "login.failed", "token.reused", "logout", "key.create", "key.revoke"] {
        assert!(audit.iter().any(|entry| entry.action == action), "nobody noted `{action}`");
    }
    for entry in &audit {
        assert_eq!(secrets.told_by(&format!("{entry:?}")), Vec::<String>::new(), "in the audit log");
    }
    if kind == Kind::Postgres {
        let shown = system.mock.requests().iter().any(|request| request.header("x-api-key") == Some(&credential));
        assert!(shown, "the credential was in use");
    }
    Ok(())
}

/// Everything that is done with accounts, well and badly; the refusals.
async fn accounts(api: &Api, secrets: &mut Secrets) -> anyhow::Result<Vec<String>> {
    let (email, password) = ("ann@example.com", secrets.made_up("a password"));
    let base = api.client.base();
    let nobody = reqwest::Client::new();
    let auth = |path: &str, body: Value| nobody.post(format!("{base}/api/auth/{path}")).json(&body);
    let mut problems = Vec::new();

    let registered = Login::of(auth("register", json!({"email": email, "password": password})), secrets).await?;
    let login = Login::of(auth("login", json!({"email": email, "password": password})), secrets).await?;
    let renewed = Login::of(auth("refresh", json!({"refresh_token": login.refresh_token})), secrets).await?;
    let client = Client::of_login(base, &renewed.access_token);
    let key: Value =
        client.request(Method::POST, "/api/auth/api-keys").json(&json!({"name": "k"})).send().await?.error_for_status()?.json().await?;
    let (id, key) = (key["api_key"]["id"].as_str().context("an id")?, key["key"].as_str().context("a key")?);
    secrets.note_token("a user's key", key);
    let with_key = Client::new(base, key);
    with_key.request(Method::GET, "/api/jobs").send().await?.error_for_status()?;
    client.request(Method::DELETE, &format!("/api/auth/api-keys/{id}")).send().await?.error_for_status()?;
    Client::of_login(base, &registered.access_token).request(Method::POST, "/api/auth/logout").send().await?.error_for_status()?;

    let mut wrong = || secrets.made_up("a wrong password");
    let profile = |body: Value| client.request(Method::PUT, "/api/auth/profile").json(&body);
    for request in [
        auth("login", json!({"email": email, "password": wrong()})),
        auth("login", json!({"email": "nobody@example.com", "password": wrong()})),
        auth("login", json!({"email": wrong(), "password": wrong()})),
        auth("login", json!({"email": email, "passwort": wrong()})),
        auth("register", json!({"email": email, "password": wrong()})),
        auth("register", json!({"email": "bob@example.com", "password": &wrong()[..8]})),
        profile(json!({"password": wrong(), "current_password": wrong()})),
        auth("refresh", json!({"refresh_token": wrong()})),
        auth("refresh", json!({"refresh_token": registered.refresh_token})),
        // The last one, as it ends the login: this was used before.
        auth("refresh", json!({"refresh_token": login.refresh_token})),
    ] {
        let answer = request.send().await?;
        assert!(answer.status().is_client_error(), "{}", answer.status());
        problems.push(answer.text().await?);
    }
    Ok(problems)
}

/// A login, whose tokens are secrets from then on.
struct Login {
    access_token: String,
    refresh_token: String,
}

impl Login {
    async fn of(request: RequestBuilder, secrets: &mut Secrets) -> anyhow::Result<Self> {
        let login: Value = request.send().await?.error_for_status()?.json().await?;
        let text = |name: &str| login[name].as_str().context("a token").map(str::to_owned);
        let login = Self { access_token: text("access_token")?, refresh_token: text("refresh_token")? };
        secrets.note_token("an access token", &login.access_token);
        secrets.note_token("a refresh token", &login.refresh_token);
        Ok(login)
    }
}

/// A key made by an operator, and in use; the log of that.
async fn operate(system: &System, api: &Api, secrets: &mut Secrets) -> anyhow::Result<String> {
    let (key, log) = system.operate(&["key", "create", "--email", ADMIN, "--name", "k", "--scope", "read,admin"]).await?;
    secrets.note_token("an operator's key", key.trim());
    Client::new(api.client.base(), key.trim()).request(Method::GET, "/api/jobs").send().await?.error_for_status()?;
    Ok(log)
}

/// The metrics of both, which somebody with a wrong token asked for as well.
async fn metrics(api: &Api, worker: &mut Running, token: &str, problems: &mut Vec<String>) -> anyhow::Result<[String; 2]> {
    let line = worker.said("Answering on http://").await?;
    let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).context("an address")?;
    let of_worker = format!("http://{address}");
    let mut pages = [api.client.base(), &of_worker].map(str::to_owned);
    for page in &mut pages {
        let wrong = Client::of_login(page, &token.replace('4', "5")).request(Method::GET, "/health/metrics").send().await?;
        problems.push(wrong.text().await?);
        let right = Client::of_login(page, token).request(Method::GET, "/health/metrics").send().await?;
        *page = right.error_for_status()?.text().await?;
    }
    Ok(pages)
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

    /// A token or a key; what it ends with tells as much as all of it.
    fn note_token(&mut self, what: &'static str, token: &str) {
        // Of a token the signature, in which a `_` may stand anywhere; of a key what follows its public part.
        let end = if token.contains('.') { '.' } else { '_' };
        let secret = token.rsplit(end).next().unwrap_or(token);
        assert!(secret.len() >= 32, "{what}: too short to stand nowhere else by chance");
        self.note(what, secret);
    }

    /// A word that stands nowhere else in the world.
    fn made_up(&mut self, what: &'static str) -> String {
        // Long enough to sign with, and no word that the product knows for a bad one.
        let secret = format!("hidden{}", Uuid::new_v4().simple());
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
