//! Finds Git's log of what was checked out and committed here, of which `main.rs` takes the newest commit.
//!
//! The commit itself is not read here: this would have to run again at each commit, and then Cargo builds the whole package
//! again, of which only the last step is needed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("Cargo names the package"));
    // Only the directory of this repository: a tarball may have been unpacked within somebody else's.
    let log = package.parent().and_then(|root| git_directory(&root.join(".git"))).map(|git| git.join("logs/HEAD"));
    let source = match log.filter(|log| log.is_file()) {
        Some(log) => format!("include_bytes!({:?})", log.display().to_string()),
        None => "b\"\"".to_owned(),
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("Cargo names the directory of what is generated"));
    fs::write(out.join("log.rs"), source).expect("Cargo's directory can be written to");
}

/// Git's directory of this checkout; in a worktree `.git` is a file that names it.
fn git_directory(git: &Path) -> Option<PathBuf> {
    if git.is_dir() {
        return Some(git.to_owned());
    }
    let text = fs::read_to_string(git).ok()?;
    Some(git.parent()?.join(text.trim().strip_prefix("gitdir: ")?))
}
