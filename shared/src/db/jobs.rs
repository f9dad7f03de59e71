//! A job's row and every move it can make. Each move is one statement that names the state it expects;
//! those of a lease holder name the attempt as well, and no rows means "not yours any more".

use std::{collections::HashMap, ops::ControlFlow, time::Duration};

use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::{Db, each_row, execute, ms, row, rows};
use crate::{
    Error, Result,
    consumption::{Bill, Consumption},
    event::StartReason,
    failpoint,
    id::{ApiKeyId, JobId, SessionId, UserId, WorkerId},
    job::{InvalidJobState, Job, JobError, JobResult, JobState, JobView, NanoUsd, Usage},
    jobs::{JobFilter, JobPage, NewJob},
    time::Timestamp,
    trace_context::TraceContext,
    transcript::Transcript,
    workspace::Manifest,
};

#[derive(FromQueryResult)]
struct Row {
    id: Uuid,
    user_id: Uuid,
    api_key_id: Option<Uuid>,
    session_id: Option<Uuid>,
    request: String,
    traceparent: Option<String>,
    tracestate: Option<String>,
    state: String,
    attempt: i32,
    failures: i32,
    reclaims: i32,
    max_failures: i32,
    max_reclaims: i32,
    start_reason: String,
    worker_id: Option<Uuid>,
    run_at: i64,
    cancel_requested_at: Option<i64>,
    streamed: bool,
    model: Option<String>,
    result: Option<String>,
    error: Option<String>,
    usage: Option<String>,
    cost_nano_usd: i64,
    reserved_nano_usd: i64,
    running_usage: Option<String>,
    start_ms: Option<i64>,
    first_token_ms: Option<i64>,
    created_at: i64,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    dispatched: bool,
    dead_letter: bool,
    retry_of: Option<Uuid>,
    retried_as: Option<Uuid>,
}

/// A column whose content this version cannot read.
fn unreadable(source: impl Into<crate::error::Cause>) -> Error {
    Error::Internal { what: "a job's row holds what this version cannot read", source: source.into() }
}

fn json<T: DeserializeOwned>(text: Option<String>) -> Result<Option<T>> {
    text.map(|text| serde_json::from_str(&text)).transpose().map_err(unreadable)
}

fn count(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

impl TryFrom<Row> for Job {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self> {
        let at = |ms: Option<i64>| ms.map(Timestamp::from_unix_ms);
        let span = |ms: Option<i64>| ms.and_then(|ms| u64::try_from(ms).ok());
        Ok(Self {
            id: JobId::from_uuid(row.id),
            user_id: UserId::from_uuid(row.user_id),
            api_key_id: row.api_key_id.map(ApiKeyId::from_uuid),
            session_id: row.session_id.map(SessionId::from_uuid),
            state: row.state.parse().map_err(unreadable)?,
            spec: serde_json::from_str(&row.request).map_err(unreadable)?,
            attempt: count(row.attempt),
            failures: count(row.failures),
            reclaims: count(row.reclaims),
            max_failures: count(row.max_failures),
            max_reclaims: count(row.max_reclaims),
            streamed: row.streamed,
            worker_id: row.worker_id.map(WorkerId::from_uuid),
            created_at: Timestamp::from_unix_ms(row.created_at),
            started_at: at(row.started_at),
            finished_at: at(row.finished_at),
            cancel_requested_at: at(row.cancel_requested_at),
            model: row.model,
            result: json(row.result)?,
            error: json(row.error)?,
            usage: json(row.usage)?,
            cost: NanoUsd(row.cost_nano_usd),
            reserved: NanoUsd(row.reserved_nano_usd),
            consumption: json(row.running_usage)?,
            start_ms: span(row.start_ms),
            first_token_ms: span(row.first_token_ms),
            trace: TraceContext::of_record(row.traceparent.as_deref(), row.tracestate.as_deref()),
            start_reason: start_reason(&row.start_reason)?,
            run_at: Timestamp::from_unix_ms(row.run_at),
            has_place: row.dispatched,
            dead_letter: row.dead_letter,
            retry_of: row.retry_of.map(JobId::from_uuid),
            retried_as: row.retried_as.map(JobId::from_uuid),
        })
    }
}

fn start_reason(word: &str) -> Result<StartReason> {
    serde_json::from_value(serde_json::Value::String(word.to_owned())).map_err(unreadable)
}

fn start_reason_word(reason: StartReason) -> &'static str {
    match reason {
        StartReason::First => "first",
        StartReason::WorkerLost => "worker_lost",
        StartReason::Retry => "retry",
        StartReason::Drained => "drained",
    }
}

