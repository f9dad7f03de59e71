//! What the caller may still use, now. Reading it costs nothing of it.

use poem::web::Data;
use poem_openapi::{Object, OpenApi, payload::Json};
use shared::{limits::Allowance, time::Timestamp};

use crate::{
    app::App,
    auth::{Authenticated, Read},
    contract::Wire,
    error::ApiError,
    limit::{self, WINDOW_SECS},
    openapi::Tag,
};

const DAY_MS: i64 = 86_400_000;

/// The operations on quotas.
pub struct QuotaApi;

/// Requests in any window of so many seconds.
#[derive(Debug, Object)]
#[expect(clippy::struct_field_names, reason = "the names of the wire")]
struct Window {
    /// The most requests in a window.
    limit: u32,
    /// How many of them are left.
    remaining: u32,
    /// When the oldest of those that were made no longer counts.
    reset_at: Wire<Timestamp>,
    /// How long a window is.
    window_secs: u32,
}

/// Jobs that have not ended.
#[derive(Debug, Object)]
struct ActiveJobs {
    /// How many there are.
    active: u64,
    /// The most there may be; as many as the queue takes if null.
    #[oai(nullable)]
    limit: Option<u32>,
}

/// What the jobs of one UTC day may cost.
#[derive(Debug, Object)]
struct Budget {
    /// The most.
    limit_usd: f64,
    /// What those that were sent today cost so far.
    spent_usd: f64,
    /// What is kept for those of them that have not ended.
    reserved_usd: f64,
    /// What is left for others.
    remaining_usd: f64,
    /// When the next day begins.
    reset_at: Wire<Timestamp>,
}

/// What the caller may still use.
#[derive(Debug, Object)]
struct Quota {
    /// The requests of the user, with whatever key.
    user: Window,
    /// The requests of the key, where it has a limit of its own.
    #[oai(nullable)]
    key: Option<Window>,
    /// The jobs of the user.
    jobs: ActiveJobs,
    /// The jobs of the key, where it is one that has a limit of its own.
    #[oai(nullable)]
    key_jobs: Option<ActiveJobs>,
    /// The user's budget of the day, if there is one.
    #[oai(nullable)]
    budget: Option<Budget>,
}

#[OpenApi(prefix_path = "/api", tag = "Tag::Usage")]
impl QuotaApi {
    /// Get what you may still use.
    ///
    /// Asking is free.
    #[oai(path = "/quota", method = "get", operation_id = "get_quota")]
    async fn get_quota(&self, auth: Authenticated<Read>, app: Data<&App>) -> Result<Json<Quota>, ApiError> {
        let user = auth.user_id();
        let (per_user, per_key) = limit::quotas(&auth, app.config.default_rate_limit_per_hour);
        let (of_user, of_key) = app.limits.peek(user, per_user, per_key).await;
        let now = Timestamp::now();
        let jobs = ActiveJobs { active: app.jobs.active_count(user, None).await?, limit: auth.user.limits.max_concurrent_jobs };
        let key_jobs = match auth.key().and_then(|key| Some((key.id, key.max_concurrent_jobs?))) {
            Some((key, limit)) => Some(ActiveJobs { active: app.jobs.active_count(user, Some(key)).await?, limit: Some(limit) }),
            None => None,
        };
        let budget = match auth.user.limits.daily_budget {
            Some(limit) => {
                let spend = app.usage.spend_today(user).await?;
                let remaining = limit.less(spend.spent).less(spend.reserved);
                Some(Budget {
                    limit_usd: limit.usd(),
                    spent_usd: spend.spent.usd(),
                    reserved_usd: spend.reserved.usd(),
                    remaining_usd: remaining.usd(),
                    reset_at: Wire(Timestamp::from_unix_ms((now.unix_ms() / DAY_MS + 1) * DAY_MS)),
                })
            }
            None => None,
        };
        Ok(Json(Quota { user: window(of_user, now), key: of_key.map(|key| window(key, now)), jobs, key_jobs, budget }))
    }
}

fn window(allowance: Allowance, now: Timestamp) -> Window {
    let Allowance { limit, remaining, reset_secs } = allowance;
    let reset_at = Timestamp::from_unix_ms(now.unix_ms() + i64::from(reset_secs) * 1_000);
    Window { limit, remaining, reset_at: Wire(reset_at), window_secs: WINDOW_SECS }
}
