//! What the stores say they did: commits and statements of one database, commands of Redis. PostgreSQL adds up
//! what a connection did when that is idle for a while or closed, so commits are exact only once it is closed.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, QueryResult, Statement};
use tokio::time::{interval, timeout};

use crate::{
    bench::streams::vitals::parent,
    servers::{RedisServer, TestDatabase},
    system::PATIENCE,
};

/// What the name of a statement begins with that another one ran.
pub const NESTED: &str = "within: ";

/// How often something was done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// So many times.
    pub calls: f64,
    /// How many rows it touched or answered; commands of Redis have none.
    pub rows: f64,
    /// How many microseconds it took, all calls together.
    pub micros: f64,
}

/// What was done until some moment, or between two.
pub struct Counts {
    at: Instant,
    during: Duration,
    /// Transactions that were committed, statements without one among them.
    pub commits: f64,
    /// Transactions that were not.
    pub rollbacks: f64,
    /// By statement. Empty where PostgreSQL does not count them.
    pub statements: BTreeMap<String, Count>,
    /// By command.
    pub commands: BTreeMap<String, Count>,
}

/// Where that is read, beside the database it is about.
pub struct Ledger {
    connection: DatabaseConnection,
    database: String,
    has_statements: bool,
    server: u32,
}

impl Ledger {
    /// Read of `database`, from a connection to another one in the same server. From here on statements in both
    /// are counted, if that is possible here, by whoever connects later.
    pub async fn open(beside: &TestDatabase, database: &str) -> anyhow::Result<Self> {
        let connection = beside.connect().await?;
        // The library may not be there, or the server may not have loaded it.
        let has_statements = connection.execute_unprepared("CREATE EXTENSION pg_stat_statements").await.is_ok()
            && connection.execute_unprepared("SELECT 1 FROM pg_stat_statements LIMIT 1").await.is_ok();
        if has_statements {
            for database in [database, beside.name()?] {
                connection.execute_unprepared(&format!("ALTER DATABASE {database} SET pg_stat_statements.track = 'all'")).await?;
            }
        }
        let mut ledger = Self { connection, database: database.to_owned(), has_statements, server: 0 };
        let row = ledger.rows("SELECT pg_backend_pid() AS id WHERE $1 <> ''").await?.pop().context("a connection has a process")?;
        ledger.server = parent(row.try_get::<i32>("", "id")?.cast_unsigned())?;
        Ok(ledger)
    }

    /// The process that started those of all connections.
    pub fn server(&self) -> u32 {
        self.server
    }

    /// What was done so far.
    pub async fn read(&self, redis: &RedisServer) -> anyhow::Result<Counts> {
        let transactions =
            "SELECT xact_commit::float8 AS commits, xact_rollback::float8 AS rollbacks FROM pg_stat_database WHERE datname = $1";
        let row = self.rows(transactions).await?.pop().context("the database is counted")?;
        let (commits, rollbacks) = (row.try_get("", "commits")?, row.try_get("", "rollbacks")?);
        let mut statements = BTreeMap::<String, Count>::new();
        if self.has_statements {
            let counted = "SELECT query, toplevel, calls::float8 AS calls, rows::float8 AS rows, total_exec_time * 1000 AS micros \
                FROM pg_stat_statements AS s JOIN pg_database AS d ON d.oid = s.dbid WHERE d.datname = $1";
            for row in self.rows(counted).await? {
                let count = statements.entry(name(&row)?).or_default();
                count.calls += row.try_get::<f64>("", "calls")?;
                count.rows += row.try_get::<f64>("", "rows")?;
                count.micros += row.try_get::<f64>("", "micros")?;
            }
        }
        let commands = commands(&redis.command(&["INFO", "commandstats"])?)?;
        Ok(Counts { at: Instant::now(), during: Duration::ZERO, commits, rollbacks, statements, commands })
    }

    /// Wait until nobody is connected to the database any more. PostgreSQL announces that nowhere, so this looks
    /// again and again.
    pub async fn only_reader(&self) -> anyhow::Result<()> {
        let mut looks = interval(Duration::from_millis(50));
        let seen = async {
            while !self.rows("SELECT pid FROM pg_stat_activity WHERE datname = $1").await?.is_empty() {
                looks.tick().await;
            }
            anyhow::Ok(())
        };
        timeout(PATIENCE, seen).await.context("somebody is still connected to the database")?
    }

