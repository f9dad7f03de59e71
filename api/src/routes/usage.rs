//! What was used and what it cost, added up from one record for each attempt. An attempt belongs to the
//! time at which it ended.

use poem::web::Data;
use poem_openapi::{Object, OpenApi, param::Query, payload::Json};
use shared::{
    id::{ApiKeyId, SessionId, UserId},
    time::Timestamp,
    usage::{self, UsageGroup, UsageQuery},
};

use crate::{
    app::App,
    auth::{Authenticated, Read},
    contract::Wire,
    error::{ApiError, FieldError},
    openapi::Tag,
};

const DAY_MS: i64 = 86_400_000;
const DEFAULT_DAYS: i64 = 30;
const MAX_DAYS: i64 = 366;

/// The operations on usage.
pub struct UsageApi;

/// What a number of attempts used together.
#[derive(Debug, Object)]
struct UsageSum {
    /// How many attempts: a job that is tried again asks the model again.
    requests: u64,
    /// Of how many jobs.
    jobs: u64,
    /// Tokens read by the model and not cached.
    input_tokens: u64,
    /// Tokens written by the model.
    output_tokens: u64,
    /// Tokens read from the provider's prompt cache.
    cache_read_tokens: u64,
    /// Tokens written to the provider's prompt cache.
    cache_write_tokens: u64,
    /// What it cost.
    cost_usd: f64,
    /// How long the attempts ran, all together.
    duration_ms: u64,
    /// How many of the costs are estimates: of attempts that were cut off before the CLI told their cost.
    estimated: u64,
}

/// The usage of one group. Only the field that was grouped by is set; that is null too for what has none.
#[derive(Debug, Object)]
struct UsageRow {
    /// The UTC day.
    #[oai(nullable)]
    day: Option<String>,
    /// The model.
    #[oai(nullable)]
    model: Option<String>,
    /// The conversation.
    #[oai(nullable)]
    session_id: Option<Wire<SessionId>>,
    /// The API key.
    #[oai(nullable)]
    api_key_id: Option<Wire<ApiKeyId>>,
    /// The account.
    #[oai(nullable)]
    user_id: Option<Wire<UserId>>,
    #[oai(flatten)]
    sum: UsageSum,
}

/// What was used.
#[derive(Debug, Object)]
pub struct UsageReport {
    /// Days, newest first, or other groups, the most expensive first; at most 1000.
    data: Vec<UsageRow>,
    /// All of it, groups that are not told included.
    total: UsageSum,
    /// Whether there are more groups than are told.
    truncated: bool,
}

#[OpenApi(prefix_path = "/api", tag = "Tag::Usage")]
impl UsageApi {
    /// Get what you used and what it cost.
    #[oai(path = "/usage", method = "get", operation_id = "get_usage")]
    async fn get_usage(
        &self,
        auth: Authenticated<Read>,
        app: Data<&App>,
        /// Attempts that ended at this time or later; 30 days before `to` if absent.
        from: Query<Option<Wire<Timestamp>>>,
        /// Attempts that ended before this time, at most 366 days after `from`; now if absent.
        to: Query<Option<Wire<Timestamp>>>,
        /// What to add up by; `day` if absent.
        group_by: Query<Option<Wire<UsageGroup>>>,
    ) -> Result<Json<UsageReport>, ApiError> {
        Ok(Json(report(&app, Some(auth.user_id()), from.0, to.0, group_by.0).await?))
    }
}

/// What `user` used, or everybody where none is named, in the time that is asked for.
pub async fn report(
    app: &App,
    user: Option<UserId>,
    from: Option<Wire<Timestamp>>,
    to: Option<Wire<Timestamp>>,
    group_by: Option<Wire<UsageGroup>>,
) -> Result<UsageReport, ApiError> {
    let (from, to) = span(from.map(|Wire(from)| from), to.map(|Wire(to)| to), Timestamp::now())?;
    let group_by = group_by.map(|Wire(group)| group).unwrap_or_default();
    Ok(app.usage.totals(user, UsageQuery { from, to, group_by }).await?.into())
}

/// The time that is asked for. Without an end of its own it has none: our clock is not the record's.
fn span(from: Option<Timestamp>, to: Option<Timestamp>, now: Timestamp) -> Result<(Timestamp, Option<Timestamp>), ApiError> {
    let end = to.unwrap_or(now);
    let from = from.unwrap_or_else(|| end.minus_ms(DEFAULT_DAYS * DAY_MS));
    if end <= from || end.minus_ms(MAX_DAYS * DAY_MS) > from {
        let detail = format!("must be later than `from`, by at most {MAX_DAYS} days");
        return Err(ApiError::invalid(vec![FieldError::new("?to", detail)]));
    }
    Ok((from, to))
}

impl From<usage::UsageSum> for UsageSum {
    fn from(sum: usage::UsageSum) -> Self {
        let usage::UsageSum { requests, jobs, usage, cost, duration_ms, estimated } = sum;
        Self {
            requests,
            jobs,
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cache_read_tokens: usage.cache_read_tokens,
            cache_write_tokens: usage.cache_write_tokens,
            cost_usd: cost.usd(),
            duration_ms,
            estimated,
        }
    }
}

impl From<usage::UsageRow> for UsageRow {
    fn from(row: usage::UsageRow) -> Self {
        let usage::UsageRow { day, model, session_id, api_key_id, user_id, sum } = row;
        Self {
            day: day.map(Timestamp::utc_day),
            model,
            session_id: session_id.map(Wire),
            api_key_id: api_key_id.map(Wire),
            user_id: user_id.map(Wire),
            sum: sum.into(),
        }
    }
}

impl From<usage::UsageTotals> for UsageReport {
    fn from(totals: usage::UsageTotals) -> Self {
        let usage::UsageTotals { rows, total, is_truncated } = totals;
        Self { data: rows.into_iter().map(UsageRow::from).collect(), total: total.into(), truncated: is_truncated }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(number: i64) -> Timestamp {
        Timestamp::from_unix_ms(number * DAY_MS)
    }

    #[test]
    fn a_span_is_thirty_days_unless_it_says_otherwise() {
        let now = day(1000);

        assert_eq!(span(None, None, now).ok(), Some((day(970), None)));
        assert_eq!(span(None, Some(day(500)), now).ok(), Some((day(470), Some(day(500)))));
        assert_eq!(span(Some(day(900)), None, now).ok(), Some((day(900), None)));
        assert_eq!(span(Some(day(0)), Some(day(366)), now).ok(), Some((day(0), Some(day(366)))));
    }

    #[test]
    fn a_span_that_is_empty_or_too_long_is_refused_at_its_end() {
        for (from, to) in [(day(5), Some(day(5))), (day(6), Some(day(5))), (day(0), Some(day(367))), (day(1001), None)] {
            let error = span(Some(from), to, day(1000)).expect_err("refused");
            assert_eq!(error.problem("r").errors[0].pointer, "?to");
        }
    }
}
