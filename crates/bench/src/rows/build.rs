//! How long the binary takes to build, and how large it is.

use crate::binaries;
use crate::row::Planned;
use crate::subject::{Bench, Report, Subject};
use std::fs;
use std::time::Instant;

/// Compiles everything once, as on a fresh clone whose crates are already downloaded.
#[derive(Debug)]
pub(super) struct ColdBuild;

impl Subject for ColdBuild {
    fn planned(&self) -> Vec<Planned> {
        let about = "cargo build --release -p narmesh into an empty target directory, crates downloaded before";
        vec![Planned::new("build/cold", "s", about).heavy("some minutes of compiling")]
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        bench.scratch.need(3_000_000_000)?;
        let target_dir = bench.scratch.subdir("target-")?;
        let started = Instant::now();
        binaries::build("narmesh", target_dir.path())?;
        report.figure("build/cold", &[started.elapsed().as_secs_f64()], None);
        Ok(())
    }
}

/// The size of the release binary, as cargo leaves it.
#[derive(Debug)]
pub(super) struct BinarySize;

impl Subject for BinarySize {
    fn planned(&self) -> Vec<Planned> {
        vec![Planned::new("build/binary-size", "MB", "the release binary, debug information stripped")]
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        let bytes = fs::metadata(bench.binaries.narmesh()?)?.len();
        report.figure("build/binary-size", &[bytes as f64 / 1e6], None);
        Ok(())
    }
}
