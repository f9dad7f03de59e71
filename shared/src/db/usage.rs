//! The rows of attempts and the days of users. The days are kept by triggers on `jobs`; nothing here
//! writes them.

use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use uuid::Uuid;

use super::{Db, execute, row, rows};
use crate::{
    Result,
    consumption::{Bill, Rate},
    id::{ApiKeyId, SessionId, UserId},
    job::{Job, NanoUsd, Usage},
    time::Timestamp,
    usage::{AttemptOutcome, Spend, UsageGroup, UsageQuery, UsageRow, UsageSum, UsageTotals},
};

const DAY_MS: i64 = 86_400_000;

fn tokens(count: u64) -> Value {
    i64::try_from(count).unwrap_or(i64::MAX).into()
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Keep what an attempt came to, from its claim to now.
pub async fn insert(db: &impl ConnectionTrait, job: &Job, bill: &Bill, outcome: AttemptOutcome) -> Result<()> {
    let began = job.started_at.unwrap_or(job.created_at);
    execute(
        db,
        "INSERT INTO usage_logs (id, job_id, attempt, user_id, api_key_id, session_id, model, outcome, input_tokens, output_tokens,
                                 cache_read_tokens, cache_write_tokens, cost_nano_usd, estimated, duration_ms, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, CASE WHEN {now} > $15 THEN {now} - $15 ELSE 0 END, {now})",
        [
            Uuid::now_v7().into(),
            job.id.uuid().into(),
            i32::try_from(job.attempt).unwrap_or(i32::MAX).into(),
            job.user_id.uuid().into(),
            job.api_key_id.map(ApiKeyId::uuid).into(),
            job.session_id.map(SessionId::uuid).into(),
            bill.model.clone().or_else(|| job.spec.model.clone()).into(),
            outcome.as_str().into(),
            tokens(bill.usage.input_tokens),
            tokens(bill.usage.output_tokens),
            tokens(bill.usage.cache_read_tokens),
            tokens(bill.usage.cache_write_tokens),
            bill.cost.0.into(),
            bill.is_estimated.into(),
            began.unix_ms().into(),
        ],
    )
    .await?;
    Ok(())
}

/// Whether the jobs of its owner that were accepted on the same day as `job` have cost what they may already.
pub async fn is_day_spent(db: &Db, job: &Job) -> Result<bool> {
    #[derive(FromQueryResult)]
    struct Spent {
        is_spent: bool,
    }
    let sql = "SELECT spent_nano_usd >= daily_budget_nano_usd AS is_spent FROM spend JOIN users ON users.id = spend.user_id
               WHERE user_id = $1 AND utc_day = $2 AND daily_budget_nano_usd IS NOT NULL";
    let day = i32::try_from(job.created_at.unix_ms().div_euclid(DAY_MS)).unwrap_or(i32::MAX);
    let found: Option<Spent> = row(db.pool(), sql, [job.user_id.uuid().into(), day.into()]).await?;
    Ok(found.is_some_and(|found| found.is_spent))
}

/// What `model` cost when the CLI last told it.
pub async fn last_rate(db: &impl ConnectionTrait, model: &str) -> Result<Option<Rate>> {
    #[derive(FromQueryResult)]
    struct Told {
        input_tokens: i64,
        output_tokens: i64,
        cache_read_tokens: i64,
        cache_write_tokens: i64,
        cost_nano_usd: i64,
    }
    let newest: Option<Told> = row(
        db,
        "SELECT input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost_nano_usd FROM usage_logs
         WHERE model = $1 AND NOT estimated AND cost_nano_usd > 0 AND input_tokens + output_tokens + cache_read_tokens + cache_write_tokens > 0
         ORDER BY created_at DESC LIMIT 1",
        [model.into()],
    )
    .await?;
    Ok(newest.and_then(|told| {
        let usage = Usage {
            input_tokens: count(told.input_tokens),
            output_tokens: count(told.output_tokens),
            cache_read_tokens: count(told.cache_read_tokens),
            cache_write_tokens: count(told.cache_write_tokens),
        };
        Rate::of(usage, NanoUsd(told.cost_nano_usd))
    }))
}

#[derive(FromQueryResult)]
struct Group {
    is_total: i32,
    day: Option<i64>,
    model: Option<String>,
    session_id: Option<Uuid>,
    api_key_id: Option<Uuid>,
    user_id: Option<Uuid>,
    requests: i64,
    jobs: i64,
    input_tokens: i64,
    output_tokens: i64,
    cache_read_tokens: i64,
    cache_write_tokens: i64,
    cost_nano_usd: i64,
    duration_ms: i64,
    estimated: i64,
}

