//! Other people's programs that follow a job: each prints what it heard the way the server says it, and ends by
//! itself when there is no more to hear.

#![expect(clippy::disallowed_types, reason = "starts programs that are not the product's")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use shared::config::Env;
use tokio::{
    io::AsyncReadExt as _,
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::{
    client::{Event, Heard},
    system::PATIENCE,
};

/// The programs of ours that use other people's clients.
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients");

/// A program that follows a job. Dropping it kills it.
pub struct Follower {
    child: Child,
    output: ChildStdout,
    heard: Heard,
    home: PathBuf,
}

impl Follower {
    /// `curl`, with these words.
    pub fn curl(directory: &Path, words: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new("curl");
        command.args(["--no-progress-meter", "--no-buffer", "--dump-header", "head", "--write-out", "%{stderr}HTTP/%{http_version}"]);
        command.args(words);
        Self::start(directory, "curl", command)
    }

    /// The npm package `eventsource`, at `url` with `key`.
    pub fn eventsource(directory: &Path, url: &str, key: &str) -> anyhow::Result<Self> {
        Self::start(directory, "node", node("eventsource.js", &[url, key])?)
    }

    /// Python's `httpx-sse`, at `url` with `key`.
    pub fn httpx_sse(directory: &Path, url: &str, key: &str) -> anyhow::Result<Self> {
        let mut command = Command::new(installed("python/bin/python")?);
        command.arg(format!("{PROGRAMS}/python/follow.py")).args([url, key]);
        Self::start(directory, "python", command)
    }

    /// Chromium, whose pages do `steps` one after the other, each ending in an event `closed`.
    pub fn chromium(directory: &Path, steps: &Value) -> anyhow::Result<Self> {
        let program = Env::of_process().text("CHROMIUM").unwrap_or("chromium").to_owned();
        Self::start(directory, "chromium", node("chromium.js", &[&program, &steps.to_string()])?)
    }

    fn start(directory: &Path, name: &str, mut command: Command) -> anyhow::Result<Self> {
        // Its name is short: Chromium puts a socket into it.
        let home = directory.join(name);
        fs::create_dir(&home)?;
        let environment = Env::of_process();
        let modules = environment.text("STREAM_CLIENTS").map(|folder| format!("{folder}/node/node_modules"));
        let mut child = command
            .env_clear()
            .envs([("PATH", environment.text("PATH").unwrap_or("/usr/bin:/bin")), ("LANG", "C.UTF-8")])
            .envs([("PYTHONDONTWRITEBYTECODE", "1"), ("PYTHONUNBUFFERED", "1")])
            .envs(modules.map(|modules| ("NODE_PATH", modules)))
            .envs([("HOME", &home), ("TMPDIR", &home)])
            .current_dir(&home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(home.join("words"))?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("could not start `{}`", command.as_std().get_program().display()))?;
        let output = child.stdout.take().context("its output is piped")?;
        Ok(Self { child, output, heard: Heard::default(), home })
    }

    /// The next event it heard, or `None` once it has no more to say.
    pub async fn next(&mut self) -> anyhow::Result<Option<Event>> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(event) = self.heard.next() {
                return Ok(Some(event));
            }
            let read = timeout(PATIENCE, self.output.read(&mut buffer)).await;
            match read.with_context(|| format!("it hears nothing more; its words: {}", self.words()))?? {
                0 => return Ok(None),
                read => self.heard.hear(&buffer[..read])?,
            }
        }
    }

    /// The next event of type `kind`; what comes before it is kept in `passed`, and so is that one.
    pub async fn until(&mut self, kind: &str, passed: &mut Vec<Event>) -> anyhow::Result<Event> {
        while let Some(event) = self.next().await? {
            passed.push(event.clone());
            if event.kind == kind {
                return Ok(event);
            }
        }
        bail!("it ended without `{kind}`, after {passed:?}; its words: {}", self.words())
    }

    /// Everything it hears until it ends, by itself and well.
    pub async fn rest(&mut self) -> anyhow::Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await? {
            events.push(event);
        }
        let status = timeout(PATIENCE, self.child.wait()).await.context("it has no more to say, and does not end")??;
        ensure!(status.success(), "it failed: {status}; its words: {}", self.words());
        Ok(events)
    }

    /// What it said beside.
    pub fn words(&self) -> String {
        fs::read_to_string(self.home.join("words")).unwrap_or_default()
    }

    /// The head of the answer, where it keeps one.
    pub fn head(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.home.join("head"))?.to_ascii_lowercase())
    }
}

fn node(program: &str, words: &[&str]) -> anyhow::Result<Command> {
    installed("node/node_modules")?;
    let mut command = Command::new("node");
    command.arg(format!("{PROGRAMS}/node/{program}")).args(words);
    Ok(command)
}

fn installed(path: &str) -> anyhow::Result<PathBuf> {
    let hint = "`STREAM_CLIENTS` is not set (hint: run the tests with `make test`)";
    let path = Path::new(Env::of_process().text("STREAM_CLIENTS").context(hint)?).join(path);
    ensure!(path.exists(), "`{}` is not there (hint: `scripts/install`)", path.display());
    Ok(path)
}
