//! The netrc file of curl, which Nix reads as well: user names and passwords by host.
//!
//! As curl's manual describes it (`man curl`, `--netrc`; libcurl's `netrc.c`): words between spaces and lines, quoted ones
//! with backslash escapes; `#` at the beginning of a line makes a comment; the first entry that fits counts.

use std::iter::Peekable;
use std::str::Chars;

/// A user name and a password; either may be empty.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Login {
    pub(super) user: String,
    pub(super) password: String,
}

/// The first entry for this host, or the `default` entry if it comes first. `None` if there is neither.
pub(crate) fn find_login(text: &str, host: &str) -> Option<Login> {
    let words = split(text);
    let mut words = words.iter().map(String::as_str);
    let mut found: Option<Login> = None;
    while let Some(word) = words.next() {
        let is_for_host = match word {
            // Host names are the same in either case.
            "machine" => words.next().is_some_and(|name| name.eq_ignore_ascii_case(host)),
            "default" => true,
            "login" | "password" | "account" => {
                let value = words.next().unwrap_or_default();
                if let Some(login) = &mut found {
                    match word {
                        "login" => value.clone_into(&mut login.user),
                        "password" => value.clone_into(&mut login.password),
                        _ => {}
                    }
                }
                continue;
            }
            _ => continue,
        };
        // The next entry begins: what is before it is complete.
        if found.is_some() {
            break;
        }
        found = is_for_host.then(Login::default);
    }
    found
}

/// The words of the file, without comments and macros.
fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut in_macro = false;
    for line in text.lines() {
        if in_macro {
            // A macro lasts until an empty line.
            in_macro = !line.trim().is_empty();
            continue;
        }
        let line = line.trim();
        if line.starts_with('#') {
            continue;
        }
        let mut letters = line.chars().peekable();
        while let Some(word) = next_word(&mut letters) {
            if word == "macdef" {
                in_macro = true;
                break;
            }
            words.push(word);
        }
    }
    words
}

fn next_word(letters: &mut Peekable<Chars<'_>>) -> Option<String> {
    while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
    let is_quoted = letters.next_if_eq(&'"').is_some();
    if !is_quoted && letters.peek().is_none() {
        return None;
    }
    let mut word = String::new();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if is_quoted => break,
            '\\' if is_quoted => word.extend(letters.next()),
            letter if !is_quoted && letter.is_whitespace() => break,
            letter => word.push(letter),
        }
    }
    Some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# caches\nmachine one.example login me password p#1\nmacdef init\nmachine two.example login no password no\n\n\
        machine two.example\n  account x\n  password \"a \\\"b\\\"\" login you\nmachine one.example login late password late\n\
        default login any password thing\nmachine three.example login after password default\n";

    fn find(host: &str) -> Option<(String, String)> {
        find_login(FILE, host).map(|login| (login.user, login.password))
    }

    #[test]
    fn first_entry_for_the_host_counts_and_macros_and_comments_do_not() {
        let of = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(find("one.example"), of("me", "p#1"));
        assert_eq!(find("TWO.example"), of("you", "a \"b\""));
        assert_eq!(find("three.example"), of("any", "thing"), "the default stands before it");
        assert_eq!(find("elsewhere.example"), of("any", "thing"));
    }

    #[test]
    fn file_without_an_entry_for_the_host_gives_none() {
        for text in ["", "machine", "machine other login a password b", "login a password b", "\"", "macdef x"] {
            assert!(find_login(text, "one.example").is_none(), "{text:?}");
        }
        assert!(find_login("machine one.example login", "one.example") == Some(Login::default()));
    }
}
