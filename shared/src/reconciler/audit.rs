//! What Redis says, held against the record. Redis may lose all or some of it, and a crash may leave between two
//! steps what nobody comes back to: jobs that count as rung for and are not, doorbells that nobody answers, workers
//! that are no more.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::dead;
use crate::{
    Result,
    db::{jobs as table, workers},
    ending,
    id::{JobId, WorkerId},
    job::JobState,
    redis::queue::{self, Account},
    store::Store,
};

/// How often the doorbells are gone through one by one.
const OFTEN: Duration = Duration::from_secs(1);
/// The most jobs that are looked up at once.
const BATCH: u32 = 5_000;

/// What the last look found that the next one has to confirm.
#[derive(Default)]
pub struct Audit {
    /// Jobs that count as rung for and were not in Redis: perhaps not yet.
    suspects: HashSet<JobId>,
    /// Doorbells that looked astray, by their ids: perhaps something was under way.
    strays: HashSet<String>,
    went_through: Option<Instant>,
}

impl Audit {
    /// Find what is missing in Redis, and now and then what is too much. Where Redis `has_lost_all` nothing is under
    /// way there.
    pub async fn run(&mut self, store: &Store, has_lost_all: bool) -> Result<()> {
        self.find_the_unheard(store, has_lost_all).await?;
        if self.went_through.is_none_or(|at| at.elapsed() >= OFTEN) {
            self.went_through = Some(Instant::now());
            forget_the_gone(store).await?;
            self.go_through(store).await?;
        }
        Ok(())
    }

    /// Jobs that count as rung for and are not wait for a place again.
    async fn find_the_unheard(&mut self, store: &Store, has_lost_all: bool) -> Result<()> {
        let rung = table::with_place(store.db(), BATCH).await?;
        let missing: HashSet<JobId> = queue::missing(store.redis(), &rung).await?.into_iter().collect();
        let known = std::mem::replace(&mut self.suspects, missing);
        let certain = |job: &&JobId| has_lost_all || known.contains(job);
        let lost: Vec<JobId> = self.suspects.iter().filter(certain).copied().collect();
        if !lost.is_empty() {
            tracing::info!(jobs = lost.len(), "Jobs were lost in Redis: ringing for them again");
            table::mark_undispatched(store.db(), &lost).await?;
            store.repairs().jobs_rung_again.inc_by(lost.len().try_into().unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Doorbells of jobs that have ended, that stand twice, or that a worker heard long ago and never answered.
    async fn go_through(&mut self, store: &Store) -> Result<()> {
        let account = queue::account(store.redis(), store.timing().ttl).await?;
        // Nearly all of them are in both.
        let jobs: HashSet<JobId> = account.entries.iter().map(|entry| entry.job).chain(account.index.keys().copied()).collect();
        let jobs: Vec<JobId> = jobs.into_iter().collect();
        let mut states = HashMap::new();
        for batch in jobs.chunks(BATCH as usize) {
            states.extend(table::states(store.db(), batch).await?);
        }
        // The doorbell of a job goes once its end is in Redis: whoever ended these did not come so far.
        for job in account.index.keys().filter(|job| states.get(job).is_some_and(|state| state.is_terminal())) {
            match ending::finalize(store, *job).await {
                Ok(()) => {}
                Err(error) if error.is_unavailable() => return Err(error),
                // Followers have the end from the record; the others' turns must not wait for it.
                Err(error) => {
                    tracing::error!(job.id = %job, %error, cause = ?std::error::Error::source(&error), "Could not bring an end into Redis");
                    queue::done(store.redis(), *job, None).await?;
                }
            }
        }
        let strays = strays(&account, &states);
        let known = std::mem::replace(&mut self.strays, strays.keys().cloned().collect());
        let mut waiting = Vec::new();
        for (entry, job) in strays.into_iter().filter(|(entry, _)| known.contains(entry)) {
            tracing::info!(job.id = %job, entry, "Took a doorbell away that nobody answers");
            queue::done(store.redis(), job, Some(&entry)).await?;
            store.repairs().strays_removed.inc();
            waiting.push(job);
        }
        table::mark_undispatched(store.db(), &waiting).await
    }
}

/// The doorbells that should not be there, with their jobs.
fn strays(account: &Account, states: &HashMap<JobId, JobState>) -> HashMap<String, JobId> {
    let idle: HashSet<&str> = account.idle.iter().map(String::as_str).collect();
    let is_there: HashSet<&str> = account.entries.iter().map(|entry| entry.id.as_str()).collect();
    let is_over = |job: &JobId| states.get(job).is_none_or(|state| state.is_terminal());
    let is_stray = |id: &str, job: &JobId| {
        let is_second = account.index.get(job).is_none_or(|known| known != id);
        let is_unanswered = states.get(job) == Some(&JobState::Queued) && idle.contains(id);
        is_over(job) || is_second || is_unanswered
    };
    let entries = account.entries.iter().filter(|entry| is_stray(&entry.id, &entry.job)).map(|entry| (entry.id.clone(), entry.job));
    let unfounded = account.index.iter().filter(|(_, entry)| !is_there.contains(entry.as_str())).map(|(job, entry)| (entry.clone(), *job));
    entries.chain(unfounded).collect()
}

/// Workers that are in the group and no more in the record: nobody else hears what they heard.
async fn forget_the_gone(store: &Store) -> Result<()> {
    // Before the living: a worker is in the record before it hears anything.
    let consumers = queue::consumers(store.redis()).await?;
    let living: HashSet<Uuid> = workers::pulses(store.db()).await?.into_iter().map(|pulse| pulse.id).collect();
    let is_gone = |name: &String| name.parse::<WorkerId>().is_ok_and(|worker| !living.contains(&worker.uuid()));
    for worker in consumers.into_iter().filter(is_gone) {
        dead::forget(store, &worker).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::queue::Entry;

    #[test]
    fn a_doorbell_is_astray_once_its_job_has_ended_or_another_stands_for_it_or_nobody_answered_it() {
        let jobs: Vec<JobId> = (0..6).map(|_| JobId::new()).collect();
        let entry = |id: &str, job: usize| Entry { id: id.into(), job: jobs[job] };
        let account = Account {
            entries: vec![entry("1-0", 0), entry("2-0", 1), entry("3-0", 2), entry("4-0", 2), entry("5-0", 3), entry("6-0", 4)],
            index: [(0, "1-0"), (1, "2-0"), (2, "4-0"), (3, "5-0"), (4, "6-0"), (5, "9-0")].map(|(job, id)| (jobs[job], id.into())).into(),
            idle: vec!["1-0".into(), "5-0".into()],
        };
        let states = [JobState::Running, JobState::Completed, JobState::Queued, JobState::Queued, JobState::Queued, JobState::Queued];

        let found = strays(&account, &jobs.iter().copied().zip(states).collect());

        let expected = [("2-0", 1), ("3-0", 2), ("5-0", 3), ("9-0", 5)].map(|(id, job): (&str, usize)| (id.to_owned(), jobs[job]));
        assert_eq!(found, expected.into());
    }
}
