//! The real Nix client, on chroot stores of its own.

use crate::process::{finish, need_program};
use crate::scratch;
use anyhow::{Context as _, bail};
use narmesh_tests::{CHROOT_NIX_CONF, nix_client_environment, nix_homes};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Options for downloads, on top of those of the stories: what `narmesh init` recommends to users, but with one attempt.
const DOWNLOADS: &str = "connect-timeout = 5\nstalled-download-timeout = 30\ndownload-attempts = 1\n";

/// A path that needs nothing but a shell to build; each `tag` gives another path.
const FRESH: &str = r#"{ tag }: derivation {
  name = "bench-fresh"; system = builtins.currentSystem; builder = "/bin/sh";
  args = [ "-c" "echo a fresh path ${tag} > $out" ];
}"#;

/// A Nix client with its own configuration and its own narinfo cache.
#[derive(Debug)]
pub(crate) struct Nix {
    dir: PathBuf,
}

impl Nix {
    /// An error that names the package when Nix is missing.
    pub(crate) fn need() -> anyhow::Result<()> {
        need_program("nix", "nix-bin")
    }

    /// An error that says what is missing to build in a chroot store.
    pub(crate) fn need_builds() -> anyhow::Result<()> {
        Self::need()?;
        if !Path::new("/bin/busybox").is_file() {
            bail!("/bin/busybox is not installed: apt-get install busybox-static");
        }
        if !rustix::process::geteuid().is_root() {
            bail!("needs root: builds in a chroot store need the sandbox");
        }
        Ok(())
    }

    /// A client with its files in `dir`, which is created.
    pub(crate) fn new(dir: &Path) -> anyhow::Result<Self> {
        Self::need()?;
        fs::create_dir_all(dir.join("etc"))?;
        fs::write(dir.join("etc/nix.conf"), format!("{CHROOT_NIX_CONF}{DOWNLOADS}"))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Makes an empty store with a database.
    pub(crate) fn make_store(&self, root: &Path) -> anyhow::Result<()> {
        finish("nix-store --dump-db", self.command("nix-store").arg("--store").arg(local(root)).arg("--dump-db"))?;
        Ok(())
    }

    /// Copies the closure of `path` from a store URL into the store at `root` with `nix copy`. Returns the seconds that it
    /// took.
    pub(crate) fn copy(&self, from: &str, root: &Path, path: &str, trusted_key: &str) -> anyhow::Result<f64> {
        let mut command = self.command("nix");
        command.args(["copy", "--from", from, "--to"]).arg(local(root)).arg(path);
        command.args(["--option", "trusted-public-keys", trusted_key]);
        let started = Instant::now();
        finish(&format!("nix copy --from {from}"), &mut command)?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Copies `path` from a store URL into a binary cache in the directory `to`, which packs with `compression`.
    pub(crate) fn copy_to_cache(
        &self,
        from: &str,
        to: &Path,
        compression: &str,
        path: &str,
        trusted_key: &str,
    ) -> anyhow::Result<()> {
        let mut command = self.command("nix");
        let to = format!("file://{}?compression={compression}", to.display());
        command.args(["copy", "--from", from, "--to", &to, path, "--option", "trusted-public-keys", trusted_key]);
        finish(&format!("nix copy --to {to}"), &mut command)?;
        Ok(())
    }

    /// [`Self::copy`] into a new store, which must then hold `paths` paths and is deleted. Returns the seconds of the copy.
    pub(crate) fn copy_fresh(&self, from: &str, path: &str, trusted_key: &str, paths: usize) -> anyhow::Result<f64> {
        let root = self.dir.join("fresh");
        let seconds = self.copy(from, &root, path, trusted_key);
        let got = fs::read_dir(root.join("nix/store")).map(|entries| entries.flatten().filter(is_store_path).count());
        scratch::remove(&root);
        // The narinfo cache goes too, so that the next copy has to ask again.
        scratch::remove(&self.dir.join("cache"));
        let seconds = seconds?;
        match got.context("the store was made")? {
            got if got == paths => Ok(seconds),
            got => bail!("{got} paths arrived from {from}, not {paths}"),
        }
    }

    /// Instantiates the derivation of a path that nobody has, in the store at `root`.
    pub(crate) fn instantiate_fresh(&self, root: &Path, tag: &str) -> anyhow::Result<String> {
        let mut command = self.command("nix-instantiate");
        command.arg("--store").arg(local(root)).args(["-E", FRESH, "--argstr", "tag", tag]);
        Ok(finish("nix-instantiate", &mut command)?.trim().to_owned())
    }

    /// The output path of a derivation.
    pub(crate) fn output_of(&self, root: &Path, derivation: &str) -> anyhow::Result<String> {
        let mut command = self.command("nix-store");
        command.arg("--store").arg(local(root)).args(["--query", "--outputs", derivation]);
        Ok(finish("nix-store --query", &mut command)?.trim().to_owned())
    }

    /// Builds a derivation.
    pub(crate) fn build(&self, root: &Path, derivation: &str) -> anyhow::Result<()> {
        let mut command = self.command("nix-store");
        command.arg("--store").arg(local(root)).args(["--realise", derivation]);
        finish("nix-store --realise", &mut command)?;
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        nix_client_environment(&mut command).envs(nix_homes(&self.dir)).current_dir(&self.dir);
        command
    }
}

fn local(root: &Path) -> String {
    format!("local?root={}", root.display())
}

fn is_store_path(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_str().is_some_and(|name| name.get(32..33) == Some("-") && !name.ends_with(".lock"))
}
