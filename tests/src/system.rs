//! A whole system for one test: the real binaries over a Redis and a database of its own, with the
//! scripted API behind it. Everything ends with it.

#![expect(clippy::disallowed_types, reason = "starts the product's own binaries")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use api::password::{Password, Passwords};
use rustix::process::{Pid, Signal, kill_process};
use shared::{
    api_key::Scope,
    api_keys::{ApiKeys, NewApiKey},
    audit::By,
    config::{Env, StoreConfig},
    id::WorkerId,
    store::Store,
    user::{Role, UserLimits},
    users::{NewUser, Users},
    workers::{Membership, NewWorker},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::{OnceCell, watch},
    time::timeout,
};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    client::Client,
    directory::Directory,
    mock_anthropic::MockAnthropic,
    servers::{Kind, RedisServer, TestDatabase},
};

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What signs the tokens of every test's system.
pub const JWT_SECRET: &str = "q7Jp0uYx3kVb8mNz5tRw2cLf6hDs9aGe";

/// Whose key every test's system has.
pub const USER: &str = "user@example.com";

/// Which CLI the workers run.
#[derive(Clone, Debug)]
pub enum Cli {
    /// The real one, from `CLAUDE_BIN_REAL`.
    Real,
    /// The scripted one.
    Fake,
    /// Whatever is there.
    At(PathBuf),
}

/// A running system.
pub struct System {
    /// The model's API.
    pub mock: MockAnthropic,
    /// The queue.
    pub redis: RedisServer,
    /// The record.
    pub database: TestDatabase,
    cli: PathBuf,
    settings: BTreeMap<String, String>,
    key: OnceCell<String>,
    patience: Duration,
    directory: Directory,
}

impl System {
    /// Start the stores and the scripted API; the test adds [`Self::api`]s and [`Self::worker`]s.
    pub async fn start(kind: Kind, cli: Cli) -> anyhow::Result<Self> {
        let directory = Directory::create()?;
        let database = TestDatabase::create(kind, directory.path()).await?;
        Self::over(database, directory, cli).await
    }

    /// The same over a PostgreSQL server of its own, which may crash.
    pub async fn start_alone(cli: Cli) -> anyhow::Result<Self> {
        let directory = Directory::create()?;
        let database = TestDatabase::alone(directory.path()).await?;
        Self::over(database, directory, cli).await
    }

    async fn over(database: TestDatabase, directory: Directory, cli: Cli) -> anyhow::Result<Self> {
        let cli = match cli {
            Cli::Real => Env::of_process()
                .text("CLAUDE_BIN_REAL")
                .context("`CLAUDE_BIN_REAL` is not set (hint: run the tests with `make test`)")?
                .into(),
            Cli::Fake => {
                // By a name of this test's own: what it leaves running is told apart from what others run.
                let link = directory.with("cli")?.join("fake-claude");
                std::os::unix::fs::symlink(built("fake-claude")?, &link)?;
                link
            }
            Cli::At(path) => path,
        };
        Ok(Self {
            mock: MockAnthropic::start().await?,
            redis: RedisServer::start(directory.path())?,
            database,
            cli,
            // Faster clocks than in production, in the same proportions.
            settings: BTreeMap::from([
                ("WORKER_BEAT".to_owned(), "300ms".to_owned()),
                ("WORKER_TTL".to_owned(), "3s".to_owned()),
                ("WORKSPACE_STORE".to_owned(), directory.path().join("workspaces").to_string_lossy().into_owned()),
            ]),
            key: OnceCell::new(),
            patience: PATIENCE * 3,
            directory,
        })
    }

