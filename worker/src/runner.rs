//! The worker's loop: wait for a free slot, take a lease, run it, settle it; and beside it the heartbeat
//! that entitles all of it. A worker that loses its entitlement ends every process and joins anew.

use std::{
    collections::HashMap,
    error::Error as _,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use prometheus_client::metrics::gauge::Gauge;
use shared::{
    consumption::Consumption,
    id::{JobId, WorkerId},
    job::JobError,
    lease::{Lease, Outcome, Report},
    leases::{LeaseConfig, Leases},
    store::Store,
    trace::Span,
    trace_context::TraceContext,
    workers::{Beat, Books, Membership, NewWorker, host},
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    announcement,
    chat::{self, Ending, Reins, Stop},
    claude::process::Entitlement,
    metrics::{Attempt, End, Pulse},
    workshop::Workshop,
};

/// How long jobs that were told to end may take to do it: two words with their grace, and the record.
const ENDING: Duration = Duration::from_secs(15);

/// The longest wait before a store that is away is asked for a job again: what waits is to run soon after its return.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// When to stop.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Take no more jobs and let the running ones end.
    pub drain: CancellationToken,
    /// End the running ones now.
    pub now: CancellationToken,
}

/// Work until `shutdown` says otherwise. Fails only when it cannot begin.
pub async fn run(store: &Store, workshop: Workshop, shutdown: &Shutdown) -> shared::Result<()> {
    let workshop = Arc::new(workshop);
    let slots = workshop.config.slots;
    let newcomer = NewWorker {
        name: workshop.config.name.clone(),
        host: host(),
        slots,
        mcp_servers: workshop.config.mcp.names(),
        lock_file: Some(workshop.jobs.lock_file()),
    };
    let mut pause = Duration::from_millis(250);
    while !shutdown.drain.is_cancelled() {
        match Shift::begin(store, &workshop, &newcomer).await {
            Ok((shift, leases, membership)) => {
                shift.work(leases, membership, shutdown).await;
                pause = Duration::from_millis(250);
            }
            Err(error) if error.is_unavailable() => {
                tracing::warn!(%error, cause = ?error.source(), "Could not join the workers; trying again in {pause:?}");
                let _ = shutdown.drain.run_until_cancelled(sleep(pause)).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// How long to wait before the next attempt of a job that failed `failures` times before: full jitter
/// over an exponential back-off from 2 s to 5 min, and never sooner than the provider asked.
pub fn retry_delay(failures: u32, asked: Option<Duration>) -> Duration {
    const BASE_MS: u64 = 2_000;
    const CAP_MS: u64 = 300_000;
    let ceiling = BASE_MS.saturating_mul(1 << failures.min(16)).min(CAP_MS);
    // Without randomness all wait the longest: slower, never wrong.
    let jitter = getrandom::u64().map_or(ceiling, |random| random % (ceiling + 1));
    Duration::from_millis(jitter).max(asked.unwrap_or_default())
}

/// One incarnation's time at work.
struct Shift {
    workshop: Arc<Workshop>,
    running: Running,
    slots: Arc<Semaphore>,
    jobs: TaskTracker,
    /// This incarnation is no longer entitled to run anything.
    lost: CancellationToken,
}

impl Shift {
    async fn begin(store: &Store, workshop: &Arc<Workshop>, newcomer: &NewWorker) -> shared::Result<(Self, Leases, Membership)> {
        let id = WorkerId::new();
        let leases = LeaseConfig { spool_dir: workshop.jobs.path().to_owned(), longest_run: workshop.config.timeout };
        let leases = Leases::open(store, id, leases).await?;
        let membership = Membership::join(store, id, newcomer).await?;
        tracing::info!(worker.id = %id, slots = newcomer.slots, "Joined as `{id}`");
        let shift = Self {
            workshop: workshop.clone(),
            running: Running::new(membership.entitled_since()),
            slots: Arc::new(Semaphore::new(newcomer.slots as usize)),
            jobs: TaskTracker::new(),
            lost: CancellationToken::new(),
        };
        Ok((shift, leases, membership))
    }

    async fn work(self, leases: Leases, membership: Membership, shutdown: &Shutdown) {
        let stop_beating = CancellationToken::new();
        let living = self.workshop.metrics.living.clone();
        let books = tokio::spawn(keep_books(membership.books(), self.running.clone(), living, self.beat(), stop_beating.clone()));
        let (worker, calls, called) = (membership.id(), membership.calls(), Arc::new(Notify::new()));
        let heart = tokio::spawn(beat(
            membership,
            self.running.clone(),
            Rhythm { every: self.beat(), called: called.clone() },
            self.lost.clone(),
            shutdown.drain.clone(),
            stop_beating.clone(),
            self.workshop.metrics.pulse.clone(),
        ));
        let listening = tokio::spawn(stop_beating.clone().run_until_cancelled_owned(async move { calls.pass_on(&called).await }));
        let stop_asking = CancellationToken::new();
        let asking = tokio::spawn(announcement::watch(self.workshop.clone(), worker, stop_asking.clone()));
        self.take_jobs(leases, shutdown).await;
        stop_asking.cancel();
        self.drain(shutdown).await;
        stop_beating.cancel();
        if heart.await.is_err() {
            tracing::error!("The heartbeat panicked");
        }
        if listening.await.is_err() {
            tracing::error!("The ear for calls panicked");
        }
        if books.await.is_err() {
            tracing::error!("The books panicked");
        }
        if asking.await.is_err() {
            tracing::error!("The look at the CLI panicked");
        }
    }

    fn beat(&self) -> Duration {
        self.workshop.config.store.timing.beat
    }

    async fn take_jobs(&self, mut leases: Leases, shutdown: &Shutdown) {
        let closing = CancellationToken::new();
        let close = async {
            tokio::select! {
                () = shutdown.drain.cancelled() => {}
                () = self.lost.cancelled() => {}
            }
            closing.cancel();
        };
        let take = async {
            let mut pause = Duration::from_millis(100);
            while let Some(mut slots) = self.free_slots(&closing).await {
                match leases.next(slots.num_permits(), &closing).await {
                    Ok(taken) if taken.is_empty() => break,
                    Ok(taken) => {
                        for lease in taken {
                            // There are no more of them than were asked for.
                            let Some(slot) = slots.split(1) else { break };
                            self.start(lease, slot);
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, cause = ?std::error::Error::source(&error), "Could not take a job; trying again in {pause:?}");
                        let _ = closing.run_until_cancelled(sleep(pause)).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                        continue;
                    }
                }
                pause = Duration::from_millis(100);
            }
        };
        // Taking ends by itself once it is closed, and is never cut off in its middle.
        tokio::join!(close, take);
    }

    /// All the slots that are free, once there is one. `None` once no more jobs are to be taken.
    async fn free_slots(&self, closing: &CancellationToken) -> Option<OwnedSemaphorePermit> {
        let mut slots = closing.run_until_cancelled(self.slots.clone().acquire_owned()).await?.ok()?;
        while let Ok(another) = self.slots.clone().try_acquire_owned() {
            slots.merge(another);
        }
        Some(slots)
    }

    fn start(&self, lease: Lease, slot: OwnedSemaphorePermit) {
        let job = lease.job();
        let told = Span::consumer("attempt", job.trace.as_ref());
        told.note("job.id", || job.id.to_string());
        told.note("job.attempt", || i64::from(job.attempt));
        told.note("worker.id", || job.worker_id.map_or_else(String::new, |worker| worker.to_string()));
        let trace = told.context().or_else(|| job.trace.clone());
        let span = tracing::info_span!(
            "job",
            job.id = %job.id,
            attempt = job.attempt,
            worker.id = job.worker_id.map(tracing::field::display),
            trace_id = trace.as_ref().map(TraceContext::trace_id)
        );
        tracing::info!(parent: &span, "Started job `{}` (attempt {})", job.id, job.attempt);
        let attempt = self.workshop.metrics.claimed(job);
        let (workshop, running, lost) = (self.workshop.clone(), self.running.clone(), self.lost.clone());
        self.jobs.spawn(
            async move {
                Box::pin(run_and_settle(&workshop, lease, Told { attempt: &attempt, span: &told }, &running, &lost)).await;
                drop(attempt);
                drop(slot);
            }
            .instrument(span),
        );
    }

    /// Let the running jobs end, then make them.
    async fn drain(&self, shutdown: &Shutdown) {
        self.jobs.close();
        let count = self.jobs.len();
        if count > 0 && shutdown.drain.is_cancelled() {
            tracing::info!(jobs = count, "Draining: waiting for the running jobs");
        }
        tokio::select! {
            () = self.jobs.wait() => return,
            () = self.lost.cancelled() => {}
            () = shutdown.now.cancelled() => self.running.stop_all(Stop::Kill),
            () = self.drained(shutdown) => self.running.stop_all(Stop::Drain),
        }
        let ended = async {
            tokio::select! {
                () = self.jobs.wait() => {}
                () = shutdown.now.cancelled() => {
                    self.running.stop_all(Stop::Kill);
                    self.jobs.wait().await;
                }
            }
        };
        if timeout(ENDING, ended).await.is_err() {
            tracing::warn!(jobs = self.jobs.len(), "Left jobs to the other workers");
            self.lost.cancel();
        }
    }

    async fn drained(&self, shutdown: &Shutdown) {
        shutdown.drain.cancelled().await;
        sleep(self.workshop.config.drain_timeout).await;
    }
}

/// Who is told of an attempt.
#[derive(Clone, Copy)]
struct Told<'a> {
    attempt: &'a Attempt,
    span: &'a Span,
}

async fn run_and_settle(workshop: &Workshop, lease: Lease, told: Told<'_>, running: &Running, lost: &CancellationToken) {
    let id = lease.job().id;
    let (stop, used, registration) = running.register(id, lease.job().attempt, lost.is_cancelled());
    let started = {
        let running = running.clone();
        Box::new(move |entitlement| running.set_entitlement(id, entitlement))
    };
    let reins = Reins { stop, started, used, entitled_since: running.entitled_since.subscribe() };
    let run = AssertUnwindSafe(chat::run(workshop, &lease, reins, told.span));
    let ending = run.catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!("The attempt panicked");
        let error = JobError::new("internal_error", "the worker could not run the job", false);
        Ending { outcome: Some(Outcome::Failed(error)), report: Report::default() }
    });
    told.attempt.ran(&ending.report);
    // The registration stays until the job is settled: nothing of it is renewed after that.
    let settling = told.span.part("settle");
    let end = settle(lease, ending, lost).await;
    drop(settling);
    end.note_on(told.span);
    told.attempt.settled(&end);
    drop(registration);
}

async fn settle(lease: Lease, ending: Ending, lost: &CancellationToken) -> End {
    let id = lease.job().id;
    let Ending { outcome, report } = ending;
    // Who was told by Redis alone that the job is somebody else's may have been told by what is older than the record,
    // which knows: there the job is given back if it is still this worker's.
    let outcome = outcome.or_else(|| (!lost.is_cancelled()).then_some(Outcome::HandBack));
    let Some(outcome) = outcome else {
        tracing::warn!("Job `{id}` is somebody else's by now");
        return End::LOST;
    };
    let end = End::of(&outcome);
    match lease.settle(outcome, report, lost).await {
        Ok(state) => {
            tracing::info!(state = %state, "Job `{id}` is {state}");
            end.settled_as(state)
        }
        Err(error) if error.is_fenced() => {
            tracing::warn!("Job `{id}` is somebody else's by now");
            End::LOST
        }
        Err(error) => {
            tracing::error!(%error, cause = ?std::error::Error::source(&error), "Could not settle job `{id}`; another worker will");
            // As long as this incarnation lives, nobody would take the job from it.
            lost.cancel();
            End::LOST
        }
    }
}

/// When to beat.
struct Rhythm {
    /// This often,
    every: Duration,
    /// and at once when called.
    called: Arc<Notify>,
}

/// Beat until told otherwise, renew the processes while the beats count, and pass requests to cancel on.
async fn beat(
    mut membership: Membership,
    running: Running,
    rhythm: Rhythm,
    lost: CancellationToken,
    draining: CancellationToken,
    stop: CancellationToken,
    pulse: Arc<Pulse>,
) {
    pulse.set_joined(true);
    let mut ticks = interval(rhythm.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut has_announced = false;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = lost.cancelled() => break running.stop_all(Stop::Lost),
            _ = ticks.tick() => {}
            // However many calls came meanwhile, one look sees what each is about.
            () = rhythm.called.notified() => {}
        }
        if draining.is_cancelled() && !has_announced {
            has_announced = membership.start_draining().await.is_ok();
        }
        match membership.beat().await {
            Beat::Accepted { cancelled, drain } => {
                pulse.beat();
                running.renew_all(membership.entitled_since());
                for job in cancelled {
                    running.stop(job, Stop::Cancel);
                }
                if drain && !draining.is_cancelled() {
                    tracing::info!("Asked to drain");
                    draining.cancel();
                }
            }
            Beat::Outage => running.renew_all(membership.entitled_since()),
            Beat::Missed => tracing::warn!("A heartbeat did not reach the database"),
            Beat::Lost => {
                tracing::error!("Declared dead, or cut off for too long: ending all jobs and joining anew");
                lost.cancel();
            }
        }
    }
    pulse.set_joined(false);
    if !lost.is_cancelled() && !matches!(membership.leave().await, Ok(true)) {
        tracing::warn!("Left without giving everything back; the others will notice");
    }
}

