//! The stores a system runs on, each test's own: a Redis behind a socket, and a database of either kind.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use sea_orm::{ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection};
use shared::config::Env;
use tokio::time::timeout;

use crate::system::PATIENCE;

/// A `redis-server` with an append-only file, ended when dropped.
pub struct RedisServer {
    child: Child,
    url: String,
}

impl RedisServer {
    /// Start one that keeps its data in `directory`, and wait until it answers.
    pub fn start(directory: &Path) -> anyhow::Result<Self> {
        let program = Env::of_process().text("REDIS_SERVER").unwrap_or("redis-server").to_owned();
        let socket = directory.join("redis.sock");
        let mut child = Command::new(&program)
            .args(["--port", "0", "--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--unixsocket"])
            .arg(&socket)
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
        Ok(Self { child, url: format!("redis+unix://{}", socket.display()) })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        Path::new(self.url.trim_start_matches("redis+unix://"))
    }

    /// Send it a command, as an operator would; its answer.
    pub fn command(&self, words: &[&str]) -> anyhow::Result<String> {
        let answer = Command::new("redis-cli").arg("-s").arg(self.socket()).args(words).output()?;
        Ok(String::from_utf8(answer.stdout)?)
    }

    /// End it at once, as a crash does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A kind of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    Sqlite,
    /// A database in the server of `TEST_POSTGRES_URL`.
    Postgres,
}

/// An empty database of one test. PostgreSQL's go with their server.
pub struct TestDatabase {
    url: String,
}

impl TestDatabase {
    /// Create one; a file is made in `directory` by whoever migrates first.
    pub async fn create(kind: Kind, directory: &Path) -> anyhow::Result<Self> {
        if kind == Kind::Sqlite {
            return Ok(Self { url: format!("sqlite://{}", directory.join("test.sqlite").display()) });
        }
        let server = postgres_server()?;
        let name = format!("test_{}", uuid::Uuid::new_v4().simple());
        let admin = connect(&server).await?;
        admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await?;
        admin.close().await?;
        let (base, _) = server.rsplit_once('/').context("a server's address names a database")?;
        Ok(Self { url: format!("{base}/{name}") })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What its server calls it.
    pub fn name(&self) -> anyhow::Result<&str> {
        Ok(self.url.rsplit_once('/').context("an address names a database")?.1)
    }

    /// Break every connection of a PostgreSQL database and refuse new ones.
    pub async fn shut(&self) -> anyhow::Result<()> {
        let (name, admin) = self.admin().await?;
        admin.execute_unprepared(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await?;
        admin.execute_unprepared(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")).await?;
        Ok(())
    }

    /// Take connections again.
    pub async fn open(&self) -> anyhow::Result<()> {
        let (name, admin) = self.admin().await?;
        admin.execute_unprepared(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await?;
        Ok(())
    }

    async fn admin(&self) -> anyhow::Result<(&str, DatabaseConnection)> {
        Ok((self.name()?, connect(&postgres_server()?).await?))
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
