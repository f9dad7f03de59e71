//! The dashboard in a browser, over the running system: what admins do with it, and how each of its pages looks.
//! `SCREENSHOTS` is where pictures of the pages are left, if that is set.

#![expect(clippy::disallowed_types, reason = "starts a program that is not the product's")]

use std::{fs, path::Path, process::Stdio};

use anyhow::{Context as _, ensure};
use shared::config::Env;
use tests::{
    servers::Kind,
    system::{Cli, System},
};
use tokio::{
    process::Command,
    time::{Duration, timeout},
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../api/dashboard");
const EMAIL: &str = "admin@example.com";
const PASSWORD: &str = "a password of this test";

/// Longer than all of its pages take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(6);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_can_do_everything_with_the_dashboard() -> anyhow::Result<()> {
    try_in_browser("flows.spec.ts", None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_of_the_dashboard_is_fit_for_everybody_in_light_colours() -> anyhow::Result<()> {
    try_in_browser("looks.spec.ts", Some("in light colours")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_of_the_dashboard_is_fit_for_everybody_in_dark_colours() -> anyhow::Result<()> {
    try_in_browser("looks.spec.ts", Some("in dark colours")).await
}

/// Run the tests of a file, or those of them that are called so, against a system of their own.
async fn try_in_browser(file: &str, which: Option<&str>) -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let own = [
        ("ADMIN_EMAIL", EMAIL),
        ("ADMIN_PASSWORD", PASSWORD),
        ("AUTH_RATE_LIMIT_PER_MINUTE", "1000"),
        ("DEFAULT_RATE_LIMIT_PER_HOUR", "100000"),
    ];
    let api = system.api_with(&own).await?;
    let _worker = system.worker().await?;
    let _drained = system.worker_with(&[("WORKER_NAME", "to be drained")]).await?;

    let runner = Path::new(FOLDER).join("node_modules/@playwright/test/cli.js");
    ensure!(runner.is_file(), "`{}` is not there (hint: `make dashboard`)", runner.display());
    let environment = Env::of_process();
    // Its name is short: Chromium puts a socket into it.
    let home = system.directory().join("browser");
    fs::create_dir(&home)?;
    let mut command = Command::new("node");
    command
        .arg(runner)
        .args(["test", file])
        .args(which.map(|which| format!("--grep={which}")))
        .current_dir(FOLDER)
        .env_clear()
        .envs([("PATH", environment.text("PATH").unwrap_or("/usr/bin:/bin")), ("LANG", "C.UTF-8")])
        .envs([("HOME", &home), ("TMPDIR", &home), ("E2E_OUTPUT", &home.join("output"))])
        .envs([("API_URL", api.client.base()), ("ADMIN_EMAIL", EMAIL), ("ADMIN_PASSWORD", PASSWORD)])
        .env("CHROMIUM", environment.text("CHROMIUM").unwrap_or("chromium"))
        .envs(environment.text("SCREENSHOTS").map(|folder| ("SCREENSHOTS", folder)))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await.context("the browser is not done")??;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{told}\n{}\nthe log of the api:\n{}", String::from_utf8_lossy(&output.stderr), api.process.log());
    Ok(())
}
