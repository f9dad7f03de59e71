//! The end of a job without a living lease holder, the way of any end into Redis, and what may begin then. The terminal
//! event is written in the transaction that ends the job, so it never needs a living worker.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    Error, Result,
    consumption::Bill,
    db::{self, jobs as table},
    event::{Event, EventBody, EventId},
    id::{JobId, UserId},
    job::{Job, JobError, JobState},
    redis::{
        log::{self, Appended},
        queue::{self, Turn},
        signals,
    },
    store::Store,
    time::Timestamp,
};

/// How long the log of a job that ended stays in Redis; after that it is read from the record.
pub const LOG_LIFE_AFTER_END: Duration = Duration::from_mins(2);

/// The most events of one append.
pub const BATCH: usize = 256;

/// The last event of a job that ended, with the number `id`.
pub fn terminal_event(job: &Job, id: EventId) -> Result<Event> {
    let not_ended = || Error::Internal { what: "a job that has not ended has no last event", source: job.state.as_str().into() };
    let body = EventBody::terminal(job.view()).ok_or_else(not_ended)?;
    Ok(Event::new(id, &body, job.finished_at.unwrap_or_else(Timestamp::now)))
}

/// End a job that is queued, or running on a worker that is dead, and tell its followers. `None` when it
/// moved since `seen` was read.
pub async fn end_unheld(store: &Store, seen: &Job, state: JobState, error: Option<&JobError>) -> Result<Option<Job>> {
    let transaction = store.db().begin().await?;
    let Some(ended) = end_unheld_in(&transaction, seen, state, error).await? else { return Ok(None) };
    db::commit(transaction).await?;
    tell(store, &ended).await;
    Ok(Some(ended))
}

/// The same as a part of a larger transaction; the caller tells the followers after its commit.
pub async fn end_unheld_in(
    transaction: &sea_orm::DatabaseTransaction,
    seen: &Job,
    state: JobState,
    error: Option<&JobError>,
) -> Result<Option<Job>> {
    end_lost_in(transaction, seen, &Bill::default(), state, error).await
}

/// The same for a job whose last attempt is billed: a dead worker ran it.
pub async fn end_lost_in(
    transaction: &sea_orm::DatabaseTransaction,
    seen: &Job,
    bill: &Bill,
    state: JobState,
    error: Option<&JobError>,
) -> Result<Option<Job>> {
    let Some(ended) = table::end_unheld(transaction, seen, bill, state, error).await? else { return Ok(None) };
    let event = terminal_event(&ended, EventId::first(ended.attempt))?;
    table::insert_log(transaction, ended.id, ended.attempt, pack(&event.json)?, 1).await?;
    Ok(Some(ended))
}

/// End jobs of `user` that nobody is to have any more: those that wait at once, those that run by their workers.
pub async fn cancel_all(store: &Store, user: UserId, unended: Vec<Job>) -> Result<()> {
    for job in unended {
        match job.state {
            JobState::Queued => drop(end_unheld(store, &job, JobState::Cancelled, None).await?),
            JobState::Running if job.cancel_requested_at.is_none() => drop(request_cancel(store, user, job.id).await?),
            JobState::Running | JobState::Completed | JobState::Failed | JobState::Cancelled => {}
        }
    }
    Ok(())
}

/// Ask for the end of a running job of `user`. `None` when it does not run.
pub async fn request_cancel(store: &Store, user: UserId, job: JobId) -> Result<Option<Job>> {
    let asked = table::request_cancel(store.db(), user, job).await?;
    if let Some(asked) = &asked {
        // Its worker looks at it now if it hears this, and with its next beat otherwise.
        let call = async {
            if let Some(worker) = asked.worker_id {
                signals::call(store.redis(), worker).await;
            }
        };
        // A driver's future is large, and would be a part of all that may come to this.
        Box::pin(async { tokio::join!(signals::announce_state(store.redis(), job, user), call) }).await;
    }
    Ok(asked)
}

