//! Budgets and bills: what is reserved never exceeds a budget, what ends frees what it held, and every
//! attempt is billed once, whoever ends it.

use futures_util::future::join_all;
use sea_orm::{ConnectionTrait as _, DatabaseConnection, Statement, Value as SqlValue};
use serde_json::json;
use shared::{
    Error, Result,
    config::{Env, StoreConfig},
    consumption::Consumption,
    id::{ApiKeyId, UserId, WorkerId},
    job::{ChatSpec, Job, JobError, JobResult, JobState, NanoUsd, Usage},
    jobs::{Jobs, NewJob, Submitted},
    lease::{Lease, Outcome, Report},
    leases::{LeaseConfig, Leases},
    reconciler,
    store::Store,
    time::Timestamp,
    usage::{Spend, UsageGroup, UsageLog, UsageQuery, UsageTotals},
    workers::{Membership, NewWorker},
};
use std::time::Duration;
use tests::{
    hand::{Hand, lead},
    on_both_databases,
    servers::Kind,
    system::{Cli, PATIENCE, System},
};
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

on_both_databases!(
    two_hundred_submits_at_once_reserve_no_more_than_the_budget,
    a_request_sent_again_reserves_nothing,
    no_more_jobs_are_taken_than_a_user_or_a_key_may_have,
    every_attempt_is_billed_and_a_job_is_their_sum,
    what_the_cli_did_not_tell_is_estimated,
    a_job_that_used_up_its_reservation_is_not_tried_again,
    what_waited_while_others_spent_the_day_does_not_begin,
    the_job_of_a_lost_worker_is_billed_by_what_was_last_known,
    the_days_are_counted_anew_when_the_schema_gains_them,
);

const CENT: i64 = 10_000_000;
const DOLLAR: i64 = 100 * CENT;
const USED: Usage = Usage { input_tokens: 100, output_tokens: 10, cache_read_tokens: 50, cache_write_tokens: 4 };

/// The doors over a system without processes.
struct Desk {
    system: System,
    store: Store,
    jobs: Jobs,
    usage: UsageLog,
    record: DatabaseConnection,
}

impl Desk {
    async fn open(kind: Kind) -> anyhow::Result<Self> {
        let system = System::start(kind, Cli::Fake).await?;
        let settings = [
            ("DATABASE_URL", system.database.url()),
            ("REDIS_URL", system.redis.url()),
            ("DATABASE_CONNECTIONS", "20"),
            ("WORKER_BEAT", "250ms"),
            ("WORKER_TTL", "2s"),
        ];
        let config = StoreConfig::from_env(&Env::of(settings))?;
        let store = Store::open(&config, &CancellationToken::new()).await?.expect("nobody shuts it down");
        let record = system.database.connect().await?;
        Ok(Self { jobs: Jobs::new(&store), usage: UsageLog::new(&store), system, store, record })
    }

    async fn run(&self, sql: &str, values: impl IntoIterator<Item = SqlValue>) -> anyhow::Result<()> {
        self.record.execute_raw(Statement::from_sql_and_values(self.record.get_database_backend(), sql, values)).await?;
        Ok(())
    }

    async fn user(&self, daily_budget: Option<i64>, max_concurrent_jobs: Option<i32>) -> anyhow::Result<UserId> {
        let id = UserId::new();
        self.run(
            "INSERT INTO users (id, email, email_folded, daily_budget_nano_usd, max_concurrent_jobs, created_at, updated_at)
             VALUES ($1, $2, $2, $3, $4, 0, 0)",
            [id.uuid().into(), id.to_string().into(), daily_budget.into(), max_concurrent_jobs.into()],
        )
        .await?;
        Ok(id)
    }

    async fn key(&self, user: UserId, max_concurrent_jobs: Option<i32>) -> anyhow::Result<ApiKeyId> {
        let id = ApiKeyId::new();
        self.run(
            "INSERT INTO api_keys (id, user_id, name, prefix, hash, scopes, max_concurrent_jobs, created_at)
             VALUES ($1, $2, 'k', $3, $4, '[]', $5, 0)",
            [id.uuid().into(), user.uuid().into(), id.to_string().into(), vec![0_u8; 32].into(), max_concurrent_jobs.into()],
        )
        .await?;
        Ok(id)
    }

    async fn submit(&self, user: UserId, reservation: i64) -> Result<Job> {
        self.jobs.submit(asked_by(user, reservation)).await.map(|submitted| submitted.job)
    }