    /// Let every process started from here on take so long to start, and to end: while stores come and go, it waits
    /// for a moment in which both are there for long enough.
    #[must_use]
    pub fn patient_for(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Give every process started from here on a variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The CLI its workers run.
    pub fn cli(&self) -> &Path {
        &self.cli
    }

    /// A directory of this test.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where the files of conversations are.
    pub fn workspaces(&self) -> &str {
        self.settings.get("WORKSPACE_STORE").map(String::as_str).unwrap_or_default()
    }

    /// Start an API server and wait until it serves.
    pub async fn api(&self) -> anyhow::Result<Api> {
        self.api_with(&[]).await
    }

    /// The same, with settings of its own.
    pub async fn api_with(&self, own: &[(&str, &str)]) -> anyhow::Result<Api> {
        let mut process = self.launch("api", &[("PORT", "0"), ("JWT_SECRET", JWT_SECRET)], own)?;
        let line = process.said_within("Serving on http://", self.patience).await?;
        let address = line.split("http://").nth(1).and_then(|rest| rest.split([' ', ',']).next()).context("an address")?;
        // After its start: the schema is its own work.
        let key = self.key.get_or_try_init(|| self.make_key(USER)).await?;
        Ok(Api { client: Client::new(&format!("http://{address}"), key), key: key.clone(), process })
    }

    /// A key of a user who may use as much as the tests ask for. The schema must be there.
    pub async fn make_key(&self, email: &str) -> anyhow::Result<String> {
        let store = self.store().await?;
        let limits = UserLimits { rate_limit_per_hour: Some(1_000_000), ..UserLimits::default() };
        // Nobody logs in as this user: nobody knows the password.
        let password = Passwords::default().hash(&Password::new(Uuid::new_v4().to_string())).await?;
        let new = NewUser { email: email.parse()?, name: None, password, role: Role::User, limits };
        let user = Users::new(&store).create(new, &By::default()).await?;
        let new = NewApiKey {
            user_id: user.id,
            name: "tests".to_owned(),
            scopes: vec![Scope::Chat, Scope::Read],
            allowed_tools: None,
            allowed_ips: None,
            rate_limit_per_hour: None,
            max_concurrent_jobs: None,
            expires_at: None,
        };
        Ok(ApiKeys::new(&store).create(new, &By::default()).await?.1.expose().to_owned())
    }

    /// Start a worker and wait until it takes jobs.
    pub async fn worker(&self) -> anyhow::Result<Running> {
        self.worker_with(&[]).await
    }

    /// The same, with settings of its own.
    pub async fn worker_with(&self, own: &[(&str, &str)]) -> anyhow::Result<Running> {
        let mut worker = self.launch_worker(own)?;
        worker.said_within("Joined as", self.patience).await?;
        Ok(worker)
    }

    /// Start a worker.
    pub fn worker_without_waiting(&self) -> anyhow::Result<Running> {
        self.launch_worker(&[])
    }

    fn launch_worker(&self, own: &[(&str, &str)]) -> anyhow::Result<Running> {
        let cli = self.cli.to_string_lossy().into_owned();
        let jobs = self.directory.path().join("jobs").to_string_lossy().into_owned();
        let url = self.mock.url().to_owned();
        let settings =
            [("CLAUDE_BIN", cli.as_str()), ("JOBS_DIR", &jobs), ("ANTHROPIC_BASE_URL", &url), ("ANTHROPIC_API_KEY", "sk-made-up")];
        self.launch("worker", &settings, own)
    }

    /// Run `api` with `words`, as an operator does; what it printed, and what it logged.
    pub async fn operate(&self, words: &[&str]) -> anyhow::Result<(String, String)> {
        let stores = [("DATABASE_URL", self.database.url()), ("REDIS_URL", self.redis.url())];
        let common = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut command = Command::new(built("api")?);
        command.args(words).env_clear().envs(stores.into_iter().chain(common)).stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(PATIENCE, command.output()).await.context("an operator's command did not end")??;
        let (printed, log) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
        ensure!(output.status.success(), "`api {}` failed: {log}", words.join(" "));
        Ok((printed, log))
    }

    /// The stores, opened as every process of the product opens them.
    pub async fn store(&self) -> anyhow::Result<Store> {
        let workspaces = self.workspaces();
        let stores = [("DATABASE_URL", self.database.url()), ("REDIS_URL", self.redis.url()), ("WORKSPACE_STORE", workspaces)];
        let config = StoreConfig::from_env(&Env::of(stores))?;
        Store::open(&config, &CancellationToken::new()).await?.context("nobody shuts it down")
    }

    /// Join the workers and die at once; the id of the dead.
    pub async fn join_and_never_beat(&self) -> anyhow::Result<String> {
        let store = self.store().await?;
        let worker = NewWorker { name: "deaf".into(), host: "nowhere".into(), slots: 1, mcp_servers: Vec::new(), lock_file: None };
        Ok(Membership::join(&store, WorkerId::new(), &worker).await?.id().to_string())
    }

    /// What comes last wins.
    fn launch(&self, name: &str, settings: &[(&str, &str)], own: &[(&str, &str)]) -> anyhow::Result<Running> {
        let stores = [("DATABASE_URL", self.database.url()), ("REDIS_URL", self.redis.url()), ("PATH", "/usr/local/bin:/usr/bin:/bin")];
        let common = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let settings = stores.into_iter().chain(settings.iter().copied()).chain(common).chain(own.iter().copied());
        Running::launch(name, self.patience, settings)
    }
}

/// What a program did that ended by itself.
#[derive(Debug)]
pub struct Ended {
    /// What it printed.
    pub printed: String,
    /// What it logged.
    pub log: String,
    /// Whether it was a success.
    pub is_success: bool,
}

/// Run a binary of this workspace with `words` and these settings alone, to its end.
pub async fn run_alone(name: &str, words: &[&str], settings: &[(&str, &str)]) -> anyhow::Result<Ended> {
    let mut command = Command::new(built(name)?);
    command.args(words).env_clear().envs(settings.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await.with_context(|| format!("`{name}` did not end"))??;
    Ok(Ended { printed: String::from_utf8(output.stdout)?, log: String::from_utf8(output.stderr)?, is_success: output.status.success() })
}

/// A binary of this workspace, of the same build as the running test.
pub fn built(name: &str) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let folder = program.parent().context("a program is in a folder")?;
    // Tests are in a folder of their own, one below the programs.
    let target = if folder.ends_with("deps") { folder.parent().context("tests run in the target directory")? } else { folder };
    let path = target.join(name);
    if !path.is_file() {
        bail!("`{}` is not built (hint: `cargo build --workspace`)", path.display());
    }
    Ok(path)
}

/// An API server.
pub struct Api {
    /// A client of it.
    pub client: Client,
    /// What the client shows: a key that may chat and read.
    pub key: String,
    /// Its process.
    pub process: Running,
}

/// A process of the product. Dropping it kills it.
pub struct Running {
    name: String,
    patience: Duration,
    child: Child,
    log: watch::Receiver<Vec<String>>,
}

impl Running {
    fn launch<'a>(name: &str, patience: Duration, settings: impl Iterator<Item = (&'a str, &'a str)>) -> anyhow::Result<Self> {
        let mut child = Command::new(built(name)?)
            .env_clear()
            .envs(settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stderr = child.stderr.take().context("its log is piped")?;
        let (sender, log) = watch::channel(Vec::new());
        tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                sender.send_modify(|log| log.push(line));
            }
        });
        Ok(Self { name: name.to_owned(), patience, child, log })
    }

    /// Wait until it logs a line with `words` in it.
    pub async fn said(&mut self, words: &str) -> anyhow::Result<String> {
        self.said_within(words, PATIENCE).await
    }

    async fn said_within(&mut self, words: &str, limit: Duration) -> anyhow::Result<String> {
        let found = self.log.wait_for(|log| log.iter().any(|line| line.contains(words)));
        let heard = match timeout(limit, found).await {
            Ok(Ok(log)) => log.iter().find(|line| line.contains(words)).cloned(),
            _ => None,
        };
        let name = &self.name;
        heard.with_context(|| format!("`{name}` never said `{words}`; its log:\n{}", self.log.borrow().join("\n")))
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        self.log.borrow().join("\n")
    }

    /// Everything it logged, once it has ended.
    pub async fn whole_log(&mut self) -> anyhow::Result<String> {
        let to_its_end = async { while self.log.changed().await.is_ok() {} };
        timeout(PATIENCE, to_its_end).await.with_context(|| format!("the log of `{}` goes on", self.name))?;
        Ok(self.log())
    }

    /// Its process id.
    pub fn id(&self) -> anyhow::Result<u32> {
        self.child.id().context("it still runs")
    }

    /// Whether it has not ended.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Send it a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.id()?)?).context("a process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// The memory it has, in bytes.
    pub fn resident_bytes(&self) -> anyhow::Result<usize> {
        let id = self.id()?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process has memory")?;
        let kib: usize = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }

    /// SIGKILL it and wait for its end.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Wait for its end, and say whether it was a success.
    pub async fn ended(&mut self) -> anyhow::Result<bool> {
        let ended = timeout(self.patience, self.child.wait()).await;
        let status = ended.with_context(|| format!("`{}` did not end; its log:\n{}", self.name, self.log()))?;
        Ok(status?.success())
    }
}

/// Wait until a process whose command line holds `mark` exists, or until none does. The kernel announces
/// neither, so this looks again and again.
pub async fn await_process(mark: &str, is_there: bool) -> anyhow::Result<()> {
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    let seen = async {
        while processes_with(mark)?.is_empty() == is_there {
            looks.tick().await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, seen).await.with_context(|| format!("`{mark}` was there: {}", !is_there))?
}

/// The processes of this machine whose command line holds `mark`.
pub fn processes_with(mark: &str) -> anyhow::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(id) = entry?.file_name().to_string_lossy().parse::<i32>() else { continue };
        // One that is gone by now is none.
        let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(mark) && id.cast_unsigned() != std::process::id() {
            found.push(id);
        }
    }
    Ok(found)
}
