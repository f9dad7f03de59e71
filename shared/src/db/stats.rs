//! Figures over all users, each from one statement that an index answers or bounds. Percentiles are the
//! nearest rank, which both databases count alike.

use std::collections::HashMap;

use sea_orm::{FromQueryResult, Value};
use uuid::Uuid;

use super::{Db, row, rows};
use crate::{
    Error, Result,
    id::UserId,
    job::{InvalidJobState, JobState, NanoUsd, Usage},
    stats::{ModelUse, Now, Quantiles, UserActivity},
    time::Timestamp,
};

/// The most models that are told apart.
const MODELS: i64 = 50;

/// A stretch of time in equal pieces, in Unix milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub from: i64,
    pub until: i64,
    pub bucket: i64,
}

impl Span {
    /// Where each piece begins.
    pub fn starts(self) -> impl Iterator<Item = i64> {
        let mut next = self.from;
        std::iter::from_fn(move || {
            let start = next;
            next += self.bucket;
            (start < self.until).then_some(start)
        })
    }

    fn ends(self) -> [Value; 2] {
        [self.from.into(), self.until.into()]
    }

    fn values(self) -> [Value; 3] {
        [self.from.into(), self.until.into(), self.bucket.into()]
    }
}

fn natural(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// The database's clock, and how things are by it.
pub async fn now(db: &Db) -> Result<(Timestamp, Now)> {
    #[derive(FromQueryResult)]
    struct Row {
        at: i64,
        users: i64,
        api_keys: i64,
        active: i64,
        draining: i64,
        slots: i64,
        dead_letters: i64,
        depth: i64,
        oldest: Option<i64>,
    }
    let sql = "
        WITH clock AS (SELECT {now} AS at),
             alive AS (SELECT slots, draining OR drain_requested AS leaves FROM workers WHERE NOT dead),
             due AS (SELECT run_at FROM jobs WHERE state = 'queued' AND run_at <= (SELECT at FROM clock))
        SELECT at,
               (SELECT count(*) FROM users WHERE deleted_at IS NULL) AS users,
               (SELECT count(*) FROM api_keys WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > at)) AS api_keys,
               (SELECT count(*) FROM alive WHERE NOT leaves) AS active,
               (SELECT count(*) FROM alive WHERE leaves) AS draining,
               (SELECT CAST(COALESCE(sum(slots), 0) AS BIGINT) FROM alive WHERE NOT leaves) AS slots,
               (SELECT count(*) FROM jobs WHERE dead_letter) AS dead_letters,
               (SELECT count(*) FROM due) AS depth,
               (SELECT at - min(run_at) FROM due) AS oldest
        FROM clock";
    let missing = || Error::Internal { what: "a row of figures is missing", source: "no such row".into() };
    let seen: Row = row(db.pool(), sql, []).await?.ok_or_else(missing)?;
    let mut now = Now {
        users: natural(seen.users),
        api_keys: natural(seen.api_keys),
        workers_active: natural(seen.active),
        workers_draining: natural(seen.draining),
        slots: natural(seen.slots),
        dead_letters: natural(seen.dead_letters),
        queue_depth: natural(seen.depth),
        oldest_wait_ms: seen.oldest.map(natural),
        ..Now::default()
    };
    for (state, count) in states(db).await? {
        let place = match state {
            JobState::Queued => &mut now.queued,
            JobState::Running => &mut now.running,
            JobState::Completed => &mut now.completed,
            JobState::Failed => &mut now.failed,
            JobState::Cancelled => &mut now.cancelled,
        };
        *place = count;
    }
    Ok((Timestamp::from_unix_ms(seen.at), now))
}

async fn states(db: &Db) -> Result<Vec<(JobState, u64)>> {
    #[derive(FromQueryResult)]
    struct Row {
        state: String,
        n: i64,
    }
    let unreadable = |source: InvalidJobState| Error::Internal { what: "a job has no state we know", source: source.into() };
    let counts: Vec<Row> = rows(db.pool(), "SELECT state, count(*) AS n FROM jobs GROUP BY state", []).await?;
    counts.into_iter().map(|row| Ok((row.state.parse().map_err(unreadable)?, natural(row.n)))).collect()
}

