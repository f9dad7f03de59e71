//! How long a client waits for the first text, with the service and without, for a 202, with credentials and
//! without, and for a turn, with a conversation and without, in interleaved runs: what slows the machine for a
//! while slows every way alike. It judges content, never times.

#![expect(clippy::print_stdout, reason = "what is printed is what this program is for")]

use std::{fs, thread::available_parallelism, time::Duration};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use tests::{
    bench::{
        admission::{Admission, CROWD, Way},
        direct::Direct,
        figures::{Columns, Figures, head, row},
        past::Past,
        protocol::{
            self,
            hands::{self, Serve},
        },
        service,
        streams::{
            bare, claim, fan_out, first_event, flood, idle,
            watchers::{self, Watch},
        },
        turns::Turns,
        unserved::Unserved,
    },
    servers::Kind,
    system::{Api, Cli, Running, System},
};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};
use worker::claude::sandbox::Sandbox;

/// Rounds that are not counted: the first ones fill the page cache and open connections.
const WARM_UP: usize = 3;

/// How many submits one way gets in one go when many are under way at a time.
const SLICE: usize = 100;

/// Time to the first text through the service, beside the same CLI driven directly; of a submit, beside the
/// same one that nobody asks for credentials; and of a turn of a session, beside a job without one
#[derive(Parser)]
struct Args {
    /// Rounds with the real CLI (from `CLAUDE_BIN_REAL`); 0 leaves it out
    #[arg(long, default_value_t = 20)]
    real: usize,
    /// Rounds with the scripted CLI; 0 leaves it out
    #[arg(long, default_value_t = 100)]
    fake: usize,
    /// Rounds of submits with credentials and without; 0 leaves them out
    #[arg(long, default_value_t = 500)]
    submits: usize,
    /// Rounds of turns of sessions; 0 leaves them out
    #[arg(long, default_value_t = 20)]
    turns: usize,
    /// Seconds of jobs at each rate whose first events are timed; 0 leaves them out
    #[arg(long, default_value_t = 4)]
    first_events: u32,
    /// Rounds of one job that says as much as it may to one client; 0 leaves them out
    #[arg(long, default_value_t = 3)]
    floods: usize,
    /// Rounds of jobs that are claimed and no more; 0 leaves them out
    #[arg(long, default_value_t = 300)]
    claims: usize,
    /// Jobs that are submitted, claimed and settled, and no more; 0 leaves them out
    #[arg(long, default_value_t = 6_000)]
    protocol: usize,
    /// Watchers of one job that is busy; 0 leaves them out
    #[arg(long, default_value_t = 1_000)]
    watchers: usize,
    /// Watchers of one job that is silent; 0 leaves them out
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What this program does in a process beside the bench.
#[derive(Subcommand)]
enum Part {
    /// Watch a job
    #[command(hide = true)]
    Watchers(Watch),
    /// Serve what comes in
    #[command(hide = true)]
    Bare,
    /// Settle jobs
    #[command(hide = true)]
    Hands(Serve),
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match &args.part {
        Some(Part::Watchers(watch)) => watchers::run(watch),
        Some(Part::Bare) => bare::run(),
        Some(Part::Hands(serve)) => hands::run(serve),
        None => Builder::new_multi_thread().enable_all().build()?.block_on(bench(&args)),
    }
}

async fn bench(args: &Args) -> anyhow::Result<()> {
    // Ended from outside, it still takes down what it started.
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        measured = measure(args) => measured,
        _ = terminate.recv() => bail!("told to end"),
        interrupt = tokio::signal::ctrl_c() => bail!("interrupted: {interrupt:?}"),
    }
}

