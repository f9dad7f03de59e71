//! The door for worker processes: join, beat, leave. A worker is entitled to run its jobs while its
//! beats are accepted, and for a short while after; then somebody else may already run them.

use std::time::{Duration, Instant};

use fred::prelude::KeysInterface as _;

use crate::{
    Error, Result,
    consumption::Consumption,
    db::{
        jobs,
        workers::{self as table, NewRow},
    },
    id::{JobId, WorkerId},
    redis,
    store::Store,
};

/// What a worker process says of itself.
#[derive(Clone, Debug)]
pub struct NewWorker {
    /// A name for people, the same after a restart.
    pub name: String,
    /// The host it runs on.
    pub host: String,
    /// How many jobs it runs at once.
    pub slots: u32,
}

/// One incarnation's place among the workers.
pub struct Membership {
    store: Store,
    id: WorkerId,
    last_accepted: Instant,
}

/// What the running jobs of one incarnation have used so far, for the record. Apart from its beats, which
/// must not wait for it.
pub struct Books {
    store: Store,
    worker: WorkerId,
}

/// What came of a beat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The worker lives, and these of its jobs are to be cancelled.
    Accepted {
        /// Jobs that somebody asked to end.
        cancelled: Vec<JobId>,
    },
    /// Nobody reaches the database, so nobody can take the jobs over: go on.
    Outage,
    /// This worker cannot reach the database, others may: the entitlement is running out.
    Missed,
    /// The entitlement is gone: end every process, write nothing, join anew.
    Lost,
}

impl Membership {
    /// Join the workers as a new incarnation.
    pub async fn join(store: &Store, worker: &NewWorker) -> Result<Self> {
        let id = WorkerId::new();
        let row = NewRow { id, name: &worker.name, host: &worker.host, version: env!("CARGO_PKG_VERSION"), slots: worker.slots };
        table::insert(store.db(), row).await?;
        Ok(Self { store: store.clone(), id, last_accepted: Instant::now() })
    }

    /// This incarnation's id.
    pub fn id(&self) -> WorkerId {
        self.id
    }

    /// Say that this worker lives, within a beat's time. Call it once each [`crate::config::Timing::beat`].
    pub async fn beat(&mut self) -> Beat {
        let started = Instant::now();
        match tokio::time::timeout(beat_limit(&self.store), self.try_beat()).await {
            Ok(Ok(Some(cancelled))) => {
                // The row changed after `started`: counting from there errs on the safe side.
                self.last_accepted = started;
                Beat::Accepted { cancelled }
            }
            Ok(Ok(None)) => Beat::Lost,
            Ok(Err(_)) | Err(_) => self.without_database().await,
        }
    }

    /// `None` when this worker was declared dead.
    async fn try_beat(&self) -> Result<Option<Vec<JobId>>> {
        if !table::beat(self.store.db(), self.id).await? {
            return Ok(None);
        }
        table::cancel_requests(self.store.db(), self.id).await.map(Some)
    }

    async fn without_database(&self) -> Beat {
        // On one host there is no network to be cut off by.
        if self.store.is_one_host() {
            return Beat::Outage;
        }
        let stamp = self.store.redis().exists::<u64, _>(redis::LEADER_STAMP);
        match tokio::time::timeout(self.store.timing().beat, stamp).await {
            Ok(Ok(0)) => Beat::Outage,
            // The leader reaches the database, or nothing can be said: cut off until proven otherwise.
            _ if self.last_accepted.elapsed() >= self.store.timing().entitlement() => Beat::Lost,
            _ => Beat::Missed,
        }
    }

    /// The books of this worker's running jobs.
    pub fn books(&self) -> Books {
        Books { store: self.store.clone(), worker: self.id }
    }

    /// Say that this worker takes no more jobs.
    pub async fn start_draining(&self) -> Result<()> {
        table::start_draining(self.store.db(), self.id).await
    }

    /// Leave, once no job is left. Says whether that was so; otherwise the reaper gives the rest away.
    pub async fn leave(self) -> Result<bool> {
        table::leave(self.store.db(), self.id).await
    }
}

impl Books {
    /// Note what running attempts have used so far: it is billed if the worker is lost. Those that are over,
    /// or somebody else's, are passed over. Never takes longer than a beat may.
    pub async fn note(&self, news: &[(JobId, u32, Consumption)]) -> Result<()> {
        /// The most of one statement.
        const BATCH: usize = 200;
        let note = async {
            for batch in news.chunks(BATCH) {
                jobs::note_consumption(self.store.db(), self.worker, batch).await?;
            }
            Ok(())
        };
        let late = |_| Error::Unavailable { service: "database", source: "it took longer than a beat".into() };
        tokio::time::timeout(beat_limit(&self.store), note).await.map_err(late)?
    }
}

/// How long anything may take that is done once a beat.
fn beat_limit(store: &Store) -> Duration {
    store.timing().beat.max(Duration::from_millis(500))
}
