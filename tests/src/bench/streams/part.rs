//! This very program in another part: a process of its own, so that it has its own memory, its own descriptors
//! and its own share of the machine, as a client or a server elsewhere has.

#![expect(clippy::disallowed_types, reason = "starts this program again")]

use std::{fs::File, io, process::Stdio, thread, time::Duration};

use anyhow::{Context as _, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// Longer than the largest crowd takes to connect on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// A running part. Killed when dropped.
pub struct Part {
    name: String,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// What it reads. It ends when this is closed.
    pub input: Option<File>,
}

impl Part {
    /// Start the one that is called `name`.
    pub fn start(name: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(name)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("could not start `{name}`"))?;
        let input = child.stdin.take().context("its input is piped")?.into_owned_fd()?;
        let output = child.stdout.take().context("its output is piped")?;
        Ok(Self { name: name.to_owned(), child, lines: BufReader::new(output).lines(), input: Some(File::from(input)) })
    }

    /// Its process.
    pub fn id(&self) -> anyhow::Result<u32> {
        self.child.id().with_context(|| format!("`{}` has ended", self.name))
    }

    /// The next line it says. Fails when it has none: what went wrong it has said on standard error.
    pub async fn line(&mut self) -> anyhow::Result<String> {
        let line = timeout(PATIENCE, self.lines.next_line()).await.with_context(|| format!("`{}` is silent", self.name))??;
        let Some(line) = line else { bail!("`{}` ended: {}", self.name, self.child.wait().await?) };
        Ok(line)
    }

    /// Wait for its end, which must be a good one.
    pub async fn ended(mut self) -> anyhow::Result<()> {
        let status = timeout(PATIENCE, self.child.wait()).await.with_context(|| format!("`{}` did not end", self.name))??;
        ensure!(status.success(), "`{}` ended: {status}", self.name);
        Ok(())
    }
}

/// End this process when its parent does, which holds the other end of its input.
pub fn ends_with_its_parent() {
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(1);
    });
}