async fn job(db: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Result<Option<Job>> {
    row::<Row>(db, sql, values).await?.map(Job::try_from).transpose()
}

async fn jobs(db: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Result<Vec<Job>> {
    rows::<Row>(db, sql, values).await?.into_iter().map(Job::try_from).collect()
}

fn number(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn text(value: &impl serde::Serialize) -> String {
    // A NUL is legal in JSON only as an escape, which both databases store as plain text.
    serde_json::to_string(value).expect("these types have only string keys")
}

/// How often a job is tried.
pub struct Limits {
    /// The most failures of its own.
    pub failures: u32,
    /// The most workers lost while running it.
    pub reclaims: u32,
    /// The longest wait for a worker.
    pub queue_timeout: Duration,
    /// The most jobs of its owner that wait, this one among them; not counted when absent.
    pub queued: Option<u32>,
}

/// Whether a job's conversation goes on without it being in anybody's way: none before it has yet to end.
const IS_NEXT: &str = "(session_id IS NULL OR NOT EXISTS (SELECT 1 FROM jobs earlier WHERE earlier.session_id = jobs.session_id
                        AND earlier.session_seq < jobs.session_seq AND earlier.state IN ('queued', 'running')))";

/// Insert a queued job, at its `place` in its conversation. `None` when its idempotency key is taken, or as many
/// jobs of its owner wait as may. The database itself refuses a job that a budget or a cap does not admit.
/// One without a conversation counts as rung for: whoever inserts it does that next.
pub async fn insert(
    db: &impl ConnectionTrait,
    id: JobId,
    new: &NewJob,
    place: Option<(SessionId, i64)>,
    request: &str,
    request_hash: &[u8],
    limits: &Limits,
) -> Result<Option<Job>> {
    let (session, seq) = place.unzip();
    job(
        db,
        "INSERT INTO jobs (id, user_id, api_key_id, idempotency_key, request_hash, request, priority, traceparent, state,
                           max_failures, max_reclaims, reserved_nano_usd, session_id, session_seq, dispatched, run_at, queue_deadline_at,
                           created_at, tracestate)
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, 'queued', $9, $10, $12, $13, $14, $15, {now}, {now} + $11, {now}, $17
         WHERE $16 IS NULL OR (SELECT count(*) FROM (SELECT 1 FROM jobs WHERE user_id = $2 AND state = 'queued' LIMIT $16) AS waiting) < $16
         ON CONFLICT DO NOTHING
         RETURNING *",
        [
            id.uuid().into(),
            new.user_id.uuid().into(),
            new.api_key_id.map(ApiKeyId::uuid).into(),
            new.idempotency_key.clone().into(),
            new.idempotency_key.as_ref().map(|_| request_hash.to_vec()).into(),
            request.into(),
            new.spec.priority.rank().into(),
            new.trace.as_ref().map(TraceContext::traceparent).into(),
            number(limits.failures).into(),
            number(limits.reclaims).into(),
            ms(limits.queue_timeout).into(),
            new.reservation.0.into(),
            session.map(SessionId::uuid).into(),
            seq.into(),
            place.is_none().into(),
            limits.queued.map(i64::from).into(),
            new.trace.as_ref().and_then(TraceContext::tracestate).into(),
        ],
    )
    .await
}

/// The job that took an idempotency key, and the hash of its request.
pub async fn find_by_idempotency_key(db: &Db, user: UserId, key: &str) -> Result<Option<(Job, Vec<u8>)>> {
    #[derive(FromQueryResult)]
    struct Hash {
        request_hash: Vec<u8>,
    }
    let by_key = [user.uuid().into(), Value::from(key)];
    let sql = "SELECT request_hash FROM jobs WHERE user_id = $1 AND idempotency_key = $2";
    let Some(hash) = row::<Hash>(db.pool(), sql, by_key.clone()).await? else { return Ok(None) };
    let found = job(db.pool(), "SELECT * FROM jobs WHERE user_id = $1 AND idempotency_key = $2", by_key).await?;
    Ok(found.map(|job| (job, hash.request_hash)))
}

pub async fn find(db: &Db, user: UserId, id: JobId) -> Result<Option<Job>> {
    job(db.pool(), "SELECT * FROM jobs WHERE id = $1 AND user_id = $2", [id.uuid().into(), user.uuid().into()]).await
}

pub async fn get(db: &impl ConnectionTrait, id: JobId) -> Result<Option<Job>> {
    job(db, "SELECT * FROM jobs WHERE id = $1", [id.uuid().into()]).await
}

/// How far these are.
pub async fn states(db: &Db, ids: &[JobId]) -> Result<HashMap<JobId, JobState>> {
    #[derive(FromQueryResult)]
    struct Row {
        id: Uuid,
        state: String,
    }
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = format!("SELECT id, state FROM jobs WHERE id IN ({})", places(0, ids));
    let found: Vec<Row> = rows(db.pool(), &sql, values(ids)).await?;
    let unreadable =
        |source: InvalidJobState| Error::Internal { what: "a job's row holds what this version cannot read", source: source.into() };
    found.into_iter().map(|row| Ok((JobId::from_uuid(row.id), row.state.parse().map_err(unreadable)?))).collect()
}