async fn measure(args: &Args) -> anyhow::Result<()> {
    println!("{}, load {} at the start", machine(), load());
    println!("times in milliseconds, after {WARM_UP} rounds of warm-up");
    if args.real > 0 {
        println!("\nFirst text, real CLI, {} rounds", args.real);
        Bench::start(Kind::Sqlite, Cli::Real).await?.first_text(args.real).await?;
    }
    if args.fake > 0 {
        let bench = Bench::start(Kind::Sqlite, Cli::Fake).await?;
        println!("\nFirst text, scripted CLI, {} rounds", args.fake);
        bench.first_text(args.fake).await?;
        println!("\nJob without a stream, scripted CLI, {} rounds", args.fake);
        bench.submit(args.fake).await?;
    }
    if args.submits > 0 {
        for kind in [Kind::Sqlite, Kind::Postgres] {
            println!("\nSubmit, with credentials and without, {kind:?}, {} rounds", args.submits);
            let admission = Box::pin(Admission::start(kind)).await?;
            admitted(&admission.ways, args.submits).await?;
            admission.stop().await;
        }
    }
    if args.turns > 0 {
        for kind in [Kind::Sqlite, Kind::Postgres] {
            println!("\nTurn of a session, scripted CLI, {kind:?}, {} rounds", args.turns);
            Bench::start(kind, Cli::Fake).await?.turns(args.turns).await?;
        }
        println!("\nTurn of a session without the service, scripted CLI, {} rounds", args.turns);
        Bench::start(Kind::Sqlite, Cli::Fake).await?.unserved(args.turns).await?;
    }
    if args.first_events > 0 {
        println!("\nFirst event, scripted CLI, {} seconds at each rate", args.first_events);
        println!("{}", first_event::table(args.first_events).await?);
    }
    if args.floods > 0 {
        println!("\nOne job to one client, {} rounds", args.floods);
        println!("{}", flood::table(args.floods).await?);
    }
    if args.claims > 0 {
        println!("\nClaim, Postgres, {} rounds", args.claims);
        println!("{}", claim::table(args.claims).await?);
    }
    if args.protocol > 0 {
        println!("\nThe protocol alone, Postgres, {} jobs, {} clients", args.protocol, protocol::CLIENTS);
        println!("{}", protocol::table(args.protocol).await?);
    }
    if args.watchers > 0 {
        println!("\n{} watchers of one job", args.watchers);
        println!("{}", fan_out::table(args.watchers).await?);
    }
    if args.idle > 0 {
        println!("\n{} watchers of a silent job", args.idle);
        println!("{}", idle::table(args.idle).await?);
    }
    println!("\nload {} at the end", load());
    Ok(())
}

/// A system of the product that has nothing else to do, and the CLI beside it.
struct Bench {
    direct: Direct,
    /// The one the worker found as well, if any works here.
    sandbox: Option<Sandbox>,
    api: Api,
    _worker: Running,
    /// Last: the stores outlive whoever uses them.
    _system: System,
}

impl Bench {
    async fn start(kind: Kind, cli: Cli) -> anyhow::Result<Self> {
        // The clocks of production, not those of tests.
        let system = System::start(kind, cli).await?.with("WORKER_BEAT", "1s").with("WORKER_TTL", "10s");
        let (api, worker) = (system.api().await?, system.worker().await?);
        let direct = Direct::new(system.cli(), system.mock.url(), system.directory())?;
        let sandbox = direct.sandbox().await.inspect_err(|error| println!("  no sandbox works here: {error}")).ok();
        Ok(Self { direct, sandbox, api, _worker: worker, _system: system })
    }

    async fn first_text(&self, rounds: usize) -> anyhow::Result<()> {
        let (mut direct, mut confined, mut service) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..WARM_UP + rounds {
            let times = self.round(round).await.with_context(|| format!("in round {round}"))?;
            direct.push(times.direct);
            confined.extend(times.confined);
            service.push(times.service);
        }
        let (direct, service) = (counted(direct)?, counted(service)?);

        println!("{}", head());
        println!("{}", row("direct", direct, 1));
        if self.sandbox.is_some() {
            let confined = counted(confined)?;
            println!("{}", row("direct, supervised and sandboxed", confined, 1));
            println!("{}", row("service", service, 1));
            println!("{}", row("sandboxed - direct", combined(confined, direct, |more, less| more - less), 1));
            println!("{}", row("service - sandboxed", combined(service, confined, |more, less| more - less), 1));
        } else {
            println!("{}", row("service", service, 1));
        }
        println!("{}", row("service - direct", combined(service, direct, |more, less| more - less), 1));
        println!("{}", row("service / direct", combined(service, direct, |more, less| more / less), 2));
        Ok(())
    }

