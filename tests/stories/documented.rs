//! Commands of documents: narmesh knows each of its own.

use std::collections::BTreeMap;
use std::process::Command;

use narmesh_tests::{Shown, finish, narmesh_binary, shown_commands};

/// What stands for a value of a closed set, and one of that set.
const PLACEHOLDERS: [(&str, &str); 3] = [("ROLE", "builder"), ("SHELL", "bash"), ("TIME", "1h")];

/// The words after the program, with values in place of what stands for them: `…` for whatever follows, brackets around what
/// may be left out, and strokes between what excludes each other.
fn arguments(command: &str) -> Vec<&str> {
    let words = command.split_whitespace().skip(1).take_while(|word| !word.starts_with([';', '|', '&', '>', '<']));
    let words = words.map(|word| word.trim_matches(['[', ']', '"', '\'', ',']));
    let words = words.filter(|word| !matches!(*word, "…" | "/" | ""));
    let value =
        |word| PLACEHOLDERS.iter().find(|(placeholder, _)| *placeholder == word).map_or(word, |(_, value)| *value);
    words.map(value).collect()
}

/// Why narmesh does not know this command; `None` if it does. Clap reads all words before it helps, so that each subcommand
/// and option is judged, and only what is left out is not.
fn refusal(command: &str) -> Option<String> {
    let said = finish(Command::new(narmesh_binary()).args(arguments(command)).arg("--help"));
    // A text may name an option without its value.
    let names_an_option_alone = said.stderr.contains("a value is required for");
    (!said.status.success() && !names_an_option_alone)
        .then(|| said.stderr.lines().next().unwrap_or_default().to_owned())
}

#[test]
fn no_document_names_a_subcommand_or_option_that_does_not_exist() {
    let shown = shown_commands();
    let ours = shown.iter().filter(|shown| shown.text.starts_with("narmesh "));
    let mut places: BTreeMap<&str, &Shown> = BTreeMap::new();
    for shown in ours {
        places.entry(&shown.text).or_insert(shown);
    }
    assert!(places.len() > 80, "{places:#?}");
    let wrong: Vec<String> = places
        .iter()
        .filter_map(|(text, place)| {
            refusal(text).map(|why| format!("{}:{}: {text}\n    {why}", place.document, place.line))
        })
        .collect();
    assert!(wrong.is_empty(), "documents name what narmesh does not know:\n{}", wrong.join("\n"));
}

#[test]
fn a_wrong_command_of_a_document_would_be_noticed() {
    for wrong in ["narmesh stats", "narmesh mesh relais NAME on", "narmesh quorum why --path P", "narmesh join A B"] {
        assert!(refusal(wrong).is_some(), "{wrong}");
    }
}
