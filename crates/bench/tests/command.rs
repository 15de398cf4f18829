//! The bench as a user calls it.

use std::process::Command;

#[test]
fn list_names_each_row_and_measures_nothing() {
    let listed = Command::new(env!("CARGO_BIN_EXE_narmesh-bench")).arg("--list").output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    for row in ["narinfo/miss/1-peer/1-connection", "nar/1GB/mesh/beside-nginx", "copy/200-paths"] {
        assert!(text.lines().any(|line| line.starts_with(row)), "{row} is not in\n{text}");
    }
}

#[test]
fn unknown_row_is_refused_by_its_name() {
    let refused = Command::new(env!("CARGO_BIN_EXE_narmesh-bench")).arg("nar/2TB").output().unwrap();
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && why.contains("nar/2TB"), "{why}");
}
