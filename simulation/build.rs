//! With the feature `mutants`: copies the cores, with a switch at each place where one of their mutants differs.

use std::path::{Path, PathBuf};
use std::{env, fs};

#[expect(unreachable_pub, reason = "these files also belong to the library, which hands them on")]
#[path = "src/mutants"]
mod mutants {
    pub mod rewrite;
    pub mod table;
}

use mutants::rewrite::insert_switches;
use mutants::table::{GOSSIP, Mutant, QUORUM, ROSTER};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/mutants");
    if env::var_os("CARGO_FEATURE_MUTANTS").is_none() {
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("Cargo sets it"));
    let cores =
        [("gossip", GOSSIP, 0), ("quorum", QUORUM, GOSSIP.len()), ("roster", ROSTER, GOSSIP.len() + QUORUM.len())];
    for (name, mutants, first) in cores {
        let source = Path::new("../crates").join(name).join("src");
        println!("cargo::rerun-if-changed={}", source.display());
        copy_core(name, &source, &out.join(name), mutants, first);
    }
}

/// Copies all files below `source`. The copy is a module of the simulation and not a crate.
fn copy_core(name: &str, source: &Path, to: &Path, mutants: &[Mutant], first: usize) {
    let mut open = vec![source.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).expect("a directory of the core's sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let file = path.strip_prefix(source).expect("below it");
            let text = fs::read_to_string(&path).expect("a source file");
            let text = insert_switches(&file.to_string_lossy(), &text, mutants, first)
                .unwrap_or_else(|wrong| panic!("{wrong} (simulation/src/mutants/table.rs)"));
            // The documentation of a crate is inside of it, which a module's cannot be.
            let text = if file == Path::new("lib.rs") { without_inner_docs(&text) } else { text };
            // Its tests stay with the core.
            let text = text.replace("#[cfg(test)]", "#[cfg(any())]");
            let text = text.replace("crate::mutants::", "\0").replace("crate::", &format!("crate::cores::{name}::"));
            let text = text.replace('\0', "crate::mutants::");
            let copy = to.join(file);
            fs::create_dir_all(copy.parent().expect("it is below `to`")).expect("a directory can be made");
            fs::write(copy, text).expect("a file can be written");
        }
    }
}

fn without_inner_docs(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with("//!")).map(|line| format!("{line}\n")).collect()
}
