//! Sets a daemon's wall clock, with Debian's `faketime`.

use std::path::Path;

use narmesh_tests::faketime_library;

/// A command that gives the daemon the wall clock in this file (syntax of `FAKETIME`); monotonic clocks are not changed.
pub fn following(file: &Path) -> [String; 5] {
    [
        "env".to_owned(),
        format!("LD_PRELOAD={}", faketime_library().display()),
        format!("FAKETIME_TIMESTAMP_FILE={}", file.display()),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        "FAKETIME_NO_CACHE=1".to_owned(),
    ]
}
