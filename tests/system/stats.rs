//! The figures of the whole service, from rows whose figures are known.

use sea_orm::{ConnectionTrait as _, DatabaseConnection, Statement, Value};
use shared::{
    id::{JobId, UserId, WorkerId},
    job::{NanoUsd, Usage},
    stats::{ModelUse, Quantiles, Stats, UserActivity, Window},
};
use tests::{
    on_both_databases,
    servers::Kind,
    system::{Cli, System},
};

on_both_databases!(figures_are_those_of_the_rows, an_empty_service_has_empty_figures_and_every_bucket);

const MINUTE: i64 = 60_000;

/// A job that was accepted, started and ended so many milliseconds ago.
struct Past {
    state: &'static str,
    created: i64,
    started: Option<i64>,
    ended: Option<i64>,
    first_text: Option<i64>,
}

struct Record {
    database: DatabaseConnection,
    user: UserId,
    now: i64,
}

impl Record {
    async fn open(system: &System, now: i64) -> anyhow::Result<Self> {
        let record = Self { database: system.database.connect().await?, user: UserId::new(), now };
        let sql = "INSERT INTO users (id, email, email_folded, created_at, updated_at) VALUES ($1, 'a@b.c', 'a@b.c', 0, 0)";
        record.run(sql, [record.user.uuid().into()]).await?;
        Ok(record)
    }

    async fn run(&self, sql: &str, values: impl IntoIterator<Item = Value>) -> anyhow::Result<()> {
        let statement = Statement::from_sql_and_values(self.database.get_database_backend(), sql, values);
        self.database.execute_raw(statement).await?;
        Ok(())
    }

    async fn job(&self, past: &Past) -> anyhow::Result<JobId> {
        let id = JobId::new();
        let ago = |ms: i64| self.now - ms;
        self.run(
            "INSERT INTO jobs (id, user_id, request, state, max_failures, max_reclaims, run_at, queue_deadline_at, created_at,
                               started_at, finished_at, first_token_ms, dead_letter)
             VALUES ($1, $2, '{}', $3, 3, 3, $4, $4, $4, $5, $6, $7, $8)",
            [
                id.uuid().into(),
                self.user.uuid().into(),
                past.state.into(),
                ago(past.created).into(),
                past.started.map(ago).into(),
                past.ended.map(ago).into(),
                past.first_text.into(),
                (past.state == "failed").into(),
            ],
        )
        .await?;
        Ok(id)
    }

    async fn used(&self, job: JobId, model: Option<&str>, ended: i64, output_tokens: i64, cost: i64) -> anyhow::Result<()> {
        self.run(
            "INSERT INTO usage_logs (id, job_id, attempt, user_id, model, outcome, input_tokens, output_tokens, cost_nano_usd, created_at)
             VALUES ($1, $1, 1, $2, $3, 'completed', 1, $4, $5, $6)",
            [
                job.uuid().into(),
                self.user.uuid().into(),
                model.map(str::to_owned).into(),
                output_tokens.into(),
                cost.into(),
                (self.now - ended).into(),
            ],
        )
        .await
    }

    async fn worker(&self, slots: i32, is_dead: bool, drains: bool) -> anyhow::Result<()> {
        self.run(
            "INSERT INTO workers (id, name, host, version, slots, dead, drain_requested, started_at, last_beat_at)
             VALUES ($1, 'w', 'h', '1', $2, $3, $4, $5, $5)",
            [WorkerId::new().uuid().into(), slots.into(), is_dead.into(), drains.into(), self.now.into()],
        )
        .await
    }
}

