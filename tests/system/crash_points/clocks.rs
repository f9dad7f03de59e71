//! Row 22: nothing compares clocks. And what takes long is not taken from who is well.

use std::time::Duration;

use sea_orm::ConnectionTrait as _;
use tests::{
    servers::Kind,
    system::{Cli, System},
};
use tokio::time::interval;

use super::{assert_completed, at_rest, pieces};

/// More than twice as long as a worker may be silent.
const LONG: &str = "slow:70:0.1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_22_a_worker_whose_clock_is_absurd_is_not_buried() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);
    let mut stream = api.client.chat(LONG).await?;
    let mut events = Vec::new();
    pieces(&mut stream, 1, &mut events).await?;

    // Of a day ago, and of tomorrow, in turns, as long as the job runs.
    let database = system.database.connect().await?;
    let shifting = async {
        let mut ticks = interval(Duration::from_millis(20));
        for shift in [-86_400_000_i64, 86_400_000].into_iter().cycle() {
            ticks.tick().await;
            let sql = format!(
                "UPDATE workers SET last_beat_at = started_at + {shift}; UPDATE jobs SET started_at = created_at + {shift} WHERE state = 'running'"
            );
            database.execute_unprepared(&sql).await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        rest = stream.rest() => events.extend(rest?),
        failed = shifting => failed?,
    }

    let id = api.client.only_job().await?;
    assert_completed(&system, &api.client, &id, &events, 1).await?;
    assert_eq!(system.database.count("workers WHERE dead").await?, 0);
    at_rest(&system).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_job_of_a_worker_that_is_well_is_not_taken_away() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let (api, worker, _idle) = (system.api().await?, system.worker().await?, super::elsewhere(&system, &[]).await?);
    let mut stream = api.client.chat(LONG).await?;
    let events = stream.rest().await?;

    let id = api.client.only_job().await?;
    assert_completed(&system, &api.client, &id, &events, 1).await?;
    assert_eq!(system.database.count("workers WHERE dead").await?, 0);
    assert!(!worker.log().contains("Declared dead"), "{}", worker.log());
    at_rest(&system).await
}
