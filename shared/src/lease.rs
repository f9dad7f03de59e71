//! The lease a worker holds on a running job. Everything a job writes goes through it, so a worker that
//! lost its lease cannot overwrite the next one's result: `settle` then answers [`Error::Fenced`].

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, Result,
    consumption::Bill,
    contents::Contents,
    db::{self, jobs as table, jobs::Move, sessions, transcripts, usage as accounts, workspaces},
    ending::{self, BATCH, LOG_LIFE_AFTER_END, pack, terminal_event},
    event::{Event, EventBody, EventId},
    failpoint,
    id::{JobId, UserId, WorkerId},
    job::{Job, JobError, JobResult, JobState},
    redis::{
        log::{self, Appended},
        queue, signals, transcripts as cache,
    },
    session::Session,
    spool::Spool,
    store::Store,
    time::Timestamp,
    transcript::{Transcript, TurnId},
    usage::{self, AttemptOutcome},
    workspace::{Bounds, Manifest},
    workspaces::{self as files, sweep},
};
pub use crate::{
    db::jobs::{Kept, Report},
    spool::SpoolError,
};

/// About how much of the log one append carries.
const BATCH_BYTES: usize = 256 * 1024;

/// Events of so many bytes are compressed sooner than another thread is woken for them.
const PACKED_AT_ONCE: usize = 16 * 1024;

/// How long a settled job waits for its last events to reach Redis before it leaves them to the leader.
const FLUSH: Duration = Duration::from_secs(2);

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Well.
    Completed(JobResult),
    /// For good.
    Failed(JobError),
    /// In a way that may pass: back to the queue after `delay`, unless it was the last attempt allowed.
    Retry {
        /// What went wrong.
        error: JobError,
        /// How long to wait before the next attempt.
        delay: Duration,
    },
    /// Not at all: this worker is stopping. Back to the queue; no failure is counted.
    HandBack,
    /// As somebody asked.
    Cancelled,
}

/// The right to run one attempt of a job and to write for it.
pub struct Lease {
    store: Store,
    job: Job,
    worker: WorkerId,
    entry: String,
    line: Arc<Line>,
    sent: watch::Receiver<u32>,
    writer: JoinHandle<()>,
    _held: Held,
}

/// The way of this attempt's events to Redis.
struct Line {
    spool: Mutex<Spool>,
    grown: Notify,
    /// Set once the job's end is in the record: what is missing in Redis is then sent whoever asks.
    is_settled: AtomicBool,
    fenced: CancellationToken,
    life: Duration,
}

