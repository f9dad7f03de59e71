//! The door where a worker gets its leases: wait for a doorbell, look at the row, claim it.

use std::{path::PathBuf, time::Duration};

use fred::prelude::Client;
use tokio_util::sync::CancellationToken;

use crate::{
    Result,
    db::jobs as table,
    failpoint,
    id::{JobId, WorkerId},
    job::{Job, JobState},
    lease::{HeldJobs, Lease},
    redis::queue::{self, Entry, Position},
    store::Store,
};

/// What a worker's leases have in common.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    /// Where events spill that are too many for memory. Must exist.
    pub spool_dir: PathBuf,
    /// The longest that one attempt may run.
    pub longest_run: Duration,
}

/// One incarnation's stream of leases.
pub struct Leases {
    store: Store,
    worker: WorkerId,
    config: LeaseConfig,
    fetch: Client,
    held: HeldJobs,
    /// Doorbells heard and not answered yet.
    heard: Vec<Entry>,
    /// Whether a reply may have been lost: look at what this worker heard before.
    may_have_missed: bool,
}

impl Leases {
    /// Open the stream of leases of `worker`.
    pub async fn open(store: &Store, worker: WorkerId, config: LeaseConfig) -> Result<Self> {
        let fetch = store.fetch_client().await?;
        Ok(Self { store: store.clone(), worker, config, fetch, held: HeldJobs::default(), heard: Vec::new(), may_have_missed: false })
    }

    /// Wait for a job and claim it. `None` once `shutdown` fired. Not cancel-safe: a doorbell that was
    /// heard and not answered waits until this worker is buried. After an error call it again, later.
    pub async fn next(&mut self, shutdown: &CancellationToken) -> Result<Option<Lease>> {
        while !shutdown.is_cancelled() {
            let Some(entry) = self.hear().await? else { continue };
            if shutdown.is_cancelled() {
                break;
            }
            failpoint::pass("worker.after_hear");
            match self.claim(&entry).await {
                Ok(Some(job)) => {
                    failpoint::pass("worker.after_claim");
                    return self.begin(job, entry).map(Some);
                }
                Ok(None) => {}
                Err(error) => {
                    // Nobody else hears it while this worker lives: keep it for the next call.
                    self.heard.push(entry);
                    return Err(error);
                }
            }
        }
        if let Err(error) = give_back(&self.store, self.worker, &self.held).await {
            tracing::warn!(%error, "Could not give back what was heard of and not begun");
        }
        Ok(None)
    }

    /// The next doorbell. `None` after a second of silence.
    async fn hear(&mut self) -> Result<Option<Entry>> {
        if let Some(entry) = self.heard.pop() {
            return Ok(Some(entry));
        }
        if self.may_have_missed {
            let pending = queue::fetch(&self.fetch, self.worker, Position::Pending).await?;
            self.may_have_missed = false;
            self.heard = pending.into_iter().filter(|entry| !self.held.contains(entry.job)).collect();
            if let Some(entry) = self.heard.pop() {
                return Ok(Some(entry));
            }
        }
        match queue::fetch(&self.fetch, self.worker, Position::Fresh).await {
            Ok(entries) => {
                self.heard = entries;
                Ok(self.heard.pop())
            }
            Err(error) => {
                self.may_have_missed = true;
                Err(error)
            }
        }
    }

    async fn claim(&self, entry: &Entry) -> Result<Option<Job>> {
        if self.held.contains(entry.job) {
            // A doubled doorbell for what runs right here.
            queue::done(self.store.redis(), entry.job, Some(&entry.id)).await?;
            return Ok(None);
        }
        if let Some(job) = table::claim(self.store.db(), entry.job, self.worker).await? {
            return Ok(Some(job));
        }
        self.refused(entry).await
    }

    /// The row did not move. It may be ours since a claim whose reply was lost; otherwise the doorbell
    /// goes, and is rung again if the job still waits.
    async fn refused(&self, entry: &Entry) -> Result<Option<Job>> {
        let Some(job) = table::get(self.store.db().pool(), entry.job).await? else {
            queue::done(self.store.redis(), entry.job, Some(&entry.id)).await?;
            return Ok(None);
        };
        if job.state == JobState::Running && job.worker_id == Some(self.worker) {
            return Ok(Some(job));
        }
        queue::done(self.store.redis(), entry.job, Some(&entry.id)).await?;
        // After the doorbell is gone, never before: the leader would find it still there and not ring.
        table::mark_undispatched(self.store.db(), job.id).await?;
        Ok(None)
    }

    fn begin(&self, job: Job, entry: Entry) -> Result<Lease> {
        /// How long a log outlives the longest run.
        const MARGIN: Duration = Duration::from_mins(15);
        let spool = self.config.spool_dir.join(spool_name(job.id, job.attempt));
        Lease::begin(&self.store, job, self.worker, entry.id, &self.held, spool, self.config.longest_run + MARGIN)
    }
}

/// Ring again for what `worker` heard of and did not begin.
pub(crate) async fn give_back(store: &Store, worker: WorkerId, held: &HeldJobs) -> Result<()> {
    let heard = queue::fetch(store.redis(), worker, Position::Pending).await?;
    for entry in heard.into_iter().filter(|entry| !held.contains(entry.job)) {
        queue::requeue(store.redis(), entry.job).await?;
    }
    Ok(())
}

fn spool_name(job: JobId, attempt: u32) -> String {
    format!("{job}-{attempt}.events")
}

impl Drop for Leases {
    fn drop(&mut self) {
        let fetch = self.fetch.clone();
        // The connection has a task of its own; without this it would stay until the process ends.
        tokio::spawn(async move { fred::interfaces::ClientLike::quit(&fetch).await });
    }
}
