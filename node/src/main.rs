//! The `narmesh` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    narmesh::cli::main()
}
