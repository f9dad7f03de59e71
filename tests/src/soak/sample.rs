//! What the processes of a system and its Redis hold, looked at every few seconds.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::trend::{HEAD, Series};
use crate::{
    bench::{
        figures::head_of,
        streams::vitals::{cpu_of_all, descendants, descriptors, memory, threads},
    },
    servers::RedisServer,
};

/// How long Redis keeps what ended jobs and their conversations leave there, at most.
const KEPT_IN_REDIS: Duration = Duration::from_mins(10);

/// A look at one process.
type Look = fn(u32) -> anyhow::Result<f64>;

/// What is looked at in each process: what it is called, with how many decimals, and what growth means nothing.
const LOOKS: [(&str, usize, f64, Look); 4] = [
    ("MB", 1, 5.0, |id| Ok(megabytes(memory(id)?))),
    ("descriptors", 1, 10.0, |id| Ok(f64::from(descriptors(id)?))),
    ("threads", 1, 10.0, |id| Ok(f64::from(threads(id)?))),
    ("children", 1, 10.0, |id| Ok(f64::from(u32::try_from(descendants(id)?.len())?))),
];

/// All that was seen.
pub struct Samples {
    begun: Instant,
    /// When the last sample was taken, and what all processes of this machine had had by then.
    last: (Instant, Duration),
    processes: Vec<(String, u32)>,
    /// For each process what is in [`LOOKS`]; behind them what Redis has.
    series: Vec<Series>,
}

/// The series of Redis.
const OF_REDIS: usize = 2;

impl Samples {
    /// Begin to look at these processes.
    pub fn begin(processes: Vec<(String, u32)>) -> anyhow::Result<Self> {
        let of_process = |name: &str| LOOKS.map(|(what, decimals, noise, _)| Series::new(format!("{name}, {what}"), decimals, noise));
        let mut series: Vec<Series> = processes.iter().flat_map(|(name, _)| of_process(name)).collect();
        series.push(Series::new("Redis, MB".to_owned(), 1, 5.0));
        series.push(Series::new("Redis, keys".to_owned(), 0, 500.0));
        Ok(Self { begun: Instant::now(), last: (Instant::now(), cpu_of_all()?), processes, series })
    }

    /// Look once; what is to be told of it at once.
    pub fn take(&mut self, redis: &RedisServer) -> anyhow::Result<String> {
        let at = self.begun.elapsed();
        let cores = self.cores()?;
        let mut line = format!("{:>5}s {cores:.2} cores", at.as_secs());
        let mut values = Vec::new();
        for (name, id) in &self.processes {
            write!(line, " | {name}")?;
            for (what, _, _, look) in LOOKS {
                let value = look(*id).with_context(|| format!("`{name}` is gone"))?;
                write!(line, " {value:.0} {what}")?;
                values.push(value);
            }
        }
        for (value, what) in [(used_memory(redis)?, "MB"), (keys(redis)?, "keys")] {
            write!(line, "{} {value:.1} {what}", if what == "MB" { " | Redis" } else { "" })?;
            values.push(value);
        }
        for (series, value) in self.series.iter_mut().zip(values) {
            series.push(at, value);
        }
        Ok(line)
    }

    /// How many cores were busy since the last sample, with whatever.
    fn cores(&mut self) -> anyhow::Result<f64> {
        let now = (Instant::now(), cpu_of_all()?);
        let (then, spent) = std::mem::replace(&mut self.last, now);
        Ok(now.1.saturating_sub(spent).as_secs_f64() / then.elapsed().as_secs_f64())
    }

    /// The table of all series.
    pub fn table(&self) -> String {
        let lines = self.series.iter().map(|series| series.line().unwrap_or_else(|| format!("  {}: too few samples", series.name())));
        [head_of(HEAD)].into_iter().chain(lines).collect::<Vec<_>>().join("\n")
    }

    /// Whether Redis can be judged: in a short run it only ever fills up.
    pub fn judges_redis(&self) -> bool {
        self.begun.elapsed() >= KEPT_IN_REDIS * 3
    }

    /// What grew by more than it may.
    pub fn grown(&self) -> Vec<&str> {
        let judged = if self.judges_redis() { self.series.len() } else { self.series.len() - OF_REDIS };
        self.series[..judged].iter().filter(|series| series.grew()).map(Series::name).collect()
    }
}

fn used_memory(redis: &RedisServer) -> anyhow::Result<f64> {
    let info = redis.command(&["INFO", "memory"])?;
    let bytes = info.lines().find_map(|line| line.strip_prefix("used_memory:")).context("Redis says what it holds")?;
    Ok(megabytes(bytes.trim().parse()?))
}

fn keys(redis: &RedisServer) -> anyhow::Result<f64> {
    Ok(redis.command(&["DBSIZE"])?.trim().parse()?)
}

#[expect(clippy::cast_precision_loss, reason = "few digits are told")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