    async fn spend(&self, user: UserId) -> Result<(i64, i64)> {
        let Spend { reserved, spent } = self.usage.spend_today(user).await?;
        Ok((reserved.0, spent.0))
    }

    async fn totals(&self, user: UserId, group_by: UsageGroup) -> Result<UsageTotals> {
        self.usage.totals(Some(user), UsageQuery { from: Timestamp::from_unix_ms(0), to: None, group_by }).await
    }

    async fn worker(&self) -> anyhow::Result<(Membership, Leases)> {
        let worker = NewWorker { name: "w".into(), host: "h".into(), slots: 100, mcp_servers: Vec::new(), lock_file: None };
        let membership = Membership::join(&self.store, WorkerId::new(), &worker).await?;
        let config = LeaseConfig { spool_dir: self.system.directory().to_owned(), longest_run: Duration::from_mins(1) };
        let leases = Leases::open(&self.store, membership.id(), config).await?;
        Ok((membership, leases))
    }

    /// Days hold exactly what the jobs accepted on them hold and cost.
    async fn assert_balanced(&self) -> anyhow::Result<()> {
        let by_jobs = "SELECT user_id, created_at / 86400000 AS utc_day, SUM(cost_nano_usd) AS spent,
                              SUM(CASE WHEN state IN ('queued', 'running') AND reserved_nano_usd > cost_nano_usd
                                       THEN reserved_nano_usd - cost_nano_usd ELSE 0 END) AS reserved
                       FROM jobs GROUP BY user_id, created_at / 86400000";
        let unequal = format!(
            "SELECT 1 FROM spend FULL JOIN ({by_jobs}) AS known ON known.user_id = spend.user_id AND known.utc_day = spend.utc_day
             WHERE COALESCE(reserved, 0) <> COALESCE(reserved_nano_usd, 0) OR COALESCE(spent, 0) <> COALESCE(spent_nano_usd, 0)"
        );
        let by_attempts = "SELECT 1 FROM jobs WHERE cost_nano_usd <>
                           (SELECT COALESCE(SUM(cost_nano_usd), 0) FROM usage_logs WHERE usage_logs.job_id = jobs.id)";
        for (sql, what) in [(unequal.as_str(), "days"), (by_attempts, "attempts")] {
            let wrong = self.record.query_all_raw(Statement::from_string(self.record.get_database_backend(), sql)).await?;
            assert!(wrong.is_empty(), "{} {what} do not add up", wrong.len());
        }
        Ok(())
    }
}

fn asked_by(user_id: UserId, reservation: i64) -> NewJob {
    NewJob {
        user_id,
        api_key_id: None,
        session_id: None,
        spec: ChatSpec::text("say:hi"),
        idempotency_key: None,
        trace: None,
        reservation: NanoUsd(reservation),
    }
}

async fn take(leases: &mut Leases) -> anyhow::Result<Lease> {
    let mut taken = timeout(PATIENCE, leases.next(1, &CancellationToken::new())).await??;
    Ok(taken.pop().expect("nobody shuts it down"))
}

fn told(cost: i64) -> Report {
    Report { model: Some("m".into()), usage: Some(USED), cost: Some(NanoUsd(cost)), ..Report::default() }
}

fn cut_off() -> Report {
    Report { model: Some("m".into()), untold: USED, ..Report::default() }
}

async fn settle(lease: Lease, outcome: Outcome, report: Report) -> Result<JobState> {
    lease.settle(outcome, report, &CancellationToken::new()).await
}

fn again() -> Outcome {
    Outcome::Retry { error: JobError::new("cli_crashed", "it crashed", true), delay: Duration::ZERO }
}

fn done() -> Outcome {
    Outcome::Completed(JobResult::default())
}

