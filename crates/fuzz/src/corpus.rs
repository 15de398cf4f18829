//! The committed inputs: one directory a target, one file an input.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// Where the inputs of a target lie.
pub fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// Reads them in the order of their names; a target without a directory has none.
pub fn read(target: &str) -> io::Result<Vec<Vec<u8>>> {
    let entries = match fs::read_dir(directory(target)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    files.sort_unstable();
    files.iter().map(fs::read).collect()
}
