//! The directory of a demo: removed at the end unless the user chose it.

use anyhow::Context;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A directory, and whether it is ours to remove at the end.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: PathBuf,
    is_ours: bool,
}

impl Scratch {
    /// Creates the directory chosen, which must be new or empty, or a temporary one.
    pub(crate) fn new(chosen: Option<PathBuf>) -> anyhow::Result<Self> {
        let is_ours = chosen.is_none();
        let dir = chosen.unwrap_or_else(|| std::env::temp_dir().join(format!("narmesh-demo-{}", std::process::id())));
        // The temporary directory is open to everybody: one of that name that somebody else made there is refused.
        let made = fs::DirBuilder::new().recursive(!is_ours).mode(0o700).create(&dir);
        made.with_context(|| format!("cannot make {}", dir.display()))?;
        let is_empty = fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_none());
        anyhow::ensure!(is_empty, "--dir {} is not empty; accepted: a new or an empty directory", dir.display());
        Ok(Self { dir: dir.canonicalize()?, is_ours })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = remove_tree(&self.dir)
        {
            eprintln!("narmesh: cannot remove {}: {error}", self.dir.display());
        }
    }
}

/// Removes a tree whose directories may be read-only, as those of Nix are.
fn remove_tree(dir: &Path) -> io::Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(dir)
}
