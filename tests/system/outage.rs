//! A store that is away: waited for at the start, refused honestly later, and nothing is lost.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use sea_orm::ConnectionTrait as _;
use serde_json::{Value, json};
use tests::{
    client::assert_whole,
    proxy::Proxy,
    servers::{Kind, RedisServer},
    system::{Cli, PATIENCE, System},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_waits_for_redis_and_says_so() -> anyhow::Result<()> {
    let mut system = System::start(Kind::Sqlite, Cli::Fake).await?;
    system.redis.kill();
    let mut worker = system.worker_without_waiting()?;

    worker.said("The redis is not reachable yet").await?;
    system.redis = RedisServer::start(system.directory())?;

    worker.said("Joined as").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_accepted_without_redis_run_within_two_seconds_of_its_return_and_what_is_known_is_told_meanwhile() -> anyhow::Result<()> {
    // The clocks of production.
    let mut system = System::start(Kind::Postgres, Cli::Fake).await?.with("WORKER_BEAT", "1s").with("WORKER_TTL", "10s");
    let (mut api, mut worker) = (system.api().await?, system.worker().await?);
    worker.said("The CLI is").await?;
    let former = api.client.say("say:before").await?;
    api.client.ended(&former).await?;
    system.redis.kill();

    let ready = api.client.request(Method::GET, "/health/ready").send().await?;
    assert_eq!(ready.status(), 503);
    let mut late = Vec::new();
    for _ in 0..3 {
        late.push(api.client.say("say:late").await?);
    }
    assert_eq!(api.client.job(&former).await?["result"]["text"], json!("before"));
    assert_eq!(api.client.job(&late[0]).await?["status"], json!("queued"));
    // Away for so long that everybody waits for it by now.
    let waited = "The watch over the jobs could not finish its round";
    tokio::select! {
        said = worker.said(waited) => said?,
        said = api.process.said(waited) => said?,
    };
    system.redis = RedisServer::start(system.directory())?;
    let back = Instant::now();

    for id in &late {
        let job = api.client.ended(id).await?;
        assert_eq!((&job["result"]["text"], &job["attempt"]), (&json!("late"), &json!(1)));
    }
    assert!(back.elapsed() < Duration::from_secs(2), "{:?}", back.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_may_have_jobs_refused_while_redis_is_away() -> anyhow::Result<()> {
    let mut system = System::start(Kind::Sqlite, Cli::Fake).await?.with("SUBMIT_WITHOUT_REDIS", "refuse");
    let (api, _worker) = (system.api().await?, system.worker().await?);
    let ask = || api.client.request(Method::POST, "/api/chat").header("idempotency-key", "once").json(&json!({"message": "say:x"})).send();
    let accepted: Value = ask().await?.json().await?;
    system.redis.kill();
    // It knows by the time that it said so.
    assert_eq!(api.client.request(Method::GET, "/health/ready").send().await?.status(), 503);

    let refused = api.client.request(Method::POST, "/api/chat").json(&json!({"message": "say:x"})).send().await?;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(refused.json::<Value>().await?["code"], "unavailable");
    let again: Value = ask().await?.json().await?;
    assert_eq!(again["id"], accepted["id"], "what was accepted stays accepted");

    system.redis = RedisServer::start(system.directory())?;
    let ready = async {
        while api.client.request(Method::GET, "/health/ready").send().await?.status() != 200 {}
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, ready).await??;
    assert_eq!(api.client.ended(&api.client.say("say:back").await?).await?["result"]["text"], "back");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_to_redis_that_leads_nowhere_is_given_up_within_four_seconds() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let proxy = Proxy::to_redis(system.redis.socket()).await?;
    let system = system.with("REDIS_URL", &format!("redis://{}", proxy.address()));
    let api = system.api().await?;
    assert_eq!(api.client.request(Method::GET, "/health/ready").send().await?.status(), 200);

    // One for commands, one for subscriptions.
    assert_eq!(proxy.black_hole_present(), 2);
    let lost = Instant::now();
    let ready = api.client.request(Method::GET, "/health/ready").send().await?;
    assert_eq!(ready.status(), 503, "it cannot have been asked");

    let ready = async {
        while api.client.request(Method::GET, "/health/ready").send().await?.status() != 200 {}
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, ready).await??;
    assert!(lost.elapsed() < Duration::from_secs(4), "{:?}", lost.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_on_record_only_once_it_can_hear_of_jobs() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let proxy = Proxy::to_redis(system.redis.socket()).await?;
    let api = system.api().await?;
    let mut worker = system.worker_with(&[("REDIS_URL", &proxy.redis_url())]).await?;

    proxy.refuse();
    system.database.connect().await?.execute_unprepared("UPDATE workers SET dead = TRUE").await?;
    worker.said("Declared dead").await?;
    worker.said("Could not join the workers").await?;
    assert_eq!(system.database.count("workers").await?, 1, "it would be buried before it could beat");
    proxy.heal();

    let job = api.client.ended(&api.client.say("say:back").await?).await?;
    assert_eq!((&job["result"]["text"], &job["attempt"]), (&json!("back"), &json!(1)));
    assert_eq!(system.database.count("workers").await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_may_drop_what_it_holds_is_refused() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    system.redis.command(&["CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lru"])?;

    let mut worker = system.worker_without_waiting()?;

    worker.said("`maxmemory-policy` is `allkeys-lru`").await?;
    assert!(!worker.ended().await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_is_said_so_and_a_running_job_goes_on() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);
    let mut stream = api.client.chat("slow:100:0.05").await?;
    let mut events = Vec::new();
    stream.until("text.delta", &mut events).await?;

    system.database.shut().await?;
    let refused = api.client.request(Method::POST, "/api/chat").json(&json!({"message": "say:x"})).send().await?;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(refused.json::<Value>().await?["code"], "unavailable");
    // Longer than a worker may be silent: nobody could have watched it.
    for _ in 0..70 {
        stream.until("text.delta", &mut events).await?;
    }
    system.database.open().await?;
    events.extend(stream.rest().await?);

    let text = assert_whole(&events);
    let job = &events.last().expect("events").data["job"];
    assert_eq!((&job["status"], &job["attempt"], &job["result"]["text"]), (&json!("completed"), &json!(1), &json!(text)));
    Ok(())
}
