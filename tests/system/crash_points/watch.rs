//! Row 15: a leader that dies between the record and the queue.

use std::time::Duration;

use tests::{
    servers::Kind,
    system::{Cli, System},
};

use super::{TTL, assert_completed, assert_completed_unseen, at_rest, death, dying_at, elsewhere, recovered_after, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_15_what_a_leader_took_from_the_dead_and_did_not_ring_for_runs() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let mut leader = system.api_with(&[("FAILPOINTS", &dying_at("leader.after_bury"))]).await?;
    leader.process.said("This process leads").await?;
    let api = system.api().await?;
    let mut dying = system.worker_with(&[("FAILPOINTS", &dying_at("worker.after_begin"))]).await?;

    let mut stream = api.client.chat("say:again").await?;
    death(&mut dying).await?;
    let buried = death(&mut leader.process).await?;
    let _other = elsewhere(&system, &[]).await?;
    let events = stream.rest().await?;

    let id = api.client.only_job().await?;
    let moves = assert_completed(&system, &api.client, &id, &events, 2).await?;
    within("leader dead to running", recovered_after(&moves, buried)?, TTL + Duration::from_secs(4));
    at_rest(&system).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_15_what_a_leader_marked_and_did_not_ring_for_runs() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?.with("MAX_WORKERS", "1");
    let mut leader = system.api_with(&[("FAILPOINTS", &dying_at("leader.after_mark"))]).await?;
    leader.process.said("This process leads").await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);

    // One runs, and the others wait for a place that the leader hands out.
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(api.client.say(&format!("@delay=0.05 say:number {n}")).await?);
    }
    let marked = death(&mut leader.process).await?;

    let mut last = 0;
    for id in &ids {
        let moves = assert_completed_unseen(&system, &api.client, id, 1).await?;
        last = last.max(u64::try_from(recovered_after(&moves, marked)?.as_millis())?);
    }
    within("leader dead to running", Duration::from_millis(last), Duration::from_secs(5));
    at_rest(&system).await
}
