//! A store that is away: waited for at the start, refused honestly later, and nothing is lost.

use reqwest::Method;
use serde_json::json;
use tests::{
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
