//! Many watchers of a job that says nothing: the memory each takes, what their silence costs, and how soon all
//! of them have the one event that comes then.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::time::sleep;

use super::{
    crowd::Crowd,
    said::{between, now},
    side::{Job, Service},
    vitals::{cpu, memory},
};
use crate::bench::figures::{head_of, row};

/// How long the server has to settle after a change, before it is looked at.
const SETTLE: Duration = Duration::from_secs(2);

/// How long nothing happens.
const QUIET: Duration = Duration::from_secs(20);

/// What a crowd cost.
struct Idle {
    /// How long all of them took to connect, in seconds.
    connected: f64,
    /// The memory of the server for each, in KiB.
    memory: f64,
    /// The same once they all got an event.
    memory_after: f64,
    /// The share of a core that the server took while nothing happened, in percent.
    cpu: f64,
    /// How many milliseconds the last one waited for an event.
    last: f64,
}

/// The figures of so many watchers of a job that is silent: the product's, and those of a bare server.
pub async fn table(watchers: usize) -> anyhow::Result<String> {
    let mut service = Service::start().await?;
    let through = idle(service.begin().await?, watchers).await.context("through the service")?;
    let bare = idle(Job::bare().await?, watchers).await.context("from a bare server")?;
    let line = |name, figure: fn(&Idle) -> f64, decimals| {
        let (service, bare) = (figure(&through), figure(&bare));
        row(name, [service, bare], decimals) + &format!("{:>10.2}", service / bare)
    };
    Ok([
        head_of(["service", "bare", "ratio"]),
        line("memory each, KiB", |idle| idle.memory, 2),
        line("memory each after an event, KiB", |idle| idle.memory_after, 2),
        line("% of a core while silent", |idle| idle.cpu, 2),
        line("event at the last one, ms", |idle| idle.last, 1),
        line("all connected, s", |idle| idle.connected, 2),
    ]
    .join("\n"))
}

/// Let `watchers` watch `job`.
#[expect(clippy::cast_precision_loss, reason = "few digits are told")]
async fn idle(job: Job, watchers: usize) -> anyhow::Result<Idle> {
    sleep(SETTLE).await;
    let empty = memory(job.server)?;
    let each = |bytes: u64| bytes.saturating_sub(empty) as f64 / 1024.0 / watchers as f64;

    let begun = Instant::now();
    let mut crowd = Crowd::connect(&job.target, watchers, 1).await?;
    let connected = begun.elapsed().as_secs_f64();
    crowd.all_have(0).await?;
    sleep(SETTLE).await;
    let full = memory(job.server)?;
    let spent = cpu(job.server)?;
    sleep(QUIET).await;
    let spent = cpu(job.server)?.saturating_sub(spent);

    let due = now();
    job.say(1..2, due)?;
    let last = between(due, crowd.all_have(1).await?).as_secs_f64() * 1000.0;
    sleep(SETTLE).await;
    let after = memory(job.server)?;
    job.end(2).await?;
    crowd.report().await?;
    let cpu = spent.as_secs_f64() / QUIET.as_secs_f64() * 100.0;
    Ok(Idle { connected, memory: each(full), memory_after: each(after), cpu, last })
}
