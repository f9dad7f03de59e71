//! What a process takes, as the kernel counts it.

use std::{fs, time::Duration};

use anyhow::Context as _;

/// What `/proc` counts time in; it is the same on every Linux that matters.
const TICK: Duration = Duration::from_millis(10);

/// The time on a core that the process `id` has had.
pub fn cpu(id: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // Its name may hold anything; behind it the third field comes first.
    let (_, fields) = stat.rsplit_once(')').context("a process has a name")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u32>).sum::<Result<u32, _>>()?;
    Ok(TICK * ticks)
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
    }
}