/// A page of jobs ends once it holds so much: each may have a megabyte asked and four answered.
const PAGE_BYTES: usize = 8 << 20;

/// The jobs that `filter` lets through, newest first: those of one user, or of all.
pub async fn list(db: &Db, user: Option<UserId>, filter: JobFilter) -> Result<JobPage> {
    let mut conditions = vec![if filter.dead_letters { "dead_letter" } else { "TRUE" }.to_owned()];
    match filter.state {
        None => {}
        Some(JobState::Completed) => conditions.push("state = 'completed'".to_owned()),
        // In the words of the index that has them.
        Some(state) => conditions.push(format!("state <> 'completed' AND state = '{state}'")),
    }
    let mut values: Vec<Value> = Vec::new();
    let mut narrow = |comparison: &str, value: Value| {
        values.push(value);
        conditions.push(format!("{comparison} ${}", values.len()));
    };
    if let Some(user) = user {
        narrow("user_id =", user.uuid().into());
    }
    if let Some(session) = filter.session_id {
        narrow("session_id =", session.uuid().into());
    }
    if let Some(before) = filter.before {
        narrow("id <", before.uuid().into());
    }
    // One more than asked for tells whether there is another page.
    values.push((i64::from(filter.limit) + 1).into());
    let sql = format!("SELECT * FROM jobs WHERE {} ORDER BY id DESC LIMIT ${}", conditions.join(" AND "), values.len());
    let limit = usize::try_from(filter.limit).unwrap_or(usize::MAX);
    let (mut page, mut bytes) = (JobPage::default(), 0);
    each_row(db, &sql, values, |row: Row| {
        page.has_more = page.jobs.len() == limit || bytes >= PAGE_BYTES;
        if page.has_more {
            return Ok(ControlFlow::Break(()));
        }
        bytes += row.request.len() + row.result.as_ref().map_or(0, String::len);
        page.jobs.push(row.try_into()?);
        Ok(ControlFlow::Continue(()))
    })
    .await?;
    Ok(page)
}

#[derive(FromQueryResult)]
struct Count {
    n: i64,
}

/// How many jobs of a user, or of one of their keys, have not ended.
pub async fn active_count(db: &Db, user: UserId, key: Option<ApiKeyId>) -> Result<u64> {
    let sql = "SELECT count(*) AS n FROM jobs WHERE user_id = $1 AND state <> 'completed' AND state IN ('queued', 'running')";
    let found: Option<Count> = match key {
        Some(key) => row(db.pool(), &format!("{sql} AND api_key_id = $2"), [user.uuid().into(), key.uuid().into()]).await?,
        None => row(db.pool(), sql, [user.uuid().into()]).await?,
    };
    Ok(found.and_then(|count| u64::try_from(count.n).ok()).unwrap_or(0))
}

/// A job of a user who is still there, held against everyone else until the transaction ends.
pub async fn hold(db: &impl ConnectionTrait, id: JobId) -> Result<Option<Job>> {
    let sql = "SELECT * FROM jobs WHERE id = $1 AND user_id IN (SELECT id FROM users WHERE deleted_at IS NULL) {for_update}";
    job(db, sql, [id.uuid().into()]).await
}

/// Note on both that `retry` tries `dead_letter` again; the retry as it is then.
pub async fn link_retry(db: &impl ConnectionTrait, dead_letter: JobId, retry: JobId) -> Result<Option<Job>> {
    let both = [dead_letter.uuid().into(), retry.uuid().into()];
    execute(db, "UPDATE jobs SET retried_as = $2 WHERE id = $1", both.clone()).await?;
    job(db, "UPDATE jobs SET retry_of = $1 WHERE id = $2 RETURNING *", both).await
}

/// How many jobs of its owner go before this queued one.
pub async fn own_place(db: &Db, waiting: &Job) -> Result<u64> {
    let sql = "SELECT count(*) AS n FROM jobs WHERE user_id = $1 AND state = 'queued' AND (priority > $2 OR (priority = $2 AND id < $3))";
    let values = [waiting.user_id.uuid().into(), waiting.spec.priority.rank().into(), waiting.id.uuid().into()];
    let count: Option<Count> = row(db.pool(), sql, values).await?;
    Ok(count.and_then(|count| u64::try_from(count.n).ok()).unwrap_or(0))
}

/// A user whose jobs wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    pub user: UserId,
    /// How many places they get for one of the others.
    pub weight: u32,
    /// How many of their jobs are counted.
    pub jobs: u64,
}

