//! The door to a job's numbered log: read it, and be told when it grows.
//!
//! To follow a log without a hole: subscribe first, then read, then apply what the subscription says;
//! on any doubt (`Missed`, an id that does not follow) read again.

use std::{sync::Arc, time::Duration};

use moka::future::Cache;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    db::jobs as table,
    ending,
    event::{Event, EventId, StartReason},
    id::JobId,
    redis::{log, signals::JobLine},
    store::Store,
};

/// The most bytes of logs from the record to keep for the next reader.
const MOST_ARCHIVED: u64 = 64 * 1024 * 1024;
/// How long such a log is kept without a reader.
const KEPT_ARCHIVED: Duration = Duration::from_secs(30);

/// What can be done with the logs of jobs.
#[derive(Clone)]
pub struct Events {
    store: Store,
    archives: Cache<JobId, Arc<[Event]>>,
}

/// News about one job.
#[derive(Clone, Debug)]
pub enum Signal {
    /// The log grew to `last`. `events` are the new ones, or nothing when they were too large to send.
    Grown {
        /// The newest event's id.
        last: EventId,
        /// The new events, in order, possibly empty.
        events: Vec<Event>,
    },
    /// The job went back to the queue, which shows in no event.
    Requeued(Requeued),
    /// Something may have been missed: read the log again.
    Missed,
}

/// An attempt that is over, and another to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requeued {
    /// The attempt that is over.
    pub attempt: u32,
    /// Why there will be another.
    pub reason: StartReason,
    /// How long it waits at least.
    pub delay_ms: u64,
}

/// News about one job, from the moment it was made. Dropping it ends it.
pub struct Subscription(JobLine);

impl Subscription {
    /// The next piece of news. Cancel-safe.
    pub async fn next(&mut self) -> Signal {
        self.0.next().await
    }
}

impl Events {
    /// The door over `store`.
    pub fn new(store: &Store) -> Self {
        let weight = |_: &JobId, events: &Arc<[Event]>| {
            let bytes: usize = events.iter().map(|event| size_of::<Event>() + event.json.len()).sum();
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        let archives = Cache::builder().weigher(weight).max_capacity(MOST_ARCHIVED).time_to_idle(KEPT_ARCHIVED).build();
        Self { store: store.clone(), archives }
    }

    /// Hear about a job from here on. Active when this answers: what is appended later is announced.
    pub async fn subscribe(&self, job: JobId) -> Result<Subscription> {
        self.store.signals().subscribe(job).await.map(Subscription)
    }

    /// At most `limit` events after `after` (from the oldest kept when `None`) from the living log in
    /// Redis; empty when there are none or the log has expired.
    pub async fn read(&self, job: JobId, after: Option<EventId>, limit: u64) -> Result<Vec<Event>> {
        log::read(self.store.redis(), job, after, limit).await
    }

    /// The newest event of each of these in its living log in Redis, all asked for together.
    pub async fn newest(&self, jobs: &[JobId]) -> Result<Vec<Option<EventId>>> {
        log::newest(self.store.redis(), jobs).await
    }

    /// All events of a finished job's last attempt, from the record. `None` while it has not ended or
    /// when they are no longer kept. Many readers of one job cost one look; a reader that comes back for
    /// the next few may find them still here.
    pub async fn archived(&self, job: JobId) -> Result<Option<Arc<[Event]>>> {
        if let Some(events) = self.archives.get(&job).await {
            return Ok(Some(events));
        }
        let events = self.clone();
        let looking = async move {
            let look = async {
                match events.unpacked(job).await {
                    Ok(Some(events)) => Ok(events),
                    // Neither is worth remembering.
                    Ok(None) => Err(None),
                    Err(error) => Err(Some(Arc::new(error))),
                }
            };
            events.archives.try_get_with(job, look).await
        };
        // A task of its own, as long as the look: others wait for it too, and this reader may leave, or take nothing.
        let looked = tokio::spawn(looking).await;
        match looked.map_err(|source| Error::Internal { what: "reading a job's events panicked", source: source.into() })? {
            Ok(events) => Ok(Some(events)),
            Err(missing) => {
                missing.as_ref().clone().map_or(Ok(None), |error| Err(Error::of_several(error, "could not read a job's events")))
            }
        }
    }

    async fn unpacked(&self, job: JobId) -> Result<Option<Arc<[Event]>>> {
        let Some(packed) = table::find_log(self.store.db(), job).await? else { return Ok(None) };
        // They may be megabytes.
        let unpacking = tokio::task::spawn_blocking(move || ending::unpack(&packed));
        let events =
            unpacking.await.map_err(|source| Error::Internal { what: "unpacking a job's events panicked", source: source.into() })??;
        Ok(Some(events.into()))
    }
}

/// Forget the events of jobs that ended longer ago than they are kept; how a job ended stays in its row.
pub(crate) async fn forget_old(store: &Store) -> Result<()> {
    /// The most logs of one statement.
    const BATCH: u32 = 1_000;
    while table::forget_logs(store.db(), store.event_retention(), BATCH).await? == u64::from(BATCH) {}
    Ok(())
}
