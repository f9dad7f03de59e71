//! The schema, step by step, the same on PostgreSQL and SQLite.
//!
//! Steps are additive first (expand, move, contract) and never edited after a release: a replica of the
//! former version may still be running when the next one migrates.

use std::fmt::Write as _;

pub use sea_orm_migration::sea_orm::DbErr;
use sea_orm_migration::{
    MigratorTrait, SchemaManager,
    prelude::{MigrationName, MigrationTrait, async_trait},
    sea_orm::{ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, DbBackend, Statement},
};

mod lock;
mod step;

mod m20261122_000001_accounts;
mod m20261122_000002_sessions;
mod m20261122_000003_jobs;
mod m20261122_000004_workers;
mod m20261122_000005_usage;
mod m20261122_000006_settings;
mod m20261122_000007_bootstrap_user;
mod m20261123_000001_accounts;
mod m20261123_000002_spending;
mod m20261123_000003_draining;
mod m20261123_000004_tools;
mod m20261123_000006_overview;
mod m20261125_000001_conversations;
mod m20261126_000001_queue;
mod m20261126_000002_traces;

struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261122_000001_accounts::Migration),
            Box::new(m20261122_000002_sessions::Migration),
            Box::new(m20261122_000003_jobs::Migration),
            Box::new(m20261122_000004_workers::Migration),
            Box::new(m20261122_000005_usage::Migration),
            Box::new(m20261122_000006_settings::Migration),
            Box::new(m20261122_000007_bootstrap_user::Migration),
            Box::new(m20261123_000001_accounts::Migration),
            Box::new(m20261123_000002_spending::Migration),
            Box::new(m20261123_000003_draining::Migration),
            Box::new(m20261123_000004_tools::Migration),
            Box::new(m20261123_000006_overview::Migration),
            Box::new(m20261125_000001_conversations::Migration),
            Box::new(m20261126_000001_queue::Migration),
            Box::new(m20261126_000002_traces::Migration),
        ]
    }
}

/// Bring the schema of `database_url` up to date. Any number of processes may call this at once: one
/// migrates, the others wait for it. A schema newer than this binary is left as it is, so that a
/// rollback or a rolling deployment can start. Fails when the database is away, when a step fails, or
/// when another process holds the lock for more than a minute.
pub async fn up(database_url: &str) -> Result<(), DbErr> {
    let database = connect(database_url).await?;
    let outcome = if is_up_to_date(&database).await { Ok(()) } else { up_locked(database_url, &database).await };
    database.close().await?;
    outcome
}

/// Whether every step of ours, and no other, was taken. That is so at almost every start, and one that had to wait
/// for the lock would hold up those after it. Where nothing can be read, the locked way says why.
async fn is_up_to_date(database: &DatabaseConnection) -> bool {
    let taken = Statement::from_string(database.get_database_backend(), "SELECT version FROM seaql_migrations ORDER BY version");
    let Ok(rows) = database.query_all_raw(taken).await else { return false };
    let taken: Option<Vec<String>> = rows.iter().map(|row| row.try_get("", "version").ok()).collect();
    taken == Some(steps())
}

/// The names of our steps, in order.
fn steps() -> Vec<String> {
    Migrator::migrations().iter().map(|step| step.name().to_owned()).collect()
}

async fn up_locked(database_url: &str, database: &DatabaseConnection) -> Result<(), DbErr> {
    let _lock = lock::acquire(database_url, database.get_database_backend()).await?;
    if database.get_database_backend() == DbBackend::Sqlite {
        // Kept in the file: every later connection reads while another writes.
        database.execute_unprepared("PRAGMA journal_mode = WAL").await?;
    }
    let known = steps();
    let applied = Migrator::get_migration_models(database).await?;
    if let Some(newer) = applied.iter().find(|step| !known.contains(&step.version)) {
        tracing::warn!(step = newer.version, "The schema is newer than this binary; left it as it is");
        return Ok(());
    }
    Migrator::up(database, None).await
}

/// Take back the last `steps` steps, and what they hold.
pub async fn down(database_url: &str, steps: u32) -> Result<(), DbErr> {
    let database = connect(database_url).await?;
    let lock = lock::acquire(database_url, database.get_database_backend()).await?;
    let outcome = Migrator::down(&database, Some(steps)).await;
    drop(lock);
    database.close().await?;
    outcome
}

/// One line for each step: its name and whether it was taken.
pub async fn status(database_url: &str) -> Result<String, DbErr> {
    let database = connect(database_url).await?;
    let mut report = String::new();
    for step in Migrator::get_migration_with_status(&database).await? {
        writeln!(report, "{:<8} {}", step.status().to_string(), step.name()).expect("a string takes all that is written to it");
    }
    database.close().await?;
    Ok(report)
}

async fn connect(database_url: &str) -> Result<DatabaseConnection, DbErr> {
    let mut options = ConnectOptions::new(created_if_missing(database_url));
    options.max_connections(1).sqlx_logging(false);
    Database::connect(options).await
}

/// A SQLite address that makes the file when there is none; any other address as it is.
fn created_if_missing(database_url: &str) -> String {
    if !database_url.starts_with("sqlite:") || database_url.contains("mode=") {
        return database_url.to_owned();
    }
    let separator = if database_url.contains('?') { '&' } else { '?' };
    format!("{database_url}{separator}mode=rwc")
}

/// The file behind a SQLite address.
fn sqlite_path(database_url: &str) -> &str {
    let path = database_url.trim_start_matches("sqlite:").trim_start_matches("//");
    path.split('?').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sqlite_address_makes_its_file_and_keeps_its_options() {
        assert_eq!(created_if_missing("sqlite://data/x.db"), "sqlite://data/x.db?mode=rwc");
        assert_eq!(created_if_missing("sqlite://x.db?cache=private"), "sqlite://x.db?cache=private&mode=rwc");
        assert_eq!(created_if_missing("sqlite://x.db?mode=ro"), "sqlite://x.db?mode=ro");
        assert_eq!(created_if_missing("postgresql://db/x"), "postgresql://db/x");
        assert_eq!(sqlite_path("sqlite:///var/x.db?mode=rwc"), "/var/x.db");
        assert_eq!(sqlite_path("sqlite:x.db"), "x.db");
    }
}