async fn two_hundred_submits_at_once_reserve_no_more_than_the_budget(kind: Kind) -> anyhow::Result<()> {
    let desk = Desk::open(kind).await?;
    let user = desk.user(Some(5 * DOLLAR), None).await?;

    let answers = join_all((0..200).map(|_| desk.submit(user, 10 * CENT))).await;

    let (admitted, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!(admitted.len(), 50);
    assert!(refused.iter().all(|answer| matches!(answer, Err(Error::BudgetExhausted))), "{refused:?}");
    assert_eq!(desk.spend(user).await?, (5 * DOLLAR, 0));
    assert_eq!(desk.jobs.active_count(user, None).await?, 50);

    for job in admitted.iter().take(10).flatten() {
        desk.jobs.cancel(user, job.id).await?;
    }
    assert_eq!(desk.spend(user).await?, (4 * DOLLAR, 0));
    let more = join_all((0..20).map(|_| desk.submit(user, 10 * CENT))).await;
    assert_eq!(more.iter().filter(|answer| answer.is_ok()).count(), 10);
    // A job that keeps nothing is no way around a budget that is used up.
    assert!(matches!(desk.submit(user, 0).await, Err(Error::BudgetExhausted)));
    desk.assert_balanced().await
}

async fn a_request_sent_again_reserves_nothing(kind: Kind) -> anyhow::Result<()> {
    let desk = Desk::open(kind).await?;
    let user = desk.user(Some(DOLLAR), Some(1)).await?;
    let ask = || desk.jobs.submit(NewJob { idempotency_key: Some("order 7".into()), ..asked_by(user, DOLLAR) });
    let first = ask().await?;

    let again = join_all((0..10).map(|_| ask())).await;

    for answer in again {
        let Submitted { job, replayed } = answer?;
        assert_eq!((job.id, replayed), (first.job.id, true));
    }
    assert_eq!(desk.spend(user).await?, (DOLLAR, 0));
    desk.assert_balanced().await
}

async fn no_more_jobs_are_taken_than_a_user_or_a_key_may_have(kind: Kind) -> anyhow::Result<()> {
    let desk = Desk::open(kind).await?;
    let user = desk.user(None, Some(5)).await?;
    let (narrow, wide) = (desk.key(user, Some(2)).await?, desk.key(user, None).await?);
    let ask = |key| desk.jobs.submit(NewJob { api_key_id: Some(key), ..asked_by(user, 0) });

    let by_narrow = join_all((0..20).map(|_| ask(narrow))).await;
    let by_wide = join_all((0..20).map(|_| ask(wide))).await;

    for (answers, admitted) in [(&by_narrow, 2), (&by_wide, 3)] {
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), admitted);
        assert!(answers.iter().all(|answer| matches!(answer, Ok(_) | Err(Error::TooManyJobs))), "{answers:?}");
    }
    assert_eq!((desk.jobs.active_count(user, None).await?, desk.jobs.active_count(user, Some(narrow)).await?), (5, 2));

    let ended = by_narrow.iter().flatten().next().expect("an admitted one");
    desk.jobs.cancel(user, ended.job.id).await?;
    assert!(ask(narrow).await.is_ok());
    assert!(matches!(ask(narrow).await, Err(Error::TooManyJobs)));
    desk.assert_balanced().await
}

async fn every_attempt_is_billed_and_a_job_is_their_sum(kind: Kind) -> anyhow::Result<()> {
    let desk = Desk::open(kind).await?;
    let user = desk.user(Some(DOLLAR), None).await?;
    let key = desk.key(user, None).await?;
    let job = desk.jobs.submit(NewJob { api_key_id: Some(key), ..asked_by(user, 50 * CENT) }).await?.job;
    let _leader = lead(&desk.store);
    let mut hand = Hand::join(&desk.store, desk.system.directory(), Duration::from_millis(250)).await?;

    for (outcome, cost, held) in [(again(), 3, 47), (Outcome::HandBack, 4, 43), (again(), 5, 38), (done(), 6, 0)] {
        settle(hand.take().await?, outcome, told(cost * CENT)).await?;
        assert_eq!(desk.spend(user).await?.0, held * CENT);
        desk.assert_balanced().await?;
    }

    let job = desk.jobs.find(user, job.id).await?.expect("the job");
    let fourfold = USED + USED + USED + USED;
    assert_eq!((job.state, job.cost, job.usage), (JobState::Completed, NanoUsd(18 * CENT), Some(fourfold)));
    assert_eq!(desk.spend(user).await?, (0, 18 * CENT));
    for group in [UsageGroup::Day, UsageGroup::Model, UsageGroup::Session, UsageGroup::Key, UsageGroup::User] {
        let UsageTotals { rows, total, is_truncated: false } = desk.totals(user, group).await? else { panic!("cut off") };
        assert_eq!((total.requests, total.jobs, total.usage, total.cost, total.estimated), (4, 1, fourfold, NanoUsd(18 * CENT), 0));
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!(row.sum, total);
        let named = (row.day.is_some(), row.model.as_deref(), row.session_id, row.api_key_id, row.user_id);
        let expected = match group {
            UsageGroup::Day => (true, None, None, None, None),
            UsageGroup::Model => (false, Some("m"), None, None, None),
            UsageGroup::Session => (false, None, None, None, None),
            UsageGroup::Key => (false, None, None, Some(key), None),
            UsageGroup::User => (false, None, None, None, Some(user)),
        };
        assert_eq!(named, expected);
    }
    let outcomes = desk
        .record
        .query_all_raw(Statement::from_string(desk.record.get_database_backend(), "SELECT outcome FROM usage_logs ORDER BY attempt"))
        .await?;
    let outcomes: Vec<String> = outcomes.iter().map(|row| row.try_get("", "outcome")).collect::<Result<_, _>>()?;
    assert_eq!(outcomes, ["retried", "drained", "retried", "completed"]);
    Ok(())
}

