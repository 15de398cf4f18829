//! The commands that documents show: lines of fenced blocks, and those that stand in backticks.

use std::fs;
use std::path::Path;

use crate::binary::repository_root;

/// Programs whose commands are told from what else stands in backticks or in a block of no language.
const PROGRAMS: [&str; 5] = ["narmesh", "curl", "systemctl", "./test.sh", "cargo"];

/// A command, as a document has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The path of the document from the root of the repository.
    pub document: String,
    /// Where it stands there, from 1.
    pub line: usize,
    /// The command, without `sudo` and without what is said of it.
    pub text: String,
    /// Whether it is a line of a fenced block, to be typed as it stands.
    pub is_in_block: bool,
}

/// The documents whose commands people type: the front page, the book, and what is in `contrib`. Decisions and the list of
/// changes tell of their time, and `docs/command-line.md` is what the program says itself.
fn documents_with_commands() -> Vec<String> {
    let mut found = vec!["README.md".to_owned()];
    let mut open = vec!["docs".to_owned(), "contrib".to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(repository_root().join(&directory)).expect("a directory of the repository") {
            let path = format!("{directory}/{}", entry.expect("an entry").file_name().to_string_lossy());
            if repository_root().join(&path).is_dir() {
                let is_made = path == "contrib/debian/made";
                if path != "docs/decisions" && !is_made {
                    open.push(path);
                }
            } else if path.starts_with("contrib/") || (path.ends_with(".md") && path != "docs/command-line.md") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// All commands of these documents.
///
/// # Panics
/// When the repository cannot be read.
#[must_use]
pub fn shown_commands() -> Vec<Shown> {
    documents_with_commands().iter().flat_map(|document| commands_in(document, &read(document))).collect()
}

fn read(document: &str) -> String {
    fs::read_to_string(repository_root().join(document)).unwrap_or_else(|error| panic!("{document}: {error}"))
}

fn commands_in(document: &str, text: &str) -> Vec<Shown> {
    let is_script = Path::new(document).extension().is_none_or(|extension| extension != "md");
    let mut found = Vec::new();
    let mut block: Option<&str> = None;
    for (number, line) in text.lines().enumerate() {
        let mut add = |text: &str, is_in_block| {
            let document = document.to_owned();
            found.push(Shown { document, line: number + 1, text: text.to_owned(), is_in_block });
        };
        match (line.trim_start().strip_prefix("```"), block) {
            (Some(language), None) => block = Some(language),
            (Some(_), Some(_)) => block = None,
            (None, Some(language)) => {
                let command = without_remark(line);
                let is_typed = matches!(language, "sh" | "bash" | "console") && !command.is_empty();
                if is_typed || is_of_a_program(command) {
                    add(without_sudo(command), true);
                }
            }
            (None, None) => {
                let quoted = line.split('`').skip(1).step_by(2);
                // In a script, a line of a comment that begins with a command shows it.
                let remark = is_script.then(|| line.trim_start().strip_prefix("#   ")).flatten();
                let spans = quoted.chain(remark).flat_map(|span| [Some(span), inner(span)]).flatten();
                spans.map(without_sudo).filter(|span| is_of_a_program(span)).for_each(|span| add(span, false));
            }
        }
    }
    found
}

/// The command in `"$(…)"`.
fn inner(span: &str) -> Option<&str> {
    span.split_once("$(")?.1.split_once(')').map(|(inner, _)| inner)
}

fn without_remark(line: &str) -> &str {
    let line = line.trim();
    if line.starts_with('#') { "" } else { line.split("  #").next().unwrap_or(line).trim_end() }
}

fn without_sudo(command: &str) -> &str {
    let Some(rest) = command.strip_prefix("sudo ") else { return command };
    // As another user.
    rest.strip_prefix("-u ").and_then(|rest| rest.split_once(' ')).map_or(rest, |(_, rest)| rest)
}

fn is_of_a_program(command: &str) -> bool {
    let mut words = command.split_whitespace().skip_while(|word| word.contains('='));
    let (program, has_more) = (words.next().unwrap_or_default(), words.next().is_some());
    let is_nix = program == "nix" || program.starts_with("nix-") || program == "nixos-rebuild";
    (PROGRAMS.contains(&program) || is_nix) && (has_more || program == "./test.sh")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_words() {
        let text = "# A\n`sudo narmesh status` and `narmesh` and `xdg-open \"$(sudo narmesh dashboard)\"`, `[mesh]`\n\
            ```sh\nsudo narmesh run   # runs\n  # only said\n\ncat /etc/nix/nix.conf\n```\n```\nREADME\ncargo test -p x\n```\n\
            `sudo -u narmesh narmesh run`, `systemctl reload narmesh`, `nix copy`, `nix.conf`\n";
        let shown = commands_in("docs/x.md", text);
        let texts: Vec<_> = shown.iter().map(|shown| (shown.line, shown.text.as_str(), shown.is_in_block)).collect();
        let wanted = [
            (2, "narmesh status", false),
            (2, "narmesh dashboard", false),
            (4, "narmesh run", true),
            (7, "cat /etc/nix/nix.conf", true),
            (11, "cargo test -p x", true),
            (13, "narmesh run", false),
            (13, "systemctl reload narmesh", false),
            (13, "nix copy", false),
        ];
        assert_eq!(texts, wanted);
    }
}
