//! Running a program for what it prints.

use anyhow::Context;
use std::process::{Command, Stdio};

/// What the command prints to its standard output. If it fails, the error has its standard error.
pub(crate) fn run_for_output(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{} failed: {}\n{complaint}", program.display(), output.status);
    Ok(String::from_utf8(output.stdout)?)
}
