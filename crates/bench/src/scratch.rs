//! Where the bench puts its files: a directory in memory that goes with the process.

use anyhow::{Context as _, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A disk's write-back drowns everything else, so files live in memory.
const PARENT: &str = "/dev/shm";
/// Directories are named after the process that made them, so that a later run finds what a killed one left.
const PREFIX: &str = "narmesh-bench-";

/// The directory of this run. Subjects make and delete their own directories in it.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    /// Makes the directory, and deletes those of runs that were killed.
    pub(crate) fn new() -> anyhow::Result<Self> {
        remove_leftovers()?;
        let dir = Path::new(PARENT).join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// A directory of a subject's own, deleted when dropped.
    pub(crate) fn subdir(&self, name: &str) -> anyhow::Result<Subdir> {
        let dir = tempfile::Builder::new().prefix(name).tempdir_in(&self.dir)?.keep();
        // Servers that give up root look into it.
        fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(Subdir { dir })
    }

    /// An error that says what is missing when less than `bytes` are free.
    pub(crate) fn need(&self, bytes: u64) -> anyhow::Result<()> {
        let disk = rustix::fs::statvfs(&self.dir)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < bytes {
            bail!("needs {:.1} GB free in {PARENT}, there are {:.1}", bytes as f64 / 1e9, free as f64 / 1e9);
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.dir);
    }
}

/// A directory that goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Subdir {
    dir: PathBuf,
}

impl Subdir {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// A path in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Subdir {
    fn drop(&mut self) {
        remove(&self.dir);
    }
}

/// Deletes `dir` with all that is in it, Nix stores (whose directories nobody may write) included.
pub(crate) fn remove(dir: &Path) {
    if fs::remove_dir_all(dir).is_ok() || !dir.exists() {
        return;
    }
    // Only without root: a store's directories are read-only for their owner too.
    let opened = Command::new("chmod").args(["-R", "u+w"]).arg(dir).status();
    if opened.is_err() || fs::remove_dir_all(dir).is_err() {
        crate::progress(&format!("could not delete {}", dir.display()));
    }
}

fn remove_leftovers() -> anyhow::Result<()> {
    for entry in fs::read_dir(PARENT).with_context(|| format!("{PARENT} is not there"))? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            remove(&entry.path());
        }
    }
    Ok(())
}
