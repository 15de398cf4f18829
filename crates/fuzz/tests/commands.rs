//! The commands of `docs/fuzzing.md`, as they stand there, but for how long they run.

use std::fs;
use std::path::Path;
use std::process::Command;

/// What builds and runs the program, in the document; what follows are its arguments.
const RUN: &str = "cargo run --profile fuzz -p narmesh-fuzz ";

#[test]
fn long_runs_of_the_document_begin_and_find_nothing_in_what_is_known() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let document = fs::read_to_string(root.join("docs/fuzzing.md")).unwrap();
    let input = fs::read_dir(root.join("crates/fuzz/corpus/nar")).unwrap().next().unwrap().unwrap().path();
    let mut run = 0;
    for line in document.lines().filter_map(|line| line.strip_prefix(RUN)) {
        let command = line.split("  #").next().unwrap().trim();
        let (features, arguments) = command.split_once("-- ").unwrap();
        assert!(matches!(features.trim(), "" | "--features config"), "{line}");
        if !features.is_empty() && !cfg!(feature = "config") {
            continue;
        }
        let mut words: Vec<&str> = arguments.split_whitespace().collect();
        if let Some(at) = words.iter().position(|word| *word == "--seconds") {
            // What is committed runs in any case; what comes after it is the long run.
            *words.get_mut(at + 1).unwrap() = "0";
        }
        let mut fuzz = Command::new(env!("CARGO_BIN_EXE_narmesh-fuzz"));
        fuzz.args(words.iter().map(|word| if *word == "INPUT" { input.as_os_str() } else { word.as_ref() }));
        let ended = fuzz.output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && !said.is_empty(), "{line}: {said}{}", String::from_utf8_lossy(&ended.stderr));
        run += 1;
    }
    assert!(run >= 4, "the document shows other commands than this test knows");
}
