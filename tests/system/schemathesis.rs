//! The contract, tried by a stranger: schemathesis reads it from a running server, sends what fits it and
//! what does not, follows ids from answers into requests, and holds every answer to what was promised.
//! Jobs end as soon as they start, so whatever waits for one (`wait`, a stream) does not wait long.

#![expect(clippy::disallowed_types, reason = "starts a program that is not the product's")]

use std::{fs, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use reqwest::Method;
use serde_json::Value;
use shared::config::Env;
use tests::{
    servers::Kind,
    system::{Api, Cli, System},
};
use tokio::{process::Command, time::timeout};

/// The models a job may name.
const MODELS: &str = "sonnet,haiku";

/// Several times what it takes, and less than what ends a test from outside.
const LIMIT: Duration = Duration::from_secs(110);

/// Whom the requests act for.
struct Caller<'a> {
    /// What is shown as a bearer token.
    credential: &'a str,
    /// Operations that are left out, by their ids: those that would end the credential itself.
    without: &'a [&'a str],
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds_for_whoever_has_a_key() -> anyhow::Result<()> {
    let system = start().await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);

    hold_to_contract(&system, &api, &Caller { credential: &api.key, without: &[] }).await
}

/// A system whose workers are not taken for dead on a busy machine.
async fn start() -> anyhow::Result<System> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    Ok(system.with("MODELS", MODELS).with("WORKER_BEAT", "1s").with("WORKER_TTL", "10s"))
}

/// Try every operation of `api` as `caller`; an error tells what the tool found, with the requests.
async fn hold_to_contract(system: &System, api: &Api, caller: &Caller<'_>) -> anyhow::Result<()> {
    let found = run(system, api, caller).await?;
    let log = api.process.log();
    ensure!(found.is_empty(), "{found}\nthe server's log:\n{log}");

    // It was let in, and what it asked for was done.
    let done = api.client.request(Method::GET, "/api/jobs?status=completed&limit=1").send().await?;
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
    for operation in caller.without {
        command.args(["--exclude-operation-id", operation]);
    }
    command
        .env_clear()
        .envs([("PATH", "/usr/bin:/bin"), ("LANG", "C.UTF-8"), ("PYTHONDONTWRITEBYTECODE", "1"), ("MODELS", MODELS)])
        .envs([("HOME", home.as_path()), ("HOOKS", &settings.join("hooks.py"))])
        .env("CREDENTIAL", caller.credential)
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
