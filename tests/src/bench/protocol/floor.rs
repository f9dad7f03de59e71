//! The least that a database has to do for a job that is recorded, taken by one of many, and ended together
//! with its log: four statements, three commits, two rows in tables that have a key and nothing else. By as many
//! connections as there are clients, each of which does one after the other.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::ensure;
use futures_util::future::try_join_all;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement, TransactionTrait as _, Value};
use uuid::Uuid;

use crate::{
    bench::streams::vitals::{cpu, cpu_of_family},
    servers::{Kind, TestDatabase},
};

const TABLES: [&str; 2] = [
    "CREATE TABLE job (id text PRIMARY KEY, state text NOT NULL, request text NOT NULL, result text)",
    "CREATE TABLE log (id text PRIMARY KEY, events bytea NOT NULL)",
];
const INSERT: &str = "INSERT INTO job (id, state, request) VALUES ($1, 'queued', $2)";
const CLAIM: &str = "UPDATE job SET state = 'running' WHERE id = $1 AND state = 'queued'";
const SETTLE: &str = "UPDATE job SET state = 'completed', result = $2 WHERE id = $1 AND state = 'running'";
const LOG: &str = "INSERT INTO log (id, events) VALUES ($1, $2)";

/// About what the rows of a job of the bench hold.
const REQUEST: &str = r#"{"message":"by hand","model":null,"tools":null,"max_turns":null,"timeout_secs":null}"#;
const RESULT: &str = r#"{"text":"done","structured_output":null,"stop_reason":null}"#;
const EVENTS: usize = 300;

/// A database of its own in the same server.
pub struct Floor(TestDatabase);

/// A turn of all connections.
pub struct Turn {
    /// How long it took.
    pub took: Duration,
    /// What each job took.
    pub times: Vec<Duration>,
    /// The time on a core that the server's processes had.
    pub server: Duration,
    /// The same of the bench itself.
    pub clients: Duration,
}

impl Floor {
    /// Create it.
    pub async fn create(directory: &Path) -> anyhow::Result<Self> {
        let database = TestDatabase::create(Kind::Postgres, directory).await?;
        let connection = database.connect().await?;
        for table in TABLES {
            connection.execute_unprepared(table).await?;
        }
        connection.close().await?;
        Ok(Self(database))
    }

    /// The database.
    pub fn database(&self) -> &TestDatabase {
        &self.0
    }

    /// So many jobs, one after the other on each of so many connections to the server whose first process is
    /// `server`.
    pub async fn turn(&self, jobs: usize, connections: usize, server: u32) -> anyhow::Result<Turn> {
        let connections = try_join_all((0..connections).map(|_| self.0.connect())).await?;
        let left = AtomicUsize::new(jobs);
        let spent = || anyhow::Ok((cpu_of_family(server)?, cpu(std::process::id())?));
        let (begun, before) = (Instant::now(), spent()?);
        let times = try_join_all(connections.iter().map(|connection| work_while(&left, connection))).await?;
        let (took, after) = (begun.elapsed(), spent()?);
        for connection in connections {
            connection.close().await?;
        }
        let (server, clients) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
        Ok(Turn { took, times: times.concat(), server, clients })
    }
}

async fn work_while(left: &AtomicUsize, connection: &DatabaseConnection) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::new();
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        let begun = Instant::now();
        let id = Uuid::now_v7().to_string();
        touch_one(connection, INSERT, [id.as_str().into(), REQUEST.into()]).await?;
        touch_one(connection, CLAIM, [id.as_str().into()]).await?;
        let transaction = connection.begin().await?;
        touch_one(&transaction, SETTLE, [id.as_str().into(), RESULT.into()]).await?;
        touch_one(&transaction, LOG, [id.as_str().into(), vec![0_u8; EVENTS].into()]).await?;
        transaction.commit().await?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

async fn touch_one(database: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> anyhow::Result<()> {
    let done = database.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await?;
    ensure!(done.rows_affected() == 1, "{} rows by `{sql}`", done.rows_affected());
    Ok(())
}
