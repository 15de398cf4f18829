//! The log: one event is one line of a bounded length, whatever a peer, a file name or a header put into it, and no event fills
//! the disk by being repeated.
//!
//! Of the levels INFO to ERROR, which the daemon logs by default, `limits` decides what is logged, for libraries too.
//! DEBUG and TRACE are logged whole: they appear only on request, and who requests them may look for the very line that
//! a limit would leave out.

mod limits;
mod origin;

use self::limits::{LeftOut, Limits, Origin, Passage};
use self::origin::{Origins, describe};
use crate::describe::plainly;
use narmesh_http_gateway::ACCESS_TARGET;
use parking_lot::{Mutex, MutexGuard};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::{self, Thread};
use std::time::Instant;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Environment variable of the log filter, such as `info` or `narmesh=debug`.
const LOG_VARIABLE: &str = "NARMESH_LOG";

/// The longest line of an event under limits, bytes. libp2p writes up to 64 KiB of what a peer sent into some of its
/// lines.
const LINE_BYTES_MAX: usize = 2 << 10;

/// The target of the lines that say what was left out. They pass without limits.
const OWN_TARGET: &str = "narmesh::log";

/// The targets whose lines pass without the limits here, because they have their own: one for each request, all alike, would
/// otherwise be cut down to six a minute.
const TARGETS_WITH_LIMITS: [&str; 2] = [OWN_TARGET, ACCESS_TARGET];

/// Keeps the log running. When it is dropped, everything left out and not yet reported is reported.
#[derive(Debug)]
pub(super) struct Log(Arc<Limiter>);

impl Drop for Log {
    fn drop(&mut self) {
        let left_out = self.0.limits.lock().take_left_out(Instant::now(), true);
        tell(left_out);
    }
}

/// Sends the log of this process to standard error.
pub(super) fn start() -> anyhow::Result<Log> {
    let filter = EnvFilter::builder().with_env_var(LOG_VARIABLE);
    let filter = filter.with_default_directive(tracing::level_filters::LevelFilter::INFO.into()).from_env()?;
    let limiter = Arc::new(Limiter::new());
    let counted = Arc::clone(&limiter);
    let teller = thread::Builder::new().name("log".to_owned()).spawn(move || counted.tell_in_time())?;
    *limiter.teller.lock() = Some(teller.thread().clone());
    let lines = Lines { limiter: Arc::clone(&limiter), format: Format::default() };
    // Without colours: the formatter's own escape sequences could not be distinguished from those in a field.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(io::stderr);
    log.event_format(lines).init();
    Ok(Log(limiter))
}

/// The state shared by all threads that log.
#[derive(Debug)]
struct Limiter {
    limits: Mutex<Limits>,
    origins: Origins,
    /// The thread of [`Self::tell_in_time`], which is parked until something is left out.
    teller: Mutex<Option<Thread>>,
}

impl Limiter {
    fn new() -> Self {
        Self { limits: Mutex::new(Limits::new(Instant::now())), origins: Origins::default(), teller: Mutex::default() }
    }

    fn judge(&self, from: Origin, event: &Event<'_>) -> Passage {
        let mut limits = self.limits.lock();
        // Without the lock: formatting a field may itself log, which would deadlock.
        let description = (!limits.knows(from)).then(|| MutexGuard::unlocked(&mut limits, || describe(event)));
        limits.admit(Instant::now(), from, description)
    }

    /// Reports what was left out a minute after the first of it: a next line of that kind, which would say it, may
    /// never come.
    fn tell_in_time(&self) {
        loop {
            // A statement of its own, so that the lock is not held while waiting.
            let due = self.limits.lock().next_due();
            let now = Instant::now();
            match due {
                None => thread::park(),
                Some(due) if due > now => thread::sleep(due - now),
                Some(_) => {
                    let left_out = self.limits.lock().take_left_out(now, false);
                    tell(left_out);
                }
            }
        }
    }
}

