//! The stores a system runs on, each test's own: a Redis behind a socket, and a database of either kind.

mod postgres;

use std::{
    io::{BufRead as _, BufReader},
    net::{SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use sea_orm::{ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection};
use shared::config::Env;
use tokio::time::timeout;

use crate::{proxy::Proxy, system::PATIENCE};

/// A `redis-server` with an append-only file, ended when dropped.
pub struct RedisServer {
    child: Mutex<Child>,
    directory: PathBuf,
    url: String,
}

impl RedisServer {
    /// Start one that keeps its data in `directory`, and wait until it answers.
    pub fn start(directory: &Path) -> anyhow::Result<Self> {
        let socket = directory.join("redis.sock");
        let child = Mutex::new(spawn_redis(directory, &socket)?);
        Ok(Self { child, directory: directory.to_owned(), url: format!("redis+unix://{}", socket.display()) })
    }

    /// End it at once, as a crash does, and start it again with what it had written down.
    pub fn restart(&self) -> anyhow::Result<()> {
        self.kill();
        *self.child() = spawn_redis(&self.directory, self.socket())?;
        Ok(())
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child().id()
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        Path::new(self.url.trim_start_matches("redis+unix://"))
    }

    /// Let it stand still, or go on.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child().id())?).context("a process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Send it a command, as an operator would; its answer.
    pub fn command(&self, words: &[&str]) -> anyhow::Result<String> {
        let answer = Command::new("redis-cli").arg("-s").arg(self.socket()).args(words).output()?;
        Ok(String::from_utf8(answer.stdout)?)
    }

    /// End it at once, as a crash does.
    pub fn kill(&self) {
        let mut child = self.child();
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn_redis(directory: &Path, socket: &Path) -> anyhow::Result<Child> {
    let program = Env::of_process().text("REDIS_SERVER").unwrap_or("redis-server").to_owned();
    let mut child = Command::new(&program)
        .args(["--port", "0", "--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--unixsocket"])
        .arg(socket)
        .arg("--dir")
        .arg(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("could not start `{program}`"))?;
    let output = child.stdout.take().context("its output is piped")?;
    let mut lines = BufReader::new(output).lines();
    if !lines.by_ref().map_while(Result::ok).any(|line| line.contains("now ready to accept connections")) {
        bail!("redis-server ended at its start: {}", child.wait()?);
    }
    // It blocks once the pipe is full.
    std::thread::spawn(move || lines.for_each(drop));
    Ok(child)
}

/// A kind of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    Sqlite,
    /// A database in the server of `TEST_POSTGRES_URL`.
    Postgres,
}

pub use postgres::PostgresServer;

/// An empty database of one test. PostgreSQL's go with their server.
pub struct TestDatabase {
    url: String,
    /// The server, where it is this test's own.
    server: Option<PostgresServer>,
}

impl TestDatabase {
    /// Create one; a file is made in `directory` by whoever migrates first.
    pub async fn create(kind: Kind, directory: &Path) -> anyhow::Result<Self> {
        if kind == Kind::Sqlite {
            return Ok(Self { url: format!("sqlite://{}", directory.join("test.sqlite").display()), server: None });
        }
        Ok(Self { url: create_database(&postgres_server()?).await?, server: None })
    }

    /// Create one in a PostgreSQL server of its own, which keeps its data in `directory`.
    pub async fn alone(directory: &Path) -> anyhow::Result<Self> {
        let server = PostgresServer::start(directory).await?;
        Ok(Self { url: create_database(server.url()).await?, server: Some(server) })
    }

    /// The server, where it is this test's own.
    pub fn server(&self) -> anyhow::Result<&PostgresServer> {
        self.server.as_ref().context("the server is others' as well")
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What its server calls it.
    pub fn name(&self) -> anyhow::Result<&str> {
        Ok(self.url.rsplit_once('/').context("an address names a database")?.1)
    }

    /// Where the server of a PostgreSQL database listens.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        let (_, host) = self.url.rsplit_once('@').context("an address with a user")?;
        let (host, _) = host.split_once('/').context("an address names a database")?;
        host.to_socket_addrs()?.next().with_context(|| format!("`{host}` is nowhere"))
    }

    /// Where a PostgreSQL database is for somebody who comes to it over `proxy`.
    pub fn url_over(&self, proxy: &Proxy) -> anyhow::Result<String> {
        let (user, host) = self.url.rsplit_once('@').context("an address with a user")?;
        let (_, name) = host.split_once('/').context("an address names a database")?;
        Ok(format!("{user}@{}/{name}", proxy.address()))
    }

    /// End every connection of a PostgreSQL database, as an operator may; new ones are taken.
    pub async fn end_connections(&self) -> anyhow::Result<()> {
        let (name, admin) = self.admin().await?;
        admin.execute_unprepared(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")).await?;
        Ok(admin.close().await?)
    }

    /// Break every connection of a PostgreSQL database and refuse new ones.
    pub async fn shut(&self) -> anyhow::Result<()> {
        let (name, admin) = self.admin().await?;
        admin.execute_unprepared(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await?;
        self.end_connections().await
    }

    /// Take connections again.
    pub async fn open(&self) -> anyhow::Result<()> {
        let (name, admin) = self.admin().await?;
        admin.execute_unprepared(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await?;
        Ok(())
    }

    async fn admin(&self) -> anyhow::Result<(&str, DatabaseConnection)> {
        let server = match &self.server {
            Some(server) => server.url().to_owned(),
            None => postgres_server()?,
        };
        Ok((self.name()?, connect(&server).await?))
    }

    /// How many rows there are: `rows` is what follows `FROM`.
    pub async fn count(&self, rows: &str) -> anyhow::Result<i64> {
        let database = self.connect().await?;
        let sql = format!("SELECT count(*) AS n FROM {rows}");
        let statement = sea_orm::Statement::from_string(database.get_database_backend(), sql);
        let row = database.query_one_raw(statement).await?.context("a count")?;
        database.close().await?;
        Ok(row.try_get("", "n")?)
    }

    /// Wait until there are none of these rows. No database announces that, so this looks again and again.
    pub async fn none_left(&self, rows: &str) -> anyhow::Result<()> {
        let mut looks = tokio::time::interval(Duration::from_millis(50));
        let seen = async {
            while self.count(rows).await? > 0 {
                looks.tick().await;
            }
            anyhow::Ok(())
        };
        timeout(PATIENCE, seen).await.with_context(|| format!("there are still some: {rows}"))?
    }

    /// A connection of the test's own.
    pub async fn connect(&self) -> anyhow::Result<DatabaseConnection> {
        connect(&self.url).await
    }
}

/// An empty database in the server at `url`; its own address.
async fn create_database(url: &str) -> anyhow::Result<String> {
    let name = format!("test_{}", uuid::Uuid::new_v4().simple());
    let admin = connect(url).await?;
    admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await?;
    admin.close().await?;
    let (base, _) = url.rsplit_once('/').context("a server's address names a database")?;
    Ok(format!("{base}/{name}"))
}

fn postgres_server() -> anyhow::Result<String> {
    Env::of_process()
        .text("TEST_POSTGRES_URL")
        .map(str::to_owned)
        .context("`TEST_POSTGRES_URL` is not set (hint: run the tests with `make test`)")
}

async fn connect(url: &str) -> anyhow::Result<DatabaseConnection> {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    Ok(Database::connect(options).await?)
}

/// Make each test run on both kinds of database.
#[macro_export]
macro_rules! on_both_databases {
    ($($test:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test($crate::servers::Kind::Sqlite).await.unwrap(); })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test($crate::servers::Kind::Postgres).await.unwrap(); })*
        }
    };
}
