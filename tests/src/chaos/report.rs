//! What came of a run.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::servers::Kind;

use super::Fault;

/// What came of a run in which nothing was wrong.
#[derive(Clone, Debug)]
pub struct Report {
    /// What picked it.
    pub seed: u64,
    /// What kept the record.
    pub kind: Kind,
    /// How many jobs were accepted.
    pub jobs: usize,
    /// How often they ended how.
    pub ends: BTreeMap<String, usize>,
    /// How many attempts the record has.
    pub attempts: usize,
    /// How many runs the ledgers have.
    pub runs: usize,
    /// How often a run began while another one of its job lived.
    pub overlaps: usize,
    /// How often each fault was made.
    pub faults: BTreeMap<Fault, usize>,
    /// How long jobs took to run again elsewhere, by what was done to their worker.
    pub recoveries: BTreeMap<Fault, Vec<Duration>>,
    /// The jobs that took long to run again.
    pub slow: Vec<String>,
    /// What was done, line by line.
    pub told: String,
    /// How often readers came.
    pub connections: u64,
    /// How many events they were told.
    pub events: u64,
    /// How often a reader was told that its place is not kept any more.
    pub resyncs: u64,
    /// The longest that this machine did not let us run.
    pub stall: Duration,
    /// Whether nobody was to be declared dead to whom nothing was done.
    pub are_burials_judged: bool,
    /// How long after the last fault all was judged.
    pub calmed: Duration,
    /// How long after the last job had ended nothing was left over.
    pub rest: Duration,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            seed: 0,
            kind: Kind::Sqlite,
            jobs: 0,
            ends: BTreeMap::new(),
            attempts: 0,
            runs: 0,
            overlaps: 0,
            faults: BTreeMap::new(),
            recoveries: BTreeMap::new(),
            slow: Vec::new(),
            told: String::new(),
            connections: 0,
            events: 0,
            resyncs: 0,
            stall: Duration::ZERO,
            are_burials_judged: true,
            calmed: Duration::ZERO,
            rest: Duration::ZERO,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, kind, jobs, attempts, runs, overlaps, connections, events, resyncs, stall, calmed, rest, .. } = self;
        writeln!(f, "SEED={seed} over {kind:?}: {jobs} jobs, {attempts} attempts, {runs} runs, {overlaps} of them beside another")?;
        writeln!(f, "  readers: {connections} connections, {events} events, {resyncs} resyncs")?;
        writeln!(f, "  calm {calmed:?} after the last fault, at rest within {rest:?}; the machine stood still for {stall:?} at most")?;
        if !self.are_burials_judged {
            writeln!(f, "  NOT JUDGED: whether workers were declared dead that were well, since the machine stood still for so long")?;
        }
        writeln!(f, "  ends: {}", list(self.ends.iter().map(|(end, count)| (end.clone(), *count))))?;
        writeln!(f, "  faults: {}", list(self.faults.iter().map(|(fault, count)| (format!("{fault:?}"), *count))))?;
        writeln!(f, "  {:<24}{:>6}{:>10}{:>10}{:>10}", "running again after", "n", "p50", "p99", "max")?;
        for (fault, times) in &self.recoveries {
            let mut times = times.clone();
            times.sort_unstable();
            let Some(longest) = times.last() else { continue };
            let at = |share: usize| times[(times.len() * share).div_ceil(100).max(1) - 1];
            let name = format!("{fault:?}");
            writeln!(
                f,
                "  {name:<24}{:>6}{:>9.2}s{:>9.2}s{:>9.2}s",
                times.len(),
                at(50).as_secs_f64(),
                at(99).as_secs_f64(),
                longest.as_secs_f64()
            )?;
        }
        for one in &self.slow {
            writeln!(f, "  slow: {one}")?;
        }
        if self.slow.is_empty() { Ok(()) } else { writeln!(f, "{}", self.told) }
    }
}

fn list(counts: impl Iterator<Item = (String, usize)>) -> String {
    counts.map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_was_not_judged() {
        let says = |are_burials_judged| Report { are_burials_judged, ..Report::default() }.to_string().contains("NOT JUDGED");

        assert_eq!((says(false), says(true)), (true, false));
    }
}