#[derive(FromQueryResult)]
struct WaiterRow {
    user_id: Uuid,
    queue_weight: Option<i32>,
    jobs: i64,
}

impl From<WaiterRow> for Waiter {
    fn from(row: WaiterRow) -> Self {
        Self {
            user: UserId::from_uuid(row.user_id),
            weight: row.queue_weight.map_or(1, count).max(1),
            jobs: u64::try_from(row.jobs).unwrap_or(0),
        }
    }
}

/// Everybody whose jobs wait, and how many.
pub async fn waiters(db: &Db) -> Result<Vec<Waiter>> {
    let sql = "SELECT user_id, queue_weight, jobs FROM (SELECT user_id, count(*) AS jobs FROM jobs WHERE state = 'queued' GROUP BY user_id) AS waiting
               JOIN users ON users.id = user_id";
    Ok(rows::<WaiterRow>(db.pool(), sql, []).await?.into_iter().map(Waiter::from).collect())
}

/// How long the last of the jobs that ended ran, on average. `None` where none did.
pub async fn mean_run(db: &Db) -> Result<Option<Duration>> {
    #[derive(FromQueryResult)]
    struct Mean {
        ms: Option<i64>,
    }
    let sql = "SELECT CAST(avg(finished_at - started_at) AS BIGINT) AS ms
               FROM (SELECT finished_at, started_at FROM jobs WHERE finished_at IS NOT NULL ORDER BY finished_at DESC LIMIT 50) AS ended
               WHERE started_at IS NOT NULL";
    let mean: Option<Mean> = row(db.pool(), sql, []).await?;
    Ok(mean.and_then(|mean| u64::try_from(mean.ms?).ok()).map(Duration::from_millis))
}

/// The places of so many ids in a statement, after `before` other values.
fn places(before: usize, ids: &[JobId]) -> String {
    (1..=ids.len()).map(|place| format!("${}", before + place)).collect::<Vec<_>>().join(", ")
}

fn values(ids: &[JobId]) -> impl Iterator<Item = Value> {
    ids.iter().map(|id| id.uuid().into())
}

/// Those of these jobs that still wait have to be rung for again.
pub async fn mark_undispatched(db: &Db, ids: &[JobId]) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let sql = format!("UPDATE jobs SET dispatched = FALSE WHERE id IN ({}) AND state = 'queued' AND dispatched", places(0, ids));
    execute(db.pool(), &sql, values(ids)).await?;
    Ok(())
}

#[derive(FromQueryResult)]
struct Waiting {
    id: Uuid,
    attempt: i32,
}

impl Waiting {
    fn into_pair(self) -> (JobId, u32) {
        (JobId::from_uuid(self.id), count(self.attempt))
    }
}

/// Everybody whose jobs wait for a place, and how many of their jobs have one.
pub async fn without_place(db: &Db) -> Result<Vec<Waiter>> {
    // From one user to the next by the index, however many jobs each has.
    const NEXT: &str = "SELECT user_id FROM jobs WHERE state = 'queued' AND NOT dispatched";
    let sql = format!(
        "WITH RECURSIVE waiting (user_id) AS (
             SELECT user_id FROM ({NEXT} ORDER BY user_id LIMIT 1) AS first
             UNION ALL
             SELECT ({NEXT} AND jobs.user_id > waiting.user_id ORDER BY user_id LIMIT 1) FROM waiting WHERE waiting.user_id IS NOT NULL
         )
         SELECT waiting.user_id, queue_weight,
                (SELECT count(*) FROM jobs WHERE jobs.user_id = waiting.user_id AND state <> 'completed' AND state = 'running') +
                (SELECT count(*) FROM jobs WHERE jobs.user_id = waiting.user_id AND state = 'queued' AND dispatched) AS jobs
         FROM waiting JOIN users ON users.id = waiting.user_id"
    );
    Ok(rows::<WaiterRow>(db.pool(), &sql, []).await?.into_iter().map(Waiter::from).collect())
}

