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

/// Whether a name with this character could look like another one, or change what is around it: control characters, those
/// that change the direction of text, and those of which nothing is seen (Unicode's `Default_Ignorable_Code_Point`, the
/// separators of lines and paragraphs, the marks of annotations, and the empty pattern of Braille).
pub(crate) fn is_unseen(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{2800}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// Makes text of foreign origin harmless: what is unseen becomes `\u{…}`.
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if is_unseen(character) {
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