    async fn rows(&self, sql: &str) -> anyhow::Result<Vec<QueryResult>> {
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, [self.database.as_str().into()]);
        Ok(self.connection.query_all_raw(statement).await?)
    }
}

impl Counts {
    /// What was done since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self { during: self.at.duration_since(earlier.at), ..self.less(earlier, 1.0) }
    }

    /// Without what was done in a time like `idle` anyway, as often as it fits in.
    #[must_use]
    pub fn without(&self, idle: &Self) -> Self {
        self.less(idle, self.during.as_secs_f64() / idle.during.as_secs_f64())
    }

    fn less(&self, other: &Self, times: f64) -> Self {
        let less = |these: &BTreeMap<String, Count>, others: &BTreeMap<String, Count>| {
            let each = these.iter().map(|(name, count)| (name.clone(), count.less(others.get(name).copied().unwrap_or_default(), times)));
            each.collect()
        };
        Self {
            at: self.at,
            during: self.during,
            commits: self.commits - other.commits * times,
            rollbacks: self.rollbacks - other.rollbacks * times,
            statements: less(&self.statements, &other.statements),
            commands: less(&self.commands, &other.commands),
        }
    }

    /// What was done at all, what took the most time first.
    pub fn by_time(&self, counts: &BTreeMap<String, Count>) -> Vec<(String, Count)> {
        let mut sorted: Vec<_> = counts.iter().filter(|(_, count)| count.calls > 0.0).map(|(name, count)| (name.clone(), *count)).collect();
        sorted.sort_by(|(_, one), (_, other)| other.micros.total_cmp(&one.micros));
        sorted
    }
}

impl Count {
    fn less(self, other: Self, times: f64) -> Self {
        Self { calls: self.calls - other.calls * times, rows: self.rows - other.rows * times, micros: self.micros - other.micros * times }
    }
}

/// What a statement is told by: its beginning, on one line.
fn name(row: &QueryResult) -> anyhow::Result<String> {
    /// Enough to know it by.
    const LONGEST: usize = 150;
    let query: String = row.try_get("", "query")?;
    let line: String = query.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(LONGEST).collect();
    Ok(if row.try_get("", "toplevel")? { line } else { format!("{NESTED}{line}") })
}

/// The commands in an answer to `INFO commandstats`.
fn commands(info: &str) -> anyhow::Result<BTreeMap<String, Count>> {
    let mut commands = BTreeMap::new();
    for line in info.lines().filter_map(|line| line.trim_end().strip_prefix("cmdstat_")) {
        let (name, figures) = line.split_once(':').context("a command has figures")?;
        let figure = |wanted: &str| -> anyhow::Result<f64> {
            let found = figures.split(',').find_map(|figure| figure.strip_prefix(wanted)?.strip_prefix('='));
            Ok(found.with_context(|| format!("`{name}` has `{wanted}`"))?.parse()?)
        };
        commands.insert(name.to_owned(), Count { calls: figure("calls")?, rows: 0.0, micros: figure("usec")? });
    }
    ensure!(!commands.is_empty(), "Redis counts no commands");
    Ok(commands)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(secs: u64, calls: f64) -> Counts {
        let count = Count { calls, rows: calls, micros: calls * 10.0 };
        let both = || BTreeMap::from([("a".to_owned(), count)]);
        Counts {
            at: Instant::now(),
            during: Duration::from_secs(secs),
            commits: calls,
            rollbacks: 0.0,
            statements: both(),
            commands: both(),
        }
    }

    #[test]
    fn what_happens_anyway_is_taken_away_as_often_as_it_fits() {
        let busy = counts(20, 1_000.0).without(&counts(10, 30.0));

        assert!((busy.commits - 940.0).abs() < 1e-9);
        assert!((busy.statements["a"].micros - 9_400.0).abs() < 1e-9);
    }

    #[test]
    fn the_commands_of_redis_are_read_by_name() {
        let info = "# Commandstats\r\ncmdstat_ping:calls=3,usec=12,usec_per_call=4.00,rejected_calls=0,failed_calls=0\r\n";

        let read = commands(info).expect("readable");

        assert_eq!(read, BTreeMap::from([("ping".to_owned(), Count { calls: 3.0, rows: 0.0, micros: 12.0 })]));
        assert!(commands("ERR unknown").is_err());
    }
}
