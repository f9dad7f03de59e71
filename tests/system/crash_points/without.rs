//! The same without a part of the protocol: what it is there for goes wrong then, and is seen. Otherwise these tests
//! would prove nothing by being green.

use std::time::Duration;

use sea_orm::ConnectionTrait as _;
use shared::time::Timestamp;
use tests::{
    proxy::Proxy,
    record::moves_of,
    runs::WITHOUT_SANDBOX,
    servers::Kind,
    system::{Cli, System},
};
use tokio::time::timeout;

use super::{BUSY, assert_completed, pieces, recovered_after, running::wake};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_fence_a_worker_that_wakes_ends_what_another_runs() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let api = system.api().await?;
    let mut frozen = system.worker_with(&[("FAILPOINTS", "worker.before_settle=stop;lease.fence=off"), WITHOUT_SANDBOX]).await?;

    // What keeps it from ending the job beside the fence: an attempt has one bill, and its death was billed.
    let database = system.database.connect().await?;
    database.execute_unprepared("ALTER TABLE usage_logs DROP CONSTRAINT usage_logs_job_id_attempt_key").await?;
    database.close().await?;

    // No two runs say the same.
    let (mut stream, mut events, _other) = wake(&system, &api, &frozen, "clock:60:0.05").await?;

    let id = api.client.only_job().await?;
    frozen.said(&format!("Job `{id}` is completed")).await?;
    let judged = tokio::spawn(async move {
        events.extend(stream.rest().await?);
        assert_completed(&system, &api.client, &id, &events, 2).await
    });
    assert!(!matches!(judged.await, Ok(Ok(_))), "nobody saw it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_look_at_its_own_a_worker_never_hears_what_a_lost_answer_said() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?.with("WORKER_TTL", "8s");
    let proxy = Proxy::to_redis(system.redis.socket()).await?;
    let api = system.api().await?;
    let _worker = system.worker_with(&[("REDIS_URL", &proxy.redis_url()), ("FAILPOINTS", "leases.own_pending=off")]).await?;
    api.client.ended(&api.client.say("say:first").await?).await?;

    proxy.swallow_reply(b"{q}:work", 1);
    let asked = Timestamp::now().unix_ms();
    let id = api.client.say("say:heard").await?;

    // The leader finds it after a while, so nothing is lost even then.
    api.client.ended(&id).await?;
    assert_eq!(proxy.lost_replies(), 1);
    let took = recovered_after(&moves_of(&system, &id).await?, asked)?;
    assert!(took > Duration::from_secs(1) + BUSY, "{took:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_look_in_silence_who_follows_at_an_api_that_is_cut_off_waits_for_ever() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let proxy = Proxy::to_redis(system.redis.socket()).await?;
    let mut leader = system.api().await?;
    leader.process.said("This process leads").await?;
    let own = [("REDIS_URL", proxy.redis_url()), ("FAILPOINTS", "feed.silence=off".to_owned())];
    let own: Vec<_> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let (api, _worker) = (system.api_with(&own).await?, system.worker().await?);
    let mut stream = api.client.chat("slow:20:0.05").await?;
    let mut events = Vec::new();
    pieces(&mut stream, 5, &mut events).await?;

    proxy.black_hole();
    leader.client.ended(&leader.client.only_job().await?).await?;

    let told = timeout(Duration::from_secs(6) + BUSY, stream.rest()).await;
    assert!(told.is_err(), "{told:?}");
    Ok(())
}