/// The jobs whose ids `sql` selects.
async fn ids(db: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Result<Vec<JobId>> {
    #[derive(FromQueryResult)]
    struct Id {
        id: Uuid,
    }
    Ok(rows::<Id>(db, sql, values).await?.into_iter().map(|row| JobId::from_uuid(row.id)).collect())
}

/// The next jobs of a user that may run and have no place: by priority, then as they came.
pub async fn next_of(db: &Db, user: UserId, limit: u64) -> Result<Vec<JobId>> {
    let sql = format!(
        "SELECT id FROM jobs WHERE user_id = $1 AND state = 'queued' AND NOT dispatched AND run_at <= {{now}} AND {IS_NEXT}
         ORDER BY priority DESC, id LIMIT $2"
    );
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    ids(db.pool(), &sql, [user.uuid().into(), limit.into()]).await
}

/// Give these jobs their places, if they still wait for one: whoever asks rings for them next.
pub async fn give_places(db: &Db, ids: &[JobId]) -> Result<Vec<(JobId, u32)>> {
    let sql = format!(
        "UPDATE jobs SET dispatched = TRUE WHERE id IN ({}) AND state = 'queued' AND NOT dispatched RETURNING id, attempt",
        places(0, ids)
    );
    let given: Vec<Waiting> = rows(db.pool(), &sql, values(ids)).await?;
    Ok(given.into_iter().map(Waiting::into_pair).collect())
}

/// Jobs that wait and count as rung for.
pub async fn with_place(db: &Db, limit: u32) -> Result<Vec<JobId>> {
    let sql = "SELECT id FROM jobs WHERE state = 'queued' AND dispatched ORDER BY id LIMIT $1";
    ids(db.pool(), sql, [i64::from(limit).into()]).await
}

/// The job of a conversation that may run and was not rung for.
pub async fn next_in(db: &Db, session: SessionId) -> Result<Option<JobId>> {
    let sql = format!(
        "SELECT id, attempt FROM jobs WHERE session_id = $1 AND state = 'queued' AND NOT dispatched AND run_at <= {{now}} AND {IS_NEXT}
         ORDER BY session_seq LIMIT 1"
    );
    Ok(row::<Waiting>(db.pool(), &sql, [session.uuid().into()]).await?.map(|next| next.into_pair().0))
}

/// Whether a job of this conversation runs.
pub async fn runs_in(db: &impl ConnectionTrait, session: SessionId) -> Result<bool> {
    let sql = "SELECT count(*) AS n FROM jobs WHERE session_id = $1 AND state = 'running'";
    let found: Option<Count> = row(db, sql, [session.uuid().into()]).await?;
    Ok(found.is_some_and(|count| count.n > 0))
}

/// The jobs of a conversation that have not ended, newest first: ended in this order, none lets another begin.
pub async fn unended_in(db: &Db, session: SessionId, limit: u32) -> Result<Vec<Job>> {
    jobs(
        db.pool(),
        "SELECT * FROM jobs WHERE session_id = $1 AND state IN ('queued', 'running') ORDER BY session_seq DESC LIMIT $2",
        [session.uuid().into(), i64::from(limit).into()],
    )
    .await
}

/// The jobs of a conversation that completed, newest first.
pub async fn turns(db: &Db, session: SessionId, before: Option<JobId>, limit: u32) -> Result<Vec<Job>> {
    let mut values = vec![Value::from(session.uuid()), i64::from(limit).into()];
    let before = before.map_or("", |id| {
        values.push(id.uuid().into());
        "AND session_seq < (SELECT session_seq FROM jobs WHERE id = $3 AND session_id = $1)"
    });
    let sql = format!("SELECT * FROM jobs WHERE session_id = $1 AND state = 'completed' {before} ORDER BY session_seq DESC LIMIT $2");
    jobs(db.pool(), &sql, values).await
}

/// Give queued jobs to a living worker: those of them that may run, there and now.
pub async fn claim(db: &Db, ids: &[JobId], worker: WorkerId) -> Result<Vec<Job>> {
    // The lock on the worker's row makes a claim and a death sentence see each other. It is one that beats do not wait
    // for: a claim may wait for a row that somebody holds who stands still.
    let sql = format!(
        "WITH claimant AS (SELECT 1 FROM workers WHERE id = $1 AND NOT dead AND NOT drain_requested {{for_key_share}})
         UPDATE jobs SET state = 'running', attempt = attempt + 1, worker_id = $1, started_at = {{now}},
                         streamed = FALSE, running_usage = NULL, start_ms = NULL, first_token_ms = NULL
         WHERE id IN ({}) AND state = 'queued' AND run_at <= {{now}} AND cancel_requested_at IS NULL AND EXISTS (SELECT 1 FROM claimant)
           AND {IS_NEXT}
         RETURNING *",
        places(1, ids)
    );
    jobs(db.pool(), &sql, std::iter::once(worker.uuid().into()).chain(values(ids))).await
}

/// These jobs.
pub async fn get_all(db: &Db, ids: &[JobId]) -> Result<Vec<Job>> {
    jobs(db.pool(), &format!("SELECT * FROM jobs WHERE id IN ({})", places(0, ids)), values(ids)).await
}

/// Note that a client may have seen output of this attempt. False when fenced.
pub async fn mark_streamed(db: &Db, id: JobId, attempt: u32, worker: WorkerId) -> Result<bool> {
    let sql = "UPDATE jobs SET streamed = TRUE WHERE id = $1 AND attempt = $2 AND worker_id = $3 AND state = 'running'";
    Ok(execute(db.pool(), sql, holder(id, attempt, worker)).await? == 1)
}

fn holder(id: JobId, attempt: u32, worker: WorkerId) -> [Value; 3] {
    [id.uuid().into(), number(attempt).into(), worker.uuid().into()]
}

/// Note what running attempts have used so far. Those that are over, or somebody else's, are passed over.
pub async fn note_consumption(db: &Db, worker: WorkerId, news: &[(JobId, u32, Consumption)]) -> Result<()> {
    let mut values: Vec<Value> = vec![worker.uuid().into()];
    let mut lines = Vec::new();
    for (id, attempt, consumption) in news {
        let next = values.len() + 1;
        lines.push(format!("(${next}, ${}, ${})", next + 1, next + 2));
        values.extend([id.uuid().into(), number(*attempt).into(), text(consumption).into()]);
    }
    let sql = format!(
        "WITH news (id, attempt, consumption) AS (VALUES {})
         UPDATE jobs SET running_usage = (SELECT consumption FROM news WHERE news.id = jobs.id AND news.attempt = jobs.attempt)
         WHERE worker_id = $1 AND state = 'running' AND (id, attempt) IN (SELECT id, attempt FROM news)",
        lines.join(", ")
    );
    execute(db.pool(), &sql, values).await?;
    Ok(())
}

/// What a lease holder knows at the end of its attempt.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The model that answered.
    pub model: Option<String>,
    /// Tokens of this attempt, as the CLI told them.
    pub usage: Option<Usage>,
    /// What they cost, where the CLI told it.
    pub cost: Option<NanoUsd>,
    /// Tokens that were seen and that the CLI did not come to account for.
    pub untold: Usage,
    /// From the claim to a CLI that has taken the message.
    pub start_ms: Option<u64>,
    /// From the claim to the first text.
    pub first_token_ms: Option<u64>,
    /// The last words of the CLI on its standard error, for the operator.
    pub stderr_tail: Option<String>,
    /// What the job's conversation goes on from, if the attempt completed.
    pub kept: Option<Kept>,
}

