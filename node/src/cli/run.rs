//! `narmesh run`.

use rustix::process::{Resource, getrlimit, setrlimit};
use std::env;
use std::io::{self, Read};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// Settings of glibc's allocator (`man mallopt`), which are read when a process starts. By default every thread may have a heap
/// of its own, and a buffer of up to 32 MiB stays in its heap once one of that size was given back: after a busy hour the
/// process keeps 130 MB that it does not use. With these, buffers from 512 KiB on go back to the system at once, and
/// the two heaps keep at most 8 MiB at their ends (decision 0024 has the figures).
const MALLOC_TUNABLES: &str =
    "glibc.malloc.arena_max=2:glibc.malloc.mmap_threshold=524288:glibc.malloc.trim_threshold=8388608";
const TUNABLES_VARIABLE: &str = "GLIBC_TUNABLES";

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Stop when standard input ends, so that a parent that dies leaves no daemon behind
    #[arg(long, hide = true)]
    until_stdin_ends: bool,
}

pub(super) fn run(config: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    let restart_error = restart_with_tunables();
    let _log = super::log::start()?;
    if let Some(error) = restart_error {
        tracing::debug!(%error, "the allocator's settings could not be set: memory that was used is kept for longer");
    }
    raise_descriptors();
    if arguments.until_stdin_ends {
        std::thread::Builder::new().name("stdin".to_owned()).spawn(stop_at_end_of_stdin)?;
    }
    crate::daemon::run(config)
}

/// Replaces this process by itself, with the allocator's settings in its environment: it keeps its id and its descriptors, so
/// nobody outside notices. Returns only if that fails, or if there is nothing to do: the settings are there, be they ours
/// or others that the operator chose, or this is not glibc.
fn restart_with_tunables() -> Option<io::Error> {
    let present = env::var_os(TUNABLES_VARIABLE).unwrap_or_default();
    let is_chosen = present.to_string_lossy().contains("glibc.malloc.");
    if is_chosen || !cfg!(target_env = "gnu") {
        return None;
    }
    let mut tunables = present;
    if !tunables.is_empty() {
        tunables.push(":");
    }
    tunables.push(MALLOC_TUNABLES);
    let executable = match env::current_exe() {
        Ok(executable) => executable,
        Err(error) => return Some(error),
    };
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_else(|| "narmesh".into());
    Some(Command::new(executable).arg0(name).args(arguments).env(TUNABLES_VARIABLE, tunables).exec())
}

/// Raises the soft limit of open files to the hard one. The usual 1,024 is less than the connections of the gateway and
/// the peers and the open files of a busy day.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit on open files could not be raised");
    }
}

/// Blocks until the parent closes our standard input or dies, then begins an ordinary stop.
fn stop_at_end_of_stdin() {
    let mut stdin = io::stdin().lock();
    let mut bytes = [0; 64];
    while stdin.read(&mut bytes).is_ok_and(|count| count > 0) {}
    let stopped = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
    if let Err(error) = stopped {
        tracing::error!(%error, "standard input ended, but the daemon cannot stop itself");
    }
}