impl Group {
    fn sum(&self) -> UsageSum {
        UsageSum {
            requests: count(self.requests),
            jobs: count(self.jobs),
            usage: Usage {
                input_tokens: count(self.input_tokens),
                output_tokens: count(self.output_tokens),
                cache_read_tokens: count(self.cache_read_tokens),
                cache_write_tokens: count(self.cache_write_tokens),
            },
            cost: NanoUsd(self.cost_nano_usd),
            duration_ms: count(self.duration_ms),
            estimated: count(self.estimated),
        }
    }
}

// A sum of 64-bit numbers is wider in PostgreSQL.
const SUMS: &str = "COUNT(*) AS requests, COUNT(DISTINCT job_id) AS jobs,
    CAST(COALESCE(SUM(input_tokens), 0) AS BIGINT) AS input_tokens, CAST(COALESCE(SUM(output_tokens), 0) AS BIGINT) AS output_tokens,
    CAST(COALESCE(SUM(cache_read_tokens), 0) AS BIGINT) AS cache_read_tokens,
    CAST(COALESCE(SUM(cache_write_tokens), 0) AS BIGINT) AS cache_write_tokens,
    CAST(COALESCE(SUM(cost_nano_usd), 0) AS BIGINT) AS cost_nano_usd, CAST(COALESCE(SUM(duration_ms), 0) AS BIGINT) AS duration_ms,
    COUNT(CASE WHEN estimated THEN 1 END) AS estimated";

const NO_ID: &str = "CAST(NULL AS UUID)";

/// What a user used, or all of them: the largest groups, and all of it, as of one moment.
pub async fn totals(db: &Db, user: Option<UserId>, query: UsageQuery, max_groups: u32) -> Result<UsageTotals> {
    let (by, place) = match query.group_by {
        UsageGroup::Day => ("created_at / 86400000", 0),
        UsageGroup::Model => ("model", 1),
        UsageGroup::Session => ("session_id", 2),
        UsageGroup::Key => ("api_key_id", 3),
        UsageGroup::User => ("user_id", 4),
    };
    let mut columns = ["CAST(NULL AS BIGINT)", "CAST(NULL AS TEXT)", NO_ID, NO_ID, NO_ID];
    let named = |[day, model, session, key, user]: [&str; 5]| {
        format!("{day} AS day, {model} AS model, {session} AS session_id, {key} AS api_key_id, {user} AS user_id")
    };
    let of_all = named(columns);
    columns[place] = by;
    let of_group = named(columns);
    let order = if query.group_by == UsageGroup::Day { "day DESC" } else { "cost_nano_usd DESC, output_tokens DESC, requests DESC" };
    let of_user = if user.is_some() { " AND user_id = $4" } else { "" };
    let chosen = format!("FROM usage_logs WHERE created_at >= $1 AND created_at < $2{of_user}");
    let sql = format!(
        "SELECT 1 AS is_total, {of_all}, {SUMS} {chosen}
         UNION ALL
         SELECT * FROM (SELECT 0 AS is_total, {of_group}, {SUMS} {chosen} GROUP BY {by} ORDER BY {order} LIMIT $3) AS largest"
    );
    let to = query.to.map_or(i64::MAX, Timestamp::unix_ms);
    // One more than is told says whether there are more.
    let limit = i64::from(max_groups) + 1;
    let times = [query.from.unix_ms().into(), to.into(), limit.into()];
    let values = times.into_iter().chain(user.map(|user| Value::from(user.uuid())));
    let (total, mut groups): (Vec<Group>, Vec<Group>) =
        rows(db.pool(), &sql, values).await?.into_iter().partition(|group: &Group| group.is_total == 1);
    let most = usize::try_from(max_groups).unwrap_or(usize::MAX);
    let is_truncated = groups.len() > most;
    groups.truncate(most);
    Ok(UsageTotals {
        rows: groups.into_iter().map(UsageRow::from).collect(),
        total: total.first().map(Group::sum).unwrap_or_default(),
        is_truncated,
    })
}

impl From<Group> for UsageRow {
    fn from(group: Group) -> Self {
        let sum = group.sum();
        Self {
            day: group.day.map(|day| Timestamp::from_unix_ms(day.saturating_mul(DAY_MS))),
            model: group.model,
            session_id: group.session_id.map(SessionId::from_uuid),
            api_key_id: group.api_key_id.map(ApiKeyId::from_uuid),
            user_id: group.user_id.map(UserId::from_uuid),
            sum,
        }
    }
}

/// A user's day as of now.
pub async fn spend_today(db: &Db, user: UserId) -> Result<Spend> {
    #[derive(FromQueryResult)]
    struct Day {
        reserved_nano_usd: i64,
        spent_nano_usd: i64,
    }
    let sql = "SELECT reserved_nano_usd, spent_nano_usd FROM spend WHERE user_id = $1 AND utc_day = {now} / 86400000";
    let day: Option<Day> = row(db.pool(), sql, [user.uuid().into()]).await?;
    Ok(day.map(|day| Spend { reserved: NanoUsd(day.reserved_nano_usd), spent: NanoUsd(day.spent_nano_usd) }).unwrap_or_default())
}
