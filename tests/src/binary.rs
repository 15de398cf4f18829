//! The binary under test, built by the harness itself so that no stale one is ever tested.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The root of the workspace that `cargo test` runs in.
#[must_use]
pub fn repository_root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        // The variable as it is now: the directory may have been moved since the test was compiled.
        let package = env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
        Path::new(&package).parent().expect("the package lies in the workspace").to_owned()
    })
}

/// The release binary `narmesh`, built on the first call of this process; honours `CARGO_TARGET_DIR`.
///
/// # Panics
/// When the build fails.
#[must_use]
pub fn narmesh_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(build)
}

fn build() -> PathBuf {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--release", "--package", "narmesh", "--bin", "narmesh"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(repository_root())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    // The variables that `cargo test` sets for the package of the stories would make build scripts run again.
    for (name, _) in env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    let output = command.output().expect("cargo starts");
    assert!(output.status.success(), "cargo build --release -p narmesh failed: {}", output.status);
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message.pointer("/target/name").is_some_and(|name| name == "narmesh"))
        .filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .next_back()
        .expect("cargo names the executable that it built")
}

/// Cargo's target directory: `CARGO_TARGET_DIR`, or the default.
#[must_use]
pub fn target_directory() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository_root().join("target"), PathBuf::from)
}
