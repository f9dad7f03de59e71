//! The whole product under seeded faults, judged from outside: by what clients were told, by the record, by Redis at rest
//! and by the ledgers of the CLIs. A seed picks the jobs, the faults and their times; the times are those of real
//! processes, so two runs of a seed are alike and not the same.

mod cast;
mod crowd;
mod fault;
mod judge;
mod load;
mod report;
mod trouble;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use fastrand::Rng;
use futures_util::future::join;
use tokio::time::{Instant, sleep_until, timeout};

use crate::{
    servers::Kind,
    system::{Cli, PATIENCE},
};

pub use fault::Fault;
pub use report::Report;

use cast::Cast;
use crowd::Crowd;
use load::{Load, Work};
use trouble::Trouble;

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Picks jobs, faults and times.
    pub seed: u64,
    /// How many jobs.
    pub jobs: usize,
    /// How long they keep coming, and faults with them: longer where the machine falls behind.
    pub time: Duration,
    /// What keeps the record.
    pub kind: Kind,
    /// Which CLI the workers run: only the scripted one keeps ledgers.
    pub cli: Cli,
    /// What goes wrong, with its weight.
    pub faults: Vec<(Fault, u32)>,
    /// The time between two faults, about.
    pub pause: Duration,
    /// Settings of every process.
    pub settings: Vec<(String, String)>,
}

impl Plan {
    /// All that can go wrong with the scripted CLI over `kind`.
    pub fn of(seed: u64, kind: Kind) -> Self {
        let faults = Fault::weights(kind);
        let (jobs, time, pause) = (120, Duration::from_secs(15), Duration::from_millis(600));
        Self { seed, jobs, time, kind, cli: Cli::Fake, faults, pause, settings: Vec::new() }
    }
}

/// Run a plan; what came of it, if nothing was wrong. Otherwise the error says what was, and what had been done.
pub async fn run(plan: &Plan) -> anyhow::Result<Report> {
    let mut random = Rng::with_seed(plan.seed);
    let cast = Arc::new(Cast::assemble(plan).await?);
    let users = cast.users().await?;
    let works = Work::invent(plan, &cast, &users, &mut random).await?;
    let crowd = Arc::new(Crowd::new(cast.clone()));
    let begin = Instant::now();

    let load = Load::start(&cast, &crowd, works, begin, &mut random);
    let asked = timeout(plan.time * 4, join(load.asked(), sleep_until(begin + plan.time)));
    let mut trouble = Trouble::new(cast.clone(), begin, random.fork());
    let judged = async {
        if !plan.faults.is_empty() {
            tokio::select! {
                asked = asked => drop(asked.context("the jobs were never all asked for")?),
                made = trouble.make(&plan.faults, plan.pause) => match made? {},
            }
        }
        trouble.settle().await.context("the faults could not be ended")?;
        let calm = Instant::now();
        let done = load.done(PATIENCE).await?;
        let report = judge::judge(plan, &cast, &crowd, &done, &trouble).await?;
        Ok(Report { calmed: calm.elapsed(), ..report })
    }
    .await;
    let Err(error) = judged else { return judged };
    let error: anyhow::Error = error;
    trouble.stop().await;
    let logs = cast.keep_logs(plan.seed).await?;
    let done = trouble.told();
    Err(error.context(format!("SEED={} over {:?}; logs in {}; what was done:\n{done}", plan.seed, plan.kind, logs.display())))
}
