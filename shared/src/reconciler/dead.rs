//! The dead: workers that beat no more, or of which something else says so. They are buried, and their jobs
//! given back, cancelled or failed, in one transaction.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    time::{Duration, Instant},
};

use uuid::Uuid;

use crate::{
    Result,
    consumption::Bill,
    db::{
        self, jobs as table, session_lock,
        workers::{self, Pulse},
    },
    ending, failpoint,
    id::WorkerId,
    job::{Job, JobError, JobState, RetryAfterOutput},
    lease::{exhausted_by, spent_by},
    redis::{queue, signals},
    store::Store,
    usage::{self, AttemptOutcome},
    workers::host,
};

/// What this process saw of the workers, by its own monotonic clock, since it can see the database.
#[derive(Default)]
pub struct Watch {
    looked: Option<Instant>,
    pulses: HashMap<Uuid, Seen>,
}

struct Seen {
    beat: i64,
    /// When it changed, or was first looked at.
    at: Instant,
}

impl Watch {
    /// Nothing that was seen before counts: an outage must not look like everyone's death.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Look at all of them; whoever leads buries those of them that are dead.
    pub async fn look(&mut self, store: &Store) -> Result<Vec<Pulse>> {
        let living = workers::pulses(store.db()).await?;
        let now = Instant::now();
        // Who did not look for so long, because it stood still or its question did, has seen nobody's silence.
        if self.looked.is_some_and(|looked| now.duration_since(looked) > store.timing().ttl / 2) {
            self.forget();
        }
        self.looked = Some(now);
        self.pulses.retain(|id, _| living.iter().any(|pulse| pulse.id == *id));
        for pulse in &living {
            let seen = self.pulses.entry(pulse.id).or_insert(Seen { beat: pulse.beat, at: now });
            if seen.beat != pulse.beat {
                *seen = Seen { beat: pulse.beat, at: now };
            }
        }
        Ok(living)
    }

    /// Bury the dead among those that were just looked at. Answers how many jobs the living can run at once.
    pub async fn bury_the_dead(&mut self, store: &Store, living: Vec<Pulse>) -> Result<u64> {
        let dead = self.dead(store, &living).await?;
        let mut slots = 0;
        for pulse in living {
            if !dead.contains(&pulse.id) || !self.bury(store, &pulse).await? {
                slots += if pulse.takes { u64::try_from(pulse.slots).unwrap_or(0) } else { 0 };
            }
        }
        Ok(slots)
    }

    async fn dead(&self, store: &Store, living: &[Pulse]) -> Result<HashSet<Uuid>> {
        let (timing, now) = (store.timing(), Instant::now());
        let silence = |pulse: &Pulse| self.pulses.get(&pulse.id).map_or(Duration::ZERO, |seen| now.duration_since(seen.at));
        let mut dead: HashSet<Uuid> = living.iter().filter(|pulse| silence(pulse) >= timing.ttl).map(|pulse| pulse.id).collect();
        dead.extend(unlocked(living).await);
        let overdue = |pulse: &&Pulse| !dead.contains(&pulse.id) && silence(pulse) >= timing.overdue();
        let overdue: Vec<Uuid> = living.iter().filter(overdue).map(|pulse| pulse.id).collect();
        if !overdue.is_empty() {
            // After an outage workers come back one by one, and take their locks again.
            dead.extend(session_lock::free(store.db(), &overdue, timing.overdue() * 4).await?);
        }
        Ok(dead)
    }

    /// Bury one of them, if it did not beat since it was looked at. Whether it is dead by now.
    async fn bury(&mut self, store: &Store, pulse: &Pulse) -> Result<bool> {
        match bury(store, pulse).await {
            Err(error) if !error.is_unavailable() => {
                // Not the others' fault: they are looked at as well.
                tracing::error!(worker.id = %pulse.id, %error, cause = ?std::error::Error::source(&error), "Could not bury a worker");
                Ok(false)
            }
            buried => buried,
        }
    }
}

