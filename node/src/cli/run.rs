//! `narmesh run`.

use rustix::process::{Resource, getrlimit, setrlimit};
use std::io::{self, Read};
use std::path::Path;

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Stop when standard input ends, so that a parent that dies leaves no daemon behind
    #[arg(long, hide = true)]
    until_stdin_ends: bool,
}

pub(super) fn run(config: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    let _log = super::log::start()?;
    raise_descriptors();
    if arguments.until_stdin_ends {
        std::thread::Builder::new().name("stdin".to_owned()).spawn(stop_at_end_of_stdin)?;
    }
    crate::daemon::run(config)
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