async fn what_the_cli_did_not_tell_is_estimated(kind: Kind) -> anyhow::Result<()> {
    let desk = Desk::open(kind).await?;
    let user = desk.user(None, None).await?;
    let (_member, mut leases) = desk.worker().await?;

    // Nobody knows what the model costs: all that was kept.
    let first = desk.submit(user, 50 * CENT).await?;
    settle(take(&mut leases).await?, Outcome::Cancelled, cut_off()).await?;
    // Nothing was used.
    let idle = desk.submit(user, 50 * CENT).await?;
    settle(take(&mut leases).await?, Outcome::Cancelled, Report::default()).await?;
    desk.submit(user, 50 * CENT).await?;
    settle(take(&mut leases).await?, done(), told(7 * CENT)).await?;
    // The same tokens cost the same, and one attempt may have both.
    let third = desk.submit(user, 50 * CENT).await?;
    let partly_told = Report { untold: USED, ..told(9 * CENT) };
    settle(take(&mut leases).await?, Outcome::Cancelled, partly_told).await?;

    let cost = async |job: &Job| Ok::<_, Error>(desk.jobs.find(user, job.id).await?.expect("a job").cost.0);
    assert_eq!((cost(&first).await?, cost(&idle).await?, cost(&third).await?), (50 * CENT, 0, 16 * CENT));
    let total = desk.totals(user, UsageGroup::Day).await?.total;
    assert_eq!((total.requests, total.estimated), (4, 2));
    desk.assert_balanced().await
}

async fn a_job_that_used_up_its_reservation_is_not_tried_again(kind: Kind) -> anyhow::Result<()> {
    let desk = Desk::open(kind).await?;
    let user = desk.user(None, None).await?;
    let _leader = lead(&desk.store);
    let mut hand = Hand::join(&desk.store, desk.system.directory(), Duration::from_millis(250)).await?;

    for outcome in [again(), Outcome::HandBack] {
        let job = desk.submit(user, 10 * CENT).await?;
        assert_eq!(settle(hand.take().await?, outcome, told(10 * CENT)).await?, JobState::Failed);
        let error = desk.jobs.find(user, job.id).await?.and_then(|job| job.error).expect("an error");
        assert_eq!(error.code, "budget_exceeded");
    }
    desk.submit(user, 10 * CENT).await?;
    assert_eq!(settle(hand.take().await?, again(), told(4 * CENT)).await?, JobState::Queued);
    assert_eq!(hand.take().await?.job().budget_left(), Some(NanoUsd(6 * CENT)));
    desk.assert_balanced().await
}

async fn what_waited_while_others_spent_the_day_does_not_begin(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let api = system.api().await?;
    // Each call costs more than the whole day may, and each job says that it takes next to nothing.
    system.database.connect().await?.execute_unprepared("UPDATE users SET daily_budget_nano_usd = 1000").await?;
    let ask = async |message: &str| {
        let body = json!({"message": message, "max_budget_usd": 1e-9});
        let answer = api.client.request(reqwest::Method::POST, "/api/chat").json(&body).send().await?.error_for_status()?;
        let job: serde_json::Value = answer.json().await?;
        anyhow::Ok(job["id"].as_str().expect("an id").to_owned())
    };
    let (first, second) = (ask("say:one").await?, ask("say:two").await?);

    let _worker = system.worker_with(&[("MAX_WORKERS", "1")]).await?;
    let (first, second) = (api.client.ended(&first).await?, api.client.ended(&second).await?);

    assert!(first["cost_usd"].as_f64() > Some(1e-6), "{first}");
    assert_eq!(
        (&second["status"], &second["error"]["code"], &second["cost_usd"]),
        (&json!("failed"), &json!("budget_exceeded"), &json!(0.0))
    );
    Ok(())
}

