//! `narmesh completions`: what a shell needs to complete the commands and options.

use super::emit;
use clap_complete::{Shell, generate};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// The shell that reads it
    shell: Shell,
}

pub(super) fn completions(mut command: clap::Command, arguments: &Arguments) -> anyhow::Result<()> {
    let mut text = Vec::new();
    generate(arguments.shell, &mut command, "narmesh", &mut text);
    Ok(emit(&String::from_utf8(text)?)?)
}
