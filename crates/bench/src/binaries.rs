//! The binaries that are measured. Cargo builds them from this checkout, so that no stale one is measured.

use crate::process::finish;
use anyhow::Context as _;
use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the checkout was when the bench was built.
const MANIFEST_DIR: &str = env!("CARGO_MANIFEST_DIR");

/// The binaries, each built when it is first used.
#[derive(Debug, Default)]
pub(crate) struct Binaries {
    /// Its path, or why it could not be built. A failed build is not tried again.
    narmesh: OnceCell<Result<PathBuf, String>>,
    narmesh_sim: OnceCell<Result<PathBuf, String>>,
}

impl Binaries {
    /// Path of `narmesh`, built in the release profile into the target directory that this bench runs from.
    pub(crate) fn narmesh(&self) -> anyhow::Result<&Path> {
        let built = self.narmesh.get_or_init(|| built("narmesh", "narmesh").map_err(|error| format!("{error:#}")));
        built.as_deref().map_err(|why| anyhow::anyhow!("{why}"))
    }

    /// Path of `narmesh-sim`, built the same way.
    pub(crate) fn narmesh_sim(&self) -> anyhow::Result<&Path> {
        let built = || built("narmesh-simulation", "narmesh-sim").map_err(|error| format!("{error:#}"));
        self.narmesh_sim.get_or_init(built).as_deref().map_err(|why| anyhow::anyhow!("{why}"))
    }
}

fn built(package: &str, binary: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target_dir = own.parent().and_then(Path::parent).context("the bench runs from a target directory")?;
    crate::progress(&format!("building {binary}"));
    build(package, target_dir)?;
    Ok(target_dir.join("release").join(binary))
}

/// Runs `cargo build --release -p PACKAGE` into `target_dir`.
pub(crate) fn build(package: &str, target_dir: &Path) -> anyhow::Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--quiet", "-p", package, "--target-dir"]).arg(target_dir);
    // `cargo run` sets variables about the bench's own package. With them, build scripts and all that depends on them would
    // be built again.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    finish(&format!("cargo build --release -p {package}"), cargo.current_dir(MANIFEST_DIR))?;
    Ok(())
}
