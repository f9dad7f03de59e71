//! The door to jobs: submit, find, list, cancel.

use std::{collections::HashMap, time::Duration};

use sea_orm::ConnectionTrait;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    Error, Result,
    audit::{Action, By},
    db::{
        self, audit,
        jobs::{self as table, Limits},
        sessions, users,
    },
    ending, failpoint,
    id::{ApiKeyId, JobId, SessionId, UserId},
    job::{ChatSpec, Job, JobState, JobView, NanoUsd, canonical_json},
    line::Line,
    redis::{
        queue::Turn,
        signals::{self, UserLine},
    },
    store::Store,
    trace_context::TraceContext,
};

/// How often a job may fail of itself before it is given up.
const MAX_FAILURES: u32 = 3;
/// How many workers may be lost while running a job before it is given up: it may be what kills them.
const MAX_RECLAIMS: u32 = 3;
/// How long the same idempotency key finds the same job.
const IDEMPOTENCY_KEY_LIFE: Duration = Duration::from_hours(24);
/// How long a submit waits for Redis to take the doorbell; the leader rings later otherwise.
const DISPATCH_BUDGET: Duration = Duration::from_millis(50);

pub use crate::line::Place;

/// What can be done with jobs.
#[derive(Clone)]
pub struct Jobs {
    store: Store,
    line: Line,
}

/// A checked request for a job.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Whose it is.
    pub user_id: UserId,
    /// The key it came with.
    pub api_key_id: Option<ApiKeyId>,
    /// The conversation it is a turn of.
    pub session_id: Option<SessionId>,
    /// What it asks. What it leaves open, its conversation may say.
    pub spec: ChatSpec,
    /// The client's word for this request: the same word never makes a second job.
    pub idempotency_key: Option<String>,
    /// Where the request belongs in a trace.
    pub trace: Option<TraceContext>,
    /// What it keeps of its owner's budget until it has ended; 0 for nothing.
    pub reservation: NanoUsd,
}

/// An accepted job.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// The job.
    pub job: Job,
    /// Whether it was accepted before, under the same idempotency key.
    pub replayed: bool,
}

/// News of which jobs of a user are in another state, from the moment it was made. Dropping it ends it.
pub struct StateNews(UserLine);

impl StateNews {
    /// The next job that is in another state; `None` where some may have been missed. Cancel-safe.
    pub async fn next(&mut self) -> Option<JobId> {
        self.0.next().await
    }
}

/// Which jobs to list, newest first.
#[derive(Clone, Copy, Debug)]
pub struct JobFilter {
    /// Only those in this state.
    pub state: Option<JobState>,
    /// Only those of this session.
    pub session_id: Option<SessionId>,
    /// Only those that were given up after all their tries.
    pub dead_letters: bool,
    /// Only those older than this one.
    pub before: Option<JobId>,
    /// The most to answer; fewer where they are large.
    pub limit: u32,
}

/// Some of the jobs that there are.
#[derive(Debug, Default)]
pub struct JobPage {
    /// The jobs.
    pub jobs: Vec<Job>,
    /// Whether others follow the last of them.
    pub has_more: bool,
}

impl JobPage {
    /// The last of them, where another page follows it.
    pub fn cursor(&self) -> Option<JobId> {
        self.jobs.last().filter(|_| self.has_more).map(|job| job.id)
    }
}

