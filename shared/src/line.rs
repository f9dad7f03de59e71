//! Who waits, and how long that takes: what a waiting job is told of its place. Counted twice a second at most in
//! each process, however many ask.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

use crate::{
    Error, Result,
    db::{
        jobs::{self as table, Waiter},
        workers,
    },
    id::UserId,
    store::Store,
};

/// How long a count is used.
const KEPT: Duration = Duration::from_millis(500);
/// How many servers are thought to accept as many jobs of one user as this one does, while the count is used.
const SERVERS: u64 = 2;
/// About how many jobs of one user may be on their way into the record at the same moment.
const AT_ONCE: u64 = 64;

/// The place of a job that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// How many jobs get a worker before it does.
    pub position: u64,
    /// How long it will wait. `None` while no job has ended to tell from, or nobody works.
    pub estimated_wait: Option<Duration>,
}

impl Place {
    /// How long it will wait, in milliseconds.
    pub fn estimated_wait_ms(&self) -> Option<u64> {
        self.estimated_wait.and_then(|wait| u64::try_from(wait.as_millis()).ok())
    }
}

/// The line as this process last saw it.
#[derive(Clone)]
pub struct Line {
    store: Store,
    seen: Arc<Mutex<Option<Look>>>,
}

/// What was seen, and when.
struct Look {
    at: Instant,
    count: Arc<Count>,
    /// How many jobs of each user were let through since.
    since: HashMap<UserId, u64>,
}

/// Who waits.
#[derive(Debug, Default)]
pub struct Count {
    waiters: Vec<Waiter>,
    slots: u64,
    mean_run: Option<Duration>,
}

impl Line {
    pub fn of(store: &Store) -> Self {
        Self { store: store.clone(), seen: Arc::default() }
    }

    /// The line, as it was half a second ago or later. Those who ask at once wait for one answer.
    pub async fn look(&self) -> Result<Arc<Count>> {
        Ok(Arc::clone(&self.fresh(&mut *self.seen.lock().await).await?.count))
    }

    /// Whether one more job of `user` may wait where at most `most` may, whoever else lets some through: then nobody has
    /// to count. Where this says no, they may be fewer.
    pub async fn has_room(&self, user: UserId, most: u32) -> Result<bool> {
        let mut seen = self.seen.lock().await;
        let look = self.fresh(&mut seen).await?;
        let waiting = look.count.waiters.iter().find(|waiter| waiter.user == user).map_or(0, |waiter| waiter.jobs);
        let since = look.since.entry(user).or_default();
        let has_room = waiting + (*since + 1) * SERVERS + AT_ONCE <= u64::from(most);
        *since += u64::from(has_room);
        Ok(has_room)
    }

    async fn fresh<'a>(&self, seen: &'a mut Option<Look>) -> Result<&'a mut Look> {
        let is_old = seen.as_ref().is_none_or(|look| look.at.elapsed() >= KEPT);
        if is_old {
            let (at, db) = (Instant::now(), self.store.db());
            let (waiters, slots, mean_run) = (table::waiters(db).await?, workers::slots(db).await?, table::mean_run(db).await?);
            *seen = Some(Look { at, count: Arc::new(Count { waiters, slots, mean_run }), since: HashMap::new() });
        }
        let lost = || Error::Internal { what: "who waits was not counted", source: "nobody did".into() };
        seen.as_mut().ok_or_else(lost)
    }
}

impl Count {
    /// The place of a job of `user` that goes behind `own` others of theirs. As the leader gives places: to each user
    /// in turn, to some more often than to others.
    pub fn place(&self, user: UserId, own: u64) -> Place {
        let weight = self.waiters.iter().find(|waiter| waiter.user == user).map_or(1, |waiter| u64::from(waiter.weight));
        let others = self.waiters.iter().filter(|waiter| waiter.user != user);
        // While one user has `own` turns, another has as many, by their weights.
        let before = |waiter: &Waiter| waiter.jobs.min((own + 1).saturating_mul(waiter.weight.into()).div_ceil(weight));
        let position = own + others.map(before).sum::<u64>();
        let slots = u32::try_from(self.slots).unwrap_or(u32::MAX);
        let estimated_wait = self.mean_run.filter(|_| slots > 0).map(|mean| {
            // A slot becomes free each so often.
            (mean / slots).saturating_mul(u32::try_from(position + 1).unwrap_or(u32::MAX))
        });
        Place { position, estimated_wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(waiters: &[(UserId, u32, u64)], slots: u64) -> Count {
        let waiters = waiters.iter().map(|(user, weight, jobs)| Waiter { user: *user, weight: *weight, jobs: *jobs }).collect();
        Count { waiters, slots, mean_run: Some(Duration::from_secs(10)) }
    }

    #[test]
    fn the_jobs_of_others_go_before_as_often_as_their_users_have_turns() {
        let (one, two, heavy) = (UserId::new(), UserId::new(), UserId::new());
        let line = line(&[(one, 1, 5), (two, 1, 10_000), (heavy, 3, 10_000)], 4);

        let position = |own| line.place(one, own).position;

        assert_eq!((position(0), position(4)), (1 + 3, 4 + 5 + 15));
        assert_eq!(line.place(heavy, 0).position, 1 + 1);
    }

    #[test]
    fn the_wait_is_that_of_those_before_shared_among_the_slots() {
        let user = UserId::new();

        assert_eq!(line(&[(user, 1, 8)], 4).place(user, 7).estimated_wait, Some(Duration::from_secs(20)));
        assert_eq!(line(&[(user, 1, 8)], 0).place(user, 7), Place { position: 7, estimated_wait: None });
    }
}