/// What a turn leaves to the next one of its conversation.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The CLI's transcript.
    pub transcript: Transcript,
    /// The files, where they may have changed. Their contents are in the store by then.
    pub workspace: Option<Manifest>,
    /// Whether the store has contents that no file has any more.
    pub leaves_contents: bool,
}

impl Report {
    /// What the attempt used.
    pub fn consumption(&self) -> Consumption {
        let usage = self.usage.unwrap_or_default();
        let model = self.model.as_ref().map(|model| plain(model));
        match self.cost {
            Some(cost) => Consumption { model, told: usage, cost, untold: self.untold },
            None => Consumption { model, told: Usage::default(), cost: NanoUsd(0), untold: usage + self.untold },
        }
    }
}

/// PostgreSQL cannot store a NUL in a text.
fn plain(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// The sum over a job's attempts, after one that is billed `bill`.
fn total(seen: &Job, bill: &Bill) -> Value {
    let used = bill.usage != Usage::default();
    let sum = if used { Some(seen.usage.unwrap_or_default() + bill.usage) } else { seen.usage };
    sum.as_ref().map(text).into()
}

/// Where a lease holder moves its job.
pub enum Move<'a> {
    /// To a terminal state.
    End { state: JobState, result: Option<&'a JobResult>, error: Option<&'a JobError> },
    /// Back to the queue after a failure, or to `failed` with `exhausted` when it was the last one
    /// allowed, or to `cancelled` when somebody asked.
    Retry { exhausted: &'a JobError, delay: Duration, queue_timeout: Duration },
    /// Back to the queue without a failure, or to `cancelled` when somebody asked.
    HandBack { queue_timeout: Duration },
}

const REPORT: &str = "model = COALESCE($4, model), usage = COALESCE($5, usage), cost_nano_usd = cost_nano_usd + $6, start_ms = $7,
                      first_token_ms = $8, stderr_tail = $9, running_usage = NULL";
const HELD: &str = "WHERE id = $1 AND attempt = $2 AND worker_id = $3 AND state = 'running' RETURNING *";
/// The same of whoever claims to hold it, for a test that has to see this go wrong.
const UNFENCED: &str = "WHERE id = $1 AND $2 = $2 AND $3 = $3 AND state = 'running' RETURNING *";

/// What stands between a job and whoever lost it.
fn fence() -> &'static str {
    if failpoint::is_off("lease.fence") { UNFENCED } else { HELD }
}