/// Jobs accepted in one piece of a span.
#[derive(FromQueryResult)]
pub struct Accepted {
    pub place: i64,
    n: i64,
}

impl Accepted {
    pub fn count(&self) -> u64 {
        natural(self.n)
    }
}

pub async fn accepted(db: &Db, span: Span) -> Result<Vec<Accepted>> {
    let sql = "SELECT (created_at - $1) / $3 AS place, count(*) AS n FROM jobs WHERE created_at >= $1 AND created_at < $2 GROUP BY 1";
    rows(db.pool(), sql, span.values()).await
}

/// Jobs that ended in one piece of a span.
#[derive(FromQueryResult)]
pub struct Ended {
    pub place: i64,
    completed: i64,
    failed: i64,
    cancelled: i64,
}

impl Ended {
    pub fn counts(&self) -> (u64, u64, u64) {
        (natural(self.completed), natural(self.failed), natural(self.cancelled))
    }
}

pub async fn ended(db: &Db, span: Span) -> Result<Vec<Ended>> {
    let sql = "SELECT (finished_at - $1) / $3 AS place,
                      count(CASE WHEN state = 'completed' THEN 1 END) AS completed,
                      count(CASE WHEN state = 'failed' THEN 1 END) AS failed,
                      count(CASE WHEN state = 'cancelled' THEN 1 END) AS cancelled
               FROM jobs WHERE finished_at >= $1 AND finished_at < $2 GROUP BY 1";
    rows(db.pool(), sql, span.values()).await
}

const TOKENS: &str = "CAST(sum(input_tokens) AS BIGINT) AS input, CAST(sum(output_tokens) AS BIGINT) AS output,
                      CAST(sum(cache_read_tokens) AS BIGINT) AS cache_read, CAST(sum(cache_write_tokens) AS BIGINT) AS cache_write,
                      CAST(sum(cost_nano_usd) AS BIGINT) AS cost";

/// What was used and paid in one piece of a span.
#[derive(FromQueryResult)]
pub struct Used {
    pub place: i64,
    input: i64,
    output: i64,
    cache_read: i64,
    cache_write: i64,
    cost: i64,
}

impl Used {
    pub fn usage(&self) -> Usage {
        Usage {
            input_tokens: natural(self.input),
            output_tokens: natural(self.output),
            cache_read_tokens: natural(self.cache_read),
            cache_write_tokens: natural(self.cache_write),
        }
    }

    pub fn cost(&self) -> NanoUsd {
        NanoUsd(self.cost)
    }
}

pub async fn used(db: &Db, span: Span) -> Result<Vec<Used>> {
    let sql =
        format!("SELECT (created_at - $1) / $3 AS place, {TOKENS} FROM usage_logs WHERE created_at >= $1 AND created_at < $2 GROUP BY 1");
    rows(db.pool(), &sql, span.values()).await
}

/// What each model was used for, the dearest first.
pub async fn models(db: &Db, span: Span) -> Result<Vec<ModelUse>> {
    #[derive(FromQueryResult)]
    struct Row {
        model: Option<String>,
        attempts: i64,
        input: i64,
        output: i64,
        cache_read: i64,
        cache_write: i64,
        cost: i64,
    }
    let sql = format!(
        "SELECT model, count(*) AS attempts, {TOKENS} FROM usage_logs WHERE created_at >= $1 AND created_at < $2
         GROUP BY model ORDER BY sum(cost_nano_usd) DESC, count(*) DESC LIMIT {MODELS}"
    );
    let models: Vec<Row> = rows(db.pool(), &sql, span.ends()).await?;
    let shown = |row: Row| {
        let Row { model, attempts, input, output, cache_read, cache_write, cost } = row;
        let used = Used { place: 0, input, output, cache_read, cache_write, cost };
        ModelUse { model, attempts: natural(attempts), usage: used.usage(), cost: used.cost() }
    };
    Ok(models.into_iter().map(shown).collect())
}

