//! A store that is away: waited for at the start, refused honestly later, and nothing is lost.

use reqwest::Method;
use serde_json::{Value, json};
use tests::{
    client::assert_whole,
    servers::{Kind, RedisServer},
    system::{Cli, System},
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
async fn a_job_accepted_without_redis_runs_once_it_is_back() -> anyhow::Result<()> {
    let mut system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);
    system.redis.kill();

    let ready = api.client.request(Method::GET, "/health/ready").send().await?;
    assert_eq!(ready.status(), 503);
    let id = api.client.say("say:late").await?;
    system.redis = RedisServer::start(system.directory())?;

    assert_eq!(api.client.ended(&id).await?["result"]["text"], json!("late"));
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
