//! `narmesh demo`: starts the demo, which runs this binary.

use anyhow::Context;
use narmesh_demo::Options;
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Install missing Debian packages (with apt-get, and with sudo unless run as root)
    #[arg(long)]
    install: bool,
    /// Stop when all steps are done, with exit code 0 if all succeeded, instead of keeping the mesh up
    #[arg(long)]
    once: bool,
    /// The directory for stores, keys and configurations; by default a new temporary one that is removed at the end
    #[arg(long)]
    dir: Option<PathBuf>,
}

pub(super) fn demo(arguments: Arguments) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot find this binary")?;
    let Arguments { install, once, dir } = arguments;
    narmesh_demo::run(&program, &Options { install, once, dir })
}
