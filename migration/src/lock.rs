//! One migration at a time, among all processes: the migrator itself takes no lock, and of several
//! replicas that start on an empty database most would fail.

use std::{fs::File, time::Duration};

use sea_orm_migration::sea_orm::{
    ConnectOptions, ConnectionTrait as _, Database, DatabaseTransaction, DbBackend, DbErr, TransactionTrait as _,
};

const PATIENCE: Duration = Duration::from_mins(1);

/// Spells "claude-m".
const ADVISORY_KEY: i64 = 0x636c_6175_6465_2d6d;

/// The right to migrate, given back when dropped, and by the kernel or PostgreSQL when its holder dies.
pub enum Lock {
    Session { _transaction: DatabaseTransaction },
    File { _file: File },
}

pub async fn acquire(database_url: &str, backend: DbBackend) -> Result<Lock, DbErr> {
    match backend {
        DbBackend::Sqlite => file_lock(database_url).await,
        _ => session_lock(database_url).await,
    }
}

/// PostgreSQL: an advisory lock on a connection of its own, held by an open transaction.
async fn session_lock(database_url: &str) -> Result<Lock, DbErr> {
    let mut options = ConnectOptions::new(database_url);
    options.max_connections(1).sqlx_logging(false);
    let transaction = Database::connect(options).await?.begin().await?;
    transaction.execute_unprepared(&format!("SET LOCAL lock_timeout = {}", PATIENCE.as_millis())).await?;
    transaction.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({ADVISORY_KEY})")).await?;
    Ok(Lock::Session { _transaction: transaction })
}

/// SQLite: a lock on a file beside the database's.
async fn file_lock(database_url: &str) -> Result<Lock, DbErr> {
    let path = format!("{}.migration-lock", super::sqlite_path(database_url));
    let locked = tokio::task::spawn_blocking(move || {
        let file = File::create(path)?;
        file.lock()?;
        Ok::<_, std::io::Error>(file)
    });
    let file = match tokio::time::timeout(PATIENCE, locked).await {
        Ok(Ok(file)) => file.map_err(|error| DbErr::Migration(format!("could not lock the database's folder: {error}")))?,
        Ok(Err(panicked)) => return Err(DbErr::Migration(format!("could not take the migration lock: {panicked}"))),
        Err(_) => return Err(DbErr::Migration("another process has been migrating for a minute".into())),
    };
    Ok(Lock::File { _file: file })
}