/// Note what the running attempts have used, and tell how many processes live, as often as the beat, until told
/// otherwise.
async fn keep_books(books: Books, running: Running, living: Gauge, every: Duration, stop: CancellationToken) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let news = running.news();
        // Beside each other: neither waits for the other's store.
        let ((), noted) = tokio::join!(books.tell(u32::try_from(living.get()).unwrap_or(0)), books.note(&news));
        if let Err(error) = noted {
            tracing::debug!(%error, "Could not note what the running jobs used; the next round does");
            running.renew_news(&news);
        }
    }
}

/// The jobs at work, by what can be done to them from outside.
#[derive(Clone)]
struct Running {
    jobs: Arc<Mutex<HashMap<JobId, Handle>>>,
    /// What entitled this incarnation last.
    entitled_since: Arc<watch::Sender<Instant>>,
}

struct Handle {
    attempt: u32,
    stop: watch::Sender<Option<Stop>>,
    used: watch::Receiver<Consumption>,
    entitlement: Option<Entitlement>,
}

impl Running {
    fn new(entitled_since: Instant) -> Self {
        Self { jobs: Arc::default(), entitled_since: Arc::new(watch::Sender::new(entitled_since)) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<JobId, Handle>) -> T) -> T {
        act(&mut self.jobs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn register(
        &self,
        job: JobId,
        attempt: u32,
        is_lost: bool,
    ) -> (watch::Receiver<Option<Stop>>, watch::Sender<Consumption>, Registration) {
        let (stop, stopped) = watch::channel(is_lost.then_some(Stop::Lost));
        let (using, used) = watch::channel(Consumption::default());
        self.with(|jobs| jobs.insert(job, Handle { attempt, stop, used, entitlement: None }));
        (stopped, using, Registration { running: self.clone(), job })
    }

    /// What changed in the use of each attempt since this was last asked. One that is over tells it itself.
    fn news(&self) -> Vec<(JobId, u32, Consumption)> {
        let changed = |(job, handle): (&JobId, &mut Handle)| {
            let is_news = handle.used.has_changed().unwrap_or(false);
            is_news.then(|| (*job, handle.attempt, handle.used.borrow_and_update().clone()))
        };
        self.with(|jobs| jobs.iter_mut().filter_map(changed).collect())
    }

    /// These news reached nobody.
    fn renew_news(&self, news: &[(JobId, u32, Consumption)]) {
        self.with(|jobs| {
            for (job, ..) in news {
                if let Some(handle) = jobs.get_mut(job) {
                    handle.used.mark_changed();
                }
            }
        });
    }

    fn set_entitlement(&self, job: JobId, entitlement: Entitlement) {
        self.with(|jobs| {
            if let Some(handle) = jobs.get_mut(&job) {
                handle.entitlement = Some(entitlement);
            }
        });
    }

    fn renew_all(&self, entitled_since: Instant) {
        self.entitled_since.send_replace(entitled_since);
        self.with(|jobs| jobs.values().filter_map(|handle| handle.entitlement.as_ref()).for_each(|one| one.renew(entitled_since)));
    }

    fn stop(&self, job: JobId, why: Stop) {
        self.with(|jobs| {
            if let Some(handle) = jobs.get(&job) {
                // The first reason counts, until one comes that allows no politeness.
                handle.stop.send_if_modified(|stop| {
                    let overrides = stop.is_none() || matches!(why, Stop::Kill | Stop::Lost);
                    if overrides {
                        *stop = Some(why);
                    }
                    overrides
                });
            }
        });
    }

    fn stop_all(&self, why: Stop) {
        let jobs: Vec<JobId> = self.with(|jobs| jobs.keys().copied().collect());
        for job in jobs {
            self.stop(job, why);
        }
    }
}

struct Registration {
    running: Running,
    job: JobId,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.running.with(|jobs| jobs.remove(&self.job));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_wait_longer_each_time_and_as_long_as_the_provider_asks() {
        for failures in 0..40 {
            assert!(retry_delay(failures, None) <= Duration::from_mins(5));
        }
        assert!(retry_delay(0, None) <= Duration::from_secs(2));
        assert!(retry_delay(0, Some(Duration::from_secs(9))) >= Duration::from_secs(9));
    }

    #[test]
    fn the_first_reason_to_stop_counts_until_one_allows_no_politeness() {
        let running = Running::new(Instant::now());
        let job = JobId::new();
        let (stop, _used, _registration) = running.register(job, 1, false);

        running.stop(job, Stop::Cancel);
        running.stop(job, Stop::Drain);
        assert_eq!(*stop.borrow(), Some(Stop::Cancel));

        running.stop(job, Stop::Lost);
        assert_eq!(*stop.borrow(), Some(Stop::Lost));
    }

    #[test]
    fn what_changed_is_told_once_unless_it_reached_nobody() {
        let running = Running::new(Instant::now());
        let (job, other) = (JobId::new(), JobId::new());
        let (_stop, used, _registration) = running.register(job, 3, false);
        let (_other_stop, _idle, _other_registration) = running.register(other, 1, false);
        assert_eq!(running.news(), []);
        let now = Consumption { model: Some("m".into()), ..Consumption::default() };

        used.send_replace(now.clone());

        assert_eq!(running.news(), [(job, 3, now.clone())]);
        assert_eq!(running.news(), []);
        running.renew_news(&[(job, 3, now.clone())]);
        assert_eq!(running.news(), [(job, 3, now)]);
    }
}
