//! What the documents name is there: tests by `path/of/file::name`, files and headings by links, and source files by their names,
//! which comments mention, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::binary::repository_root;

/// The text of every document, by its path from the root.
fn documents() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(repository_root().join(&directory)).expect("a directory of the repository") {
            let name = entry.expect("an entry").file_name();
            let path = directory.join(&name);
            let whole = repository_root().join(&path);
            // The command line's texts beside the sources are pieces of documents.
            let is_ours = !name.to_string_lossy().starts_with('.') && name != "target" && name != "src";
            if whole.is_dir() && is_ours {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.insert(path, fs::read_to_string(whole).expect("a document"));
            }
        }
    }
    found
}

/// Every source file: its path from the root, and its text.
fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> =
        ["crates", "node", "protocol", "simulation", "tests"].iter().map(|room| repository_root().join(room)).collect();
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).expect("a directory of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(repository_root()).expect("below the root").to_owned();
                found.push((relative, fs::read_to_string(path).expect("a source file")));
            }
        }
    }
    found
}

/// The parts of a source file's path by which a document may name its tests.
fn parts(path: &Path) -> Vec<String> {
    let path = path.with_extension("");
    path.iter().map(|part| part.to_string_lossy().into_owned()).filter(|part| part != "mod").collect()
}

/// Whether `named`, such as `gateway/tests/gateway/hostile`, means the file of these parts: its last part is the file, and the
/// others stand before it in their order. A crate may be named without its prefix.
fn means(named: &[&str], parts: &[String]) -> bool {
    let (Some((file, before)), Some((last, mut rest))) = (named.split_last(), parts.split_last()) else { return false };
    file == last
        && before.iter().all(|name| {
            let at =
                rest.iter().position(|part| part == name || part.strip_suffix(name).is_some_and(|p| p.ends_with('-')));
            rest = rest.get(at.map_or(rest.len(), |at| at + 1)..).unwrap_or_default();
            at.is_some()
        })
}

/// The parts between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn every_test_that_a_document_names_exists() {
    let sources: Vec<_> = sources().into_iter().map(|(path, text)| (parts(&path), text)).collect();
    let mut missing = Vec::new();
    for (document, text) in documents() {
        let mut path = Vec::new();
        for (before, name) in quoted(&text).filter_map(|quoted| quoted.split_once("::")) {
            let is_function =
                !name.is_empty() && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
            // `…::name` is in the file of the test before it.
            let is_file = before == "…" || before.contains('/');
            if !is_function || !is_file || before.contains(char::is_whitespace) {
                continue;
            }
            if before != "…" {
                path = before.strip_suffix(".rs").unwrap_or(before).split('/').collect();
            }
            let function = format!("fn {name}(");
            if !sources.iter().any(|(parts, source)| means(&path, parts) && source.contains(&function)) {
                missing.push(format!("{}: {}::{name}", document.display(), path.join("/")));
            }
        }
    }
    assert!(missing.is_empty(), "documents name tests that do not exist:\n{}", missing.join("\n"));
}

