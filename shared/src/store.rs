//! The connections behind every door. Opened once in each process, cheap to clone.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use fred::{interfaces::ClientLike as _, prelude::Client};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    Error, Result,
    changes::Changes,
    config::{ExposeSecret as _, SecretString, StoreConfig, Timing},
    db::{self, Db},
    metrics::Repairs,
    redis::{self, Purpose, settings, signals::Signals, watchdog},
    workspace::Bounds,
};

/// The database and Redis, connected and migrated.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    db: Db,
    redis: Client,
    _watchdog: AbortOnDropHandle<()>,
    signals: Signals,
    changes: Changes,
    repairs: Repairs,
    database_url: SecretString,
    redis_url: SecretString,
    timing: Timing,
    workspace_store: PathBuf,
    workspace_bounds: Bounds,
    workspaces_per_user: u64,
    event_retention: Duration,
    max_queued_per_user: u32,
    is_one_host: bool,
}

/// How long the dependencies took to answer, those that did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// The database.
    pub database: Option<Duration>,
    /// Redis.
    pub redis: Option<Duration>,
}

/// How many connections to the database this process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Open, at work or idle.
    pub open: u32,
    /// Open, and nobody uses them.
    pub idle: u32,
    /// The most there may be.
    pub max: u32,
}

impl Store {
    /// Connect to both, waiting with back-off while one is away, and bring the schema up to date.
    /// `None` when `shutdown` came first. Fails when waiting cannot help: a wrong address, a step of
    /// the migration that the database refuses, a Redis that may drop what it holds.
    pub async fn open(config: &StoreConfig, shutdown: &CancellationToken) -> Result<Option<Self>> {
        // Done once, and large: it is not to be a part of every future that waits for it.
        shutdown.run_until_cancelled(Box::pin(Self::connect(config))).await.transpose()
    }

    async fn connect(config: &StoreConfig) -> Result<Self> {
        let database_url = config.database_url.expose_secret();
        patiently("database", || async { migration::up(database_url).await.map_err(db::error) }).await?;
        let db =
            patiently("database", || async { Db::connect(&config.database_url, config.database_connections).await.map_err(db::error) })
                .await?;
        let redis_url = config.redis_url.expose_secret();
        let connect = || async { redis::connect(redis_url, Purpose::Commands).await.map_err(redis::unavailable) };
        let redis = patiently("redis", connect).await?;
        settings::check(&redis).await?;
        let changes = Changes::default();
        let signals =
            patiently("redis", || async { Signals::connect(redis_url, changes.clone()).await.map_err(redis::unavailable) }).await?;
        Ok(Self(Arc::new(Inner {
            db,
            _watchdog: watchdog::watch(redis.clone()),
            redis,
            signals,
            changes,
            repairs: Repairs::default(),
            database_url: config.database_url.clone(),
            redis_url: config.redis_url.clone(),
            timing: config.timing,
            workspace_store: config.workspace_store.clone(),
            workspace_bounds: config.workspace_bounds,
            workspaces_per_user: config.workspaces_per_user,
            event_retention: config.event_retention,
            max_queued_per_user: config.max_queued_per_user,
            is_one_host: config.is_one_host(),
        })))
    }

    /// Ask both whether they answer; never longer than two seconds.
    pub async fn health(&self) -> Health {
        let database = timed(self.0.db.ping());
        let redis = timed(async { self.0.redis.ping::<()>(None).await.is_ok() });
        let (database, redis) = tokio::join!(database, redis);
        Health { database, redis }
    }

    /// How many connections to the database there are.
    pub fn pool(&self) -> Pool {
        self.0.db.connections()
    }

    /// Whether the connection to Redis stands, as far as this process knows.
    pub fn is_redis_connected(&self) -> bool {
        self.0.redis.is_connected()
    }

    /// The protocol's clocks.
    pub fn timing(&self) -> Timing {
        self.0.timing
    }

    /// How much the workspace of a conversation may hold.
    pub fn workspace_bounds(&self) -> Bounds {
        self.0.workspace_bounds
    }

    /// What the workspaces of one user may hold together, in bytes.
    pub(crate) fn workspaces_per_user(&self) -> u64 {
        self.0.workspaces_per_user
    }

    /// How long the events of a job are kept after its end.
    pub(crate) fn event_retention(&self) -> Duration {
        self.0.event_retention
    }

    /// The most jobs of one user that wait.
    pub(crate) fn max_queued_per_user(&self) -> u32 {
        self.0.max_queued_per_user
    }

    /// Where the database is.
    pub(crate) fn database_url(&self) -> &SecretString {
        &self.0.database_url
    }

    /// Where the files of conversations are.
    pub(crate) fn workspace_store(&self) -> &Path {
        &self.0.workspace_store
    }

    pub(crate) fn db(&self) -> &Db {
        &self.0.db
    }

    pub(crate) fn redis(&self) -> &Client {
        &self.0.redis
    }

    pub(crate) fn signals(&self) -> &Signals {
        &self.0.signals
    }

    /// Whose rights changed lately.
    pub(crate) fn changes(&self) -> &Changes {
        &self.0.changes
    }

    /// What this process put right.
    pub(crate) fn repairs(&self) -> &Repairs {
        &self.0.repairs
    }

    /// Whether all processes share one host, as those of a SQLite file must.
    pub(crate) fn is_one_host(&self) -> bool {
        self.0.is_one_host
    }

    /// A connection of its own for blocking reads.
    pub(crate) async fn fetch_client(&self) -> Result<Client> {
        redis::connect(self.0.redis_url.expose_secret(), Purpose::Fetch).await.map_err(redis::unavailable)
    }
}

/// How long `question` took, if it was answered well and in time.
async fn timed(question: impl Future<Output = bool>) -> Option<Duration> {
    let asked = Instant::now();
    // A driver's future is large, and waits inside of every request that asks.
    let answered = tokio::time::timeout(Duration::from_secs(2), Box::pin(question)).await.unwrap_or(false);
    answered.then(|| asked.elapsed())
}

/// Try until it works, waiting longer each time and saying so. Only an outage is worth waiting for.
async fn patiently<T, F>(service: &str, attempt: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut delay = Duration::from_millis(250);
    loop {
        match attempt().await {
            Err(Error::Unavailable { source, .. }) => {
                tracing::warn!(cause = %source, "The {service} is not reachable yet; trying again in {delay:?}");
            }
            answer => return answer,
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(1));
    }
}
