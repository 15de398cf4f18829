//! The only Debian package that the demo needs: Nix.

use anyhow::Context;
use std::path::Path;
use std::process::Command;

/// The programs needed, each with the Debian package that has it.
const NEEDED: [(&str, &str); 2] = [("nix-store", "nix-bin"), ("nix-build", "nix-bin")];

/// Makes sure that Nix is installed: installs it if `install`, else names the missing packages in an error.
pub(crate) fn ensure(install: bool) -> anyhow::Result<()> {
    let missing = missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !install {
        anyhow::bail!(
            "these Debian packages are missing: {names}; run `narmesh demo --install`, or `apt-get install {names}` as root"
        );
    }
    println!("installing {names}");
    apt_get(&["update", "-q"])?;
    apt_get(&[&["install", "-q", "-y", "--no-install-recommends"], missing.as_slice()].concat())?;
    let still_missing = missing_packages();
    anyhow::ensure!(still_missing.is_empty(), "apt-get succeeded, but still missing: {}", still_missing.join(" "));
    Ok(())
}

fn missing_packages() -> Vec<&'static str> {
    let mut packages: Vec<_> =
        NEEDED.iter().filter(|(program, _)| !is_on_path(program)).map(|(_, package)| *package).collect();
    packages.dedup();
    packages
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn apt_get(arguments: &[&str]) -> anyhow::Result<()> {
    anyhow::ensure!(
        Path::new("/usr/bin/apt-get").exists(),
        "there is no apt-get here; install Nix 2.8 or later by hand"
    );
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        // sudo clears the environment, so the variable is passed as an argument.
        sudo.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        sudo
    };
    let status = command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").status().context("apt-get")?;
    anyhow::ensure!(status.success(), "apt-get {} failed: {status}", arguments.join(" "));
    Ok(())
}
