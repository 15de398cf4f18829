//! Programs with a wrong clock, made with Debian's `faketime`; other processes have the right time.

use std::path::PathBuf;

/// The library, for any architecture.
///
/// # Panics
/// When it is not installed.
#[track_caller]
#[must_use]
pub fn faketime_library() -> PathBuf {
    let libraries = std::fs::read_dir("/usr/lib").expect("a directory").flatten().map(|entry| entry.path());
    let mut candidates = libraries.map(|directory| directory.join("faketime/libfaketimeMT.so.1"));
    candidates.find(|file| file.exists()).expect("Debian's package faketime (./test.sh installs it)")
}

/// The words before a program that give it this wall clock (syntax of `FAKETIME`) and leave the monotonic clocks alone.
///
/// # Panics
/// As [`faketime_library`].
#[track_caller]
#[must_use]
pub fn faketime(wall_clock: &str) -> [String; 5] {
    [
        "env".to_owned(),
        format!("LD_PRELOAD={}", faketime_library().display()),
        format!("FAKETIME={wall_clock}"),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        "FAKETIME_NO_CACHE=1".to_owned(),
    ]
}
