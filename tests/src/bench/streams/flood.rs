//! One job that says as much as it may, as fast as it goes, to one client: through a worker's lease, Redis and
//! the api; beside one connection to the same Redis that appends and announces the same events by the same
//! script.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use fred::{
    interfaces::ClientLike as _,
    prelude::{Builder, Client, Config, Value},
    types::scripts::Script,
};
use shared::{
    event::{Event, EventId},
    time::Timestamp,
};
use tokio::task::spawn_blocking;

use super::{
    crowd::Crowd,
    said::{between, now, piece},
    side::{Job, Service},
};
use crate::bench::figures::{head_of, ratio, row, spread};

/// What appends events to a log; the product's own.
const APPEND: &str = include_str!("../../../../shared/src/redis/scripts/append.lua");
/// How many events go together where more of them are there: as many as a worker sends.
const BATCH: usize = 256;
/// How many events there are: about as many as an attempt may have, of this size.
const EVENTS: u32 = 60_000;

/// The figures of so many rounds of each.
pub async fn table(rounds: usize) -> anyhow::Result<String> {
    let mut service = Service::start().await?;
    let redis = connect(service.system.redis.url()).await?;
    let (mut appended, mut delivered) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        appended.push(append(&redis, round).await.context("into Redis alone")?);
        delivered.push(deliver(service.begin().await?).await.context("through the service")?);
    }
    redis.quit().await?;
    let (appended, delivered) = (spread(appended), spread(delivered));
    Ok([
        head_of(["slowest", "median", "fastest"]),
        row("service, events/s", delivered, 0),
        row("Redis alone, events/s", appended, 0),
        row("service / Redis alone", ratio(delivered, appended), 2),
    ]
    .join("\n"))
}

/// Let `job` say all its events at once; how many a second its client got.
async fn deliver(job: Job) -> anyhow::Result<f64> {
    let mut crowd = Crowd::connect(&job.target, 1, EVENTS).await?;
    let begun = now();
    let job = spawn_blocking(move || job.say(1..EVENTS + 1, begun).map(|()| job)).await??;
    let ended = crowd.all_have(EVENTS).await?;
    job.end(EVENTS + 1).await?;
    crowd.report().await?;
    Ok(rate(between(begun, ended)))
}

async fn connect(url: &str) -> anyhow::Result<Client> {
    let client = Builder::from_config(Config::from_url(url)?).build()?;
    client.init().await?;
    Ok(client)
}

/// Append the same events, batch by batch; how many a second.
async fn append(redis: &Client, round: usize) -> anyhow::Result<f64> {
    let script = Script::from_lua(APPEND);
    let keys = vec![format!("bench:{{{round}}}:log"), format!("bench:{{{round}}}:ch")];
    let due = now();
    let event = |n| Event::new(EventId { attempt: 1, n }, &piece(n + 1, due), Timestamp::now()).json;
    let events: Vec<Bytes> = (0..EVENTS).map(event).collect();

    let begun = Instant::now();
    for (batch, first) in events.chunks(BATCH).zip((0..).step_by(BATCH)) {
        let mut arguments: Vec<Value> = vec!["1".into(), first.to_string().into(), "600000".into()];
        arguments.extend(batch.iter().cloned().map(Value::Bytes));
        let (verdict, last): (u8, u32) = script.evalsha_with_reload(redis, keys.clone(), arguments).await?;
        ensure!((verdict, last as usize) == (0, first + batch.len() - 1), "Redis answered {verdict} {last}");
    }
    Ok(rate(begun.elapsed()))
}

fn rate(elapsed: Duration) -> f64 {
    f64::from(EVENTS) / elapsed.as_secs_f64()
}
