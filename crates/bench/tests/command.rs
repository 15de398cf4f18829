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

#[test]
fn commands_of_the_document_name_rows_that_there_are() {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/benchmarks.md");
    let document = std::fs::read_to_string(document).unwrap();
    let shown = document.lines().filter_map(|line| line.strip_prefix("cargo run --release -p narmesh-bench"));
    let mut tried = 0;
    for line in shown {
        let arguments = line.split("  #").next().unwrap().trim().trim_start_matches("-- ");
        // Listing the rows refuses what measuring them would, before it would.
        let list = Some("--list").filter(|list| !arguments.contains(list));
        let words = arguments.split_whitespace().chain(list);
        let listed = Command::new(env!("CARGO_BIN_EXE_narmesh-bench")).args(words).output().unwrap();
        let said = String::from_utf8_lossy(&listed.stderr);
        assert!(listed.status.success() && !listed.stdout.is_empty(), "{line}: {said}");
        tried += 1;
    }
    assert!(tried >= 5, "the document shows other commands than this test knows");
}
