//! Rows 5 to 8, 17 and 19: Redis away, without its memory, or out of reach of one process.

use std::{fs, time::Duration};

use anyhow::Context as _;
use serde_json::json;
use shared::time::Timestamp;
use tests::{
    hand::{Hand, TEST_BEAT, complete, say},
    proxy::Proxy,
    record::queue,
    servers::{Kind, RedisServer},
    system::{Cli, PATIENCE, System},
};
use tokio::time::{Instant, interval, timeout};

use super::{assert_completed, assert_completed_unseen, at_rest, pieces, recovered_after, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_5_what_is_accepted_without_redis_runs_once_it_is_back() -> anyhow::Result<()> {
    let mut system = System::start(Kind::Postgres, Cli::Fake).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);
    system.redis.kill();
    let id = api.client.say("say:late").await?;

    system.redis = RedisServer::start(system.directory())?;
    let back = Timestamp::now().unix_ms();

    let moves = assert_completed_unseen(&system, &api.client, &id, 1).await?;
    within("Redis back to running", recovered_after(&moves, back)?, Duration::from_secs(2));
    at_rest(&system).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_6_what_redis_forgot_at_a_crash_is_rung_for_again() -> anyhow::Result<()> {
    let mut system = System::start(Kind::Postgres, Cli::Fake).await?;
    let (api, store) = (system.api().await?, system.store().await?);
    // Somebody there is room with, and who hears nothing yet.
    let mut hand = Hand::join(&store, system.directory(), TEST_BEAT).await?;
    let log = append_only_file(&system)?;
    let before = fs::metadata(&log)?.len();
    let id = api.client.say("by hand").await?;
    entries(&system, 1).await?;

    system.redis.kill();
    assert!(fs::metadata(&log)?.len() > before, "it wrote the entry down");
    fs::File::options().write(true).open(&log)?.set_len(before)?;
    system.redis = RedisServer::start(system.directory())?;
    let back = Timestamp::now().unix_ms();
    let lease = hand.take().await?;
    complete(lease, "").await?;

    let moves = assert_completed_unseen(&system, &api.client, &id, 1).await?;
    within("Redis back to running", recovered_after(&moves, back)?, Duration::from_secs(2));
    drop(hand);
    at_rest(&system).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_7_a_wiped_redis_costs_neither_what_runs_nor_what_waits() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let (api, store) = (system.api().await?, system.store().await?);
    let mut hand = Hand::join(&store, system.directory(), TEST_BEAT).await?;
    let mut stream = api.client.chat("by hand").await?;
    let running = hand.take().await?;
    let mut events = Vec::new();
    say(&running, "before ")?;
    pieces(&mut stream, 1, &mut events).await?;
    let waiting = api.client.say("by hand").await?;
    entries(&system, 2).await?;

    system.redis.command(&["FLUSHALL"])?;
    let wiped = Timestamp::now().unix_ms();
    say(&running, "after")?;
    let next = hand.take().await?;
    assert_eq!(next.job().id.to_string(), waiting);
    pieces(&mut stream, 1, &mut events).await?;
    let id = running.job().id.to_string();
    complete(running, "before after").await?;
    complete(next, "").await?;
    events.extend(stream.rest().await?);

    assert_completed(&system, &api.client, &id, &events, 1).await?;
    let moves = assert_completed_unseen(&system, &api.client, &waiting, 1).await?;
    within("wiped to running", recovered_after(&moves, wiped)?, Duration::from_secs(2));
    drop(hand);
    at_rest(&system).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_8_what_a_worker_was_told_of_in_a_lost_answer_runs_on_it() -> anyhow::Result<()> {
    // Nobody else would help it for long.
    let system = System::start(Kind::Postgres, Cli::Fake).await?.with("WORKER_TTL", "20s");
    let proxy = Proxy::to_redis(system.redis.socket()).await?;
    let api = system.api().await?;
    let _worker = system.worker_with(&[("REDIS_URL", &proxy.redis_url())]).await?;
    // There is a queue by then, and nobody is told otherwise.
    api.client.ended(&api.client.say("say:first").await?).await?;

    proxy.swallow_reply(b"{q}:work", 1);
    let asked = Timestamp::now().unix_ms();
    let id = api.client.say("say:heard").await?;

    let moves = assert_completed_unseen(&system, &api.client, &id, 1).await?;
    assert_eq!(proxy.lost_replies(), 1, "the answer was lost");
    within("told to running", recovered_after(&moves, asked)?, Duration::from_secs(1));
    at_rest(&system).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_17_a_worker_cut_off_from_redis_goes_on_and_its_events_come_after() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let proxy = Proxy::to_redis(system.redis.socket()).await?;
    let api = system.api().await?;
    let worker = system.worker_with(&[("REDIS_URL", &proxy.redis_url())]).await?;
    let mut stream = api.client.chat("slow:40:0.05").await?;
    let mut events = Vec::new();
    pieces(&mut stream, 5, &mut events).await?;
    let id = api.client.only_job().await?;

    proxy.black_hole();
    // The record has the end of it, and the leader tells it.
    let job = api.client.ended(&id).await?;
    assert_eq!(job["status"], "completed");
    events.extend(stream.rest().await?);
    proxy.heal();

    assert_completed(&system, &api.client, &id, &events, 1).await?;
    let next = api.client.say("say:next").await?;
    assert_completed_unseen(&system, &api.client, &next, 1).await?;
    assert!(!worker.log().contains("Declared dead"), "{}", worker.log());
    at_rest(&system).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_19_an_api_cut_off_from_redis_accepts_jobs_and_goes_on_with_its_streams() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let proxy = Proxy::to_redis(system.redis.socket()).await?;
    let mut leader = system.api().await?;
    leader.process.said("This process leads").await?;
    let (api, _worker) = (system.api_with(&[("REDIS_URL", &proxy.redis_url())]).await?, system.worker().await?);
    let mut stream = api.client.chat("slow:60:0.05").await?;
    let mut events = Vec::new();
    pieces(&mut stream, 5, &mut events).await?;
    let id = api.client.only_job().await?;

    proxy.black_hole();
    let meanwhile = api.client.say("say:meanwhile").await?;
    assert_completed_unseen(&system, &leader.client, &meanwhile, 1).await?;
    proxy.heal();
    events.extend(stream.rest().await?);

    assert_completed(&system, &leader.client, &id, &events, 1).await?;
    at_rest(&system).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_19_who_follows_at_an_api_that_stays_cut_off_is_told_the_end_from_the_record() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let proxy = Proxy::to_redis(system.redis.socket()).await?;
    let mut leader = system.api().await?;
    leader.process.said("This process leads").await?;
    let (api, _worker) = (system.api_with(&[("REDIS_URL", &proxy.redis_url())]).await?, system.worker().await?);
    let mut stream = api.client.chat("slow:20:0.05").await?;
    let mut events = Vec::new();
    pieces(&mut stream, 5, &mut events).await?;
    let id = leader.client.only_job().await?;

    proxy.black_hole();
    leader.client.ended(&id).await?;
    let ended = Instant::now();
    events.extend(stream.rest().await?);
    // The record is asked once it was silent for five seconds.
    within("ended to told", ended.elapsed(), Duration::from_secs(6));

    assert_completed(&system, &leader.client, &id, &events, 1).await?;
    at_rest(&system).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_again_and_again_cost_nothing() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let (redis, postgres) = (Proxy::to_redis(system.redis.socket()).await?, Proxy::to_postgres(&system.database).await?);
    let over = [("REDIS_URL", redis.redis_url()), ("DATABASE_URL", system.database.url_over(&postgres)?)];
    let over: Vec<_> = over.iter().map(|(name, url)| (*name, url.as_str())).collect();
    let (api, _worker) = (system.api().await?, system.worker_with(&over).await?);
    redis.latency(Duration::from_millis(5));
    let mut stream = api.client.chat("slow:60:0.05").await?;
    let mut events = Vec::new();

    postgres.reset();
    for _ in 0..5 {
        pieces(&mut stream, 5, &mut events).await?;
        redis.reset();
    }
    events.extend(stream.rest().await?);

    let id = api.client.only_job().await?;
    assert_completed(&system, &api.client, &id, &events, 1).await?;
    assert_eq!(system.database.count("workers WHERE dead").await?, 0);
    at_rest(&system).await
}

/// Where this Redis notes what it was told.
fn append_only_file(system: &System) -> anyhow::Result<std::path::PathBuf> {
    let folder = system.directory().join("appendonlydir");
    let files = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    files.into_iter().find(|path| path.to_string_lossy().ends_with(".incr.aof")).context("a file that grows")
}

/// Wait until so many entries are in the queue. Nobody announces that, so this looks again and again.
async fn entries(system: &System, count: i64) -> anyhow::Result<()> {
    let mut looks = interval(Duration::from_millis(20));
    let seen = async {
        while queue(&system.redis)?.0 != count {
            looks.tick().await;
        }
        // Its row says so as well.
        system.database.none_left("jobs WHERE state = 'queued' AND NOT dispatched").await
    };
    timeout(PATIENCE, seen).await.with_context(|| json!(queue(&system.redis).ok()).to_string())?
}
