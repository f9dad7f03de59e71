//! The CLI without the service: started with the arguments and the environment the worker builds, bare or
//! in the worker's own supervision and sandbox.

#![expect(clippy::disallowed_types, reason = "starts the CLI as the worker does not: directly")]

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use prometheus_client::metrics::gauge::Gauge;
use serde_json::Value;
use shared::job::ChatSpec;
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};
use uuid::Uuid;
use worker::{
    claude::{
        command::{self, CommandLine, Permits, Surroundings, Thread},
        control,
        lines::Lines,
        process::{LINE_LIMIT, Launch, Process},
        relay::{Listen, Relay},
        sandbox::{self, Confinement, Mounts, Sandbox, SandboxError},
        upstream::{Credential, Upstream},
    },
    config::find_program,
    job_dir::{JobDir, JobsRoot},
};

use super::streams::said::{between, now};
use crate::{
    recording::kind,
    system::{PATIENCE, built},
};

/// Where programs are looked up, inside of a sandbox and outside.
const SEARCH_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What all runs have in common.
pub struct Direct {
    program: PathBuf,
    api: String,
    jobs: JobsRoot,
    supervisor: PathBuf,
    upstream: Upstream,
}

/// What a CLI is asked, and what it has to answer.
pub struct Question {
    /// What the CLI knows it by.
    pub id: Uuid,
    spec: ChatSpec,
    answer: String,
}

impl Question {
    /// A question that is answered with `answer`.
    pub fn of(answer: &str) -> Self {
        Self::with(format!("say:{answer}"), answer)
    }

    /// `message`, which is answered with `answer`.
    pub fn with(message: String, answer: &str) -> Self {
        Self { id: Uuid::new_v4(), spec: ChatSpec::text(message), answer: answer.to_owned() }
    }
}

impl Direct {
    /// Run `program` in folders below `directory`, with the model at `api`.
    pub fn new(program: &Path, api: &str, directory: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            program: program.to_owned(),
            api: api.to_owned(),
            jobs: JobsRoot::create(&directory.join("direct"))?,
            supervisor: built("worker")?,
            upstream: Upstream::new(api, &Credential::ApiKey("sk-made-up".into()))?,
        })
    }

    /// The sandbox that the worker finds here as well.
    pub async fn sandbox(&self) -> Result<Sandbox, SandboxError> {
        Sandbox::probe(&find_program("bwrap".as_ref(), SEARCH_PATH), &self.jobs.path().join("sandbox"), &self.supervisor).await
    }

    /// The time from the start of a bare CLI to its first piece of text.
    pub async fn first_text(&self, answer: &str) -> anyhow::Result<Duration> {
        self.first_text_in(&self.dir()?, Thread::OneShot, &Question::of(answer)).await
    }

    /// The same in the folders `dir`, where a conversation may have been laid out.
    pub async fn first_text_in(&self, dir: &JobDir, thread: Thread, question: &Question) -> anyhow::Result<Duration> {
        let mut command = self.bare(&question.spec, thread, dir);

        let started = Instant::now();
        let cli = Cli::Bare(Bare::spawn(&mut command)?);
        let heard = converse(cli, question).await?;
        heard.is(&question.answer)?;
        Ok(heard.first.duration_since(started))
    }

    /// Folders as each attempt of a job has them.
    pub fn dir(&self) -> io::Result<JobDir> {
        self.jobs.attempt()
    }

    /// The time to the first piece of text in `sandbox`.
    pub async fn first_text_confined(&self, sandbox: &Sandbox, answer: &str) -> anyhow::Result<Duration> {
        let dir = self.dir()?;
        let question = Question::of(answer);
        let _relay = Relay::start(Listen::Socket(dir.sockets().join("api.sock")), self.upstream.clone()).await?;
        let launch = self.confined(sandbox, &question.spec, &dir);

        let started = Instant::now();
        let cli = Cli::Confined(Process::spawn(&launch, LINE_LIMIT, &Gauge::default())?);
        let heard = converse(cli, &question).await?;
        heard.is(answer)?;
        Ok(heard.first.duration_since(started))
    }

    /// How late the first piece comes of a CLI that is asked for the time by `message`, in `sandbox` if there
    /// is one.
    pub async fn first_time(&self, sandbox: Option<Sandbox>, message: &str) -> anyhow::Result<Duration> {
        let dir = self.dir()?;
        let question = Question::with(message.to_owned(), "");
        let heard = if let Some(sandbox) = sandbox {
            let _relay = Relay::start(Listen::Socket(dir.sockets().join("api.sock")), self.upstream.clone()).await?;
            let launch = self.confined(&sandbox, &question.spec, &dir);
            converse(Cli::Confined(Process::spawn(&launch, LINE_LIMIT, &Gauge::default())?), &question).await?
        } else {
            let mut command = self.bare(&question.spec, Thread::OneShot, &dir);
            converse(Cli::Bare(Bare::spawn(&mut command)?), &question).await?
        };
        Ok(between(heard.text.trim_end().parse()?, heard.at))
    }

    fn bare(&self, spec: &ChatSpec, thread: Thread, dir: &JobDir) -> Command {
        let relay = command::Relay::Url(self.api.clone());
        let CommandLine { args, env } =
            command::build(spec, thread, &Permits::default(), None, &surroundings(dir.home(), dir.config(), dir.tmp(), relay));
        let mut command = Command::new(&self.program);
        command.args(args).env_clear().envs(env).current_dir(dir.workspace());
        command
    }

    fn confined(&self, sandbox: &Sandbox, spec: &ChatSpec, dir: &JobDir) -> Launch {
        let relay = command::Relay::UnixSocket(Path::new(sandbox::SOCKETS).join("api.sock"));
        let inside = surroundings(sandbox::HOME.into(), sandbox::CONFIG.into(), "/tmp".into(), relay);
        let CommandLine { args, env } = command::build(spec, Thread::OneShot, &Permits::default(), None, &inside);
        let mounts = Mounts { workspace: dir.workspace(), config: dir.config(), home: dir.home(), sockets: dir.sockets() };
        Launch {
            program: self.program.clone(),
            args: args.into_iter().map(Into::into).collect(),
            env: env.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
            cwd: dir.workspace(),
            folder: dir.path().to_owned(),
            sandbox: Some(Confinement { sandbox: sandbox.clone(), mounts }),
            supervisor: self.supervisor.clone(),
            // Longer than a run may take: nobody renews it.
            silence: PATIENCE * 2,
            entitled_since: Instant::now(),
        }
    }
}