async fn figures_are_those_of_the_rows(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let stats = Stats::new(&system.store().await?);
    let before = stats.overview(Window::Hour).await?;
    let record = Record::open(&system, before.at.unix_ms()).await?;
    let job = |state, created, started, ended, first_text| Past { state, created, started, ended, first_text };
    // In the window: waits of 1, 2 and 4 s, first texts after 100, 300 and 200 ms, runs of 10, 20 and 30 s.
    let cheap = record.job(&job("completed", 31 * MINUTE, Some(31 * MINUTE - 1_000), Some(31 * MINUTE - 11_000), Some(100))).await?;
    let dear = record.job(&job("completed", 21 * MINUTE, Some(21 * MINUTE - 2_000), Some(21 * MINUTE - 22_000), Some(300))).await?;
    let lost = record.job(&job("failed", 11 * MINUTE, Some(11 * MINUTE - 4_000), Some(11 * MINUTE - 34_000), Some(200))).await?;
    record.job(&job("cancelled", 5 * MINUTE, None, Some(4 * MINUTE), None)).await?;
    // Before it, and not ended.
    let old = record.job(&job("completed", 200 * MINUTE, Some(190 * MINUTE), Some(180 * MINUTE), Some(9_999))).await?;
    record.job(&job("queued", 7 * MINUTE, None, None, None)).await?;
    record.job(&job("queued", -60 * MINUTE, None, None, None)).await?;
    record.job(&job("running", 2 * MINUTE, Some(MINUTE), None, None)).await?;
    record.used(cheap, Some("small"), 30 * MINUTE, 10, 1_000).await?;
    record.used(dear, Some("large"), 20 * MINUTE, 100, 50_000).await?;
    record.used(lost, None, 10 * MINUTE, 0, 0).await?;
    record.used(old, Some("small"), 180 * MINUTE, 7, 7).await?;
    for (slots, is_dead, drains) in [(5, false, false), (3, false, false), (4, false, true), (9, true, false)] {
        record.worker(slots, is_dead, drains).await?;
    }

    let seen = stats.overview(Window::Hour).await?;

    let now = seen.now;
    assert_eq!((now.users - before.now.users, now.workers_active, now.workers_draining, now.slots), (1, 2, 1, 8));
    assert_eq!((now.queued, now.running, now.completed, now.failed, now.cancelled, now.dead_letters), (2, 1, 3, 1, 1, 1));
    assert_eq!(now.queue_depth, 1, "what waits for its hour is not due");
    assert!(now.oldest_wait_ms.is_some_and(|ms| (420_000..480_000).contains(&ms)), "{now:?}");

    let totals = seen.totals;
    // The job that is queued for later was accepted in the future of this window.
    assert_eq!((totals.accepted, totals.completed, totals.failed, totals.cancelled), (6, 2, 1, 1));
    let quantiles = |p50_ms, p95_ms| Quantiles { p50_ms: Some(p50_ms), p95_ms: Some(p95_ms) };
    assert_eq!(totals.queue_wait, quantiles(2_000, 4_000));
    assert_eq!(totals.first_text, quantiles(200, 300));
    assert_eq!(totals.run, quantiles(20_000, 30_000));
    assert_eq!((totals.usage.input_tokens, totals.usage.output_tokens, totals.cost), (3, 110, NanoUsd(51_000)));
    assert!((4.0..4.2).contains(&totals.ended_per_hour), "{totals:?}");
    let model = |model: Option<&str>, output_tokens, cost| ModelUse {
        model: model.map(str::to_owned),
        attempts: 1,
        usage: Usage { input_tokens: 1, output_tokens, ..Usage::default() },
        cost: NanoUsd(cost),
    };
    assert_eq!(seen.models, [model(Some("large"), 100, 50_000), model(Some("small"), 10, 1_000), model(None, 0, 0)]);

    assert_eq!(seen.series.len(), 60);
    assert!(seen.series.windows(2).all(|pair| pair[1].from.ms_since(pair[0].from) == 60_000));
    assert_eq!(seen.series.iter().map(|bucket| bucket.accepted).sum::<u64>(), 6);
    let texts: Vec<u64> = seen.series.iter().filter_map(|bucket| bucket.first_text_p50_ms).collect();
    assert_eq!(texts, [100, 300, 200]);

    let day = stats.overview(Window::Day).await?;
    assert_eq!((day.totals.completed, day.totals.usage.output_tokens, day.series.len()), (3, 117, 48));

    let activity = stats.of_users(&[record.user, UserId::new()]).await?;
    assert_eq!(activity.len(), 1);
    assert_eq!(activity[&record.user], UserActivity { api_keys: 0, running_jobs: 1, spent_today: NanoUsd(0) });
    Ok(())
}

async fn an_empty_service_has_empty_figures_and_every_bucket(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let stats = Stats::new(&system.store().await?);

    for (window, buckets) in [(Window::Hour, 60), (Window::Day, 48), (Window::Week, 56), (Window::Month, 60)] {
        let seen = stats.overview(window).await?;

        assert_eq!(seen.series.len(), buckets);
        assert_eq!((seen.totals.accepted, seen.totals.run, seen.models.len()), (0, Quantiles::default(), 0));
        assert_eq!((seen.now.queued, seen.now.oldest_wait_ms), (0, None));
    }
    Ok(())
}