/// Bring an end into Redis now; the leader does it later otherwise.
pub async fn tell(store: &Store, ended: &Job) {
    let id = ended.id;
    signals::announce_state(store.redis(), id, ended.user_id).await;
    if let Err(error) = finalize(store, id).await {
        tracing::warn!(job.id = %id, %error, "Left the end of job `{id}` to the leader to announce");
    }
    ring_for_next(store, ended).await;
}

/// Ring for the job that waited for `ended` in its conversation; the leader does it later otherwise.
pub async fn ring_for_next(store: &Store, ended: &Job) {
    let Some(session) = ended.session_id else { return };
    let rung = async {
        match table::next_in(store.db(), session).await? {
            Some(next) => ring_for_turn(store, next).await.map(drop),
            None => Ok(()),
        }
    };
    if let Err(error) = rung.await {
        tracing::debug!(session.id = %session, %error, "Left the next job of `{session}` to the leader to dispatch");
    }
}

/// Ring for a job whose turn in its conversation it is, unless somebody else does. Whether it has a place.
pub async fn ring_for_turn(store: &Store, next: JobId) -> Result<bool> {
    match table::give_places(store.db(), &[next]).await?.as_slice() {
        [(job, 0)] => ring(store, *job, Turn::Last).await,
        [(job, _)] => wait_for_place(store, &[*job]).await.map(|()| false),
        _ => Ok(true),
    }
}

/// Ring for a job that counts as rung for by now, or let it wait for a place. Whether it has one. Where Redis is away
/// the leader finds that nobody rang.
pub async fn ring(store: &Store, job: JobId, turn: Turn) -> Result<bool> {
    let has_place = queue::dispatch(store.redis(), job, turn).await?;
    if !has_place {
        wait_for_place(store, &[job]).await?;
    }
    Ok(has_place)
}

/// These jobs wait for a place, which the leader gives them in their turn.
pub async fn wait_for_place(store: &Store, jobs: &[JobId]) -> Result<()> {
    table::mark_undispatched(store.db(), jobs).await?;
    queue::note_backlog(store.redis()).await?;
    // One may have become free before it was known that somebody waits.
    queue::nudge(store.redis()).await
}

/// Complete a finished job's log in Redis from the record and take its doorbell away. Idempotent.
pub async fn finalize(store: &Store, id: JobId) -> Result<()> {
    if let Some(packed) = table::find_log(store.db(), id).await? {
        append_missing(store, id, &unpack(&packed)?).await?;
    }
    queue::done(store.redis(), id, None).await
}

async fn append_missing(store: &Store, id: JobId, events: &[Event]) -> Result<()> {
    for (n, batch) in events.chunks(BATCH).enumerate() {
        let json: Vec<Bytes> = batch.iter().map(|event| event.json.clone()).collect();
        match log::append(store.redis(), id, batch[0].id, &json, LOG_LIFE_AFTER_END).await? {
            Appended::Whole { .. } => {}
            Appended::Gap { .. } if n == 0 => {
                return Err(Error::Internal { what: "the record of a job's events lacks the first of them", source: "a gap".into() });
            }
            // Only Redis losing the log between two batches; the leader comes back to it.
            Appended::Gap { .. } => return Err(Error::Unavailable { service: "redis", source: "the log was lost on the way".into() }),
            // A newer attempt in the log than in the record of a job that ended cannot be.
            Appended::Fenced => return Err(Error::Fenced),
        }
    }
    Ok(())
}

/// Compress a log: one event a line.
pub fn pack(lines: &[u8]) -> Result<Vec<u8>> {
    const LEVEL: i32 = 3;
    zstd::bulk::compress(lines, LEVEL).map_err(|source| Error::Internal { what: "could not compress a job's log", source: source.into() })
}

/// The events of a compressed log.
pub fn unpack(packed: &[u8]) -> Result<Vec<Event>> {
    let unreadable = |source: crate::error::Cause| Error::Internal { what: "could not read a job's stored log", source };
    let lines = Bytes::from(zstd::stream::decode_all(packed).map_err(|source| unreadable(source.into()))?);
    lines
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| Event::from_json(lines.slice_ref(line)).ok_or_else(|| unreadable("not an event".into())))
        .collect()
}
