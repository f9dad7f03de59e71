//! Whose turn it is: users take turns, the jobs of one go by priority and arrival, and only so many may wait.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shared::{
    audit::By,
    id::{JobId, UserId, WorkerId},
    job::{ChatSpec, Job, Message, NanoUsd, Priority},
    jobs::{Jobs, NewJob},
    store::Store,
    user::{PasswordHash, Role, UserLimits},
    users::{NewUser, Users},
    workers::{Membership, NewWorker, WorkerState, Workers},
};
use tests::{
    hand::{Hand, TEST_BEAT, complete, lead},
    on_both_databases,
    servers::Kind,
    system::{Cli, PATIENCE, System},
};
use tokio::time::{Instant, interval, timeout};

on_both_databases!(
    users_take_turns_and_some_more_often,
    the_jobs_of_one_user_go_by_priority_and_then_as_they_came,
    a_waiting_job_is_told_how_many_go_before_it,
    no_more_jobs_of_a_user_wait_than_may,
    ten_thousand_jobs_of_one_user_hold_nobody_elses_first_one_back,
);

async fn user(store: &Store, name: &str, queue_weight: Option<u32>) -> anyhow::Result<UserId> {
    let limits = UserLimits { queue_weight, ..UserLimits::default() };
    let password = PasswordHash::new("none".to_owned());
    let new = NewUser { email: format!("{name}@example.com").parse()?, name: None, password, role: Role::User, limits };
    Ok(Users::new(store).create(new, &By::default()).await?.id)
}

async fn submit(jobs: &Jobs, user_id: UserId, spec: ChatSpec) -> anyhow::Result<JobId> {
    let new =
        NewJob { user_id, api_key_id: None, session_id: None, spec, idempotency_key: None, trace: None, reservation: NanoUsd::default() };
    Ok(jobs.submit(new).await?.job.id)
}

/// Take and complete so many jobs, one after the other; each as it was taken.
async fn work(hand: &mut Hand, count: usize) -> anyhow::Result<Vec<Job>> {
    let mut taken = Vec::new();
    for _ in 0..count {
        let lease = hand.take().await?;
        taken.push(lease.job().clone());
        complete(lease, "done").await?;
    }
    Ok(taken)
}

async fn users_take_turns_and_some_more_often(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let store = system.store().await?;
    let jobs = Jobs::new(&store);
    let (light, heavy) = (user(&store, "light", None).await?, user(&store, "heavy", Some(3)).await?);
    for _ in 0..12 {
        submit(&jobs, light, ChatSpec::text("say:x")).await?;
    }
    for _ in 0..12 {
        submit(&jobs, heavy, ChatSpec::text("say:x")).await?;
    }

    let _leader = lead(&store);
    let mut hand = Hand::with_slots(&store, system.directory(), TEST_BEAT, 1).await?;
    let taken = work(&mut hand, 24).await?;

    let heavies: Vec<usize> = taken.chunks(4).map(|turn| turn.iter().filter(|job| job.user_id == heavy).count()).collect();
    assert_eq!(heavies, [3, 3, 3, 3, 0, 0]);
    Ok(())
}

async fn the_jobs_of_one_user_go_by_priority_and_then_as_they_came(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let store = system.store().await?;
    let jobs = Jobs::new(&store);
    let user = user(&store, "one", None).await?;
    for (number, priority) in
        [Priority::Low, Priority::Normal, Priority::High, Priority::Low, Priority::Normal, Priority::High].into_iter().enumerate()
    {
        submit(&jobs, user, ChatSpec { priority, ..ChatSpec::text(number.to_string()) }).await?;
    }

    let _leader = lead(&store);
    let mut hand = Hand::with_slots(&store, system.directory(), TEST_BEAT, 1).await?;
    let taken = work(&mut hand, 6).await?;

    let order: Vec<String> = taken.iter().map(text_of).collect();
    assert_eq!(order, ["2", "5", "1", "4", "0", "3"]);
    Ok(())
}

fn text_of(job: &Job) -> String {
    match &job.spec.message {
        Message::Text(text) => text.clone(),
        Message::Blocks(_) => String::new(),
    }
}