/// The comments of a source file.
fn comments(source: &str) -> String {
    source.lines().filter(|line| line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect()
}

/// Decisions, and what users were told of each version, name what was there then.
fn is_of_its_time(document: &Path) -> bool {
    document.starts_with("docs/decisions") || document == Path::new("CHANGELOG.md")
}

#[test]
fn every_source_file_that_a_document_or_a_comment_names_exists() {
    let sources = sources();
    let of_today = documents().into_iter().filter(|(document, _)| !is_of_its_time(document));
    let texts = of_today.chain(sources.iter().map(|(path, source)| (path.clone(), comments(source))));
    let mut missing = Vec::new();
    for (place, text) in texts {
        for name in quoted(&text).filter(|name| name.ends_with(".rs") && !name.contains(char::is_whitespace)) {
            if !sources.iter().any(|(path, _)| path.ends_with(name)) {
                missing.push(format!("{}: {name}", place.display()));
            }
        }
    }
    assert!(missing.is_empty(), "source files that do not exist are named:\n{}", missing.join("\n"));
}

fn is_part_of_name(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

fn is_name(text: &str) -> bool {
    text.split("::").all(|part| !part.is_empty() && part.chars().all(is_part_of_name))
}

/// Whether the file defines this, be it a function, a type, a variant or a constant.
fn defines(source: &str, name: &str) -> bool {
    const KEYWORDS: [&str; 8] = ["fn", "struct", "enum", "trait", "type", "const", "static", "mod"];
    source.lines().any(|line| {
        let words: Vec<&str> = line.split(|char| !is_part_of_name(char)).filter(|word| !word.is_empty()).collect();
        // A variant stands at the beginning of its line.
        words.first() == Some(&name)
            || words.windows(2).any(|two| matches!(two, [before, word] if *word == name && KEYWORDS.contains(before)))
    })
}

/// What the line names together with the file that it is in: a file and a name beside it, or a name "in" a file.
fn named_in_files<'l>(line: &'l str) -> Vec<(&'l str, &'l str)> {
    let pieces: Vec<&str> = line.split('`').collect();
    let in_file = |three: &[&'l str]| match three {
        [file, " ", name] if file.ends_with(".rs") => Some((*file, *name)),
        [name, " in ", file] if file.ends_with(".rs") => Some((*file, *name)),
        _ => None,
    };
    // What is in backticks has the odd places.
    pieces.windows(3).skip(1).step_by(2).filter_map(in_file).filter(|(_, name)| is_name(name)).collect()
}

#[test]
fn what_a_document_names_together_with_its_file_is_defined_there() {
    let sources = sources();
    let mut missing = Vec::new();
    for (document, text) in documents().into_iter().filter(|(document, _)| !is_of_its_time(document)) {
        for (file, name) in text.lines().flat_map(named_in_files) {
            let last = name.rsplit("::").next().unwrap_or(name);
            let mut files = sources.iter().filter(|(path, _)| path.ends_with(file));
            if !files.any(|(_, source)| defines(source, last)) {
                missing.push(format!("{}: `{name}` in `{file}`", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "documents name what is not in the file that they name:\n{}", missing.join("\n"));
}

/// What lies directly in `node/src`: folders with a slash at their end, and files, without those that every crate has.
fn rooms_of_node() -> BTreeSet<String> {
    let entries = fs::read_dir(repository_root().join("node/src")).expect("a directory of sources");
    let name = |entry: &fs::DirEntry| {
        let slash = if entry.path().is_dir() { "/" } else { "" };
        entry.file_name().to_string_lossy().into_owned() + slash
    };
    let names = entries.map(|entry| name(&entry.expect("an entry")));
    names.filter(|name| name != "lib.rs" && name != "main.rs").collect()
}

/// What the first column of the table with this header names.
fn first_column(text: &str, header: &str) -> BTreeSet<String> {
    let (_, table) = text.split_once(header).expect("the table");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.flat_map(|row| quoted(row.split('|').nth(1).unwrap_or_default()).map(str::to_owned)).collect()
}

#[test]
fn maps_of_the_daemons_folders_are_complete() {
    let documents = documents();
    let text = |name: &str| &documents[Path::new(name)];
    let rooms = rooms_of_node();
    assert_eq!(first_column(text("docs/architecture.md"), "\n| folder or file | what it owns |"), rooms);
    let folders: BTreeSet<String> = rooms.into_iter().filter(|room| room.ends_with('/')).collect();
    assert_eq!(first_column(text("README.md"), "\n| folder | its one purpose |"), folders);
}

/// The anchor of a heading, as the forges make it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_'));
    kept.collect::<String>().trim().to_lowercase().replace(' ', "-")
}

fn anchors(text: &str) -> Vec<String> {
    text.lines().filter(|line| line.starts_with('#')).map(|line| anchor(line.trim_start_matches('#'))).collect()
}

#[test]
fn every_link_of_a_document_leads_somewhere() {
    let documents = documents();
    let mut dead = Vec::new();
    for (document, text) in &documents {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target) {
            if target.contains("://") || target.contains(char::is_whitespace) {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let beside = document.parent().unwrap_or(Path::new(""));
            let path = if file.is_empty() { document.clone() } else { normal(&beside.join(file)) };
            let is_there = repository_root().join(&path).exists();
            let has_heading = heading.is_empty()
                || documents.get(&path).is_some_and(|text| anchors(text).iter().any(|known| known == heading));
            if !is_there || !has_heading {
                dead.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(dead.is_empty(), "links that lead nowhere:\n{}", dead.join("\n"));
}

/// Without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path {
        if part == ".." {
            normal.pop();
        } else {
            normal.push(part);
        }
    }
    normal
}
