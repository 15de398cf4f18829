//! Other processes of this machine, as `/proc` shows them (proc(5)).

use std::fs;
use std::io;
use std::path::PathBuf;

/// A process by its id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Process(pub(super) u32);

impl Process {
    /// Those whose program has this name.
    pub(super) fn named(name: &str) -> Vec<Self> {
        let ids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let all = ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Self));
        // One that has ended and whose parent does not know yet has no command line any more.
        let runs = |process: &Self| process.read("cmdline").is_ok_and(|line| !line.is_empty());
        all.filter(|process| process.read("comm").is_ok_and(|text| text.trim_end() == name)).filter(runs).collect()
    }

    /// Reads one of its files.
    pub(super) fn read(self, file: &str) -> io::Result<String> {
        let bytes = fs::read(format!("/proc/{}/{file}", self.0))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The file that it runs, as the kernel names it: with ` (deleted)` at the end once it was replaced.
    pub(super) fn program(self) -> io::Result<PathBuf> {
        fs::read_link(format!("/proc/{}/exe", self.0))
    }

    /// The user whose rights it has.
    pub(super) fn user_id(self) -> Option<u32> {
        let status = self.read("status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        // Real, effective, saved and file system; files are opened with the last one.
        line.split_whitespace().nth(3)?.parse().ok()
    }

    /// The process that started it.
    pub(super) fn parent(self) -> Option<Self> {
        self.stat_field(4).and_then(|id| u32::try_from(id).ok()).map(Self)
    }

    /// When it was started, seconds since 1970.
    pub(super) fn started_unix_s(self) -> Option<u64> {
        let boot = fs::read_to_string("/proc/stat").ok()?;
        let boot_s: u64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
        Some(boot_s + self.stat_field(22)? / rustix::param::clock_ticks_per_second().max(1))
    }

    /// A variable of its environment; an error if this user may not see it.
    pub(super) fn variable(self, name: &str) -> io::Result<Option<String>> {
        let environment = self.read("environ")?;
        let value = |entry: &str| entry.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
        Ok(environment.split('\0').find_map(value))
    }

    fn stat_field(self, number: usize) -> Option<u64> {
        let stat = self.read("stat").ok()?;
        // The name may hold anything, so counting starts behind it, at field 3.
        stat.rsplit(')').next()?.split_whitespace().nth(number - 3)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    #[test]
    fn own_process_is_described_rightly() {
        let own = Process(std::process::id());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(own.started_unix_s().is_some_and(|started| started <= now + 1 && now - started.min(now) < 3_600));
        assert_eq!(own.user_id(), Some(rustix::process::geteuid().as_raw()));
        assert_eq!(own.program().ok(), std::env::current_exe().ok());
        assert_eq!(own.variable("PATH").unwrap(), std::env::var("PATH").ok());
        assert!(own.parent().is_some());
        let name = own.read("comm").unwrap();
        assert!(Process::named(name.trim_end()).contains(&own));
    }
}