impl Jobs {
    /// The door over `store`.
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone(), line: Line::of(store) }
    }

    /// Accept a job: when this answers, the job will end, whatever dies. Fails with
    /// [`Error::IdempotencyMismatch`] when the key was used with another request, with
    /// [`Error::BudgetExhausted`] and [`Error::TooManyJobs`] where its owner or the key may have no more, with
    /// [`Error::QueueFull`] where as many of its owner's wait as may, with [`Error::NoSuchSession`], [`Error::SessionDeleted`] and [`Error::SessionArchived`], and with [`Error::Unavailable`] when the database is away; nothing was accepted then.
    pub async fn submit(&self, new: NewJob) -> Result<Submitted> {
        let request = canonical_json(&new.spec);
        let hash = request_hash(&new, &request);
        failpoint::pass("api.before_insert");
        // Where there is room for sure, nobody needs to count.
        let most = self.store.max_queued_per_user();
        let most = if self.line.has_room(new.user_id, most).await? { None } else { Some(most) };
        // Row first: what Redis loses or never hears, the leader rings for again.
        let refusal = match Box::pin(self.insert(&new, &request, &hash, most)).await {
            Ok(Some(mut job)) => {
                failpoint::pass("api.after_insert");
                job.has_place = Box::pin(self.announce(&job)).await;
                failpoint::pass("api.before_answer");
                return Ok(Submitted { job, replayed: false });
            }
            // Or its key was taken.
            Ok(None) => Error::QueueFull,
            // What was accepted while the conversation was open stays accepted.
            Err(closed @ (Error::NoSuchSession | Error::SessionDeleted | Error::SessionArchived)) => closed,
            Err(error) => return Err(error),
        };
        self.replay(&new, &hash).await?.ok_or(refusal)
    }

    /// Insert the row of `new`. `None` when as many jobs of its owner wait as may (those of one owner are counted one after
    /// the other), or its key was taken.
    async fn insert(&self, new: &NewJob, request: &str, hash: &[u8], most: Option<u32>) -> Result<Option<Job>> {
        if new.session_id.is_none() && most.is_none() {
            return insert(self.store.db().pool(), new, None, request, hash, most).await;
        }
        let transaction = self.store.db().begin().await?;
        if most.is_some() {
            users::take_turn(&transaction, new.user_id).await?;
        }
        let inserted = match new.session_id {
            None => insert(&transaction, new, None, request, hash, most).await?,
            Some(session) => {
                let (session, seq) = sessions::take_place(&transaction, new.user_id, session).await?;
                // With what the conversation says of all its turns.
                let request = canonical_json(&session.complete(new.spec.clone()));
                insert(&transaction, new, Some((session.id, seq)), &request, hash, most).await?
            }
        };
        if inserted.is_some() {
            db::commit(transaction).await?;
        }
        Ok(inserted)
    }

    /// The job that the same request made before, under the same key; whatever was changed since. Fails with
    /// [`Error::IdempotencyMismatch`].
    pub async fn made_before(&self, new: &NewJob) -> Result<Option<Submitted>> {
        self.replay(new, &request_hash(new, &canonical_json(&new.spec))).await
    }

    async fn replay(&self, new: &NewJob, hash: &[u8]) -> Result<Option<Submitted>> {
        let Some(key) = &new.idempotency_key else { return Ok(None) };
        match table::find_by_idempotency_key(self.store.db(), new.user_id, key).await? {
            Some((job, known)) if known == hash => Ok(Some(Submitted { job, replayed: true })),
            Some(_) => Err(Error::IdempotencyMismatch),
            None => Ok(None),
        }
    }

    /// Ring for a job that was accepted, and tell who watches; the two go to Redis together. Whether it has a place.
    async fn announce(&self, job: &Job) -> bool {
        tokio::join!(self.ring(job), signals::announce_state(self.store.redis(), job.id, job.user_id)).0
    }

    async fn ring(&self, job: &Job) -> bool {
        let ringing = async {
            let Some(session) = job.session_id else {
                return ending::ring(&self.store, job.id, Turn::Last).await;
            };
            // Asked once the job is committed: who ends the one before it now rings for this one.
            match table::next_in(self.store.db(), session).await? {
                Some(next) if next == job.id => ending::ring_for_turn(&self.store, next).await,
                _ => Ok(false),
            }
        };
        let rung = tokio::time::timeout(DISPATCH_BUDGET, ringing).await;
        failpoint::pass("api.after_ring");
        match rung {
            Ok(Ok(has_place)) => has_place,
            Ok(Err(error)) => {
                tracing::warn!(job.id = %job.id, %error, "Left job `{}` to the leader to dispatch", job.id);
                false
            }
            Err(_) => false,
        }
    }

    /// A job of `user`.
    pub async fn find(&self, user: UserId, id: JobId) -> Result<Option<Job>> {
        table::find(self.store.db(), user, id).await
    }

    /// Any job, whoever it belongs to. For the feed, which shows nothing but what its watchers may see.
    pub async fn peek(&self, id: JobId) -> Result<Option<Job>> {
        table::get(self.store.db().pool(), id).await
    }

    /// How far these are, whoever they belong to; those that are not there are left out.
    pub async fn states(&self, ids: &[JobId]) -> Result<HashMap<JobId, JobState>> {
        table::states(self.store.db(), ids).await
    }

    /// The jobs of `user` that `filter` lets through, newest first.
    pub async fn list(&self, user: UserId, filter: JobFilter) -> Result<JobPage> {
        table::list(self.store.db(), Some(user), filter).await
    }

    /// The jobs that `filter` lets through, newest first: those of `user`, or everybody's.
    pub async fn list_all(&self, user: Option<UserId>, filter: JobFilter) -> Result<JobPage> {
        table::list(self.store.db(), user, filter).await
    }

    /// Ask for the end of a job of `user`. A queued one is cancelled at once; a running one gets
    /// `cancel_requested_at`, which its worker sees with its next beat; one that ended is answered as
    /// it is.
    pub async fn cancel(&self, user: UserId, id: JobId) -> Result<Option<Job>> {
        loop {
            let Some(seen) = table::find(self.store.db(), user, id).await? else { return Ok(None) };
            let moved = match seen.state {
                JobState::Queued => ending::end_unheld(&self.store, &seen, JobState::Cancelled, None).await?,
                JobState::Running => ending::request_cancel(&self.store, user, id).await?,
                JobState::Completed | JobState::Failed | JobState::Cancelled => Some(seen),
            };
            // It moved between the look and the statement; each such move is one of few.
            if moved.is_some() {
                return Ok(moved);
            }
        }
    }

    /// How many jobs of `user`, or of one key of theirs, have not ended.
    pub async fn active_count(&self, user: UserId, key: Option<ApiKeyId>) -> Result<u64> {
        table::active_count(self.store.db(), user, key).await
    }

    /// Hear which jobs of `user` change their states from here on. Active when this answers.
    pub async fn hear(&self, user: UserId) -> Result<StateNews> {
        self.store.signals().subscribe_user(user).await.map(StateNews)
    }

    /// The jobs of `user` that have not ended, oldest first, as clients see them.
    pub async fn unended(&self, user: UserId, limit: u32) -> Result<Vec<JobView>> {
        table::unended_views(self.store.db(), user, limit).await
    }

    /// Send a dead letter again, as a new job of the same user that no key sent and that keeps `reservation` of
    /// their budget. However often and by how many callers at once this is asked, it becomes one job, which
    /// each of them gets. `None` when there is no such job; fails with [`Error::NotADeadLetter`], and as
    /// [`Self::submit`] does.
    pub async fn retry(&self, id: JobId, reservation: NanoUsd, by: &By) -> Result<Option<Submitted>> {
        let transaction = self.store.db().begin().await?;
        let Some(dead_letter) = table::hold(&transaction, id).await? else { return Ok(None) };
        if let Some(retry) = dead_letter.retried_as {
            return Ok(table::get(&transaction, retry).await?.map(|job| Submitted { job, replayed: true }));
        }
        if !dead_letter.dead_letter {
            return Err(Error::NotADeadLetter);
        }
        let new = NewJob {
            user_id: dead_letter.user_id,
            api_key_id: None,
            session_id: dead_letter.session_id,
            spec: dead_letter.spec,
            idempotency_key: None,
            trace: dead_letter.trace,
            reservation,
        };
        // In the order of a submit, which could else wait for this one that waits for it.
        users::take_turn(&transaction, new.user_id).await?;
        let place = match new.session_id {
            Some(session) => Some((session, sessions::take_place(&transaction, new.user_id, session).await?.1)),
            None => None,
        };
        let request = canonical_json(&new.spec);
        let most = Some(self.store.max_queued_per_user());
        let inserted = insert(&transaction, &new, place, &request, &request_hash(&new, &request), most).await?;
        let retry = inserted.ok_or(Error::QueueFull)?.id;
        let lost = || Error::Internal { what: "a retry was not accepted", source: "no row".into() };
        let job = table::link_retry(&transaction, id, retry).await?.ok_or_else(lost)?;
        audit::insert(&transaction, by, Action::JobRetry, Some(id.to_string()), Some(json!({ "retried_as": retry }))).await?;
        db::commit(transaction).await?;
        let has_place = Box::pin(self.announce(&job)).await;
        let job = Job { has_place, ..job };
        Ok(Some(Submitted { job, replayed: false }))
    }

    /// Give the idempotency keys free that were used a day ago or longer: the same word makes another job from then on.
    pub async fn forget_idempotency_keys(&self) -> Result<()> {
        /// The most of one statement.
        const BATCH: u32 = 1_000;
        while table::forget_idempotency_keys(self.store.db(), IDEMPOTENCY_KEY_LIFE, BATCH).await? == u64::from(BATCH) {}
        Ok(())
    }

    /// Where this queued job stands, as far as that can be told: others come and go.
    pub async fn place(&self, job: &Job) -> Result<Place> {
        if job.has_place {
            return Ok(Place { position: 0, estimated_wait: Some(Duration::ZERO) });
        }
        let own = table::own_place(self.store.db(), job).await?;
        let line = self.line.look().await?;
        Ok(line.place(job.user_id, own))
    }
}

/// Insert the row of `new`, whose `request` its conversation may have completed.
async fn insert(
    db: &impl ConnectionTrait,
    new: &NewJob,
    place: Option<(SessionId, i64)>,
    request: &str,
    hash: &[u8],
    most: Option<u32>,
) -> Result<Option<Job>> {
    let limits = Limits { failures: MAX_FAILURES, reclaims: MAX_RECLAIMS, queue_timeout: new.spec.queue_timeout(), queued: most };
    table::insert(db, JobId::new(), new, place, request, hash, &limits).await
}

/// Tells requests apart by what was asked: `request`, and of which conversation. Asked with another key of the
/// same user it is the same request.
fn request_hash(new: &NewJob, request: &str) -> Vec<u8> {
    let mut hash = Sha256::new();
    if let Some(session) = new.session_id {
        hash.update(session.to_string());
    }
    match &new.spec.allowed_tools {
        None => hash.update(request),
        Some(_) => hash.update(canonical_json(&ChatSpec { allowed_tools: None, ..new.spec.clone() })),
    }
    hash.finalize().to_vec()
}
