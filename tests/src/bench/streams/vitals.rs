//! What a process takes, as the kernel counts it.

use std::{fs, time::Duration};

use anyhow::{Context as _, ensure};
use rustix::process::Pid;
use worker::processes::Processes;

/// What `/proc` counts time in; it is the same on every Linux that matters.
const TICK: Duration = Duration::from_millis(10);

/// The time on a core that the process `id` has had.
pub fn cpu(id: u32) -> anyhow::Result<Duration> {
    Ok(TICK * stat(id)?[11..13].iter().sum())
}

/// The time on a core that the process `id` has had, its descendants, and those of its children that have ended.
pub fn cpu_of_family(id: u32) -> anyhow::Result<Duration> {
    let mut ticks: u32 = stat(id)?[11..15].iter().sum();
    for child in descendants(id)? {
        // One that is gone by now is in its parent's figures, if it is not in those read already.
        ticks += stat(child).map_or(0, |fields| fields[11..13].iter().sum());
    }
    Ok(TICK * ticks)
}

/// Who started the process `id`.
pub fn parent(id: u32) -> anyhow::Result<u32> {
    Ok(stat(id)?[1])
}

/// The processes that are there and that the process `id` started, or that one of those did.
pub fn descendants(id: u32) -> anyhow::Result<Vec<u32>> {
    let id = Pid::from_raw(id.cast_signed()).context("a process has a number")?;
    Ok(Processes::list()?.below(id).into_iter().map(|pid| pid.as_raw_pid().cast_unsigned()).collect())
}

/// How many files, sockets and the like the process `id` has open.
pub fn descriptors(id: u32) -> anyhow::Result<u32> {
    Ok(u32::try_from(fs::read_dir(format!("/proc/{id}/fd"))?.count())?)
}

/// How many threads the process `id` has.
pub fn threads(id: u32) -> anyhow::Result<u32> {
    Ok(stat(id)?[17])
}

/// The numbers that the kernel tells of the process `id`, counted from what comes behind its name. The first is
/// a letter, and 0 here.
fn stat(id: u32) -> anyhow::Result<Vec<u32>> {
    /// So many are asked for here. Those behind them may be larger than these can be.
    const FIELDS: usize = 18;
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // Its name may hold anything, but what comes behind it holds no bracket.
    let (_, fields) = stat.rsplit_once(')').context("a process has a name")?;
    let fields: Vec<u32> = fields.split_whitespace().take(FIELDS).map(|field| field.parse().unwrap_or_default()).collect();
    ensure!(fields.len() == FIELDS, "the kernel tells less than expected of the process {id}");
    Ok(fields)
}

/// The time on a core that all processes of this machine have had.
pub fn cpu_of_all() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let fields = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("a machine has cores")?;
    // User, nice and system; idle and iowait; then what interrupts took.
    let ticks: Vec<u32> = fields.split_whitespace().take(7).map(str::parse).collect::<Result<_, _>>()?;
    let idle = 3..5;
    Ok(TICK * ticks.iter().enumerate().filter(|(field, _)| !idle.contains(field)).map(|(_, ticks)| ticks).sum())
}

/// The memory of the process `id`, in bytes. Exact, unlike what its `status` says.
pub fn memory(id: u32) -> anyhow::Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{id}/smaps_rollup"))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).context("a process has memory")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_something() {
        let id = std::process::id();

        assert!(memory(id).expect("readable") > 100 * 1024);
        assert!(cpu(id).is_ok());
        assert!((3..10_000).contains(&descriptors(id).expect("readable")));
        assert!((1..1_000).contains(&threads(id).expect("readable")));
    }

    #[test]
    fn a_process_is_among_the_descendants_of_who_started_it_alone() {
        let id = std::process::id();
        let above = parent(id).expect("readable");

        assert!(descendants(above).expect("readable").contains(&id));
        assert!(!descendants(id).expect("readable").contains(&above));
        let mine = cpu(id).expect("readable");
        assert!(cpu_of_family(above).expect("readable") >= mine);
    }
}
