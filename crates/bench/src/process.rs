//! Processes that are measured: they are started here, ended by their id, and looked at through `/proc`.

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The longest time that a process may take to end when it is told to.
const END_MAX: Duration = Duration::from_secs(15);

/// A child process that ends when this value is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    label: &'static str,
}

/// A command for `program` that ends when this process ends, however that happens. Spawn it from the main thread, because
/// the kernel ends it together with the thread that started it.
pub(crate) fn tethered(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program).stdin(Stdio::null());
    command
}

impl Running {
    /// Starts `command`.
    pub(crate) fn spawn(label: &'static str, command: &mut Command) -> anyhow::Result<Self> {
        let child = command.spawn().with_context(|| format!("cannot start {label}"))?;
        Ok(Self { child, label })
    }

    /// Starts this program again as the server `name`. Returns the first line that it prints.
    pub(crate) fn spawn_server(name: &'static str, arguments: &[String]) -> anyhow::Result<(Self, String)> {
        let mut command = tethered(std::env::current_exe()?);
        command.arg("--server").arg(name).args(arguments).stdout(Stdio::piped());
        let mut running = Self::spawn(name, &mut command)?;
        let output = running.child.stdout.take().context("its output is piped")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        if line.trim().is_empty() {
            bail!("{name} ended before it was ready");
        }
        Ok((running, line.trim().to_owned()))
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if the process has ended.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// CPU seconds that the process and its children have used, user and system.
    pub(crate) fn cpu_s(&self) -> anyhow::Result<f64> {
        let mut ticks = cpu_ticks(self.pid())?;
        for child in children(self.pid())? {
            ticks += cpu_ticks(child)?;
        }
        Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Resident memory, MB of 10^6 bytes.
    pub(crate) fn rss_mb(&self) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.split_whitespace().next().context("no number")?.parse()?;
        Ok(kib * 1_024.0 / 1e6)
    }

    /// Sends SIGKILL to it and to its children.
    pub(crate) fn kill_with_children(&self) -> anyhow::Result<()> {
        // The process itself first, or it would start new children.
        for pid in [self.pid()].into_iter().chain(children(self.pid())?) {
            kill_process(Pid::from_raw(i32::try_from(pid)?).context("a process id")?, Signal::KILL)?;
        }
        Ok(())
    }

    /// Sends SIGTERM; dropping the value waits for the end.
    pub(crate) fn tell_to_end(&self) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        if pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_err()) {
            crate::progress(&format!("{} ended by itself", self.label));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        self.tell_to_end();
        let end = Instant::now() + END_MAX;
        while Instant::now() < end {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        crate::progress(&format!("{} does not end when told to", self.label));
        if self.child.kill().and_then(|()| self.child.wait()).is_err() {
            crate::progress(&format!("cannot end {}", self.label));
        }
    }
}

/// CPU seconds of this thread.
pub(crate) fn thread_cpu_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// CPU seconds of this process.
pub(crate) fn own_cpu_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// CPU seconds of those children of this process that have ended.
pub(crate) fn ended_children_cpu_s() -> anyhow::Result<f64> {
    Ok(ticks("self", 13)? as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Runs `command` to its end and returns its output. When it fails, the error has what it wrote to standard error.
pub(crate) fn finish(what: &str, command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {what}"))?;
    if !output.status.success() {
        bail!("{what} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An error that names the Debian package when `program` is not installed.
pub(crate) fn need_program(program: &str, debian_package: &str) -> anyhow::Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    if std::env::split_paths(&path).chain(system).any(|dir| dir.join(program).is_file()) {
        return Ok(());
    }
    bail!("{program} is not installed: apt-get install {debian_package}");
}

/// Polls `probe` until it has a value. After `deadline` returns an error that names `what`.
pub(crate) fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if Instant::now() > end {
            bail!("{what}: not within {deadline:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn cpu_ticks(pid: u32) -> anyhow::Result<u64> {
    ticks(&pid.to_string(), 11)
}

/// The sum of two times of a process in ticks, from the fields of `stat` after its name: at 11 its own (utime and stime,
/// fields 14 and 15), at 13 those of its ended children.
fn ticks(pid: &str, after_name: usize) -> anyhow::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, field 2, is in parentheses and may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let times = fields.split_whitespace().skip(after_name).take(2);
    times.map(|field| field.parse::<u64>().context("a time in stat")).sum()
}

fn children(pid: u32) -> anyhow::Result<Vec<u32>> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    text.split_whitespace().map(|child| child.parse().context("a process id")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_includes_running_children() {
        // A shell whose child burns CPU time; the shell itself only waits.
        let script = "sh -c 'i=0; while [ $i -lt 100000000 ]; do i=$((i+1)); done' & wait";
        let running = Running::spawn("burner", tethered("sh").args(["-c", script])).unwrap();
        let own_ticks = |running: &Running| cpu_ticks(running.pid()).unwrap();
        wait_for("the child burns", Duration::from_secs(20), || Ok((running.cpu_s()? > 0.1).then_some(()))).unwrap();
        assert!(own_ticks(&running) <= 5, "the shell itself used {} ticks", own_ticks(&running));
        assert!(running.rss_mb().unwrap() > 0.1);
        for child in children(running.pid()).unwrap() {
            kill_process(Pid::from_raw(i32::try_from(child).unwrap()).unwrap(), Signal::KILL).unwrap();
        }
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = need_program("no-such-program", "no-such-package").unwrap_err();
        assert_eq!(error.to_string(), "no-such-program is not installed: apt-get install no-such-package");
        need_program("sh", "dash").unwrap();
    }
}
