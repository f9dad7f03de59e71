//! Row 16: a database that is away for longer than a worker may be silent. And who tells that it is not.

use std::time::Duration;

use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;
use shared::time::Timestamp;
use tests::{
    record::moves_of,
    servers::Kind,
    system::{Cli, System},
};
use tokio::time::interval;

use super::{TTL, assert_completed, assert_completed_unseen, at_rest, pieces, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_16_a_database_that_is_away_kills_no_worker_and_what_ended_meanwhile_has_ended_once() -> anyhow::Result<()> {
    let system = System::start_alone(Cli::Fake).await?;
    let (api, _worker, _other) = (system.api().await?, system.worker().await?, elsewhere(&system).await?);
    let mut long = api.client.chat("slow:100:0.05").await?;
    let id = api.client.only_job().await?;
    let short = api.client.say("slow:20:0.05").await?;
    let mut followed = api.client.events(&short, None).await?;
    let mut events = Vec::new();
    followed.until("text.delta", &mut Vec::new()).await?;
    pieces(&mut long, 1, &mut events).await?;

    system.database.server()?.crash();
    let refused = api.client.request(Method::POST, "/api/chat").json(&json!({"message": "say:x"})).send().await?;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    // Longer than a worker may be silent.
    pieces(&mut long, 75, &mut events).await?;
    let back = Timestamp::now().unix_ms();
    system.database.server()?.open().await?;
    events.extend(long.rest().await?);

    assert_completed(&system, &api.client, &id, &events, 1).await?;
    assert_completed_unseen(&system, &api.client, &short, 1).await?;
    let ended = moves_of(&system, &short).await?.last().expect("an end").at;
    assert!(ended >= back, "it ended while the database was away");
    within("back to settled", Duration::from_millis(u64::try_from(ended - back)?), TTL);
    assert_eq!(system.database.count("workers WHERE dead").await?, 0);
    at_rest(&system).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_16_a_database_that_is_away_for_long_is_beaten_to_as_soon_as_it_is_back() -> anyhow::Result<()> {
    let system = System::start_alone(Cli::Fake).await?;
    let (api, _worker, _other) = (system.api().await?, system.worker().await?, elsewhere(&system).await?);
    let mut stream = api.client.chat("slow:400:0.05").await?;
    let (id, mut events) = (api.client.only_job().await?, Vec::new());
    pieces(&mut stream, 1, &mut events).await?;

    system.database.server()?.crash();
    // So long that whoever waits twice as long after each try is far from the next.
    pieces(&mut stream, 220, &mut events).await?;
    system.database.server()?.open().await?;
    events.extend(stream.rest().await?);

    assert_completed(&system, &api.client, &id, &events, 1).await?;
    assert_eq!(system.database.count("workers WHERE dead").await?, 0);
    at_rest(&system).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_18_while_the_lead_changes_hands_it_is_told_that_the_database_can_be_reached() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let mut leader = system.api().await?;
    leader.process.said("This process leads").await?;
    let mut other = system.api().await?;

    leader.process.signal(Signal::STOP)?;
    let mut looks = interval(Duration::from_millis(20));
    let stamped = async {
        loop {
            looks.tick().await;
            anyhow::ensure!(system.redis.command(&["EXISTS", "leader:stamp"])?.trim() == "1", "whoever is cut off would go on");
        }
    };
    tokio::select! {
        said = other.process.said("This process leads") => drop(said?),
        gone = stamped => gone?,
    }
    leader.process.signal(Signal::CONT)?;
    Ok(())
}

async fn elsewhere(system: &System) -> anyhow::Result<tests::system::Running> {
    super::elsewhere(system, &[]).await
}
