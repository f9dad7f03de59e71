//! How many jobs a second the protocol carries by itself: clients who submit over HTTP, one job after the other,
//! and workers who settle each job as soon as they have it, so no process is started and nothing is said. Beside
//! it, in turns, the least that a database has to do for as much: a row inserted, updated, and updated again
//! together with a row of its log. The clients learn of the ends from the workers; a real one would ask.

pub mod counts;
pub mod ends;
pub mod floor;
pub mod hands;

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use rustix::process::Signal;
use tokio::time::{sleep, timeout};

use self::{
    counts::{Count, Counts, Ledger},
    ends::{End, Ends},
    floor::Floor,
    hands::Hands,
};
use super::{
    figures::{Columns, Figures, head, head_of, ratio, row, spread},
    streams::{
        said::{between, now},
        vitals::{cpu, cpu_of_family},
    },
};
use crate::{
    client::Client,
    servers::Kind,
    system::{Api, Cli, PATIENCE, System},
};

/// Clients, each of whom has one job under way.
pub const CLIENTS: usize = 20;
/// Workers, and how many jobs each takes at once.
const WORKERS: usize = 2;
const SLOTS: u32 = 32;
/// In how many turns each side gets its jobs.
const ROUNDS: usize = 3;
/// Jobs that are not timed: the first ones open connections and prepare statements.
const WARM_UP: usize = 200;
/// How long is counted what happens without any job.
const IDLE: Duration = Duration::from_secs(10);
/// How many statements and commands are told, those that took the most.
const TOLD: usize = 15;

/// A system whose workers run nothing.
struct Protocol {
    api: Api,
    workers: Vec<Hands>,
    ends: Ends,
    /// Last: the stores outlive whoever uses them.
    system: System,
}

/// What one client saw of one job, in nanoseconds since 1970.
struct Seen {
    asked: u64,
    accepted: u64,
    end: End,
}

/// A turn of one side.
struct Turn {
    took: Duration,
    /// By process, in the order of [`Protocol::cores`].
    cores: Vec<(&'static str, Duration)>,
    seen: Vec<Seen>,
}

/// The figures of so many jobs.
pub async fn table(jobs: usize) -> anyhow::Result<String> {
    let system = System::start(Kind::Postgres, Cli::Fake).await?.with("WORKER_BEAT", "1s").with("WORKER_TTL", "10s");
    let floor = Floor::create(system.directory()).await?;
    let ledger = Ledger::open(floor.database(), system.database.name()?).await?;
    let mut protocol = Protocol::start(system).await?;

    let before = ledger.read(&protocol.system.redis).await?;
    sleep(IDLE).await;
    let idle = ledger.read(&protocol.system.redis).await?.since(&before);
    protocol.turn(WARM_UP, ledger.server()).await.context("while warming up")?;
    floor.turn(WARM_UP, CLIENTS, ledger.server()).await.context("while warming up, in plain SQL")?;
    let (mut served, mut plain) = (Vec::new(), Vec::new());
    let each = jobs.div_ceil(ROUNDS);
    for _ in 0..ROUNDS {
        served.push(protocol.turn(each, ledger.server()).await.context("through the service")?);
        plain.push(floor.turn(each, CLIENTS, ledger.server()).await.context("in plain SQL")?);
    }
    let all = WARM_UP + ROUNDS * each;
    let Protocol { system, .. } = protocol.stop(all).await?;
    // What a connection has counted is certain to be known once it is closed.
    ledger.only_reader().await?;
    let counted = ledger.read(&system.redis).await?.since(&before).without(&idle);

    Ok([rates(each, &served, &plain), times(&served, &plain)?, cores(each, &served, &plain), costs(all, &counted)].join("\n"))
}

impl Protocol {
    async fn start(system: System) -> anyhow::Result<Self> {
        let api = system.api().await?;
        let mut workers = Vec::new();
        for _ in 0..WORKERS {
            workers.push(Hands::start(&system, SLOTS).await?);
        }
        Ok(Self { api, workers, ends: Ends::default(), system })
    }

