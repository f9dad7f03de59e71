//! What a ledger of the fake CLI tells: which runs of a job there were, and whether two of them met. The pids in it mean
//! something only where the CLI runs without a sandbox: see [`WITHOUT_SANDBOX`].

use std::{fs, path::Path};

/// A setting of workers whose CLIs can keep a ledger: where programs are looked up there is no bwrap.
pub const WITHOUT_SANDBOX: (&str, &str) = ("PATH", "/nowhere");

/// What a ledger tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Each run's process, and when it began in Unix milliseconds.
    pub started: Vec<(i32, i64)>,
    /// The processes that noted their end, and when.
    pub stopped: Vec<(i32, i64)>,
    /// How often a run began while another one lived.
    pub overlaps: usize,
}

impl Runs {
    /// Read the ledger at `path`. One that is not there tells of no run.
    pub fn read(path: &Path) -> Self {
        let mut runs = Self::default();
        for line in fs::read_to_string(path).unwrap_or_default().lines() {
            let mut words = line.split(' ');
            let what = words.next();
            let number = |word: Option<&str>| word.and_then(|word| word.parse::<i64>().ok());
            let (Some(pid), Some(at)) = (number(words.next()).and_then(|pid| i32::try_from(pid).ok()), number(words.next())) else {
                continue;
            };
            match what {
                Some("start") => runs.started.push((pid, at)),
                Some("stop") => runs.stopped.push((pid, at)),
                Some("beside") => runs.overlaps += 1,
                // Children of the CLI.
                _ => {}
            }
        }
        runs
    }

    /// The processes among them that live.
    pub fn living(&self) -> Vec<i32> {
        let pids = self.started.iter().map(|(pid, _)| *pid);
        pids.filter(|pid| !self.stopped.iter().any(|(stopped, _)| stopped == pid)).filter(|pid| is_a_cli(*pid)).collect()
    }
}

/// Whether `pid` is a fake CLI that lives; a zombie does not.
fn is_a_cli(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((name, fields)) = stat.rsplit_once(')') else { return false };
    name.ends_with("(fake-claude") && !fields.trim_start().starts_with(['Z', 'X'])
}

#[cfg(test)]
mod tests {
    use crate::directory::Directory;

    use super::*;

    #[test]
    fn a_ledger_tells_of_runs_their_ends_and_those_that_met() {
        let directory = Directory::create().expect("a directory");
        let path = directory.path().join("ledger");
        fs::write(&path, "start 7 100 s\nchild 9\nstart 8 200 s\nbeside 8 200 7\nstop 8 300 0\n").expect("written");

        let runs = Runs::read(&path);

        assert_eq!((runs.started, runs.stopped, runs.overlaps), (vec![(7, 100), (8, 200)], vec![(8, 300)], 1));
    }

    #[test]
    fn who_is_not_a_cli_does_not_live() {
        let pid = std::process::id().cast_signed();

        assert_eq!(Runs { started: vec![(pid, 0)], ..Runs::default() }.living(), Vec::<i32>::new());
    }
}
