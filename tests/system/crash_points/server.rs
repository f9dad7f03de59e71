//! Row 20: an api that dies under those who follow jobs.

use std::time::Duration;

use tests::{
    servers::Kind,
    system::{Cli, System},
};
use tokio::time::Instant;

use super::{assert_completed, at_rest, pieces, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_20_who_followed_at_a_dead_api_goes_on_at_another() -> anyhow::Result<()> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let (mut dying, other, _worker) = (system.api().await?, system.api().await?, system.worker().await?);
    let mut stream = dying.client.chat("slow:60:0.05").await?;
    let mut events = Vec::new();
    pieces(&mut stream, 5, &mut events).await?;
    let id = other.client.only_job().await?;

    dying.process.kill().await?;
    let died = Instant::now();
    let last = events.last().and_then(|event| event.id.clone());
    let mut resumed = other.client.events(&id, last.as_deref()).await?;
    events.extend(resumed.next().await?);
    within("dead to the next event", died.elapsed(), Duration::from_millis(500));
    events.extend(resumed.rest().await?);

    assert_completed(&system, &other.client, &id, &events, 1).await?;
    at_rest(&system).await
}
