//! Where the bench puts its files: a directory in memory that is deleted when the process ends.

use anyhow::{Context as _, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Files are in memory, because the write-back of a disk drowns everything else.
const PARENT: &str = "/dev/shm";
/// The directory's name ends with the id of the process that made it, so that a later run finds what a killed one left.
const PREFIX: &str = "narmesh-bench-";

/// The directory of this run. Subjects make and delete their own directories in it.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    /// Makes the directory, and deletes the directories of runs that were killed.
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

    /// Makes a directory for a subject, which is deleted when it is dropped.
    pub(crate) fn subdir(&self, name: &str) -> anyhow::Result<Subdir> {
        let dir = tempfile::Builder::new().prefix(name).tempdir_in(&self.dir)?.keep();
        // Servers that give up root must be able to read it.
        fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(Subdir { dir })
    }

    /// An error that says what is missing when fewer than `bytes` bytes are free.
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

/// A directory that is deleted when it is dropped.
#[derive(Debug)]
pub(crate) struct Subdir {
    dir: PathBuf,
}

impl Subdir {
    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// The path of `name` in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Subdir {
    fn drop(&mut self) {
        remove(&self.dir);
    }
}

/// Deletes `dir` with everything in it, even Nix stores, whose directories are read-only.
pub(crate) fn remove(dir: &Path) {
    if fs::remove_dir_all(dir).is_ok() || !dir.exists() {
        return;
    }
    // Only needed without root: the directories of a store are read-only for their owner, too.
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
