//! Progress of a long transfer: a bar on a terminal, a line per second elsewhere.

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

/// The progress of one transfer.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    what: String,
    bytes_max: u64,
    said: Instant,
}

impl Progress {
    /// Begins at zero; `bytes_max` is the expected total.
    pub(crate) fn new(what: &str, bytes_max: u64) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix}  [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(bytes_max).with_style(style).with_prefix(what.to_owned())
        });
        Self { bar, what: what.to_owned(), bytes_max, said: Instant::now() }
    }

    /// Shows that `bytes` have arrived.
    pub(crate) fn advance_to(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        } else if self.said.elapsed() >= Duration::from_secs(1) {
            self.said = Instant::now();
            println!("{}  {} of {}", self.what, HumanBytes(bytes), HumanBytes(self.bytes_max));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