/// Those whose processes are gone from this host: their files are there, and nobody locks them.
async fn unlocked(living: &[Pulse]) -> Vec<Uuid> {
    let host = host();
    let mine = living.iter().filter(|pulse| pulse.host == host);
    let files: Vec<(Uuid, String)> = mine.filter_map(|pulse| Some((pulse.id, pulse.lock_file.clone()?))).collect();
    if files.is_empty() {
        return Vec::new();
    }
    // A disk may take its time. One that panics has found nobody.
    let is_free = |path: &String| File::open(path).is_ok_and(|file| file.try_lock_shared().is_ok());
    let look = move || files.into_iter().filter(|(_, path)| is_free(path)).map(|(id, _)| id).collect();
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

/// Declare a worker dead and take its jobs away, in one transaction. False when it beat meanwhile.
async fn bury(store: &Store, pulse: &Pulse) -> Result<bool> {
    let worker = pulse.id;
    let transaction = store.db().begin().await?;
    if !workers::bury(&transaction, worker, pulse.beat).await? {
        return Ok(false);
    }
    let mut moved = Vec::new();
    for job in table::running_on(&transaction, worker).await? {
        let bill = usage::bill(&transaction, &job, job.consumption.clone().unwrap_or_default()).await?;
        let next = match verdict(&job, &bill) {
            Verdict::Requeue => table::reclaim(&transaction, &job, &bill, job.spec.queue_timeout()).await?,
            Verdict::Cancel => ending::end_lost_in(&transaction, &job, &bill, JobState::Cancelled, None).await?,
            Verdict::Fail(error) => ending::end_lost_in(&transaction, &job, &bill, JobState::Failed, Some(&error)).await?,
        };
        if next.is_some() {
            usage::record(&transaction, &job, &bill, AttemptOutcome::WorkerLost).await?;
        }
        moved.extend(next);
    }
    db::commit(transaction).await?;
    store.repairs().workers_buried.inc();
    store.repairs().jobs_reclaimed.inc_by(moved.len().try_into().unwrap_or(u64::MAX));
    failpoint::pass("leader.after_bury");
    tracing::warn!(worker.id = %worker, jobs = moved.len(), "Worker `{worker}` is dead; took its jobs away");
    // What it heard of waits in its name: nobody else would hear of it.
    if let Err(error) = forget(store, &WorkerId::from_uuid(worker).to_string()).await {
        tracing::warn!(%error, worker.id = %worker, "Left to the next look what worker `{worker}` had heard of");
    }
    for job in moved {
        if job.state.is_terminal() {
            ending::tell(store, &job).await;
        } else if let Err(error) = signals::announce_requeued(store.redis(), &job).await {
            tracing::debug!(job.id = %job.id, %error, "Could not announce that job `{}` waits again", job.id);
        }
    }
    Ok(true)
}

/// Take out what a worker heard that is no more; what still waits of it is rung for again.
pub async fn forget(store: &Store, worker: &str) -> Result<()> {
    let heard = queue::forget_consumer(store.redis(), worker).await?;
    table::mark_undispatched(store.db(), &heard).await
}

enum Verdict {
    Requeue,
    Cancel,
    Fail(JobError),
}

/// What becomes of a job whose worker died, and whose attempt comes to `bill`.
fn verdict(job: &Job, bill: &Bill) -> Verdict {
    let lost = JobError::new("worker_lost", "the worker was lost while running the job", true);
    if job.cancel_requested_at.is_some() {
        Verdict::Cancel
    } else if let Some(error) = spent_by(job, bill) {
        Verdict::Fail(error)
    } else if job.reclaims + 1 >= job.max_reclaims {
        Verdict::Fail(exhausted_by(&lost, job.attempt))
    } else if job.streamed && job.spec.retry_after_output == RetryAfterOutput::Never {
        Verdict::Fail(JobError::new("interrupted", "the worker was lost after it had streamed output", true))
    } else {
        Verdict::Requeue
    }
}
