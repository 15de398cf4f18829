//! docs/simulation.md.

use std::path::Path;
use std::process::ExitCode;

pub(crate) fn docs(_file: &Path, _check: bool) -> ExitCode {
    ExitCode::SUCCESS
}
