//! Error texts for people.

use std::borrow::Cow;

/// The text of the error and its causes, each given once: many messages contain their cause already.
pub(crate) fn describe(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(cause.trim()) {
            text = format!("{}: {cause}", text.trim_end());
        }
    }
    text
}

/// Makes text of foreign origin harmless: control characters, and characters that reorder text, become `\u{…}`.
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        let reorders = matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if character.is_control() || reorders {
            safe.extend(character.escape_unicode());
        } else {
            safe.push(character);
        }
    }
    safe
}

/// The text of several lines with everything else by which a file could control a terminal escaped.
pub(crate) fn escaped_lines(text: &str) -> String {
    text.split('\n').map(escaped).collect::<Vec<_>>().join("\n")
}

/// What rustls says, with the address of a manual, when a connection ends without the end message of TLS. That happens
/// whenever a process is killed or a line breaks. It hides no lost bytes, because each of our messages gives its
/// length.
const NO_CLOSE_NOTIFY: &str = "peer closed connection without sending TLS close_notify";
const ADDRESS: &str = ": https://";

/// The text with what rustls says replaced by plain words.
pub(crate) fn plainly(text: &str) -> Cow<'_, str> {
    let mut parts = text.split(NO_CLOSE_NOTIFY);
    let mut plain = parts.next().unwrap_or_default().to_owned();
    if plain.len() == text.len() {
        return Cow::Borrowed(text);
    }
    let ends_address = |letter: char| !letter.is_ascii_graphic() || "\"')]},;".contains(letter);
    for part in parts {
        let after = match part.strip_prefix(ADDRESS) {
            Some(address) => address.find(ends_address).and_then(|end| address.get(end..)).unwrap_or_default(),
            None => part,
        };
        plain.push_str("the other side hung up without a goodbye");
        plain.push_str(after);
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    #[test]
    fn cause_that_the_message_contains_is_not_repeated() {
        let error = anyhow::Error::from(Config::parse("[nodes]", Path::new("x.toml")).unwrap_err());
        assert_eq!(describe(&error).matches("unknown field").count(), 1);
        assert_eq!(describe(&error.context("not reloaded")).matches("unknown field").count(), 1);
    }

    #[test]
    fn end_without_close_notify_is_described_in_plain_words() {
        let manual = "https://docs.rs/rustls/latest/rustls/manual/_03_howto/index.html#unexpected-eof";
        let told = |after: &str| format!("why=\"i/o error: {NO_CLOSE_NOTIFY}: {manual}\"{after}");
        let plain = |after: &str| format!("why=\"i/o error: the other side hung up without a goodbye\"{after}");
        assert_eq!(plainly(&told(" peer=a")), plain(" peer=a"));
        assert_eq!(plainly(&told(&told(""))), plain(&plain("")));
        assert_eq!(plainly(&format!("{NO_CLOSE_NOTIFY}: {manual}")), "the other side hung up without a goodbye");
        assert_eq!(plainly(&format!("{NO_CLOSE_NOTIFY}; x")), "the other side hung up without a goodbye; x");
        assert!(matches!(plainly("see https://example.org"), Cow::Borrowed("see https://example.org")));
    }
}