    /// So many jobs, from their submits to their ends.
    async fn turn(&mut self, jobs: usize, database: u32) -> anyhow::Result<Turn> {
        let before = self.cores(database)?;
        let begun = Instant::now();
        let Self { api, workers, ends, .. } = self;
        let ends = &*ends;
        let left = AtomicUsize::new(jobs);
        let clients = try_join_all((0..CLIENTS).map(|_| submit_while(&left, &api.client, ends)));
        let hearing = try_join_all(workers.iter_mut().map(|worker| worker.tell(ends)));
        let seen = tokio::select! {
            seen = clients => seen?.into_iter().flatten().collect(),
            // It never ends well.
            heard = hearing => heard.map(|_| Vec::new()).context("a worker ended")?,
        };
        let took = begun.elapsed();
        let spent = self.cores(database)?.into_iter().zip(before).map(|((name, after), (_, before))| (name, after.saturating_sub(before)));
        Ok(Turn { took, cores: spent.collect(), seen })
    }

    /// The time on a core that each process has had.
    fn cores(&self, database: u32) -> anyhow::Result<Vec<(&'static str, Duration)>> {
        let workers = self.workers.iter().map(|worker| cpu(worker.id()?)).sum::<anyhow::Result<_>>()?;
        Ok(vec![
            ("api", cpu(self.api.process.id()?)?),
            ("workers", workers),
            ("PostgreSQL", cpu_of_family(database)?),
            ("Redis", cpu(self.system.redis.id())?),
            ("clients", cpu(std::process::id())?),
        ])
    }

    /// End all who use the stores, and see that `jobs` were done, once each.
    async fn stop(mut self, jobs: usize) -> anyhow::Result<Self> {
        for worker in self.workers.drain(..) {
            worker.stop().await?;
        }
        self.api.process.signal(Signal::TERM)?;
        ensure!(self.api.process.ended().await?, "the api did not end well");
        let database = &self.system.database;
        let done = database.count("jobs WHERE state = 'completed' AND attempt = 1").await?;
        let logs = database.count("job_log WHERE attempt = 1").await?;
        let rows = database.count("jobs").await?;
        let jobs = i64::try_from(jobs)?;
        ensure!([done, logs, rows] == [jobs; 3], "of {jobs} jobs there are {rows}, {done} done, with {logs} logs");
        Ok(self)
    }
}

/// Submit one job after the other, each once the one before has ended, until none of `left` is left.
async fn submit_while(left: &AtomicUsize, client: &Client, ends: &Ends) -> anyhow::Result<Vec<Seen>> {
    let mut seen = Vec::new();
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        let asked = now();
        let id = client.say("by hand").await?;
        let accepted = now();
        let end = timeout(PATIENCE, ends.of(&id)).await.with_context(|| format!("`{id}` was not settled"))??;
        seen.push(Seen { asked, accepted, end });
    }
    Ok(seen)
}

fn rates(each: usize, served: &[Turn], plain: &[floor::Turn]) -> String {
    let rate = |took: Duration| counted(each) / took.as_secs_f64();
    let served = spread(served.iter().map(|turn| rate(turn.took)).collect());
    let plain = spread(plain.iter().map(|turn| rate(turn.took)).collect());
    [
        head_of(["slowest", "median", "fastest"]),
        row("service, jobs/s", served, 0),
        row("plain SQL, jobs/s", plain, 0),
        row("service / plain SQL", ratio(served, plain), 2),
    ]
    .join("\n")
}

