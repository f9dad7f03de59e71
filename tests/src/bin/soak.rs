//! A steady load over one api and a few workers, and what they hold meanwhile. It fails where any of it grows with
//! time, where an answer is not as asked, or where something of the load is left at its end.

#![expect(clippy::print_stdout, reason = "what is printed is what this program is for")]

use std::time::Duration;

use anyhow::{bail, ensure};
use clap::Parser;
use tests::{
    bench::streams::vitals::descendants,
    servers::Kind,
    soak::{load::Load, sample::Samples},
    system::{Cli, PATIENCE, Running, System},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, interval_at, sleep, timeout},
};

/// Whether processes and Redis hold more the longer a steady load goes on
#[derive(Parser)]
struct Args {
    /// How long it goes on
    #[arg(long, default_value_t = 30)]
    minutes: u32,
    /// Jobs a second
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rate: u32,
    /// Workers
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// How many seconds apart the samples are
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // Ended from outside, it still takes down what it started.
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        soaked = soak(&args) => soaked,
        _ = terminate.recv() => bail!("told to end"),
        interrupt = tokio::signal::ctrl_c() => bail!("interrupted: {interrupt:?}"),
    }
}

async fn soak(args: &Args) -> anyhow::Result<()> {
    let settings = [("WORKER_BEAT", "1s"), ("WORKER_TTL", "10s"), ("MAX_WORKERS", "50")];
    let system = System::start(Kind::Postgres, Cli::Fake).await?;
    let system = settings.iter().fold(system, |system, (name, value)| system.with(name, value));
    let api = system.api().await?;
    let mut workers = Vec::new();
    for _ in 0..args.workers {
        workers.push(system.worker().await?);
    }
    let mut processes = vec![("api".to_owned(), api.process.id()?)];
    for (n, worker) in workers.iter().enumerate() {
        processes.push((format!("worker {}", n + 1), worker.id()?));
    }

    println!("{} jobs a second for {} minutes, {} workers, scripted CLI, Postgres", args.rate, args.minutes, args.workers);
    let mut samples = Samples::begin(processes)?;
    let mut load = Load::begin(&api.client, args.rate);
    let every = Duration::from_secs(args.every);
    let mut looks = interval_at(Instant::now() + every, every);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = sleep(Duration::from_mins(args.minutes.into()));
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => break,
            _ = looks.tick() => {
                let line = samples.take(&system.redis)?;
                println!("{line} | {} jobs done, {} errands under way", load.done(), load.under_way());
            }
            sent = load.go_on() => sent?,
        }
    }
    load.end().await?;
    println!("\n{} jobs done\n{}", load.done(), samples.table());

    // What they had under way is over; nothing may be left of it.
    for worker in &workers {
        is_childless(worker).await?;
    }
    system.database.none_left("jobs WHERE state IN ('queued', 'running')").await?;
    if !samples.judges_redis() {
        println!("Redis is not judged: in a run of less than half an hour it still fills up");
    }
    let grown = samples.grown();
    ensure!(grown.is_empty(), "it grows with time: {}", grown.join("; "));
    Ok(())
}

/// Wait until all that a worker started has ended. The kernel does not announce that, so this looks again and again.
async fn is_childless(worker: &Running) -> anyhow::Result<()> {
    let mut looks = interval(Duration::from_millis(100));
    let none_left = async {
        while !descendants(worker.id()?)?.is_empty() {
            looks.tick().await;
        }
        anyhow::Ok(())
    };
    let Ok(seen) = timeout(PATIENCE, none_left).await else { bail!("a worker still has children: {:?}", descendants(worker.id()?)?) };
    seen
}