async fn the_job_of_a_lost_worker_is_billed_by_what_was_last_known(kind: Kind) -> anyhow::Result<()> {
    let desk = Desk::open(kind).await?;
    let user = desk.user(None, None).await?;
    let (member, mut leases) = desk.worker().await?;
    desk.submit(user, 0).await?;
    settle(take(&mut leases).await?, done(), told(7 * CENT)).await?;
    let job = desk.submit(user, DOLLAR).await?;
    let lease = take(&mut leases).await?;
    let known = Consumption { model: Some("m".into()), told: USED, cost: NanoUsd(8 * CENT), untold: USED };
    // An attempt that is somebody else's is not touched.
    member.books().note(&[(job.id, 7, Consumption::default()), (job.id, 1, known)]).await?;

    // From here on the first worker is silent, the second is not.
    let (mut alive, mut others) = desk.worker().await?;
    let heart = tokio::spawn(async move {
        let mut beats = interval(Duration::from_millis(250));
        loop {
            beats.tick().await;
            alive.beat().await;
        }
    });
    let stop = CancellationToken::new();
    let leader = tokio::spawn(reconciler::run(desk.store.clone(), stop.clone()));
    let next = take(&mut others).await?;

    let Job { attempt, cost, usage, consumption, .. } = next.job().clone();
    assert_eq!((attempt, cost, usage, consumption), (2, NanoUsd(15 * CENT), Some(USED + USED), None));
    assert_eq!(desk.spend(user).await?, (85 * CENT, 22 * CENT));
    assert!(matches!(settle(lease, done(), told(DOLLAR)).await, Err(Error::Fenced)));
    settle(next, done(), told(5 * CENT)).await?;
    assert_eq!(desk.spend(user).await?, (0, 27 * CENT));
    let total = desk.totals(user, UsageGroup::Day).await?.total;
    assert_eq!((total.requests, total.jobs, total.estimated, total.cost), (3, 2, 1, NanoUsd(27 * CENT)));
    stop.cancel();
    leader.await?;
    heart.abort();
    desk.assert_balanced().await
}

async fn the_days_are_counted_anew_when_the_schema_gains_them(kind: Kind) -> anyhow::Result<()> {
    let desk = Desk::open(kind).await?;
    let user = desk.user(None, None).await?;
    let (_member, mut leases) = desk.worker().await?;
    desk.submit(user, 10 * CENT).await?;
    settle(take(&mut leases).await?, done(), told(4 * CENT)).await?;
    desk.submit(user, 10 * CENT).await?;
    let url = desk.system.database.url();
    let steps = migration::status(url).await?;
    let later = steps.lines().skip_while(|line| !line.contains("spending")).count();

    migration::down(url, u32::try_from(later)?).await?;
    migration::up(url).await?;

    assert_eq!(desk.spend(user).await?, (10 * CENT, 4 * CENT));
    desk.assert_balanced().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_costs_what_its_cli_had_used() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let (api, mut first) = (system.api().await?, system.worker().await?);
    // From then on it is known what the model costs.
    let told = api.client.ended(&api.client.say("say:hi").await?).await?;
    let mut stream = api.client.chat_with(json!({"message": "slow:100:0.05", "stream": true, "max_budget_usd": 3})).await?;
    let mut events = Vec::new();
    stream.until("text.delta", &mut events).await?;
    noted(&system).await?;

    first.kill().await?;
    let _second = system.worker().await?;
    events.extend(stream.rest().await?);

    let job = &events.last().expect("events").data["job"];
    assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(2)));
    let usage: serde_json::Value = api.client.request(reqwest::Method::GET, "/api/usage").send().await?.json().await?;
    let total = &usage["total"];
    assert_eq!((&total["requests"], &total["jobs"], &total["estimated"]), (&json!(3), &json!(2), &json!(1)), "{usage}");
    let cost = |value: &serde_json::Value| value["cost_usd"].as_f64().expect("a cost");
    assert!((cost(total) - cost(&told) - cost(job)).abs() < 1e-9, "{usage}");
    // Both attempts read the prompt into the cache, which is most of what they cost.
    assert!(cost(job) > 1.9 * cost(&told), "{job} {told}");
    Ok(())
}

/// Wait until a beat has noted what the running job used.
async fn noted(system: &System) -> anyhow::Result<()> {
    let record = system.database.connect().await?;
    let mut looks = interval(Duration::from_millis(20));
    let seen = async {
        loop {
            looks.tick().await;
            let sql = "SELECT 1 FROM jobs WHERE state = 'running' AND running_usage LIKE '%\"input_tokens\":4%'";
            if record.query_one_raw(Statement::from_string(record.get_database_backend(), sql)).await?.is_some() {
                return anyhow::Ok(());
            }
        }
    };
    timeout(PATIENCE, seen).await?
}
