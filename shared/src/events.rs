//! The door to a job's numbered log: read it, and be told when it grows.
//!
//! To follow a log without a hole: subscribe first, then read, then apply what the subscription says;
//! on any doubt (`Missed`, an id that does not follow) read again.

use serde::{Deserialize, Serialize};

use crate::{
    Result,
    db::jobs as table,
    ending,
    event::{Event, EventId, StartReason},
    id::JobId,
    redis::{log, signals::JobLine},
    store::Store,
};

/// What can be done with the logs of jobs.
#[derive(Clone)]
pub struct Events {
    store: Store,
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
        Self { store: store.clone() }
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

    /// All events of a finished job's last attempt, from the record. `None` while it has not ended or
    /// when they are no longer kept.
    pub async fn archived(&self, job: JobId) -> Result<Option<Vec<Event>>> {
        let packed = table::find_log(self.store.db(), job).await?;
        packed.map(|packed| ending::unpack(&packed)).transpose()
    }
}