async fn a_waiting_job_is_told_how_many_go_before_it(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?;
    let api = system.api().await?;
    let store = system.store().await?;
    let jobs = Jobs::new(&store);
    let other = user(&store, "other", None).await?;
    for _ in 0..5 {
        submit(&jobs, other, ChatSpec::text("say:x")).await?;
    }

    let mut mine = Vec::new();
    for priority in ["normal", "normal", "high"] {
        mine.push(api.client.submit(json!({"message": "say:x", "priority": priority})).await?);
    }

    // Counted anew twice a second: asked until all of them are.
    let places = async || {
        let mut places = Vec::new();
        for id in &mine {
            places.push(api.client.job(id).await?["queue"]["position"].clone());
        }
        anyhow::Ok(places)
    };
    let mut looks = interval(Duration::from_millis(50));
    let expected = [json!(1 + 2), json!(2 + 3), json!(1)];
    let seen = async {
        while places().await? != expected {
            looks.tick().await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, seen).await??;
    // Nobody works, and nobody has: how long it takes cannot be told.
    assert_eq!(api.client.job(&mine[0]).await?["queue"]["estimated_wait_ms"], Value::Null);

    // Each works for a while, so that it can.
    let mut hand = Hand::with_slots(&store, system.directory(), TEST_BEAT, 1).await?;
    work(&mut hand, 2).await?;
    let estimated = async {
        while api.client.job(&mine[1]).await?["queue"]["estimated_wait_ms"].is_null() {
            looks.tick().await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, estimated).await?
}

async fn no_more_jobs_of_a_user_wait_than_may(kind: Kind) -> anyhow::Result<()> {
    let system = System::start(kind, Cli::Fake).await?.with("MAX_QUEUED_PER_USER", "5");
    let (one, other) = (system.api().await?, system.api().await?);
    let submits = (0..20).map(|number| {
        let client = if number % 2 == 0 { &one.client } else { &other.client };
        client.request(Method::POST, "/api/chat").json(&json!({"message": "say:x"})).send()
    });

    let (mut accepted, mut refused) = (0, 0);
    for answer in join_all(submits).await {
        let answer = answer?;
        match answer.status() {
            StatusCode::ACCEPTED => accepted += 1,
            StatusCode::TOO_MANY_REQUESTS => {
                assert!(answer.headers().contains_key("retry-after"));
                assert_eq!(answer.json::<Value>().await?["code"], "queue_full");
                refused += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!((accepted, refused), (5, 15));

    // One that begins makes room for another.
    let store = system.store().await?;
    let mut hand = Hand::with_slots(&store, system.directory(), TEST_BEAT, 1).await?;
    work(&mut hand, 1).await?;
    one.client.say("say:x").await?;
    Ok(())
}

async fn ten_thousand_jobs_of_one_user_hold_nobody_elses_first_one_back(kind: Kind) -> anyhow::Result<()> {
    const SLOTS: usize = 4;
    let system = System::start(kind, Cli::Fake).await?;
    let store = system.store().await?;
    let jobs = Jobs::new(&store);
    let (greedy, modest) = (user(&store, "greedy", None).await?, user(&store, "modest", None).await?);
    let first = submit(&jobs, greedy, ChatSpec::text("say:x")).await?;
    multiply(&system, first, 10_000).await?;
    let _leader = lead(&store);
    let mut hand = Hand::with_slots(&store, system.directory(), TEST_BEAT, u32::try_from(SLOTS)?).await?;
    let mut running = Vec::new();
    for _ in 0..SLOTS {
        running.push(hand.take().await?);
    }
    assert!(running.iter().all(|lease| lease.job().user_id == greedy));

    let modest_one = submit(&jobs, modest, ChatSpec::text("say:y")).await?;
    let ended = Instant::now();
    complete(running.remove(0), "done").await?;
    let next = hand.take().await?;

    assert_eq!(next.job().id, modest_one);
    assert!(ended.elapsed() < Duration::from_secs(1), "{:?}", ended.elapsed());
    // And the greedy one is not forgotten.
    complete(next, "done").await?;
    assert_eq!(hand.take().await?.job().user_id, greedy);
    Ok(())
}

/// Let there be `count` jobs like this one: to submit them one by one would take the time of the test.
async fn multiply(system: &System, like: JobId, count: usize) -> anyhow::Result<()> {
    use sea_orm::{ConnectionTrait as _, Statement, TransactionTrait as _};
    let database = system.database.connect().await?;
    let transaction = database.begin().await?;
    for _ in 1..count {
        let sql =
            "INSERT INTO jobs (id, user_id, request, priority, state, max_failures, max_reclaims, run_at, queue_deadline_at, created_at)
                   SELECT $2, user_id, request, priority, 'queued', max_failures, max_reclaims, run_at, queue_deadline_at, created_at
                   FROM jobs WHERE id = $1";
        let values = [like.uuid().into(), JobId::new().uuid().into()];
        transaction.execute_raw(Statement::from_sql_and_values(database.get_database_backend(), sql, values)).await?;
    }
    Ok(transaction.commit().await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_session_is_gone_is_buried_long_before_its_time() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    // The clocks of production.
    let store = system.store().await?;
    let _leader = lead(&store);
    let worker = NewWorker { name: "w".into(), host: "elsewhere".into(), slots: 1, mcp_servers: Vec::new(), lock_file: None };
    let mut membership = Membership::join(&store, WorkerId::new(), &worker).await?;
    let id = membership.id();
    let state = async || {
        let all = Workers::new(&store).list(None, 10).await?;
        all.iter().find(|worker| worker.id == id).map(|worker| worker.state).ok_or_else(|| anyhow::anyhow!("it is there"))
    };
    // Silent, but with its session: not before its time.
    let mut beats = interval(Duration::from_secs(1));
    for _ in 0..2 {
        beats.tick().await;
        membership.beat().await;
    }
    for _ in 0..4 {
        beats.tick().await;
        assert_eq!(state().await?, WorkerState::Active);
    }
    membership.beat().await;

    drop(membership);
    let died = Instant::now();
    while state().await? != WorkerState::Dead {
        beats.tick().await;
        assert!(died.elapsed() < Duration::from_secs(5));
    }
    Ok(())
}
