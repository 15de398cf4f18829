//! The log: one event is one line, whatever a peer, a file name or a header put into it.

use std::io::{self, Write};
use tracing_subscriber::EnvFilter;

/// Environment variable of the log filter, such as `info` or `narmesh=debug`.
const LOG_VARIABLE: &str = "NARMESH_LOG";

/// Sends the log of this process to standard error.
pub(super) fn start() -> anyhow::Result<()> {
    let filter = EnvFilter::builder().with_env_var(LOG_VARIABLE);
    let filter = filter.with_default_directive(tracing::level_filters::LevelFilter::INFO.into()).from_env()?;
    // Without colours: the formatter's own escape sequences could not be told from those that come in a field.
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| OneLine(io::stderr())).with_ansi(false).init();
    Ok(())
}

/// Writes each event as one line: control characters inside of it, above all line breaks, are escaped.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    /// Takes one whole event, as the formatter gives it.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let body = text.strip_suffix('\n').unwrap_or(&text);
        if body.contains(is_harmful) {
            let mut line = String::with_capacity(body.len() + 32);
            for letter in body.chars() {
                if is_harmful(letter) {
                    line.extend(letter.escape_default());
                } else {
                    line.push(letter);
                }
            }
            line.push('\n');
            self.0.write_all(line.as_bytes())?;
        } else {
            self.0.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Control characters, line separators, and what turns the direction of writing.
fn is_harmful(letter: char) -> bool {
    let turns = matches!(letter, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || letter.is_control()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What the log of `events` looks like.
    fn logged(events: impl FnOnce()) -> String {
        let out = Shared::default();
        let writer = out.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || OneLine(writer.clone())).finish();
        tracing::subscriber::with_default(subscriber, events);
        let bytes = out.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        const FORGED: &str = "x\r\n2026-01-01T00:00:00Z ERROR narmesh: forged\u{85}\u{2028}\u{202e}\u{1b}[2Jy";
        let log = logged(|| {
            tracing::warn!(name = FORGED, "a field");
            tracing::warn!(name = %FORGED, "a field shown");
            tracing::warn!("{FORGED}");
            tracing::info!("ünharmed");
        });
        assert_eq!(log.lines().count(), 4, "{log:?}");
        assert!(log.ends_with("ünharmed\n"), "{log:?}");
        assert!(!log.contains(|letter| letter != '\n' && is_harmful(letter)), "{log:?}");
        assert_eq!(log.matches("forged").count(), 3, "nothing is lost: {log:?}");
    }
}
