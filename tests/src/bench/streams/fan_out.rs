//! One job and its many watchers: how many events a second reach them when there is always another one, and how
//! late they are when they come at a rate.

use std::{
    array, thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::task::spawn_blocking;

use super::{
    crowd::{Crowd, Report},
    said::{between, now},
    side::{Job, Service},
    vitals::cpu,
};
use crate::bench::figures::{Columns, difference, head, head_of, ratio, row, spread};

/// Rounds of each side, one after the other.
const ROUNDS: usize = 3;
/// How many events a round has where there is always another one.
const MANY: u32 = 1024;
/// How many events a round has where they come at a rate, and how far apart they are.
const FEW: u32 = 96;
const PERIOD: Duration = Duration::from_millis(40);
/// How many events may be under way: fewer than any side keeps for those who are slow, and more than one write.
const WINDOW: u32 = 256;
/// How many are said at a time.
const STEP: u32 = 32;

/// What a crowd was served.
struct Served {
    report: Report,
    /// Events a second, all watchers together.
    rate: f64,
    /// What an event at one watcher cost the server, in microseconds on a core.
    cost: f64,
}

/// The figures of `watchers` of one job: the product's, and those of a bare server.
pub async fn table(watchers: usize) -> anyhow::Result<String> {
    let mut service = Service::start().await?;
    let (mut saturated, mut paced) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
    for _ in 0..ROUNDS {
        saturated[0].push(saturate(service.begin().await?, watchers).await.context("through the service")?);
        saturated[1].push(saturate(Job::bare().await?, watchers).await.context("from a bare server")?);
    }
    for _ in 0..ROUNDS {
        paced[0].push(pace(service.begin().await?, watchers).await.context("through the service")?);
        paced[1].push(pace(Job::bare().await?, watchers).await.context("from a bare server")?);
    }

    let [service, bare] = saturated.map(|rounds| (figure(&rounds, |served| served.rate), figure(&rounds, |served| served.cost)));
    let rates = [
        format!("  {MANY} events, always another one:"),
        head_of(["slowest", "median", "fastest"]),
        row("service, events/s", service.0, 0),
        row("bare hyper, events/s", bare.0, 0),
        row("service / bare hyper", ratio(service.0, bare.0), 2),
    ];
    let costs = |service, bare| {
        [
            head_of(["least", "median", "most"]),
            row("service, a core's µs for each", service, 2),
            row("bare hyper, a core's µs for each", bare, 2),
            row("service / bare hyper", ratio(service, bare), 2),
        ]
        .join("\n")
    };
    let rates_costs = costs(service.1, bare.1);
    let [service, bare] = paced.map(|rounds| (typical(&rounds), figure(&rounds, |served| served.cost)));
    let delays = [
        format!("  {FEW} events, one each {PERIOD:?}, how late:"),
        head(),
        row("service", service.0, 1),
        row("bare hyper", bare.0, 1),
        row("service - bare hyper", difference(service.0, bare.0), 1),
    ];
    Ok([rates.join("\n"), rates_costs, delays.join("\n"), costs(service.1, bare.1)].join("\n"))
}

/// A figure of the rounds: the least, the middle and the most.
fn figure(rounds: &[Served], figure: impl Fn(&Served) -> f64) -> [f64; 3] {
    spread(rounds.iter().map(figure).collect())
}

/// How late events were, each column of the round that is in the middle.
fn typical(rounds: &[Served]) -> Columns {
    array::from_fn(|column| figure(rounds, |served| served.report.delays[column])[1])
}

/// Say [`MANY`] events to so many watchers of `job`, the next ones as soon as all have those before.
async fn saturate(job: Job, watchers: usize) -> anyhow::Result<Served> {
    let mut crowd = Crowd::connect(&job.target, watchers, STEP).await?;
    let (begun, spent) = (now(), cpu(job.server)?);
    for said in (0..MANY).step_by(usize::try_from(STEP)?) {
        job.say(said + 1..said + STEP + 1, now())?;
        crowd.all_have((said + STEP).saturating_sub(WINDOW)).await?;
    }
    served(job, crowd, MANY, begun, spent).await
}

/// Say [`FEW`] events to so many watchers of `job`, one each [`PERIOD`], whether those before have come or not.
async fn pace(job: Job, watchers: usize) -> anyhow::Result<Served> {
    let crowd = Crowd::connect(&job.target, watchers, STEP).await?;
    let (begun, spent) = (now(), cpu(job.server)?);
    // A thread of its own wakes up more exactly than the runtime's clock, which counts in milliseconds.
    let talking = spawn_blocking(move || {
        let (first, first_due) = (Instant::now(), now());
        for n in 0..FEW {
            thread::sleep((PERIOD * n).saturating_sub(first.elapsed()));
            let due = first_due + u64::try_from((PERIOD * n).as_nanos())?;
            job.say(n + 1..n + 2, due)?;
        }
        anyhow::Ok(job)
    });
    let job = talking.await??;
    served(job, crowd, FEW, begun, spent).await
}

async fn served(job: Job, mut crowd: Crowd, events: u32, begun: u64, spent: Duration) -> anyhow::Result<Served> {
    crowd.all_have(events / STEP * STEP).await?;
    let spent = cpu(job.server)?.saturating_sub(spent);
    job.end(events + 1).await.context("at the end of the job")?;
    let report = crowd.report().await?;
    let rate = report.events / between(begun, report.last).as_secs_f64();
    let cost = spent.as_secs_f64() * 1e6 / report.events;
    Ok(Served { report, rate, cost })
}
