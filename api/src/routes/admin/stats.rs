//! The figures of the whole service: how things are now, and how they went.

use poem::web::Data;
use poem_openapi::{Object, OpenApi, param::Query, payload::Json};
use shared::{
    job,
    stats::{self, Now, Overview, Quantiles, Totals, Window},
    time::Timestamp,
};

use crate::{
    app::App,
    auth::{Admin, Authenticated},
    contract::Wire,
    error::ApiError,
    openapi::Tag,
};

/// The operations on figures.
pub struct StatsApi;

/// The figures of the whole service.
#[derive(Debug, Object)]
struct ServiceStats {
    /// How far back they look.
    window: Wire<Window>,
    /// Where the window begins: with its oldest bucket.
    from: Wire<Timestamp>,
    /// When this was looked up, and where the window ends.
    at: Wire<Timestamp>,
    /// How things are now.
    now: ServiceNow,
    /// How they went in the window.
    totals: ServiceTotals,
    /// What each model was used for in the window, the dearest first; the fifty dearest.
    models: Vec<ModelStats>,
    /// How long each piece of the series is.
    bucket_secs: u64,
    /// The window in equal pieces, the oldest first, the empty ones as well; the last is still being filled.
    series: Vec<StatsBucket>,
}

/// How things are now.
#[derive(Debug, Object)]
struct ServiceNow {
    /// Accounts.
    users: u64,
    /// API keys that work.
    api_keys: u64,
    /// The workers.
    workers: WorkerCounts,
    /// The jobs that are kept, by their state.
    jobs: JobCounts,
    /// Jobs that were given up after all their tries.
    dead_letters: u64,
    /// The queue.
    queue: QueueNow,
}

/// Workers by their state.
#[derive(Debug, Object)]
struct WorkerCounts {
    /// Those that take jobs.
    active: u64,
    /// Those that take no more.
    draining: u64,
    /// How many jobs the active ones run at once.
    slots: u64,
}

/// Jobs by their state.
#[derive(Debug, Object)]
struct JobCounts {
    queued: u64,
    running: u64,
    completed: u64,
    failed: u64,
    cancelled: u64,
}

/// The queue as it is.
#[derive(Debug, Object)]
struct QueueNow {
    /// Jobs that a free worker could take at once: those that wait for another try later are not among them.
    depth: u64,
    /// How long the first of them has waited.
    #[oai(nullable)]
    oldest_wait_ms: Option<u64>,
}

/// How things went in a window.
#[derive(Debug, Object)]
struct ServiceTotals {
    /// Jobs accepted.
    accepted: u64,
    /// Jobs that ended well.
    completed: u64,
    /// Jobs that failed.
    failed: u64,
    /// Jobs that were ended early.
    cancelled: u64,
    /// Jobs that ended, in an hour of the window.
    ended_per_hour: f64,
    /// From acceptance to the last start, of the jobs that ended.
    queue_wait: StatsQuantiles,
    /// From the last start to the first text, of the jobs that ended.
    first_text: StatsQuantiles,
    /// From the last start to the end, of the jobs that ended.
    run: StatsQuantiles,
    /// Tokens of the attempts that ended.
    tokens: TokenCounts,
    /// What they cost.
    cost_usd: f64,
}

/// What half, and what nineteen of twenty, stay within; null of nothing.
#[derive(Debug, Object)]
struct StatsQuantiles {
    /// Half.
    #[oai(nullable)]
    p50_ms: Option<u64>,
    /// Nineteen of twenty.
    #[oai(nullable)]
    p95_ms: Option<u64>,
}

/// Tokens by kind.
#[derive(Debug, Object)]
struct TokenCounts {
    /// Read by the model and not cached.
    input: u64,
    /// Written by the model.
    output: u64,
    /// Read from the provider's prompt cache.
    cache_read: u64,
    /// Written to the provider's prompt cache.
    cache_write: u64,
}

/// What one model was used for.
#[derive(Debug, Object)]
struct ModelStats {
    /// The model; null for attempts that ended before one answered.
    #[oai(nullable)]
    model: Option<String>,
    /// Attempts that ended.
    attempts: u64,
    /// Their tokens.
    tokens: TokenCounts,
    /// What they cost.
    cost_usd: f64,
}