    /// Every way once, one after the other.
    async fn round(&self, round: usize) -> anyhow::Result<Round> {
        let direct = self.direct.first_text(&answer("directly", round)).await.context("directly")?;
        let confined = match &self.sandbox {
            Some(sandbox) => Some(self.direct.first_text_confined(sandbox, &answer("sandboxed", round)).await.context("sandboxed")?),
            None => None,
        };
        let service = service::first_text(&self.api.client, &answer("served", round)).await.context("through the service")?;
        Ok(Round { direct, confined, service })
    }

    async fn submit(&self, rounds: usize) -> anyhow::Result<()> {
        let (mut accepted, mut started) = (Vec::new(), Vec::new());
        for round in 0..WARM_UP + rounds {
            let (to_accepted, to_started) =
                service::submit(&self.api.client, &answer("submitted", round)).await.with_context(|| format!("in round {round}"))?;
            accepted.push(to_accepted);
            started.push(to_started);
        }

        println!("{}", head());
        println!("{}", row("POST -> 202", counted(accepted)?, 1));
        println!("{}", row("202 -> `job.started` at the client", counted(started)?, 1));
        Ok(())
    }

    async fn turns(&self, rounds: usize) -> anyhow::Result<()> {
        let mut turns = Turns::begin(&self.api.client).await?;
        let names = turns.names();
        let (mut first_texts, mut ends) = (vec![Vec::new(); names.len()], vec![Vec::new(); names.len()]);
        for round in 0..WARM_UP + rounds {
            let seen = turns.round(&answer("a turn", round)).await.with_context(|| format!("in round {round}"))?;
            for (times, seen) in first_texts.iter_mut().zip(&seen) {
                times.push(seen.first_text);
            }
            for (times, seen) in ends.iter_mut().zip(&seen) {
                times.push(seen.completed);
            }
        }
        turns.check().await?;

        println!("{}", head());
        println!("  to the first text:");
        beside_the_first(&names, first_texts)?;
        println!("  to `job.completed`:");
        let ends = beside_the_first(&names, ends)?;
        println!("  % of that for having a session:");
        for (name, with) in names.iter().zip(&ends).skip(1) {
            println!("{}", row(name, combined(*with, ends[0], |more, less| (more - less) / more * 100.0), 0));
        }
        Ok(())
    }

    async fn unserved(&self, rounds: usize) -> anyhow::Result<()> {
        const ANSWER: &str = "a turn by hand";
        let mut conversations = Vec::new();
        for past in Past::ALL {
            conversations.push(Unserved::begin(&self.direct, past).await.with_context(|| format!("at the beginning of `{}`", past.name))?);
        }
        let mut one_shots = Vec::new();
        let mut parts: Vec<_> = conversations.iter().map(|_| [const { Vec::new() }; 3]).collect();
        for round in 0..WARM_UP + rounds {
            let answer = answer(ANSWER, round);
            one_shots.push(self.direct.first_text(&answer).await?);
            for (conversation, parts) in conversations.iter_mut().zip(&mut parts) {
                let turn = conversation.turn(&self.direct, &answer).await.context(conversation.name)?;
                for (times, time) in parts.iter_mut().zip([turn.restore, turn.first_text, turn.save]) {
                    times.push(time);
                }
            }
        }
        for conversation in &conversations {
            conversation.check(&self.direct, ANSWER).context(conversation.name)?;
        }

        println!("{}", head());
        println!("{}", row("one-shot: CLI to its first text", counted(one_shots)?, 1));
        for (conversation, parts) in conversations.iter().zip(parts) {
            let (bytes, packed) = conversation.size();
            println!("  {}: {:.3} MB, packed {:.3} MB", conversation.name, megabytes(bytes), megabytes(packed));
            let [restore, first_text, save] = parts.map(counted);
            let (restore, save) = (restore?, save?);
            println!("{}", row("restore: unpack and check", restore, 1));
            println!("{}", row("CLI to its first text", first_text?, 1));
            println!("{}", row("save: check and pack", save, 1));
            // Of one that is as good as empty, that says nothing.
            if megabytes(bytes) >= 1.0 {
                let speed = |times: Columns| times.map(|ms| megabytes(bytes) / ms * 1000.0);
                println!("{}", row("restore, MB/s", speed(restore), 0));
                println!("{}", row("save, MB/s", speed(save), 0));
            }
        }
        Ok(())
    }
}

