//! Sets a daemon's wall clock, with Debian's `faketime`.

use std::path::{Path, PathBuf};

/// A command that gives the daemon the wall clock in this file (syntax of `FAKETIME`); monotonic clocks are not changed.
pub fn following(file: &Path) -> [String; 5] {
    [
        "env".to_owned(),
        format!("LD_PRELOAD={}", library().display()),
        format!("FAKETIME_TIMESTAMP_FILE={}", file.display()),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        "FAKETIME_NO_CACHE=1".to_owned(),
    ]
}

/// Where the library is, for any architecture.
fn library() -> PathBuf {
    let libraries = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let candidates = libraries.map(|directory| directory.join("faketime/libfaketimeMT.so.1"));
    candidates.into_iter().find(|file| file.exists()).expect("Debian's package faketime (./test.sh installs it)")
}
