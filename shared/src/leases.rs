//! The door where a worker gets its leases: wait for a doorbell, look at the row, claim it.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use fred::prelude::Client;
use tokio_util::sync::CancellationToken;

use crate::{
    Result,
    db::jobs as table,
    failpoint,
    id::{JobId, WorkerId},
    job::{Job, JobState},
    lease::{HeldJobs, Lease},
    redis::queue::{self, Entry},
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

    /// Wait for jobs and claim at most `room` of them. None once `shutdown` fired. Not cancel-safe: a doorbell
    /// that was heard and not answered waits until this worker is buried. After an error call it again, later.
    pub async fn next(&mut self, room: usize, shutdown: &CancellationToken) -> Result<Vec<Lease>> {
        while !shutdown.is_cancelled() {
            self.hear(room).await?;
            if shutdown.is_cancelled() {
                break;
            }
            if self.heard.is_empty() {
                continue;
            }
            failpoint::pass("worker.after_hear");
            let leases = self.answer(room).await?;
            if !leases.is_empty() {
                return Ok(leases);
            }
        }
        if let Err(error) = give_back(&self.store, self.worker, &self.held).await {
            tracing::warn!(%error, "Could not give back what was heard of and not begun");
        }
        Ok(Vec::new())
    }

    /// Listen for doorbells, for a second at most, unless there are some that were not answered.
    async fn hear(&mut self, room: usize) -> Result<()> {
        if !self.heard.is_empty() {
            return Ok(());
        }
        if self.may_have_missed && !failpoint::is_off("leases.own_pending") {
            let pending = queue::pending(&self.fetch, self.worker).await?;
            self.may_have_missed = false;
            self.heard = pending.into_iter().filter(|entry| !self.held.contains(entry.job)).collect();
            if !self.heard.is_empty() {
                return Ok(());
            }
        }
        match queue::fetch(&self.fetch, self.worker, room).await {
            Ok(entries) => {
                self.heard = entries;
                Ok(())
            }
            Err(error) => {
                self.may_have_missed = true;
                Err(error)
            }
        }
    }

    /// Claim what was heard. What could not be answered stays heard: nobody else hears it while this worker lives.
    async fn answer(&mut self, room: usize) -> Result<Vec<Lease>> {
        let room = room.min(self.heard.len());
        let (doubled, entries): (Vec<Entry>, Vec<Entry>) =
            self.heard[..room].iter().cloned().partition(|entry| self.held.contains(entry.job));
        for entry in &doubled {
            // A second doorbell for what runs right here.
            queue::done(self.store.redis(), entry.job, Some(&entry.id)).await?;
        }
        let jobs = if entries.is_empty() { Vec::new() } else { self.claim(&entries).await? };
        failpoint::pass("worker.after_claim");
        self.heard.drain(..room);
        let mut entries: HashMap<JobId, Entry> = entries.into_iter().map(|entry| (entry.job, entry)).collect();
        jobs.into_iter().filter_map(|job| entries.remove(&job.id).map(|entry| self.begin(job, entry))).collect()
    }

    async fn claim(&self, entries: &[Entry]) -> Result<Vec<Job>> {
        let ids: Vec<JobId> = entries.iter().map(|entry| entry.job).collect();
        let mut jobs = table::claim(self.store.db(), &ids, self.worker).await?;
        if jobs.len() < ids.len() {
            let refused: Vec<&Entry> = entries.iter().filter(|entry| jobs.iter().all(|job| job.id != entry.job)).collect();
            let ours = self.refused(&refused).await?;
            jobs.extend(ours);
        }
        Ok(jobs)
    }

    /// These rows did not move. They may be ours since a claim whose reply was lost; otherwise their doorbells
    /// go, and are rung again for those that still wait.
    async fn refused(&self, entries: &[&Entry]) -> Result<Vec<Job>> {
        let ids: Vec<JobId> = entries.iter().map(|entry| entry.job).collect();
        let known = table::get_all(self.store.db(), &ids).await?;
        let ours = |job: &Job| job.state == JobState::Running && job.worker_id == Some(self.worker);
        let (mine, others): (Vec<Job>, Vec<Job>) = known.into_iter().partition(ours);
        for entry in entries.iter().filter(|entry| mine.iter().all(|job| job.id != entry.job)) {
            queue::done(self.store.redis(), entry.job, Some(&entry.id)).await?;
        }
        // After the doorbells are gone, never before: the leader would find them still there and not ring.
        let waiting: Vec<JobId> = others.iter().filter(|job| job.state == JobState::Queued).map(|job| job.id).collect();
        table::mark_undispatched(self.store.db(), &waiting).await?;
        Ok(mine)
    }

    fn begin(&self, job: Job, entry: Entry) -> Result<Lease> {
        /// How long a log outlives the longest run.
        const MARGIN: Duration = Duration::from_mins(15);
        let spool = self.config.spool_dir.join(spool_name(job.id, job.attempt));
        Lease::begin(&self.store, job, self.worker, entry.id, &self.held, spool, self.config.longest_run + MARGIN)
    }
}

/// Let others hear what `worker` heard of and did not begin.
async fn give_back(store: &Store, worker: WorkerId, held: &HeldJobs) -> Result<()> {
    let heard = queue::pending(store.redis(), worker).await?;
    let given: Vec<Entry> = heard.into_iter().filter(|entry| !held.contains(entry.job)).collect();
    if given.is_empty() {
        return Ok(());
    }
    for entry in &given {
        queue::done(store.redis(), entry.job, Some(&entry.id)).await?;
    }
    let jobs: Vec<JobId> = given.iter().map(|entry| entry.job).collect();
    table::mark_undispatched(store.db(), &jobs).await?;
    queue::nudge(store.redis()).await
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