/// Move a job, as it was claimed, on behalf of its lease holder. `None` when fenced.
pub async fn settle(
    db: &impl ConnectionTrait,
    claimed: &Job,
    worker: WorkerId,
    report: &Report,
    bill: &Bill,
    next: Move<'_>,
) -> Result<Option<Job>> {
    let span = |ms: Option<u64>| ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX));
    let mut values = Vec::from(holder(claimed.id, claimed.attempt, worker));
    values.extend([
        bill.model.clone().into(),
        total(claimed, bill),
        bill.cost.0.into(),
        span(report.start_ms).into(),
        span(report.first_token_ms).into(),
        report.stderr_tail.as_deref().map(plain).into(),
    ]);
    let fence = fence();
    let sql = match next {
        Move::End { state, result, error } => {
            values.extend([state.as_str().into(), result.map(text).into(), error.map(text).into()]);
            format!("UPDATE jobs SET {REPORT}, state = $10, result = $11, error = $12, finished_at = {{now}} {fence}")
        }
        Move::Retry { exhausted, delay, queue_timeout } => {
            values.extend([text(exhausted).into(), ms(delay).into(), ms(queue_timeout).into()]);
            let over = "cancel_requested_at IS NOT NULL OR failures + 1 >= max_failures";
            let last = "cancel_requested_at IS NULL AND failures + 1 >= max_failures";
            format!(
                "UPDATE jobs SET {REPORT}, failures = failures + 1, dispatched = FALSE, start_reason = 'retry',
                        state = CASE WHEN cancel_requested_at IS NOT NULL THEN 'cancelled' WHEN {last} THEN 'failed' ELSE 'queued' END,
                        error = CASE WHEN {last} THEN $10 END,
                        dead_letter = CASE WHEN {last} THEN TRUE ELSE FALSE END,
                        finished_at = CASE WHEN {over} THEN {{now}} END,
                        run_at = {{now}} + $11, queue_deadline_at = {{now}} + $11 + $12 {fence}"
            )
        }
        Move::HandBack { queue_timeout } => {
            values.push(ms(queue_timeout).into());
            format!(
                "UPDATE jobs SET {REPORT}, dispatched = FALSE, start_reason = 'drained',
                        state = CASE WHEN cancel_requested_at IS NOT NULL THEN 'cancelled' ELSE 'queued' END,
                        finished_at = CASE WHEN cancel_requested_at IS NOT NULL THEN {{now}} END,
                        run_at = {{now}}, queue_deadline_at = {{now}} + $10 {fence}"
            )
        }
    };
    job(db, &sql, values).await
}

/// End a job that no lease holder will end: one that is queued, or running on a worker that is dead.
/// Raises the attempt, which fences whoever still writes. `None` when it moved since it was read.
/// `bill` is for the attempt that a dead worker ran.
pub async fn end_unheld(
    db: &impl ConnectionTrait,
    seen: &Job,
    bill: &Bill,
    state: JobState,
    error: Option<&JobError>,
) -> Result<Option<Job>> {
    let dead_letter = error.is_some_and(|error| error.code == "attempts_exhausted");
    job(
        db,
        "UPDATE jobs SET state = $4, attempt = attempt + 1, error = $5, dead_letter = $6, finished_at = {now}, running_usage = NULL,
                         model = COALESCE($7, model), usage = COALESCE($8, usage), cost_nano_usd = cost_nano_usd + $9,
                         cancel_requested_at = CASE WHEN $4 = 'cancelled' THEN COALESCE(cancel_requested_at, {now}) ELSE cancel_requested_at END
         WHERE id = $1 AND attempt = $2 AND state = $3 RETURNING *",
        [
            seen.id.uuid().into(),
            number(seen.attempt).into(),
            seen.state.as_str().into(),
            state.as_str().into(),
            error.map(text).into(),
            dead_letter.into(),
            bill.model.clone().into(),
            total(seen, bill),
            bill.cost.0.into(),
        ],
    )
    .await
}

/// Put a job of a dead worker back into the queue. `None` when it moved since it was read.
pub async fn reclaim(db: &impl ConnectionTrait, seen: &Job, bill: &Bill, queue_timeout: Duration) -> Result<Option<Job>> {
    job(
        db,
        "UPDATE jobs SET state = 'queued', reclaims = reclaims + 1, dispatched = FALSE, start_reason = $4, run_at = {now},
                         queue_deadline_at = {now} + $3, running_usage = NULL,
                         model = COALESCE($5, model), usage = COALESCE($6, usage), cost_nano_usd = cost_nano_usd + $7
         WHERE id = $1 AND attempt = $2 AND state = 'running' RETURNING *",
        [
            seen.id.uuid().into(),
            number(seen.attempt).into(),
            ms(queue_timeout).into(),
            start_reason_word(StartReason::WorkerLost).into(),
            bill.model.clone().into(),
            total(seen, bill),
            bill.cost.0.into(),
        ],
    )
    .await
}

