//! The loops that repair what a crash left behind, in every api and worker process, run by one leader
//! among them all. Every statement is idempotent and fenced, so two leaders for a moment do no harm.
//! Death is judged by counters that stand still on this process's own monotonic clock: no wall clocks
//! are compared, and a stopped leader is taken over like any other.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use fred::{
    prelude::{Expiration, KeysInterface as _},
    types::SetOptions,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use uuid::Uuid;

use crate::{
    Result,
    consumption::Bill,
    db::{
        self, jobs as table,
        leader::{self, Seen},
        workers,
    },
    ending, events, failpoint,
    id::WorkerId,
    job::{Job, JobError, JobState, RetryAfterOutput},
    lease::{HeldJobs, exhausted_by, spent_by},
    leases::give_back,
    logins,
    redis::{self, signals},
    sessions,
    store::Store,
    usage::{self, AttemptOutcome},
    users,
};

/// The most rows one look takes on; the rest waits for the next tick.
const BATCH: u32 = 500;

/// How long after its end a job is left to its own worker to announce.
const SETTLING: Duration = Duration::from_secs(2);

/// How often what is long gone is looked for: tokens that expired, contents of nobody.
const SWEEP: Duration = Duration::from_mins(1);

/// Watch over all jobs until `shutdown` fires: lead if nobody does, stand by otherwise.
pub async fn run(store: Store, shutdown: CancellationToken) {
    let mut reconciler = Reconciler::new(store);
    let mut ticks = tokio::time::interval(reconciler.store.timing().tick);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        if let Err(error) = reconciler.tick().await {
            tracing::warn!(%error, cause = ?std::error::Error::source(&error), "The watch over the jobs could not finish its round");
        }
    }
    reconciler.resign().await;
    if let Some(forgetting) = reconciler.forgetting.take() {
        // All of it is done again by the next leader.
        forgetting.abort();
        let _ = forgetting.await;
    }
}

struct Reconciler {
    store: Store,
    id: Uuid,
    term: Option<i64>,
    /// The leader's row when it last changed, and when that was noticed.
    rival: Option<(Seen, Instant)>,
    /// Each living worker's beat when it last changed, and when that was noticed.
    pulses: HashMap<Uuid, (i64, Instant)>,
    /// When that was last done.
    swept: Option<Instant>,
    /// What is being forgotten.
    forgetting: Option<AbortOnDropHandle<()>>,
}

impl Reconciler {
    fn new(store: Store) -> Self {
        Self { store, id: Uuid::now_v7(), term: None, rival: None, pulses: HashMap::new(), swept: None, forgetting: None }
    }

    /// How long the leader's row may stand still.
    fn leader_patience(&self) -> Duration {
        self.store.timing().tick * 4
    }

