//! Breaks the product in every way there is, as a seed says, and judges what is left.

#![expect(clippy::print_stdout, reason = "what is printed is what this program is for")]

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use clap::Parser;
use tests::{
    chaos::{Plan, run},
    servers::Kind,
};
use tokio::signal::unix::{SignalKind, signal};

/// Faults of every kind while jobs run, and a judgement of what clients and operators see
#[derive(Parser)]
struct Args {
    /// Picks jobs, faults and times; another each time if it is not given
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
    /// How many jobs
    #[arg(long, env = "JOBS", default_value_t = 500)]
    jobs: usize,
    /// For how many seconds they come; as long as the machine needs for them if it is not given
    #[arg(long)]
    secs: Option<u64>,
    /// How many runs, each with the seed after the one before
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// Over SQLite and not over PostgreSQL
    #[arg(long)]
    sqlite: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        made = make(&args) => made,
        // What was started ends with what this drops.
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

async fn make(args: &Args) -> anyhow::Result<()> {
    let first = args.seed.unwrap_or_else(|| RandomState::new().hash_one(()) % 1_000_000);
    for seed in (first..).take(usize::try_from(args.runs)?) {
        let kind = if args.sqlite { Kind::Sqlite } else { Kind::Postgres };
        println!("SEED={seed} JOBS={}", args.jobs);
        let secs = args.secs.unwrap_or_else(|| (args.jobs as u64).div_ceil(8));
        let plan = Plan { jobs: args.jobs, time: Duration::from_secs(secs), ..Plan::of(seed, kind) };
        println!("{}", run(&plan).await?);
    }
    Ok(())
}
