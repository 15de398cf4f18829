//! A sign of life while a command waits or works: on a terminal only, for what takes longer than a second, and gone at the end.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What is over sooner is not worth a line that comes and goes.
const APPEARS_AFTER: Duration = Duration::from_secs(1);
/// How often the spinner turns.
const TURNS_EVERY: Duration = Duration::from_millis(250);

/// One line on standard error; dropping it takes it away.
pub(super) struct Progress {
    bar: ProgressBar,
    /// Dropped at the end, which wakes whoever waits to show the line.
    ends: Option<Sender<()>>,
    shows: Option<JoinHandle<()>>,
}

impl Progress {
    /// Says what goes on; with `counted`, how many of these are done.
    pub(super) fn start(what: &str, counted: Option<&str>) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let count = counted.map_or_else(String::new, |noun| format!(" {{pos}} {noun},"));
        let style = ProgressStyle::with_template(&format!("{{spinner}} {{msg}}:{count} {{elapsed}}"));
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_message(what.to_owned());
        let (ends, ended) = mpsc::channel::<()>();
        let shown = bar.clone();
        // Without a thread nothing is shown, and the work goes on.
        let shows = thread::Builder::new().name("progress".to_owned()).spawn(move || {
            if ended.recv_timeout(APPEARS_AFTER) == Err(RecvTimeoutError::Timeout) {
                shown.set_draw_target(ProgressDrawTarget::stderr());
                shown.enable_steady_tick(TURNS_EVERY);
            }
        });
        Self { bar, ends: Some(ends), shows: shows.ok() }
    }

    /// So many are done.
    pub(super) fn set_count(&self, count: u64) {
        self.bar.set_position(count);
    }

    /// One more is done.
    pub(super) fn add_one(&self) {
        self.bar.inc(1);
    }

    /// Prints something else while this is shown.
    pub(super) fn suspend(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    /// Takes the line away.
    pub(super) fn end(&mut self) {
        drop(self.ends.take());
        // First, or it would show the line after it was taken away.
        if let Some(shows) = self.shows.take() {
            shows.join().ok();
            self.bar.finish_and_clear();
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> u64 {
        self.bar.position()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}
