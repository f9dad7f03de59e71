//! The database: what is true. The only place that knows tables and columns. One SQL text serves both
//! databases; `{now}`, `{for_share}`, `{for_key_share}`, `{for_update}` and `{for_turn}` stand for the little they say
//! differently.

use std::{ops::ControlFlow, sync::LazyLock, time::Duration};

use futures_util::TryStreamExt as _;
use sea_orm::{
    ConnectOptions, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, FromQueryResult, RuntimeErr,
    SqliteTransactionMode, Statement, StreamTrait as _, TransactionOptions, TransactionTrait as _, Value,
    sqlx::{self, sqlite::SqliteJournalMode, sqlite::SqliteSynchronous},
};
use uuid::Uuid;

use crate::{
    Error, Result,
    config::{ExposeSecret as _, SecretString},
    store::Pool,
};

pub mod api_keys;
pub mod audit;
pub mod figures;
pub mod jobs;
pub mod leader;
pub mod logins;
pub mod session_lock;
pub mod sessions;
pub mod stats;
pub mod tools;
pub mod transcripts;
pub mod usage;
pub mod users;
pub mod workers;
pub mod workspaces;

/// How long the database itself takes for a statement at most.
const STATEMENT: Duration = Duration::from_secs(10);
/// How long its answer is waited for. One that is gone without a word, as a host that lost its power, gives none.
const ANSWER: Duration = Duration::from_secs(STATEMENT.as_secs() + 2);

/// What the sessions of this process are called in PostgreSQL's `pg_stat_activity`: by this it knows them from others.
static APPLICATION: LazyLock<String> = LazyLock::new(|| format!("claude-api {}", Uuid::new_v4()));

/// A pool of connections to either database.
#[derive(Clone)]
pub struct Db {
    pool: DatabaseConnection,
}

impl Db {
    /// Connect to a migrated database, with so many connections at most.
    pub async fn connect(url: &SecretString, connections: u32) -> Result<Self, DbErr> {
        let mut options = ConnectOptions::new(url.expose_secret());
        // None at least: the pool would try to keep that one longer and longer apart while the database is away, and
        // nobody else could have its place.
        options
            .max_connections(connections)
            .min_connections(0)
            .connect_timeout(Duration::from_secs(3))
            .acquire_timeout(Duration::from_secs(3))
            .max_lifetime(Duration::from_mins(10))
            .test_before_acquire_if_idle_for(Duration::from_secs(5))
            .sqlx_logging(false)
            // A process that was stopped or cut off must not hold a row that recovery waits for.
            .map_sqlx_postgres_opts(|postgres| {
                postgres.application_name(&APPLICATION).options([
                    ("lock_timeout", "2s"),
                    ("statement_timeout", format!("{}s", STATEMENT.as_secs()).as_str()),
                    ("idle_in_transaction_session_timeout", "5s"),
                    // Every statement has one good plan, and to look for it costs as much as to run it. What depends on a
                    // value, as the choice of a partial index does, has that value in its text.
                    ("plan_cache_mode", "force_generic_plan"),
                ])
            })
            .map_sqlx_sqlite_opts(|sqlite| {
                sqlite
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Full)
                    .busy_timeout(Duration::from_secs(5))
                    .foreign_keys(true)
            });
        Ok(Self { pool: sea_orm::Database::connect(options).await? })
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> bool {
        self.pool.ping().await.is_ok()
    }

    /// How many connections there are.
    pub fn connections(&self) -> Pool {
        let count = |idle: usize| u32::try_from(idle).unwrap_or(u32::MAX);
        if self.pool.get_database_backend() == DbBackend::Sqlite {
            let pool = self.pool.get_sqlite_connection_pool();
            Pool { open: pool.size(), idle: count(pool.num_idle()), max: pool.options().get_max_connections() }
        } else {
            let pool = self.pool.get_postgres_connection_pool();
            Pool { open: pool.size(), idle: count(pool.num_idle()), max: pool.options().get_max_connections() }
        }
    }

    /// A transaction that may write. On SQLite it takes the writer's place at once: one that turned from
    /// reading to writing later would fail.
    pub async fn begin(&self) -> Result<DatabaseTransaction> {
        let options =
            TransactionOptions { sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate), ..TransactionOptions::default() };
        in_time(self.pool.begin_with_options(options)).await
    }

    /// Which kind of database it is.
    pub fn backend(&self) -> DbBackend {
        self.pool.get_database_backend()
    }

    /// The connections themselves, for a single statement.
    pub fn pool(&self) -> &DatabaseConnection {
        &self.pool
    }
}