/// One piece of a window.
#[derive(Debug, Object)]
struct StatsBucket {
    /// Where it begins.
    at: Wire<Timestamp>,
    /// Jobs accepted.
    accepted: u64,
    /// Jobs that ended well.
    completed: u64,
    /// Jobs that failed.
    failed: u64,
    /// Jobs that were ended early.
    cancelled: u64,
    /// Tokens of all kinds.
    tokens: u64,
    /// What was paid.
    cost_usd: f64,
    /// Half of the jobs that ended had their first text within this.
    #[oai(nullable)]
    first_text_p50_ms: Option<u64>,
}

#[OpenApi(prefix_path = "/api/admin", tag = "Tag::Admin")]
impl StatsApi {
    /// Get the figures of the whole service.
    #[oai(path = "/stats", method = "get", operation_id = "get_stats")]
    async fn get_stats(
        &self,
        _auth: Authenticated<Admin>,
        app: Data<&App>,
        /// How far back to look; `24h` if absent.
        window: Query<Option<Wire<Window>>>,
    ) -> Result<Json<ServiceStats>, ApiError> {
        let window = window.0.map_or_else(Window::default, |Wire(window)| window);
        let overview = app.stats.overview(window).await?;
        Ok(Json(ServiceStats::of(window, overview)))
    }
}

impl ServiceStats {
    fn of(window: Window, overview: Overview) -> Self {
        let Overview { from, at, now, totals, models, series } = overview;
        Self {
            window: Wire(window),
            from: Wire(from),
            at: Wire(at),
            now: now.into(),
            totals: totals.into(),
            models: models.into_iter().map(ModelStats::from).collect(),
            bucket_secs: window.bucket().as_secs(),
            series: series.into_iter().map(StatsBucket::from).collect(),
        }
    }
}

impl From<Now> for ServiceNow {
    fn from(now: Now) -> Self {
        Self {
            users: now.users,
            api_keys: now.api_keys,
            workers: WorkerCounts { active: now.workers_active, draining: now.workers_draining, slots: now.slots },
            jobs: JobCounts {
                queued: now.queued,
                running: now.running,
                completed: now.completed,
                failed: now.failed,
                cancelled: now.cancelled,
            },
            dead_letters: now.dead_letters,
            queue: QueueNow { depth: now.queue_depth, oldest_wait_ms: now.oldest_wait_ms },
        }
    }
}

impl From<Totals> for ServiceTotals {
    fn from(totals: Totals) -> Self {
        let Totals { accepted, completed, failed, cancelled, ended_per_hour, queue_wait, first_text, run, usage, cost } = totals;
        Self {
            accepted,
            completed,
            failed,
            cancelled,
            ended_per_hour,
            queue_wait: queue_wait.into(),
            first_text: first_text.into(),
            run: run.into(),
            tokens: usage.into(),
            cost_usd: cost.usd(),
        }
    }
}

impl From<Quantiles> for StatsQuantiles {
    fn from(Quantiles { p50_ms, p95_ms }: Quantiles) -> Self {
        Self { p50_ms, p95_ms }
    }
}

impl From<job::Usage> for TokenCounts {
    fn from(usage: job::Usage) -> Self {
        let job::Usage { input_tokens, output_tokens, cache_read_tokens, cache_write_tokens } = usage;
        Self { input: input_tokens, output: output_tokens, cache_read: cache_read_tokens, cache_write: cache_write_tokens }
    }
}

impl TokenCounts {
    fn sum(&self) -> u64 {
        self.input + self.output + self.cache_read + self.cache_write
    }
}

impl From<stats::ModelUse> for ModelStats {
    fn from(stats::ModelUse { model, attempts, usage, cost }: stats::ModelUse) -> Self {
        Self { model, attempts, tokens: usage.into(), cost_usd: cost.usd() }
    }
}

impl From<stats::Bucket> for StatsBucket {
    fn from(bucket: stats::Bucket) -> Self {
        let stats::Bucket { from, accepted, completed, failed, cancelled, usage, cost, first_text_p50_ms } = bucket;
        let tokens = TokenCounts::from(usage).sum();
        Self { at: Wire(from), accepted, completed, failed, cancelled, tokens, cost_usd: cost.usd(), first_text_p50_ms }
    }
}