/// A stage of a job whose length is measured.
#[derive(Clone, Copy, Debug)]
pub enum Measure {
    /// From acceptance to the last start.
    QueueWait,
    /// From the last start to the first text.
    FirstText,
    /// From the last start to the end.
    Run,
}

impl Measure {
    fn ms(self) -> &'static str {
        match self {
            Self::QueueWait => "started_at - created_at",
            Self::FirstText => "first_token_ms",
            Self::Run => "finished_at - started_at",
        }
    }
}

/// What half, and nineteen of twenty, of the jobs that ended in a span stayed within.
pub async fn quantiles(db: &Db, span: Span, measure: Measure) -> Result<Quantiles> {
    #[derive(FromQueryResult)]
    struct Row {
        p50: Option<i64>,
        p95: Option<i64>,
    }
    let ms = measure.ms();
    let sql = format!(
        "SELECT max(CASE WHEN place = (n * 50 + 99) / 100 THEN ms END) AS p50, max(CASE WHEN place = (n * 95 + 99) / 100 THEN ms END) AS p95
         FROM (SELECT {ms} AS ms, row_number() OVER (ORDER BY {ms}) AS place, count(*) OVER () AS n
               FROM jobs WHERE finished_at >= $1 AND finished_at < $2 AND {ms} IS NOT NULL) AS ranked"
    );
    let found: Option<Row> = row(db.pool(), &sql, span.ends()).await?;
    let ms = |value: Option<i64>| value.map(natural);
    Ok(found.map_or_else(Quantiles::default, |row| Quantiles { p50_ms: ms(row.p50), p95_ms: ms(row.p95) }))
}

/// The median of the time to the first text, of the jobs that ended in one piece of a span.
#[derive(FromQueryResult)]
pub struct FirstText {
    pub place: i64,
    p50: Option<i64>,
}

impl FirstText {
    pub fn ms(&self) -> Option<u64> {
        self.p50.map(natural)
    }
}

pub async fn first_text(db: &Db, span: Span) -> Result<Vec<FirstText>> {
    let sql = "
        SELECT place, max(CASE WHEN turn = (n + 1) / 2 THEN ms END) AS p50
        FROM (SELECT place, ms, row_number() OVER (PARTITION BY place ORDER BY ms) AS turn, count(*) OVER (PARTITION BY place) AS n
              FROM (SELECT (finished_at - $1) / $3 AS place, first_token_ms AS ms FROM jobs
                    WHERE finished_at >= $1 AND finished_at < $2 AND first_token_ms IS NOT NULL) AS placed) AS ranked
        GROUP BY place";
    rows(db.pool(), sql, span.values()).await
}

/// What each of some users has and does.
pub async fn of_users(db: &Db, users: &[UserId]) -> Result<HashMap<UserId, UserActivity>> {
    #[derive(FromQueryResult)]
    struct Row {
        id: Uuid,
        api_keys: i64,
        running: i64,
        spent: i64,
    }
    let places: Vec<String> = (1..=users.len()).map(|place| format!("${place}")).collect();
    let sql = format!(
        "SELECT id,
                (SELECT count(*) FROM api_keys
                 WHERE user_id = users.id AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > {{now}})) AS api_keys,
                (SELECT count(*) FROM jobs WHERE user_id = users.id AND state <> 'completed' AND state = 'running') AS running,
                COALESCE((SELECT spent_nano_usd FROM spend WHERE user_id = users.id AND utc_day = {{now}} / 86400000), 0) AS spent
         FROM users WHERE id IN ({})",
        places.join(", ")
    );
    let found: Vec<Row> = rows(db.pool(), &sql, users.iter().map(|user| user.uuid().into())).await?;
    let shown = |row: Row| {
        let activity =
            UserActivity { api_keys: natural(row.api_keys), running_jobs: natural(row.running), spent_today: NanoUsd(row.spent) };
        (UserId::from_uuid(row.id), activity)
    };
    Ok(found.into_iter().map(shown).collect())
}
