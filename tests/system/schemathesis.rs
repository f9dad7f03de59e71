//! The contract, tried by a stranger: schemathesis reads it from a running server, sends what fits it and
//! what does not, follows ids from answers into requests, and holds every answer to what was promised.
//! Jobs end as soon as they start, so whatever waits for one (`wait`, a stream) does not wait long.

#![expect(clippy::disallowed_types, reason = "starts a program that is not the product's")]

use std::{fs, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use shared::config::Env;
use tests::{
    client::Client,
    servers::Kind,
    system::{Api, Cli, System},
};
use tokio::{process::Command, time::timeout};
use uuid::Uuid;

/// The models a job may name.
const MODELS: &str = "sonnet,haiku";

/// Several times what it takes, and less than what ends a test from outside.
const LIMIT: Duration = Duration::from_secs(280);

/// The address of the admin.
const ADMIN: &str = "admin@example.com";

/// Whom the requests act for.
struct Caller<'a> {
    client: &'a Client,
    /// What is shown as a bearer token.
    credential: &'a str,
    /// The user's id: no request may change who that is.
    id: &'a str,
    /// A part of the paths that is left out, as a regular expression.
    not_at: Option<&'a str>,
    /// Operations that are left out where the contract has them, by their ids.
    without: &'a str,
}

/// What a key may not do, and what needs none: the other test does it.
const NOT_FOR_KEYS: &str = "^/api/(auth|admin)/";

/// The first would end the very login, the second the worker that runs the jobs. Both have tests of their own.
const NOT_FOR_ADMINS: &str = "logout,drain_worker";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds_for_whoever_has_a_key() -> anyhow::Result<()> {
    let system = start(Kind::Sqlite).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);
    let id = own_id(&api.client).await?;

    let caller = Caller { client: &api.client, credential: &api.key, id: &id, not_at: Some(NOT_FOR_KEYS), without: "" };
    hold_to_contract(&system, &api, &caller).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds_for_an_admin_who_logged_in() -> anyhow::Result<()> {
    let password = Uuid::new_v4().to_string();
    let system = start(Kind::Postgres).await?.with("ADMIN_EMAIL", ADMIN).with("ADMIN_PASSWORD", &password);
    let (api, _worker) = (system.api().await?, system.worker().await?);
    let login = json!({"email": ADMIN, "password": password});
    let login = api.client.request(Method::POST, "/api/auth/login").json(&login).send().await?;
    let login: Value = login.error_for_status()?.json().await?;
    let token = login["access_token"].as_str().context("a token")?;
    let client = Client::of_login(api.client.base(), token);
    let id = own_id(&client).await?;

    let caller = Caller { client: &client, credential: token, id: &id, not_at: None, without: NOT_FOR_ADMINS };
    hold_to_contract(&system, &api, &caller).await
}

/// A system that nothing is too much for, whose workers are not taken for dead on a busy machine.
async fn start(kind: Kind) -> anyhow::Result<System> {
    let system = System::start(kind, Cli::Fake).await?;
    let system = system.with("MODELS", MODELS).with("WORKER_BEAT", "1s").with("WORKER_TTL", "10s");
    Ok(system.with("DEFAULT_RATE_LIMIT_PER_HOUR", "1000000").with("AUTH_RATE_LIMIT_PER_MINUTE", "1000000"))
}

async fn own_id(client: &Client) -> anyhow::Result<String> {
    let profile: Value = client.request(Method::GET, "/api/auth/profile").send().await?.error_for_status()?.json().await?;
    Ok(profile["id"].as_str().context("a user has an id")?.to_owned())
}

/// Try every operation of `api` as `caller`; an error tells what the tool found, with the requests.
async fn hold_to_contract(system: &System, api: &Api, caller: &Caller<'_>) -> anyhow::Result<()> {
    let found = run(system, api, caller).await?;
    let log = api.process.log();
    ensure!(found.is_empty(), "{found}\nthe server's log:\n{log}");

    // It was let in to the end, and what it asked for was done.
    ensure!(own_id(caller.client).await? == caller.id, "it became somebody else");
    let done = caller.client.request(Method::GET, "/api/jobs?status=completed&limit=1").send().await?;
    let done: Value = done.error_for_status()?.json().await?;
    ensure!(done["data"][0]["result"]["text"].is_string(), "no job ran: {done}");
    ensure!(!log.contains(" ERROR "), "the server met a defect:\n{log}");
    Ok(())
}

/// Run the tool to its end; its words, or none if it found nothing.
async fn run(system: &System, api: &Api, caller: &Caller<'_>) -> anyhow::Result<String> {
    let program =
        Env::of_process().text("SCHEMATHESIS").context("`SCHEMATHESIS` is not set (hint: run the tests with `make test`)")?.to_owned();
    let settings = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemathesis");
    // What it leaves behind goes with the test's directory.
    let home = system.directory().join("schemathesis");
    fs::create_dir(&home)?;
    let words = home.join("words");
    let output = fs::File::create(&words)?;
    let mut command = Command::new(program);
    command.arg("--config-file").arg(settings.join("schemathesis.toml"));
    command.args(["run", "--no-color"]).arg(format!("{}/openapi.yaml", api.client.base()));
    if let Some(paths) = caller.not_at {
        command.args(["--exclude-path-regex", paths]);
    }
    command
        .env_clear()
        .envs([("PATH", "/usr/bin:/bin"), ("LANG", "C.UTF-8"), ("PYTHONDONTWRITEBYTECODE", "1"), ("MODELS", MODELS)])
        .envs([("HOME", home.as_path()), ("HOOKS", &settings.join("hooks.py"))])
        .envs([("CREDENTIAL", caller.credential), ("OWN_ID", caller.id), ("WITHOUT", caller.without)])
        .current_dir(&home)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .kill_on_drop(true);
    let ended = timeout(LIMIT, command.status()).await;
    let said = fs::read_to_string(&words)?;
    let Ok(status) = ended else { return Ok(format!("{said}\nschemathesis did not end within {} seconds", LIMIT.as_secs())) };
    Ok(if status?.success() { String::new() } else { said })
}