fn surroundings(home: PathBuf, config_dir: PathBuf, tmp_dir: PathBuf, relay: command::Relay) -> Surroundings {
    Surroundings {
        home,
        config_dir,
        tmp_dir,
        path: SEARCH_PATH.to_owned(),
        relay,
        api_timeout: Duration::from_mins(2),
        stream_idle_timeout: Duration::from_mins(1),
        trace: None,
    }
}

/// What a CLI answered.
struct Heard {
    /// When its first piece was read.
    first: Instant,
    /// The same, in nanoseconds since 1970.
    at: u64,
    text: String,
}

impl Heard {
    fn is(&self, answer: &str) -> anyhow::Result<()> {
        ensure!(self.text == answer, "the CLI said `{}`, not `{answer}`", self.text);
        Ok(())
    }
}

/// Ask `question` and follow the answer to the end of the CLI.
async fn converse(mut cli: Cli, question: &Question) -> anyhow::Result<Heard> {
    let Question { id, spec, answer: _ } = question;
    let conversation = async {
        cli.write_line(&control::initialize("initialize", spec, &[], &[])).await?;
        cli.write_line(&control::user_message(*id, &spec.message)).await?;
        let (mut first, mut said, mut results) = (None, String::new(), Vec::new());
        while let Some(line) = cli.next_line().await? {
            let line: Value = serde_json::from_slice(&line).context("the CLI printed a line that is no JSON")?;
            match kind(&line).as_str() {
                "stream_event/content_block_delta/text_delta" => {
                    first.get_or_insert_with(|| (Instant::now(), now()));
                    said.push_str(line["event"]["delta"]["text"].as_str().context("a delta has a text")?);
                }
                "result/success" => results.push(line["result"].clone()),
                "system/session_state_changed" if line["state"] == "idle" => cli.close_stdin(),
                _ => {}
            }
        }
        ensure!(results == [said.as_str()], "the CLI said `{said}` and ended with {results:?}");
        let code = cli.ended().await?;
        ensure!(code == Some(0), "the CLI ended with {code:?}");
        let (first, at) = first.context("the CLI said nothing")?;
        Ok(Heard { first, at, text: said })
    };
    timeout(PATIENCE, conversation).await.context("the CLI did not end")?
}

/// A running CLI, read by the same means whichever it is: what differs is what is around it.
enum Cli {
    Bare(Bare),
    Confined(Process),
}

/// A child of this very process. Killed when dropped.
struct Bare {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<ChildStdout>,
}

impl Bare {
    fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("its output is piped")?;
        Ok(Self { child, stdin, lines: Lines::new(stdout, LINE_LIMIT) })
    }
}

impl Cli {
    async fn write_line(&mut self, line: &str) -> anyhow::Result<()> {
        match self {
            Self::Bare(bare) => Ok(bare.stdin.as_mut().context("its input is open")?.write_all(format!("{line}\n").as_bytes()).await?),
            Self::Confined(process) => Ok(process.write_line(line.as_bytes(), PATIENCE).await?),
        }
    }

    async fn next_line(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        match self {
            Self::Bare(bare) => Ok(bare.lines.next().await?),
            Self::Confined(process) => Ok(process.next_line().await?),
        }
    }

    fn close_stdin(&mut self) {
        match self {
            Self::Bare(bare) => bare.stdin = None,
            Self::Confined(process) => process.close_stdin(),
        }
    }

    async fn ended(&mut self) -> anyhow::Result<Option<i32>> {
        match self {
            Self::Bare(bare) => Ok(bare.child.wait().await?.code()),
            Self::Confined(process) => Ok(process.wait().await.code),
        }
    }
}
