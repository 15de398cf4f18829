//! What Prometheus's own client libraries tell of every process, under [their names].
//!
//! [their names]: https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics

use std::fmt::Error;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// Reads `/proc/self` at each request. What cannot be read is left out.
#[derive(Debug)]
pub(super) struct ProcessMetrics;

/// What `/proc/self/stat` says, as proc_pid_stat(5) describes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ProcessStat {
    cpu_seconds: f64,
    /// Seconds between the start of the system and that of the process.
    started_seconds: f64,
    virtual_bytes: u64,
    pub(super) resident_bytes: u64,
}

impl ProcessStat {
    /// That of this process; `None` where it cannot be read.
    pub(super) fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        Self::parse(&text, clock_ticks_per_second(), page_size() as u64)
    }

    fn parse(text: &str, ticks_per_second: u64, page_bytes: u64) -> Option<Self> {
        // The second field is the name, in parentheses, and may hold anything; the third one follows the last parenthesis.
        let fields: Vec<_> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        #[expect(clippy::cast_precision_loss, reason = "seconds are told as floating-point numbers")]
        let seconds = |ticks: u64| ticks as f64 / ticks_per_second as f64;
        Some(Self {
            cpu_seconds: seconds(field(14)? + field(15)?),
            started_seconds: seconds(field(22)?),
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * page_bytes,
        })
    }
}

/// When the system started, in seconds since 1970, by `/proc/stat`.
fn boot_seconds(text: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut gauge = |name: &str, help: &str, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).into();
        // The directory that is being read is open, too.
        if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
            gauge("process_open_fds", "File descriptors that are open", count(descriptors.count().saturating_sub(1)))?;
        }
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a floating-point number")]
        let bytes = |bytes: u64| bytes as f64;
        if let Some(limit) = getrlimit(Resource::Nofile).current {
            gauge("process_max_fds", "File descriptors that may be open", bytes(limit))?;
        }
        // Without `/proc` these are missing, and all others are shown.
        let Some(stat) = ProcessStat::read() else { return Ok(()) };
        gauge("process_virtual_memory_bytes", "Virtual memory", bytes(stat.virtual_bytes))?;
        gauge("process_resident_memory_bytes", "Resident memory", bytes(stat.resident_bytes))?;
        if let Some(boot) = boot_seconds(&fs::read_to_string("/proc/stat").unwrap_or_default()) {
            let help = "When the process started, in seconds since 1970";
            gauge("process_start_time_seconds", help, boot + stat.started_seconds)?;
        }
        let counter = ConstCounter::new(stat.cpu_seconds);
        let (name, help) = ("process_cpu_seconds", "CPU time of the process, user and system, in seconds");
        counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_of_a_process_with_an_odd_name_is_read() {
        let text = "42 (a) R 1 (x) S 1 42 42 0 -1 4194560 100 0 3 0 250 50 0 0 20 0 5 0 12345 1048576 256 184 0\n";
        let stat =
            ProcessStat { cpu_seconds: 3.0, started_seconds: 123.45, virtual_bytes: 1 << 20, resident_bytes: 1 << 20 };
        assert_eq!(ProcessStat::parse(text, 100, 4096), Some(stat));
        for damaged in ["", "42 (a", "42 (a) R 1 2"] {
            assert_eq!(ProcessStat::parse(damaged, 100, 4096), None);
        }
        assert_eq!(boot_seconds("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000.0));
    }
}