impl Line {
    fn with_spool<T>(&self, act: impl FnOnce(&mut Spool) -> T) -> T {
        // A panic while appending leaves the spool whole: it counts an event after it was stored.
        act(&mut self.spool.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The jobs this process holds leases for.
#[derive(Clone, Default)]
pub(crate) struct HeldJobs(Arc<Mutex<HashSet<JobId>>>);

impl HeldJobs {
    pub(crate) fn contains(&self, job: JobId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&job)
    }

    fn hold(&self, job: JobId) -> Held {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(job);
        Held { jobs: self.clone(), job }
    }
}

struct Held {
    jobs: HeldJobs,
    job: JobId,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.jobs.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.job);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

impl Lease {
    /// Begin the attempt that `job` was claimed for. Its events spill to `spool`; the log lives for
    /// `log_life` in Redis unless the job ends sooner.
    pub(crate) fn begin(
        store: &Store,
        job: Job,
        worker: WorkerId,
        entry: String,
        held: &HeldJobs,
        spool: PathBuf,
        log_life: Duration,
    ) -> Result<Self> {
        let line = Arc::new(Line {
            spool: Mutex::new(Spool::new(spool)),
            grown: Notify::new(),
            is_settled: AtomicBool::new(false),
            fenced: CancellationToken::new(),
            life: log_life,
        });
        let (sending, sent) = watch::channel(0);
        let writer =
            Writer { store: store.clone(), job: job.id, owner: job.user_id, attempt: job.attempt, line: line.clone(), sent: sending };
        let held = held.hold(job.id);
        let lease = Self { store: store.clone(), worker, entry, line, sent, writer: tokio::spawn(writer.run()), _held: held, job };
        // Event 0 raises the fence in the log at once.
        let started = EventBody::JobStarted { attempt: lease.job.attempt, worker_id: worker, reason: lease.job.start_reason };
        lease.emit(&started).map_err(|source| Error::Internal { what: "could not note the start of a job", source: source.into() })?;
        Ok(lease)
    }

    /// The job, as it was when it was claimed.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Fires when somebody else owns the job by now: end the process, write nothing.
    pub fn fenced(&self) -> &CancellationToken {
        &self.line.fenced
    }

    /// Number an event and send it on its way. Never waits; several events travel together when they
    /// come faster than Redis takes them.
    pub fn emit(&self, body: &EventBody) -> Result<(), SpoolError> {
        self.line.with_spool(|spool| {
            let id = EventId { attempt: self.job.attempt, n: spool.len() };
            spool.push(Event::new(id, body, Timestamp::now()).json)
        })?;
        self.line.grown.notify_one();
        Ok(())
    }

    /// Note in the record that clients may have seen output of this attempt.
    pub async fn mark_streamed(&self) -> Result<()> {
        let mine = table::mark_streamed(self.store.db(), self.job.id, self.job.attempt, self.worker).await?;
        if mine { Ok(()) } else { Err(self.refused()) }
    }

    fn refused(&self) -> Error {
        self.store.repairs().writes_fenced.inc();
        Error::Fenced
    }

    /// End the attempt, once, in the record; then tell the followers. Waits for a database that is away,
    /// until `give_up` fires. Answers the state the job is in, or [`Error::Fenced`] when it is somebody
    /// else's by now.
    pub async fn settle(mut self, outcome: Outcome, report: Report, give_up: &CancellationToken) -> Result<JobState> {
        failpoint::pass("worker.before_settle");
        let mut delay = Duration::from_millis(100);
        let settled = loop {
            match self.try_settle(&outcome, &report).await {
                Ok(settled) => break settled,
                Err(error) if error.is_unavailable() => {
                    tracing::warn!(job.id = %self.job.id, %error, "Job `{}` waits for the database to be settled", self.job.id);
                    if give_up.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
                        return Err(error);
                    }
                    delay = (delay * 2).min(Duration::from_secs(2));
                }
                Err(Error::Fenced) => return Err(Error::Fenced),
                Err(error) => {
                    tracing::error!(job.id = %self.job.id, cause = ?error, "The record refused the end of job `{}`", self.job.id);
                    break self.settle_plainly(&report).await?;
                }
            }
        };
        failpoint::pass("worker.after_settle");
        if let Err(error) = self.tell(&settled).await {
            tracing::warn!(job.id = %self.job.id, %error, "Left the news of job `{}` to the leader", self.job.id);
        }
        if settled.state.is_terminal() {
            // The rarest step must not make the end of every job larger.
            Box::pin(self.let_the_conversation_go_on(&settled, report)).await;
        }
        Ok(settled.state)
    }

    /// After the news, which somebody waits for. All of it is done by others later if it is not done here.
    async fn let_the_conversation_go_on(&self, settled: &Job, report: Report) {
        let Some(session) = settled.session_id else { return };
        let kept = report.kept.filter(|_| settled.state == JobState::Completed);
        // Before the next turn begins, which may look for it.
        if let Some(body) = kept.as_ref().map(|kept| &kept.transcript.body).filter(|body| body.len() <= cache::LARGEST)
            && let Err(error) = cache::put(self.store.redis(), session, self.turn(), body).await
        {
            tracing::debug!(session.id = %session, %error, "Kept no copy of the transcript of `{session}`");
        }
        ending::ring_for_next(&self.store, settled).await;
        // An attempt before this one may have left some as well.
        if kept.is_some_and(|kept| kept.leaves_contents || self.job.attempt > 1) {
            // Unless the next turn has begun: then the one after it does.
            sweep(&self.store, settled.user_id, session).await;
        }
    }

    fn turn(&self) -> TurnId {
        TurnId { job: self.job.id, attempt: self.job.attempt }
    }

    /// Whether what the owner's jobs may cost on one day was used up by others since this one was accepted. A job may
    /// reserve far less than its first call of the model costs.
    pub async fn is_day_spent(&self) -> Result<bool> {
        accounts::is_day_spent(self.store.db(), &self.job).await
    }

    /// The conversation that this is a turn of, as its owner left it. `None` for a job without one.
    pub async fn session(&self) -> Result<Option<Session>> {
        let Some(session) = self.job.session_id else { return Ok(None) };
        // Whoever changes its files held it before this job was claimed, or finds it running.
        sessions::settled(self.store.db().pool(), session).await
    }

    /// What the turn before left of the CLI's own files. `None` in the first turn.
    pub async fn transcript(&self) -> Result<Option<Transcript>> {
        let Some(session) = self.job.session_id else { return Ok(None) };
        let Some((turn, bytes)) = transcripts::head(self.store.db(), session).await? else { return Ok(None) };
        // A Redis that is away makes this slower and nothing else.
        let copy = cache::get(self.store.redis(), session, turn).await.ok().flatten();
        let body = if let Some(copy) = copy {
            copy
        } else {
            let lost = || Error::Internal { what: "a transcript changed while its session's job ran", source: "no row".into() };
            transcripts::body(self.store.db(), session, turn).await?.ok_or_else(lost)?.into()
        };
        Ok(Some(Transcript { body, bytes, cli_version: None }))
    }

    /// The files that the turn before, or their owner since, left; and where their contents are. `None` for
    /// a job without a conversation.
    pub async fn workspace(&self) -> Result<Option<(Manifest, Contents)>> {
        let Some(session) = self.job.session_id else { return Ok(None) };
        let manifest = workspaces::get(self.store.db().pool(), session).await?;
        Ok(Some((manifest, Contents::of(self.store.workspace_store(), session))))
    }

    /// How much the folders of a job may hold while it runs.
    pub fn workspace_bounds(&self) -> Bounds {
        self.store.workspace_bounds()
    }

    /// How much its conversation may keep of that.
    pub async fn kept_bounds(&self) -> Result<Bounds> {
        match self.job.session_id {
            Some(session) => files::bounds(&self.store, session).await,
            None => Ok(self.workspace_bounds()),
        }
    }

    async fn try_settle(&self, outcome: &Outcome, report: &Report) -> Result<Job> {
        let queue_timeout = self.job.spec.queue_timeout();
        let packed = self.pack_events().await?;
        let transaction = self.store.db().begin().await?;
        let bill = usage::bill(&transaction, &self.job, report.consumption()).await?;
        let spent = spent_by(&self.job, &bill);
        let exhausted;
        let next = match outcome {
            Outcome::Completed(result) => Move::End { state: JobState::Completed, result: Some(result), error: None },
            Outcome::Failed(error) => Move::End { state: JobState::Failed, result: None, error: Some(error) },
            Outcome::Cancelled => Move::End { state: JobState::Cancelled, result: None, error: None },
            Outcome::HandBack | Outcome::Retry { .. } if spent.is_some() => {
                Move::End { state: JobState::Failed, result: None, error: spent.as_ref() }
            }
            Outcome::HandBack => Move::HandBack { queue_timeout },
            Outcome::Retry { error, delay } => {
                exhausted = exhausted_by(error, self.job.max_failures);
                Move::Retry { exhausted: &exhausted, delay: *delay, queue_timeout }
            }
        };
        let Some(settled) = table::settle(&transaction, &self.job, self.worker, report, &bill, next).await? else {
            drop(transaction);
            return self.settled_before().await;
        };
        usage::record(&transaction, &self.job, &bill, ended_as(outcome, settled.state)).await?;
        if let (JobState::Completed, Some(session), Some(kept)) = (settled.state, settled.session_id, &report.kept) {
            transcripts::put(&transaction, session, self.turn(), &kept.transcript).await?;
            if let Some(manifest) = &kept.workspace {
                workspaces::put(&transaction, session, manifest).await?;
            }
        }
        if settled.state.is_terminal() {
            self.insert_log(&transaction, &settled, packed).await?;
        }
        db::commit(transaction).await?;
        Ok(settled)
    }

    /// The events so far, compressed; off the runtime's threads where that takes its time.
    async fn pack_events(&self) -> Result<Vec<u8>> {
        let line = self.line.clone();
        let pack = move || {
            let lines = line
                .with_spool(Spool::lines)
                .map_err(|source| Error::Internal { what: "could not read a job's events back", source: source.into() })?;
            pack(&lines)
        };
        if self.line.with_spool(|spool| spool.bytes()) <= PACKED_AT_ONCE {
            return pack();
        }
        let packing = tokio::task::spawn_blocking(pack);
        packing.await.map_err(|source| Error::Internal { what: "packing a job's events panicked", source: source.into() })?
    }

    /// Frames of zstd may follow each other: the last event, which only the record can tell, is its own.
    async fn insert_log(&self, transaction: &sea_orm::DatabaseTransaction, settled: &Job, mut packed: Vec<u8>) -> Result<()> {
        let id = self.next_id();
        packed.extend(pack(&terminal_event(settled, id)?.json)?);
        table::insert_log(transaction, settled.id, settled.attempt, packed, id.n + 1).await
    }

    fn next_id(&self) -> EventId {
        EventId { attempt: self.job.attempt, n: self.line.with_spool(|spool| spool.len()) }
    }

    /// No row moved. Either an earlier try did it and its reply was lost, or the job is somebody else's.
    async fn settled_before(&self) -> Result<Job> {
        let known = table::get(self.store.db().pool(), self.job.id).await?;
        let is_mine = |job: &Job| job.attempt == self.job.attempt && job.worker_id == Some(self.worker) && job.state != JobState::Running;
        known.filter(is_mine).ok_or_else(|| self.refused())
    }

    /// The record cannot take this end as it is: end the job with the least that can be said.
    async fn settle_plainly(&self, report: &Report) -> Result<Job> {
        let error = JobError::new("internal_error", "the result could not be stored", true);
        let next = Move::End { state: JobState::Failed, result: None, error: Some(&error) };
        let transaction = self.store.db().begin().await?;
        let bill = usage::bill(&transaction, &self.job, report.consumption()).await?;
        let moved = table::settle(&transaction, &self.job, self.worker, &Report::default(), &bill, next).await?;
        let settled = moved.ok_or_else(|| self.refused())?;
        usage::record(&transaction, &self.job, &bill, AttemptOutcome::Failed).await?;
        self.insert_log(&transaction, &settled, Vec::new()).await?;
        db::commit(transaction).await?;
        Ok(settled)
    }

    async fn tell(&mut self, settled: &Job) -> Result<()> {
        let redis = self.store.redis();
        if !settled.state.is_terminal() {
            signals::announce_requeued(redis, settled).await?;
            queue::done(redis, settled.id, Some(&self.entry)).await?;
            // The leader rings for it in its turn, once it is due.
            return queue::nudge(redis).await;
        }
        let event = terminal_event(settled, self.next_id())?;
        self.line.is_settled.store(true, Ordering::Release);
        let len = self.line.with_spool(|spool| spool.push_last(event.json).map(|()| spool.len()));
        let len = len.map_err(|source| Error::Internal { what: "could not keep the last event", source: source.into() })?;
        self.line.grown.notify_one();
        signals::announce_state(redis, settled.id, settled.user_id).await;
        let flushed = tokio::time::timeout(FLUSH, async { self.sent.wait_for(|&sent| sent >= len).await.is_ok() }).await;
        if !flushed.unwrap_or(false) {
            return Err(Error::Unavailable { service: "redis", source: "the log could not be completed".into() });
        }
        failpoint::pass("worker.after_end");
        queue::done(redis, settled.id, Some(&self.entry)).await
    }
}

/// What a job fails with when it was tried as often as it may be.
pub(crate) fn exhausted_by(last: &JobError, attempts: u32) -> JobError {
    let detail = format!("gave up after {attempts} attempts; the last one: {}: {}", last.code, last.detail);
    JobError::new("attempts_exhausted", detail, true)
}

/// What a job fails with whose next attempt could cost nothing, after one that comes to `bill`. `None` where
/// something is left, or there is no end.
pub(crate) fn spent_by(job: &Job, bill: &Bill) -> Option<JobError> {
    let is_spent = job.budget_left().is_some_and(|left| left <= bill.cost);
    is_spent.then(|| JobError::new("budget_exceeded", "the budget was used up before there was an answer", false))
}

/// How an attempt ended that left its job in `state`.
fn ended_as(outcome: &Outcome, state: JobState) -> AttemptOutcome {
    match state {
        JobState::Completed => AttemptOutcome::Completed,
        JobState::Failed => AttemptOutcome::Failed,
        JobState::Cancelled => AttemptOutcome::Cancelled,
        JobState::Queued | JobState::Running if *outcome == Outcome::HandBack => AttemptOutcome::Drained,
        JobState::Queued | JobState::Running => AttemptOutcome::Retried,
    }
}

/// Sends what the spool holds, in order, as fast as Redis takes it. What comes meanwhile goes with the
/// next append, so the first event after a silence is never held back and a flood travels in batches.
struct Writer {
    store: Store,
    job: JobId,
    owner: UserId,
    attempt: u32,
    line: Arc<Line>,
    sent: watch::Sender<u32>,
}

impl Writer {
    async fn run(self) {
        let mut next = 0;
        let mut pause = Duration::from_millis(50);
        loop {
            let batch = match self.line.with_spool(|spool| spool.read(next, BATCH, BATCH_BYTES)) {
                Ok(batch) => batch,
                Err(error) => {
                    // The end, read from the record, still reaches the log through the leader.
                    tracing::error!(job.id = %self.job, %error, "Lost the events of job `{}`", self.job);
                    return;
                }
            };
            if batch.is_empty() {
                self.line.grown.notified().await;
                continue;
            }
            let first = EventId { attempt: self.attempt, n: next };
            match log::append(self.store.redis(), self.job, first, &batch, self.life()).await {
                Ok(Appended::Whole { last }) => {
                    failpoint::pass(if next == 0 { "worker.after_begin" } else { "worker.mid_stream" });
                    if next == 0 {
                        signals::announce_state(self.store.redis(), self.job, self.owner).await;
                    }
                    next = last + 1;
                    self.sent.send_replace(next);
                    pause = Duration::from_millis(50);
                }
                // Redis lost a tail, or all of it. A log without our beginning may also be a successor's
                // that was lost as well: only the record knows.
                Ok(Appended::Gap { expected }) => match self.is_mine().await {
                    Ok(true) => {
                        self.store.repairs().log_gaps.inc();
                        next = expected;
                    }
                    Ok(false) => return self.fence_off(),
                    Err(_) => tokio::time::sleep(pause).await,
                },
                Ok(Appended::Fenced) => return self.fence_off(),
                Err(error) => {
                    tracing::debug!(job.id = %self.job, %error, "The log of job `{}` waits for Redis", self.job);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
            }
        }
    }

    fn fence_off(&self) {
        self.store.repairs().writes_fenced.inc();
        self.line.fenced.cancel();
    }

    fn life(&self) -> Duration {
        if self.line.is_settled.load(Ordering::Acquire) { LOG_LIFE_AFTER_END } else { self.line.life }
    }

    async fn is_mine(&self) -> Result<bool> {
        if self.line.is_settled.load(Ordering::Acquire) {
            return Ok(true);
        }
        let job = table::get(self.store.db().pool(), self.job).await?;
        Ok(job.is_some_and(|job| job.attempt == self.attempt && job.state == JobState::Running))
    }
}
