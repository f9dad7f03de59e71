//! What a process of the product started, and all that came of it, known again wherever it goes: by its number and
//! the moment of its start.

use std::{fs, time::Duration};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{interval, timeout};
use worker::processes::Processes;

use crate::system::{PATIENCE, Running};

/// A process that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    pid: Pid,
    started: String,
    line: String,
}

/// Processes that were seen below one.
#[derive(Clone, Debug, Default)]
pub struct Brood(Vec<Seen>);

impl Brood {
    /// Those that are below `parent` now.
    pub fn of(parent: &Running) -> anyhow::Result<Self> {
        let parent = Pid::from_raw(i32::try_from(parent.id()?)?).context("a process id")?;
        Ok(Self(Processes::list()?.below(parent).into_iter().filter_map(look).collect()))
    }

    /// Those that are below `parent` once there are at least `count` with `words` in their command lines.
    pub async fn with(parent: &Running, count: usize, words: &str) -> anyhow::Result<Self> {
        let mut looks = interval(Duration::from_millis(20));
        let seen = async {
            loop {
                let brood = Self::of(parent)?;
                if brood.0.iter().filter(|seen| seen.line.contains(words)).count() >= count {
                    return anyhow::Ok(brood);
                }
                looks.tick().await;
            }
        };
        timeout(PATIENCE, seen).await.with_context(|| format!("there never were {count} with `{words}`, but {:?}", Self::of(parent)))?
    }

    /// Those of them that live, by their command lines.
    pub fn living(&self) -> Vec<&str> {
        self.0.iter().filter(|seen| seen.lives()).map(|seen| seen.line.as_str()).collect()
    }

    /// Wait until none of them lives. The kernel announces it to nobody but a parent, so this looks again and again.
    pub async fn gone(&self) -> anyhow::Result<()> {
        let mut looks = interval(Duration::from_millis(10));
        let gone = async {
            while !self.living().is_empty() {
                looks.tick().await;
            }
        };
        timeout(PATIENCE, gone).await.with_context(|| format!("these live on: {:?}", self.living()))
    }

    /// Signal those of them that are a job's supervisors.
    pub fn signal_supervisors(&self, signal: Signal) -> anyhow::Result<()> {
        for seen in self.0.iter().filter(|seen| seen.line.starts_with("worker supervise ") && seen.lives()) {
            kill_process(seen.pid, signal)?;
        }
        Ok(())
    }
}

impl Seen {
    fn lives(&self) -> bool {
        look(self.pid).is_some_and(|now| now.started == self.started)
    }
}

/// The process with this number, if it is there and not merely waiting to be taken note of.
fn look(pid: Pid) -> Option<Seen> {
    let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let (state, started) = (*fields.first()?, fields.get(19)?.to_string());
    let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid())).ok()?;
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    (!matches!(state, "Z" | "X")).then_some(Seen { pid, started, line })
}