/// Run a statement that answers rows.
async fn rows<T: FromQueryResult>(db: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Result<Vec<T>> {
    let answers = in_time(db.query_all_raw(statement(db, sql, values))).await?;
    answers.iter().map(|row| T::from_query_result(row, "")).collect::<Result<_, _>>().map_err(error)
}

/// Run a statement and let `take` have its rows one after the other, until it has enough: they may be too large for all
/// of them to be held at once.
async fn each_row<T: FromQueryResult>(
    db: &Db,
    sql: &str,
    values: impl IntoIterator<Item = Value>,
    mut take: impl FnMut(T) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let mut answers = in_time(db.pool().stream_raw(statement(db.pool(), sql, values))).await?;
    while let Some(row) = in_time(answers.try_next()).await? {
        if take(T::from_query_result(&row, "").map_err(error)?)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// Run a statement that answers at most one row.
async fn row<T: FromQueryResult>(db: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Result<Option<T>> {
    let answer = in_time(db.query_one_raw(statement(db, sql, values))).await?;
    answer.map(|row| T::from_query_result(&row, "")).transpose().map_err(error)
}

/// Run a statement and count the rows it touched.
async fn execute(db: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Result<u64> {
    Ok(in_time(db.execute_raw(statement(db, sql, values))).await?.rows_affected())
}

fn statement(db: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    let backend = db.get_database_backend();
    let words = match backend {
        // One writer at a time gives the order that the row locks give.
        DbBackend::Sqlite => ["CAST(unixepoch('subsec') * 1000 AS INTEGER)", "", "", "", ""],
        _ => ["(extract(epoch FROM clock_timestamp()) * 1000)::bigint", "FOR SHARE", "FOR KEY SHARE", "FOR UPDATE", "FOR NO KEY UPDATE"],
    };
    let places = ["{now}", "{for_share}", "{for_key_share}", "{for_update}", "{for_turn}"];
    let sql = places.iter().zip(words).fold(sql.to_owned(), |sql, (place, word)| sql.replace(place, word));
    Statement::from_sql_and_values(backend, sql, values)
}

/// A text that both databases can store: PostgreSQL takes no NUL.
fn plain(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// Milliseconds, as columns have them.
fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Commit, and say what a failure means.
pub async fn commit(transaction: DatabaseTransaction) -> Result<()> {
    in_time(transaction.commit()).await
}

/// What the database answers, if it does within [`ANSWER`].
async fn in_time<T>(answer: impl Future<Output = Result<T, DbErr>>) -> Result<T> {
    let late = |_| Error::Unavailable { service: "database", source: "it did not answer in time".into() };
    tokio::time::timeout(ANSWER, answer).await.map_err(late)?.map_err(error)
}

/// What a failure of the database means to a caller.
pub fn error(source: DbErr) -> Error {
    if let Some(refusal) = refusal(&source) {
        refusal
    } else if is_passing(&source) {
        Error::Unavailable { service: "database", source: source.into() }
    } else {
        Error::Internal { what: "the database refused a statement", source: source.into() }
    }
}

/// What a trigger of ours says when it refuses a job.
fn refusal(error: &DbErr) -> Option<Error> {
    let (DbErr::Exec(RuntimeErr::SqlxError(source)) | DbErr::Query(RuntimeErr::SqlxError(source))) = error else { return None };
    match source.as_database_error()?.message() {
        "budget_exhausted" => Some(Error::BudgetExhausted),
        "too_many_jobs" => Some(Error::TooManyJobs),
        _ => None,
    }
}

/// Whether the same statement may pass later: the connection broke, or somebody was in the way.
fn is_passing(error: &DbErr) -> bool {
    match error {
        DbErr::ConnectionAcquire(_) => true,
        DbErr::Conn(RuntimeErr::SqlxError(source))
        | DbErr::Exec(RuntimeErr::SqlxError(source))
        | DbErr::Query(RuntimeErr::SqlxError(source)) => match source.as_ref() {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Protocol(_) => true,
            sqlx::Error::Database(refusal) => refusal.code().is_some_and(|code| is_passing_code(&code)),
            _ => false,
        },
        _ => false,
    }
}

/// PostgreSQL's classes 08 (connection), 40 (rollback), 53 (resources), 57 (operator), 55000 (the database takes no
/// connections), 55P03 (lock not available) and 25P03 (idle in transaction); SQLite's BUSY, LOCKED, IOERR, FULL, CANTOPEN.
fn is_passing_code(code: &str) -> bool {
    if code.len() == 5 {
        return ["08", "40", "53", "57"].iter().any(|class| code.starts_with(class)) || matches!(code, "55000" | "55P03" | "25P03");
    }
    // SQLite puts the primary code into the low byte.
    code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 10 | 13 | 14))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_connection_may_pass_and_a_broken_law_will_not() {
        for passing in ["08006", "40001", "53300", "57P01", "57014", "55000", "55P03", "5", "517", "6", "13"] {
            assert!(is_passing_code(passing), "{passing}");
        }
        for lasting in ["23505", "42601", "22P05", "P0001", "19", "2067", "1"] {
            assert!(!is_passing_code(lasting), "{lasting}");
        }
    }
}