/// The running jobs of a worker, held against everyone else until the transaction ends.
pub async fn running_on(db: &impl ConnectionTrait, worker: Uuid) -> Result<Vec<Job>> {
    jobs(db, "SELECT * FROM jobs WHERE worker_id = $1 AND state = 'running' ORDER BY id {for_update}", [worker.into()]).await
}

/// Queued jobs that waited longer than they wanted to.
pub async fn overdue(db: &Db, limit: u32) -> Result<Vec<Job>> {
    jobs(
        db.pool(),
        "SELECT * FROM jobs WHERE state = 'queued' AND queue_deadline_at <= {now} ORDER BY queue_deadline_at LIMIT $1",
        [i64::from(limit).into()],
    )
    .await
}

/// Ask the holder of a running job to end it. `None` when it is not running.
pub async fn request_cancel(db: &Db, user: UserId, id: JobId) -> Result<Option<Job>> {
    job(
        db.pool(),
        "UPDATE jobs SET cancel_requested_at = COALESCE(cancel_requested_at, {now})
         WHERE id = $1 AND user_id = $2 AND state = 'running' RETURNING *",
        [id.uuid().into(), user.uuid().into()],
    )
    .await
}

/// Keep the events of a job's last attempt, compressed, in the transaction that ends it.
pub async fn insert_log(db: &impl ConnectionTrait, id: JobId, attempt: u32, events: Vec<u8>, n_events: u32) -> Result<()> {
    execute(
        db,
        "INSERT INTO job_log (job_id, attempt, events, n_events, created_at) VALUES ($1, $2, $3, $4, {now})",
        [id.uuid().into(), number(attempt).into(), events.into(), number(n_events).into()],
    )
    .await?;
    Ok(())
}

/// The compressed events of a job that ended.
pub async fn find_log(db: &Db, id: JobId) -> Result<Option<Vec<u8>>> {
    #[derive(FromQueryResult)]
    struct Log {
        events: Vec<u8>,
    }
    Ok(row::<Log>(db.pool(), "SELECT events FROM job_log WHERE job_id = $1", [id.uuid().into()]).await?.map(|log| log.events))
}

/// Forget the events of jobs that ended so long ago; how many there were.
pub async fn forget_logs(db: &Db, older_than: Duration, limit: u32) -> Result<u64> {
    let sql =
        "DELETE FROM job_log WHERE job_id IN (SELECT job_id FROM job_log WHERE created_at <= {now} - $1 ORDER BY created_at LIMIT $2)";
    execute(db.pool(), sql, [ms(older_than).into(), i64::from(limit).into()]).await
}

/// Forget idempotency keys that are so old; how many there were.
pub async fn forget_idempotency_keys(db: &Db, older_than: Duration, limit: u32) -> Result<u64> {
    let sql = "UPDATE jobs SET idempotency_key = NULL, request_hash = NULL WHERE id IN
                   (SELECT id FROM jobs WHERE idempotency_key IS NOT NULL AND created_at <= {now} - $1 ORDER BY created_at LIMIT $2)";
    execute(db.pool(), sql, [ms(older_than).into(), i64::from(limit).into()]).await
}

/// The jobs of a user that have not ended, oldest first.
pub async fn unended(db: &Db, user: UserId, limit: u32) -> Result<Vec<Job>> {
    jobs(db.pool(), UNENDED, [user.uuid().into(), i64::from(limit).into()]).await
}

/// The same as clients see them: without what they ask, which may be large.
pub async fn unended_views(db: &Db, user: UserId, limit: u32) -> Result<Vec<JobView>> {
    let mut views = Vec::new();
    each_row(db, UNENDED, [user.uuid().into(), i64::from(limit).into()], |row: Row| {
        views.push(Job::try_from(row)?.view());
        Ok(ControlFlow::Continue(()))
    })
    .await?;
    Ok(views)
}

const UNENDED: &str =
    "SELECT * FROM jobs WHERE user_id = $1 AND state <> 'completed' AND state IN ('queued', 'running') ORDER BY id LIMIT $2";

/// Forget jobs of a user that ended, with all that is kept of them; how many there were.
pub async fn forget_ended(db: &impl ConnectionTrait, user: UserId, limit: u32) -> Result<u64> {
    let sql = "SELECT id FROM jobs WHERE user_id = $1 AND state IN ('completed', 'failed', 'cancelled') ORDER BY id LIMIT $2";
    let ids = ids(db, sql, [user.uuid().into(), i64::from(limit).into()]).await?;
    if ids.is_empty() {
        return Ok(0);
    }
    for table in ["job_log", "job_events"] {
        execute(db, &format!("DELETE FROM {table} WHERE job_id IN ({})", places(0, &ids)), values(&ids)).await?;
    }
    execute(db, &format!("DELETE FROM jobs WHERE id IN ({})", places(0, &ids)), values(&ids)).await
}
