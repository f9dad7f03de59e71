//! This process as the kernel sees it, under the names every Prometheus client uses. What the kernel does
//! not tell is left out.

use std::{fmt, fs, str::FromStr};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

use super::figure;

/// In what the kernel counts time in `/proc`, per second: the same on every machine Linux runs on today.
const TICKS: f64 = 100.0;

/// The figures of `/proc/self`.
#[derive(Debug)]
pub struct Process {
    /// Read once: the kernel derives it anew each time, and a start that moves looks like a restart.
    started_at: Option<f64>,
}

impl Default for Process {
    fn default() -> Self {
        Self { started_at: Stat::read().and_then(|stat| Some(boot_time()? + figure(stat.start_ticks) / TICKS)) }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let cpu = Stat::read().map(|stat| figure(stat.cpu_ticks) / TICKS);
        if let Some(secs) = cpu {
            let counter = ConstCounter::new(secs);
            let help = "User and system time this process has used, in seconds.";
            counter.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, counter.metric_type())?)?;
        }
        let resident = field::<u64>(&status, "VmRSS:").map(|kib| figure(kib) * 1024.0);
        let virtual_size = field::<u64>(&status, "VmSize:").map(|kib| figure(kib) * 1024.0);
        let gauges = [
            ("process_resident_memory_bytes", "Memory that this process holds, in bytes.", resident),
            ("process_virtual_memory_bytes", "Address space that this process has mapped, in bytes.", virtual_size),
            ("process_open_fds", "Open file descriptors.", open_files()),
            ("process_max_fds", "The most file descriptors this process may open.", max_files()),
            ("process_threads", "Threads of this process.", field::<u64>(&status, "Threads:").map(figure)),
            ("process_start_time_seconds", "When this process started, in seconds since 1970.", self.started_at),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
            }
        }
        Ok(())
    }
}

/// What of `/proc/self/stat` is wanted.
struct Stat {
    cpu_ticks: u64,
    start_ticks: u64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::of(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn of(stat: &str) -> Option<Self> {
        // The name in parentheses may hold anything, parentheses too.
        let (_, rest) = stat.rsplit_once(')')?;
        let number = |place: usize| rest.split_ascii_whitespace().nth(place)?.parse::<u64>().ok();
        Some(Self { cpu_ticks: number(11)? + number(12)?, start_ticks: number(19)? })
    }
}

fn boot_time() -> Option<f64> {
    field::<u64>(&fs::read_to_string("/proc/stat").ok()?, "btime").map(figure)
}

fn open_files() -> Option<f64> {
    // The look itself holds one of them.
    Some(figure(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as u64))
}

fn max_files() -> Option<f64> {
    field::<u64>(&fs::read_to_string("/proc/self/limits").ok()?, "Max open files").map(figure)
}

/// The first value of the line that begins with `name`.
fn field<T: FromStr>(text: &str, name: &str) -> Option<T> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::metrics::text;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_figures() {
        let stat = Stat::of("7 (a) b) S 1 7 7 0 -1 4194560 9 0 0 0 250 50 0 0 20 0 3 0 1234 99 1").expect("readable");

        assert_eq!((stat.cpu_ticks, stat.start_ticks), (300, 1234));
    }

    #[test]
    fn this_process_has_every_figure_and_they_make_sense() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process::default()));

        let page = text(&registry);

        let value = |name: &str| field::<f64>(&page, &format!("{name} ")).unwrap_or_else(|| panic!("{name}:\n{page}"));
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!((1e6..1e12).contains(&value("process_resident_memory_bytes")));
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!((3.0..=value("process_max_fds")).contains(&value("process_open_fds")));
        assert!(value("process_threads") >= 1.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        assert!((now - 3600.0..now + 2.0).contains(&value("process_start_time_seconds")), "{page}");
    }
}
