//! Compares docs/configuration.md with the configuration: keys, types, bounds, defaults, and which keys need a restart.
//!
//! No list of keys is kept here. The parser names the keys of a table when it meets an unknown one; the type of a key is found by
//! trying one value of each type; the keys that need a restart are read from the source of the daemon, where a reload compares them.

use super::{Config, bounds_of};
use crate::settings::Settings;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use toml::{Table, Value};

const DOCUMENT: &str = include_str!("../../../docs/configuration.md");
const DAEMON: &str = include_str!("../daemon/mod.rs");

/// A key that no table has.
const UNKNOWN: &str = "no_table_has_this_key";

/// One value of each type, by the word with which the document begins a key's type.
const SAMPLES: [(&str, &str); 5] =
    [("text", "'x'"), ("integer", "1"), ("boolean", "true"), ("list", "['x']"), ("date", "1970-01-01")];

/// A table of the file by its header, such as `[node]` or `[[peer]]`, with the keys that it takes.
type Tables = BTreeMap<String, BTreeSet<String>>;

fn error_of(text: &str) -> Option<String> {
    Config::parse(text, Path::new("x.toml")).err().map(|error| error.to_string())
}

/// The keys that the type behind a header takes, in its own words; none if there is no such table.
fn keys_of(header: &str) -> Option<BTreeSet<String>> {
    let message = error_of(&format!("{header}\n{UNKNOWN} = 1"))?;
    let (_, expected) = message.split_once(&format!("unknown field `{UNKNOWN}`, expected "))?;
    Some(expected.lines().next()?.split('`').skip(1).step_by(2).map(str::to_owned).collect())
}

/// Every table that the types have, and under an empty header what stands outside of tables.
fn tables() -> Tables {
    let mut tables = Tables::new();
    let outside = keys_of("").expect("the file has tables");
    let mut to_try: Vec<String> = outside.iter().cloned().collect();
    tables.insert(String::new(), outside);
    while let Some(name) = to_try.pop() {
        for header in [format!("[{name}]"), format!("[[{name}]]")] {
            if let Some(keys) = keys_of(&header) {
                to_try.extend(keys.iter().map(|key| full_name(&header, key)));
                tables.insert(header, keys);
            }
        }
    }
    // A key that is a table has a header of its own.
    let names: Vec<_> = tables.keys().map(|header| name_of(header).to_owned()).collect();
    for (header, keys) in &mut tables {
        keys.retain(|key| !names.contains(&full_name(header, key)));
    }
    tables
}

/// `peer` of `[[peer]]`.
fn name_of(header: &str) -> &str {
    header.trim_matches(['[', ']'])
}

/// `peer.name` of `[[peer]]` and `name`.
fn full_name(header: &str, key: &str) -> String {
    if header.is_empty() { key.to_owned() } else { format!("{}.{key}", name_of(header)) }
}

/// The table that has only the keys which it cannot do without, as the program reads it, and those keys. Found by trying.
fn shortest(header: &str) -> (Value, BTreeSet<String>) {
    let mut lines: Vec<(String, usize)> = Vec::new();
    loop {
        let text: String = lines.iter().map(|(key, sample)| format!("\n{key} = {}", SAMPLES[*sample].1)).collect();
        let text = format!("{header}{text}");
        let Some(message) = error_of(&text) else {
            let file = Value::try_from(Config::parse(&text, Path::new("x.toml")).unwrap()).unwrap();
            let table = name_of(header).split('.').fold(file, |within, name| match &within[name] {
                Value::Array(entries) => entries[0].clone(),
                table => table.clone(),
            });
            return (table, lines.into_iter().map(|(key, _)| key).collect());
        };
        match message.split_once("missing field `").and_then(|(_, rest)| rest.split_once('`')) {
            Some((key, _)) => lines.push((key.to_owned(), 0)),
            None => lines.last_mut().unwrap_or_else(|| panic!("{header}: {message}")).1 += 1,
        }
    }
}

/// The types whose sample the key takes.
fn types_of(header: &str, key: &str) -> Vec<&'static str> {
    let is_taken = |value: &str| {
        error_of(&format!("{header}\n{key} = {value}")).is_none_or(|message| message.contains("missing field"))
    };
    SAMPLES.iter().filter(|(_, value)| is_taken(value)).map(|(name, _)| *name).collect()
}

/// One line of a table of the document.
#[derive(Clone, Copy, Debug)]
struct Row {
    header: &'static str,
    key: &'static str,
    kind: &'static str,
    default: &'static str,
    accepted: &'static str,
    taken_by: &'static str,
    sentence: &'static str,
}

impl Row {
    fn name(&self) -> String {
        full_name(self.header, self.key)
    }
}

/// The lines of the tables in the document, each with the heading above it.
fn rows() -> Vec<Row> {
    let mut header = "";
    let mut rows = Vec::new();
    for line in DOCUMENT.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            header = heading;
        }
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let ["", key, kind, default, accepted, taken_by, sentence, ""] = cells[..] else { continue };
        if let Some(key) = key.strip_prefix('`').and_then(|key| key.strip_suffix('`')) {
            rows.push(Row { header, key, kind, default, accepted, taken_by, sentence });
        }
    }
    rows
}

