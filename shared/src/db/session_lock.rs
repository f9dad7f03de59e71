//! A lock that a PostgreSQL session holds, on a connection of its own: it is free as soon as the process, or its
//! way to the database, is gone. SQLite has no sessions; there the lock is nothing, and always held.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sea_orm::{ConnectOptions, DatabaseConnection, DbBackend, FromQueryResult};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::{Db, error, execute, row, rows};
use crate::{
    Result,
    config::{ExposeSecret as _, SecretString},
};

/// The lock of one incarnation of a worker, taken again whenever its connection broke. It goes with this.
pub struct SessionLock {
    is_held: Arc<AtomicBool>,
    _keeper: Option<AbortOnDropHandle<()>>,
}

impl SessionLock {
    /// Take the lock that is called `name`, and look after it each `often`.
    pub async fn take(database_url: &SecretString, backend: DbBackend, name: Uuid, often: Duration) -> Result<Self> {
        let is_held = Arc::new(AtomicBool::new(true));
        if backend == DbBackend::Sqlite {
            return Ok(Self { is_held, _keeper: None });
        }
        let mut options = ConnectOptions::new(database_url.expose_secret());
        options
            .max_connections(1)
            // As for any connection: whoever gave a busy database less time would never get one.
            .connect_timeout(Duration::from_secs(3))
            .acquire_timeout(Duration::from_secs(3))
            // For as long as the process lives.
            .idle_timeout(None::<Duration>)
            .max_lifetime(None::<Duration>)
            .sqlx_logging(false);
        let connection = sea_orm::Database::connect(options).await.map_err(error)?;
        hold(&connection, key(name)).await?;
        let keeper = tokio::spawn(keep(connection, key(name), often, Arc::clone(&is_held)));
        Ok(Self { is_held, _keeper: Some(AbortOnDropHandle::new(keeper)) })
    }

    /// Whether it is held, as far as this process can know.
    pub fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Relaxed)
    }
}

/// Hold the lock for ever. A question that takes long is waited for: to give it up would give up the lock.
async fn keep(connection: DatabaseConnection, key: i64, often: Duration, is_held: Arc<AtomicBool>) {
    let mut looks = interval(often);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        is_held.store(hold(&connection, key).await.is_ok(), Ordering::Relaxed);
    }
}

/// Take the lock, unless this session has it: such locks count. One that a former session of ours still has is as
/// good as held.
async fn hold(connection: &DatabaseConnection, key: i64) -> Result<()> {
    let sql = "SELECT pg_try_advisory_lock($1) WHERE NOT EXISTS
                   (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted)";
    execute(connection, sql, [key.into()]).await.map(drop)
}

/// Those of `names` whose locks nobody holds. None on SQLite, and none where this process has no session that is older
/// than `lasted`: whatever ended its sessions, a restart or an operator, ended those that held the locks as well, and a
/// worker that lives takes its lock again.
pub async fn free(db: &Db, names: &[Uuid], lasted: Duration) -> Result<Vec<Uuid>> {
    #[derive(FromQueryResult)]
    struct Held {
        key: i64,
    }
    #[derive(FromQueryResult)]
    struct Sessions {
        have_lasted: bool,
    }
    if db.backend() == DbBackend::Sqlite {
        return Ok(Vec::new());
    }
    let sql = "SELECT (classid::bigint << 32) | objid::bigint AS key FROM pg_locks
               WHERE locktype = 'advisory' AND objsubid = 1 AND granted
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let held: HashSet<i64> = rows::<Held>(db.pool(), sql, []).await?.into_iter().map(|held| held.key).collect();
    let sql = "SELECT COALESCE(min(backend_start) <= clock_timestamp() - make_interval(secs => $1), FALSE) AS have_lasted
               FROM pg_stat_activity WHERE application_name = current_setting('application_name')";
    let sessions: Option<Sessions> = row(db.pool(), sql, [lasted.as_secs_f64().into()]).await?;
    if !sessions.is_some_and(|sessions| sessions.have_lasted) {
        return Ok(Vec::new());
    }
    Ok(names.iter().copied().filter(|name| !held.contains(&key(*name))).collect())
}

/// A lock is called by a number: half of a UUID, the one that says no time.
fn key(name: Uuid) -> i64 {
    name.as_u64_pair().1.cast_signed()
}