    async fn tick(&mut self) -> Result<()> {
        // Whoever could not look has seen nothing; what goes wrong after the look takes nothing back.
        match self.look().await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => {
                self.forget();
                return Err(error);
            }
        }
        self.give_up_the_overdue().await?;
        self.dispatch_the_waiting().await?;
        self.announce_the_ended().await?;
        self.forget_the_gone();
        Ok(())
    }

    /// Whether this process leads; then the dead have been buried.
    async fn look(&mut self) -> Result<bool> {
        if !self.leads().await? {
            return Ok(false);
        }
        self.stamp().await;
        self.bury_the_dead().await?;
        Ok(true)
    }

    /// After a failure nothing observed before it counts: an outage must not look like everyone's death.
    fn forget(&mut self) {
        self.pulses.clear();
        self.rival = None;
    }

    async fn leads(&mut self) -> Result<bool> {
        if let Some(term) = self.term {
            if leader::beat(self.store.db(), self.id, term).await? {
                return Ok(true);
            }
            tracing::info!(term, "Another process leads the watch over the jobs now");
            self.term = None;
            self.forget();
        }
        let seen = leader::look(self.store.db()).await?;
        let since = match self.rival {
            Some((known, since)) if known == seen => since,
            _ => Instant::now(),
        };
        self.rival = Some((seen, since));
        if seen.holder.is_some() && since.elapsed() < self.leader_patience() {
            return Ok(false);
        }
        self.term = leader::take(self.store.db(), self.id, seen).await?;
        if let Some(term) = self.term {
            tracing::info!(term, "This process leads the watch over the jobs");
        }
        Ok(self.term.is_some())
    }

    async fn resign(&self) {
        if let Some(term) = self.term
            && let Err(error) = leader::resign(self.store.db(), self.id, term).await
        {
            tracing::debug!(%error, "Could not give up the watch; another process takes it over");
        }
    }

    /// Tell workers that cannot reach the database that somebody can.
    async fn stamp(&self) {
        let life_ms = i64::try_from(self.leader_patience().as_millis()).unwrap_or(i64::MAX);
        let stamp = self.store.redis().set::<(), _, _>(
            redis::LEADER_STAMP,
            self.id.to_string(),
            Some(Expiration::PX(life_ms)),
            None::<SetOptions>,
            false,
        );
        if let Err(error) = stamp.await {
            tracing::debug!(%error, "Could not stamp the leadership into Redis");
        }
    }

    async fn bury_the_dead(&mut self) -> Result<()> {
        let living = workers::pulses(self.store.db()).await?;
        let now = Instant::now();
        self.pulses.retain(|id, _| living.iter().any(|pulse| pulse.id == *id));
        for pulse in living {
            let (beat, since) = *self
                .pulses
                .entry(pulse.id)
                .and_modify(|known| {
                    if known.0 != pulse.beat {
                        *known = (pulse.beat, now);
                    }
                })
                .or_insert((pulse.beat, now));
            if now.duration_since(since) < self.store.timing().ttl {
                continue;
            }
            match self.bury(pulse.id, beat).await {
                Err(error) if !error.is_unavailable() => {
                    // Not the others' fault: they are looked at as well.
                    tracing::error!(worker.id = %pulse.id, %error, cause = ?std::error::Error::source(&error), "Could not bury a worker");
                }
                buried => buried?,
            }
        }
        Ok(())
    }

    /// Declare a silent worker dead and take its jobs away, in one transaction.
    async fn bury(&mut self, worker: Uuid, beat: i64) -> Result<()> {
        let transaction = self.store.db().begin().await?;
        if !workers::bury(&transaction, worker, beat).await? {
            return Ok(());
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
        failpoint::pass("leader.after_bury");
        self.pulses.remove(&worker);
        tracing::warn!(worker.id = %worker, jobs = moved.len(), "Worker `{worker}` has gone silent; took its jobs away");
        // What it heard of and never began waits in its name; nobody else will hear of it.
        if let Err(error) = give_back(&self.store, WorkerId::from_uuid(worker), &HeldJobs::default()).await {
            tracing::warn!(%error, worker.id = %worker, "Could not ring again for what worker `{worker}` had heard of");
        }
        for job in moved {
            if job.state.is_terminal() {
                ending::tell(&self.store, &job).await;
            } else if let Err(error) = signals::announce_requeued(self.store.redis(), &job).await {
                tracing::debug!(job.id = %job.id, %error, "Could not announce that job `{}` waits again", job.id);
            }
        }
        Ok(())
    }

    async fn give_up_the_overdue(&self) -> Result<()> {
        for job in table::overdue(self.store.db(), BATCH).await? {
            let waited = job.spec.queue_timeout().as_secs();
            let error = JobError::new("queue_timeout", format!("no worker took the job within {waited} seconds"), true);
            ending::end_unheld(&self.store, &job, JobState::Failed, Some(&error)).await?;
        }
        Ok(())
    }

    async fn dispatch_the_waiting(&self) -> Result<()> {
        for (job, attempt) in table::to_dispatch(self.store.db(), BATCH).await? {
            ending::ring(&self.store, job, attempt).await?;
        }
        Ok(())
    }

    async fn announce_the_ended(&self) -> Result<()> {
        for job in table::to_finalize(self.store.db(), SETTLING, BATCH).await? {
            ending::finalize(&self.store, job).await?;
        }
        Ok(())
    }

    /// Beside the rounds: files may be many, and a slow store must not cost the lead.
    fn forget_the_gone(&mut self) {
        if self.forgetting.as_ref().is_some_and(|forgetting| !forgetting.is_finished()) {
            return;
        }
        let sweeps = self.swept.is_none_or(|swept| swept.elapsed() >= SWEEP);
        if sweeps {
            self.swept = Some(Instant::now());
        }
        let store = self.store.clone();
        self.forgetting = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = forget(&store, sweeps).await {
                tracing::warn!(%error, cause = ?std::error::Error::source(&error), "Could not forget what is gone");
            }
        })));
    }
}

async fn forget(store: &Store, sweeps: bool) -> Result<()> {
    sessions::purge_deleted(store).await?;
    users::forget_deleted(store).await?;
    if sweeps {
        logins::forget_expired(store).await?;
        events::forget_old(store).await?;
        sessions::sweep_purged(store).await?;
    }
    Ok(())
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
