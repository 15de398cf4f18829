//! `narmesh man`: writes the manual pages, one for each command.

use super::emit;
use anyhow::Context as _;
use std::fs;
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// The directory that gets narmesh.1, narmesh-init.1 and so on; it is made if it is missing
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub(super) fn man(command: clap::Command, arguments: &Arguments) -> anyhow::Result<()> {
    let dir = &arguments.dir;
    let failed = || format!("cannot write manual pages into {}", dir.display());
    fs::create_dir_all(dir).with_context(failed)?;
    clap_mangen::generate_to(command, dir).with_context(failed)?;
    Ok(emit(&format!("wrote the manual pages into {}\n", dir.display()))?)
}