fn tell(left_out: Vec<LeftOut>) {
    for LeftOut { count, level, like, peer } in left_out {
        let peer = peer.as_deref();
        if level == Level::ERROR {
            tracing::error!(target: OWN_TARGET, peer, like, "{count} more lines were left out, most of them like this");
        } else if level == Level::WARN {
            tracing::warn!(target: OWN_TARGET, peer, like, "{count} more lines were left out, most of them like this");
        } else {
            tracing::info!(target: OWN_TARGET, peer, like, "{count} more lines were left out, most of them like this");
        }
    }
}

/// Writes each event that the limits let pass as one line.
#[derive(Debug)]
struct Lines {
    limiter: Arc<Limiter>,
    format: Format,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        // `Level` orders by verbosity: DEBUG and TRACE are the greater ones.
        // Whoever switches debug on wants all of it.
        if *event.metadata().level() > Level::INFO {
            let mut line = Line::new(usize::MAX);
            self.format.format_event(context, Writer::new(&mut line), event)?;
            return line.escape_into(&mut writer).map(drop);
        }
        let mut origin = None;
        let mut left_out = 0;
        if !TARGETS_WITH_LIMITS.contains(&event.metadata().target()) {
            let from = self.limiter.origins.of(event);
            match self.limiter.judge(from, event) {
                Passage::Log { left_out: count } => left_out = count,
                Passage::LeaveOut { is_first } => {
                    if is_first && let Some(teller) = &*self.limiter.teller.lock() {
                        teller.unpark();
                    }
                    // Nothing was put into the writer, so no line is written.
                    return Ok(());
                }
            }
            origin = Some(from);
        }
        let mut line = Line::new(LINE_BYTES_MAX);
        self.format.format_event(context, Writer::new(&mut line), event)?;
        if left_out > 0 {
            line.remark = format!(" ({left_out} more like this were left out)");
        }
        let bytes = line.escape_into(&mut writer)?;
        // Charged by what was written, since long lines fill a disk as well as many.
        self.limiter.limits.lock().charge(origin.and_then(|from| from.peer), bytes);
        Ok(())
    }
}

/// A line under construction. What exceeds its limit is dropped as it is written, because a field may print megabytes.
#[derive(Debug)]
struct Line {
    text: String,
    bytes_max: usize,
    is_cut: bool,
    /// Written after the line, and never cut.
    remark: String,
}

impl Line {
    fn new(bytes_max: usize) -> Self {
        Self { text: String::new(), bytes_max, is_cut: false, remark: String::new() }
    }

    /// Writes the line and its line break, with control characters (above all other line breaks) escaped. Returns the
    /// bytes written.
    fn escape_into(&self, writer: &mut impl fmt::Write) -> Result<usize, fmt::Error> {
        let body = plainly(self.text.strip_suffix('\n').unwrap_or(&self.text));
        let (mut bytes, mut is_cut) = (0, self.is_cut);
        for letter in body.chars() {
            let is_harmful = is_harmful(letter);
            let len = if is_harmful { letter.escape_default().len() } else { letter.len_utf8() };
            // Before it is written, so that no character is cut in the middle.
            if len > self.bytes_max - bytes {
                is_cut = true;
                break;
            }
            if is_harmful {
                write!(writer, "{}", letter.escape_default())?;
            } else {
                writer.write_char(letter)?;
            }
            bytes += len;
        }
        let cut = if is_cut { " (cut)" } else { "" };
        writeln!(writer, "{cut}{}", self.remark)?;
        Ok(bytes + cut.len() + self.remark.len() + 1)
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes_max - self.text.len();
        // If only the formatter's own line break does not fit, nothing is lost.
        self.is_cut |= text.len() > room && text != "\n";
        self.text.push_str(text.get(..text.floor_char_boundary(room)).unwrap_or_default());
        Ok(())
    }
}

/// Whether this is a control character, a line separator, or changes the direction of the text.
fn is_harmful(letter: char) -> bool {
    let turns = matches!(letter, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || letter.is_control()
}

#[cfg(test)]
mod tests;