fn times(served: &[Turn], plain: &[floor::Turn]) -> anyhow::Result<String> {
    let until =
        |end: fn(&Seen) -> u64| columns(served.iter().flat_map(|turn| &turn.seen).map(|seen| between(seen.asked, end(seen))).collect());
    Ok([
        head(),
        row("submit -> accepted", until(|seen| seen.accepted)?, 1),
        row("submit -> claimed", until(|seen| seen.end.claimed)?, 1),
        row("submit -> settled", until(|seen| seen.end.settled)?, 1),
        row("plain SQL, all of it", columns(plain.iter().flat_map(|turn| turn.times.iter().copied()).collect())?, 1),
    ]
    .join("\n"))
}

fn columns(times: Vec<Duration>) -> anyhow::Result<Columns> {
    Ok(Figures::of(times).context("no job was timed")?.columns())
}

fn cores(each: usize, served: &[Turn], plain: &[floor::Turn]) -> String {
    let micros = |spent: &mut dyn Iterator<Item = Duration>| spread(spent.map(|spent| spent.as_secs_f64() * 1e6 / counted(each)).collect());
    let mut lines = vec!["  a core's µs for each job:".to_owned(), head_of(["least", "median", "most"])];
    for (place, (name, _)) in served[0].cores.iter().enumerate() {
        lines.push(row(name, micros(&mut served.iter().map(|turn| turn.cores[place].1)), 0));
    }
    let all = |turn: &Turn| turn.cores.iter().map(|(_, spent)| *spent).sum::<Duration>();
    lines.push(row("all of them", micros(&mut served.iter().map(all)), 0));
    lines.push(row("plain SQL: PostgreSQL", micros(&mut plain.iter().map(|turn| turn.server)), 0));
    lines.push(row("plain SQL: clients", micros(&mut plain.iter().map(|turn| turn.clients)), 0));
    let busy = served.iter().map(|turn| all(turn).as_secs_f64() / turn.took.as_secs_f64());
    lines.push(row("cores that were busy with a turn", spread(busy.collect()), 2));
    lines.join("\n")
}

/// What each job cost the stores, without what they had to do anyway.
fn costs(jobs: usize, counts: &Counts) -> String {
    let jobs = counted(jobs);
    let sum = |of: &[(String, Count)], figure: fn(&Count) -> f64| of.iter().map(|(_, count)| figure(count)).sum::<f64>() / jobs;
    let mut lines = vec![format!("  for each job: {:.2} commits, {:.2} rolled back", counts.commits / jobs, counts.rollbacks / jobs)];
    let head = |what: &str| format!("  {:>10}{:>10}{:>10}{:>10}  {what}", "calls", "rows", "µs a call", "µs a job");
    let line = |name: &str, count: &Count| {
        let [calls, rows, micros] = [count.calls, count.rows, count.micros].map(|figure| figure / jobs);
        format!("  {calls:>10.2}{rows:>10.2}{:>10.0}{micros:>10.0}  {name}", micros / calls)
    };
    if counts.statements.is_empty() {
        lines.push("  no statements were counted: PostgreSQL has no `pg_stat_statements` here".to_owned());
    } else {
        let statements = counts.by_time(&counts.statements);
        let top: Vec<_> = statements.iter().filter(|(name, _)| !name.starts_with(counts::NESTED)).cloned().collect();
        lines.push(format!(
            "  PostgreSQL: {:.1} statements, {:.0} µs; those that took the most, and those that triggers ran within them:",
            sum(&top, |count| count.calls),
            sum(&top, |count| count.micros)
        ));
        lines.push(head("statement"));
        lines.extend(statements.iter().take(TOLD).map(|(name, count)| line(name, count)));
    }
    let commands = counts.by_time(&counts.commands);
    lines.push("  Redis: by command, those of a script within it as well:".to_owned());
    lines.push(head("command"));
    lines.extend(commands.iter().filter(|(_, count)| count.calls / jobs >= 0.005).take(TOLD).map(|(name, count)| line(name, count)));
    lines.join("\n")
}

#[expect(clippy::cast_precision_loss, reason = "few digits are told")]
fn counted(jobs: usize) -> f64 {
    jobs as f64
}