/// Print a row for each of `times`, and how each but the first differs from the first; the rows themselves.
fn beside_the_first(names: &[&str], times: Vec<Vec<Duration>>) -> anyhow::Result<Vec<Columns>> {
    let rows: Vec<Columns> = times.into_iter().map(counted).collect::<anyhow::Result<_>>()?;
    for (name, times) in names.iter().zip(&rows) {
        println!("{}", row(name, *times, 1));
    }
    for (name, with) in names.iter().zip(&rows).skip(1) {
        println!("{}", row(&format!("{name} - {}", names[0]), combined(*with, rows[0], |more, less| more - less), 1));
    }
    Ok(rows)
}

async fn admitted(ways: &[Way], rounds: usize) -> anyhow::Result<()> {
    let mut times = vec![Vec::new(); ways.len()];
    for _ in 0..WARM_UP + rounds {
        for (way, times) in ways.iter().zip(&mut times) {
            times.push(way.submit().await.context(way.name)?);
        }
    }
    let mut together = vec![Duration::ZERO; ways.len()];
    let slices = rounds.div_ceil(SLICE);
    for slice in 0..=slices {
        for (way, together) in ways.iter().zip(&mut together) {
            let elapsed = way.submit_many(SLICE).await.context(way.name)?;
            // The first one opens the connections.
            *together += if slice == 0 { Duration::ZERO } else { elapsed };
        }
    }

    println!("{}", head());
    let times: Vec<Columns> = times.into_iter().map(counted).collect::<anyhow::Result<_>>()?;
    for (way, times) in ways.iter().zip(&times) {
        println!("{}", row(way.name, *times, 2));
    }
    for (way, with) in ways.iter().zip(&times).skip(1) {
        println!("{}", row(&format!("{} - {}", way.name, ways[0].name), combined(*with, times[0], |more, less| more - less), 2));
    }
    println!("  submits a second, {CROWD} at a time:");
    for (way, together) in ways.iter().zip(together) {
        let count = u32::try_from(slices * SLICE)?;
        println!("  {:<34}{:>10.0}", way.name, f64::from(count) / together.as_secs_f64());
    }
    Ok(())
}

struct Round {
    direct: Duration,
    confined: Option<Duration>,
    service: Duration,
}

/// An answer of many pieces that no other run gives, with what a careless hand would mangle.
fn answer(way: &str, round: usize) -> String {
    format!("round {round}, {way}: \"naïve\" \\n <b>&amp;</b> 🦀 and nothing lost")
}

fn counted(mut times: Vec<Duration>) -> anyhow::Result<Columns> {
    let counted = Figures::of(times.split_off(WARM_UP)).context("no round was counted")?;
    Ok(counted.columns())
}

fn combined(left: Columns, right: Columns, combine: impl Fn(f64, f64) -> f64) -> Columns {
    std::array::from_fn(|column| combine(left[column], right[column]))
}

#[expect(clippy::cast_precision_loss, reason = "few digits are told")]
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// What the figures depend on first.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |rest| rest.trim_matches([' ', '\t', ':']));
    format!("{model}, {} cores", available_parallelism().map_or(1, usize::from))
}

/// How many processes want a core, over the last minute.
fn load() -> String {
    let averages = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    averages.split(' ').next().unwrap_or_default().to_owned()
}
