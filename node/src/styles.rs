//! Colours for people at a terminal: what each of them means, and whether they are wanted.
//!
//! A report is written with its colours, and [`without_colours`] takes them out where nobody asked for them. What peers and
//! caches say is escaped before it comes into a report, so no colour in it is theirs.

use anstream::adapter::strip_str;
use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use std::fmt::Display;
use std::io::{self, IsTerminal as _};

/// What a stretch of text is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mark {
    /// A heading, or what the report is about.
    Heading,
    /// It is as it should be.
    Good,
    /// It is worth a look.
    Unusual,
    /// It does not work, or needs a decision.
    Bad,
    /// It matters less than what is around it.
    Aside,
}

impl Mark {
    fn style(self) -> Style {
        match self {
            Self::Heading => Style::new().bold(),
            Self::Good => AnsiColor::Green.on_default(),
            Self::Unusual => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default().bold(),
            Self::Aside => Style::new().dimmed(),
        }
    }

    /// The text in the colour of this mark.
    pub(crate) fn paint(self, text: impl Display) -> String {
        let style = self.style();
        format!("{style}{text}{style:#}")
    }
}

/// Whether what this process prints may have colours: standard output is a terminal that knows them, and the user has not
/// said no (<https://no-color.org>: an empty `NO_COLOR` counts as none).
pub(crate) fn wants_colours() -> bool {
    let stdout = io::stdout();
    stdout.is_terminal() && AutoStream::choice(&stdout) != ColorChoice::Never
}

/// The text as a file should have it.
pub(crate) fn without_colours(text: &str) -> String {
    strip_str(text).to_string()
}

/// How many columns the text takes.
pub(crate) fn columns(text: &str) -> usize {
    strip_str(text).map(|part| part.chars().count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_take_no_columns_and_come_off_without_a_trace() {
        for mark in [Mark::Heading, Mark::Good, Mark::Unusual, Mark::Bad, Mark::Aside] {
            let painted = mark.paint("größe");
            assert!(painted.starts_with('\u{1b}') && painted.ends_with("\u{1b}[0m"), "{painted:?}");
            assert_eq!((without_colours(&painted).as_str(), columns(&painted)), ("größe", 5));
        }
    }
}
