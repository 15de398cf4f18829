//! The committed inputs: one directory for each target, one file for each input.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// The directory of a target's inputs.
pub fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// Reads the inputs in the order of their file names. A target without a directory has none.
pub fn read(target: &str) -> io::Result<Vec<Vec<u8>>> {
    let entries = match fs::read_dir(directory(target)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    files.sort_unstable();
    files.iter().map(fs::read).collect()
}
