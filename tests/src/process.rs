//! Child processes: runs them to their end, or measures them while they run.

use std::fs;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

/// Exit status and output of a command.
#[derive(Debug)]
pub struct Finished {
    /// The exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// The output, trimmed, of a command that succeeded.
    ///
    /// # Panics
    /// When it failed; the message holds all that it printed.
    #[track_caller]
    pub fn expect_success(self, what: &str) -> String {
        assert!(self.status.success(), "{what}: {}\n{}\n{}", self.status, self.stdout, self.stderr);
        self.stdout.trim().to_owned()
    }

    /// Both streams of a command that failed, as it had to.
    ///
    /// # Panics
    /// When it succeeded.
    #[track_caller]
    pub fn expect_failure(self, what: &str) -> String {
        assert!(!self.status.success(), "{what}: succeeded\n{}\n{}", self.stdout, self.stderr);
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

/// Runs `command` to its end, without standard input.
///
/// # Panics
/// When it cannot be started.
#[track_caller]
pub fn finish(command: &mut Command) -> Finished {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Finished {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// SHA-256 of `bytes` in lower-case hexadecimal, as Nix's database writes a NarHash.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a process has used up since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Costs {
    /// Processor time in seconds, in user mode and in the kernel.
    pub cpu_s: f64,
    /// Size of its log, bytes.
    pub log_bytes: u64,
    /// Bytes that the kernel wrote to disks for it.
    pub disk_bytes: u64,
}

impl Costs {
    /// The costs of process `pid`, whose log has `log_bytes` bytes.
    ///
    /// # Panics
    /// When the process is gone or belongs to someone else.
    #[track_caller]
    #[must_use]
    pub fn of(pid: u32, log_bytes: u64) -> Self {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).expect("the process runs");
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        Self {
            cpu_s: processor_time(pid).as_secs_f64(),
            log_bytes,
            disk_bytes: written.and_then(|bytes| bytes.parse().ok()).unwrap_or(0),
        }
    }

    /// What was used up since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            cpu_s: self.cpu_s - before.cpu_s,
            log_bytes: self.log_bytes.saturating_sub(before.log_bytes),
            disk_bytes: self.disk_bytes.saturating_sub(before.disk_bytes),
        }
    }
}

/// Watches the largest resident set of one process from its start on, by the kernel's own high-water mark.
#[derive(Debug)]
pub struct MemoryPeak {
    pid: u32,
    start_bytes: u64,
}

impl MemoryPeak {
    /// Resets the kernel's high-water mark of process `pid` to its present resident set.
    ///
    /// # Panics
    /// When the process is gone or belongs to someone else.
    #[track_caller]
    #[must_use]
    pub fn start(pid: u32) -> Self {
        // "5" resets the peak, see proc_pid_clear_refs(5).
        fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("the high-water mark can be reset");
        Self { pid, start_bytes: memory_bytes(pid, "VmRSS:") }
    }

    /// The largest resident set since the start, in bytes.
    ///
    /// # Panics
    /// When the process is gone.
    #[track_caller]
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        memory_bytes(self.pid, "VmHWM:")
    }

    /// How far the resident set rose above its size at the start, in bytes.
    ///
    /// # Panics
    /// When the process is gone.
    #[track_caller]
    #[must_use]
    pub fn rise_bytes(&self) -> u64 {
        memory_bytes(self.pid, "VmHWM:").saturating_sub(self.start_bytes)
    }
}

/// Resident memory of process `pid` now, in bytes.
///
/// # Panics
/// When it is gone.
#[track_caller]
#[must_use]
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    memory_bytes(pid, "VmRSS:")
}

/// Processor time of a process and its threads so far; the kernel counts it in steps of 10 ms.
#[track_caller]
pub(crate) fn processor_time(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // The name may hold anything, so counting starts behind it, at field 3; fields 14 and 15 are the user and system time.
    let fields: Vec<u64> = text
        .rsplit(')')
        .next()
        .into_iter()
        .flat_map(str::split_whitespace)
        .skip(11)
        .take(2)
        .map(|number| number.parse().expect("/proc/<pid>/stat has numbers"))
        .collect();
    Duration::from_millis(10 * fields.iter().sum::<u64>())
}

#[track_caller]
fn memory_bytes(pid: u32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("/proc/{pid}/status has no {field}"));
    kib * 1024
}