#[test]
fn every_key_has_one_line_in_the_document_and_no_other_has() {
    let mut documented = BTreeSet::new();
    for row in rows() {
        let name = row.name();
        assert!(row.sentence.ends_with('.'), "{name}: what it does is not said in a sentence");
        assert!(documented.insert((row.header.to_owned(), row.key.to_owned())), "{name} stands twice");
    }
    let keys_of_table =
        |(header, keys): (String, BTreeSet<String>)| keys.into_iter().map(move |key| (header.clone(), key));
    let accepted: BTreeSet<_> = tables().into_iter().flat_map(keys_of_table).collect();
    let [missing, unknown] = [(&accepted, &documented), (&documented, &accepted)]
        .map(|(of, without)| of.difference(without).collect::<Vec<_>>());
    assert!(missing.is_empty(), "docs/configuration.md lacks {missing:?}");
    assert!(unknown.is_empty(), "docs/configuration.md has {unknown:?}, which the configuration does not");
}

#[test]
fn every_type_in_the_document_is_that_of_the_key() {
    for row in rows() {
        let (types, word) = (types_of(row.header, row.key), row.kind.split(',').next().unwrap_or_default());
        assert_eq!(types, [word], "{}: left: the configuration, right: docs/configuration.md", row.name());
    }
}

#[test]
fn every_default_in_the_document_is_that_of_the_code() {
    let settings = |text: &str| {
        let file = Path::new("/etc/narmesh/narmesh.toml");
        format!("{:?}", Settings::check(Config::parse(text, file).unwrap(), file).unwrap())
    };
    let value_in = |text: &str| {
        let text = text.strip_prefix('`')?.strip_suffix('`')?;
        format!("value = {text}").parse::<Table>().ok()?.remove("value")
    };
    for row in rows() {
        let (table, required) = shortest(row.header);
        let name = row.name();
        match table.get(row.key) {
            _ if required.contains(row.key) => assert_eq!(row.default, "required", "{name}"),
            Some(default) => assert_eq!(value_in(row.default).as_ref(), Some(default), "{name}: {}", row.default),
            None if row.default == "not set" => {}
            // What it is like when it is not set is tried.
            None => {
                let like = row.default.strip_prefix("not set: like ").and_then(value_in);
                let like = like.unwrap_or_else(|| panic!("{name}: {}, but it has no default", row.default));
                assert_eq!(settings(&format!("{}\n{} = {like}", row.header, row.key)), settings(""), "{name}");
            }
        }
    }
}

/// Values that are accepted for the keys without which a table with numbers is refused.
fn required_lines(header: &str) -> &'static str {
    match header {
        "[[upstream]]" => "name = 'x'\nurl = 'https://cache.example'",
        "[[gateway.listener]]" => "address = '[::]:1'\nrole = 'serve'",
        "[[peer]]" => "name = 'x'\npeer_id = '12D3KooWDfFHRnzUjdMmS2mNoCiykbj6duEKJrS2g2Wj9Y7CCMRv'",
        _ => "",
    }
}

#[test]
fn every_number_in_the_document_is_bounded_as_in_the_code() {
    let mut tried = 0;
    for row in rows().iter().filter(|row| types_of(row.header, row.key) == ["integer"]) {
        let name = row.name();
        let told = bounds_of(&name).unwrap().split(" (").next().unwrap();
        assert!(row.accepted.starts_with(told), "{name}: {:?} in refusals, {:?} in the document", told, row.accepted);
        let is_taken = |number: i64| {
            let text = format!("{}\n{} = {number}\n{}", row.header, row.key, required_lines(row.header));
            let config = Config::parse(&text, Path::new("x.toml"));
            config.is_ok_and(|config| Settings::check(config, Path::new("x.toml")).is_ok())
        };
        let numbers: Vec<i64> = told.split(' ').filter_map(|word| word.parse().ok()).collect();
        // The bounds of the others depend on other keys.
        let [.., least, most] = numbers[..] else { continue };
        let around = [least - 1, least, most, most + 1].map(is_taken);
        assert_eq!(around, [false, true, true, false], "{name}: {}", row.accepted);
        tried += 1;
    }
    assert!(tried > 0, "no number was tried");
}

#[test]
fn what_a_reload_takes_is_what_the_document_says() {
    let (_, after) = DAEMON.split_once("let fixed = [").expect("the daemon compares what must stay");
    let (compared, _) = after.split_once("];").expect("the end of what it compares");
    // Its only texts are the names of keys, and of whole tables.
    let fixed: BTreeSet<_> = compared.split('"').skip(1).step_by(2).collect();
    let tables = tables();
    for known in &fixed {
        let is_key = rows().iter().any(|row| row.name() == *known);
        let is_table = [format!("[{known}]"), format!("[[{known}]]")].iter().any(|header| tables.contains_key(header));
        assert!(is_key || is_table, "{known} is no key");
    }
    for row in rows() {
        let is_fixed = fixed.contains(row.name().as_str()) || fixed.contains(name_of(row.header));
        assert_eq!(row.taken_by, if is_fixed { "restart" } else { "reload" }, "{}", row.name());
    }
}
