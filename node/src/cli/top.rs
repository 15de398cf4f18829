//! `narmesh top`: what is on its way, live in the terminal.

use super::screen::Screen;
use super::{client, emit};
use crate::control::{ControlReply, ControlRequest};
use crate::status::Status;
use crate::status::given::sum;
use crate::status::log::{LogEntry, LogKind, LogOutcome, LogQuery, NarEntry};
use crate::status::text::{bytes, duration, escaped};
use crate::status::warnings::find_warnings;
use crate::styles::{Mark, wants_colours};
use console::Term;
use std::path::Path;
use std::time::Duration;

/// How often the screen is drawn.
const EVERY: Duration = Duration::from_secs(1);
/// NARs that are asked for: more than any screen has lines.
const NARS_MAX: usize = 200;
/// Lines and columns of what is printed where there is no terminal.
const PRINTED: (usize, usize) = (60, 160);
/// Characters of a bar.
const BAR: u64 = 16;

pub(super) fn top(config: &Path) -> anyhow::Result<()> {
    let seen = Seen::read(config)?;
    let term = Term::stdout();
    if !term.is_term() {
        let lines = seen.lines(PRINTED, false).into_iter().map(|line| line.trim_end().to_owned() + "\n");
        return Ok(emit(&lines.collect::<String>())?);
    }
    let screen = Screen::open()?;
    let has_colours = wants_colours();
    let mut seen = Ok(seen);
    loop {
        let (lines, columns) = term.size();
        let size = (usize::from(lines), usize::from(columns));
        let shown = match &seen {
            Ok(seen) => seen.lines(size, has_colours),
            // The daemon may be starting again, and the terminal is restored only by the key that ends this.
            Err(error) => {
                vec![cut(&escaped(&format!("{error:#}")), size.1), "tried again each second; q ends".to_owned()]
            }
        };
        screen.draw(&shown)?;
        if screen.wait(EVERY) {
            return Ok(());
        }
        seen = Seen::read(config);
    }
}

/// What the daemon said.
struct Seen {
    status: Status,
    /// The newest first.
    nars: Vec<NarEntry>,
}

impl Seen {
    fn read(config: &Path) -> anyhow::Result<Self> {
        let ControlReply::Status(status) = client::ask(config, &ControlRequest::Status)? else {
            return Err(client::mismatched());
        };
        let query = LogQuery { most: NARS_MAX, kind: Some(LogKind::Nar), ..LogQuery::default() };
        let ControlReply::Log(log) = client::ask(config, &ControlRequest::Log(query))? else {
            return Err(client::mismatched());
        };
        let nars = log.entries.into_iter().rev().filter_map(|entry| match entry {
            LogEntry::Nar(nar) => Some(nar),
            LogEntry::Lookup(_) => None,
        });
        Ok(Self { status: *status, nars: nars.collect() })
    }

    /// What is shown on so many lines and columns.
    fn lines(&self, (lines_max, columns): (usize, usize), has_colours: bool) -> Vec<String> {
        let status = &self.status;
        let (week, start) = (&status.given.week, &status.given.since_start);
        let connected = status.peers.iter().filter(|peer| peer.stats.connected).count();
        let amount = |given: &[_]| {
            let from = |of_peers| {
                let sum = sum(given, of_peers);
                let rate = sum.rate().map_or_else(String::new, |rate| format!(" at {}/s", bytes(rate)));
                format!("{}{rate}", bytes(sum.bytes))
            };
            format!("{} from machines, {} from caches", from(true), from(false))
        };
        let heading = |text: &str| match has_colours {
            true => Mark::Heading.paint(text),
            false => text.to_owned(),
        };
        let is_running = |nar: &&NarEntry| nar.outcome == LogOutcome::Running;
        let mut lines = vec![
            heading(&cut(
                &format!(
                    "{}, up {}; {connected} of {} machines connected",
                    status.software,
                    duration(status.uptime_s),
                    status.peers.len()
                ),
                columns,
            )),
            cut(&format!("this week    {}", amount(week)), columns),
            cut(&format!("since start  {}", amount(start)), columns),
        ];
        let warnings = find_warnings(status);
        if !warnings.is_empty() {
            lines.extend([String::new(), heading("to look at")]);
            lines.extend(warnings.iter().take(5).map(|warning| cut(&escaped(&format!("  {}", warning.what)), columns)));
        }
        let running: Vec<_> = self.nars.iter().filter(is_running).collect();
        lines.extend([String::new(), heading(&format!("on its way: {}", running.len()))]);
        lines.extend(running.iter().map(|nar| cut(&running_line(nar), columns)));
        lines.extend([String::new(), heading("ended")]);
        let ended = self.nars.iter().filter(|nar| !is_running(nar));
        lines.extend(ended.map(|nar| cut(&ended_line(nar), columns)));
        if has_colours {
            lines.truncate(lines_max.saturating_sub(1));
            lines.push(Mark::Aside.paint("q ends"));
        }
        lines.truncate(lines_max);
        lines
    }
}

fn name(nar: &NarEntry) -> &str {
    nar.name.as_deref().unwrap_or(&nar.hash_part)
}

fn running_line(nar: &NarEntry) -> String {
    let (wanted, arrived) = (nar.wanted_bytes(), nar.arrived_bytes());
    let full = arrived.saturating_mul(BAR) / wanted.max(1);
    let bar: String = (0..BAR).map(|at| if at < full { '#' } else { '-' }).collect();
    let (size, rate) = (format!("{} of {}", bytes(arrived), bytes(wanted)), format!("{}/s", bytes(nar.rate())));
    escaped(&format!("  [{bar}] {size:>20}  {rate:>12}  {}  from {}", name(nar), nar.from()))
}

fn ended_line(nar: &NarEntry) -> String {
    let (size, rate) = (bytes(nar.wanted_bytes()), format!("{}/s", bytes(nar.rate())));
    let mut line = format!("  {:<9} {size:>10}  {rate:>12}  {}  from {}", nar.outcome.word(), name(nar), nar.from());
    let switches = nar.switches();
    if !switches.is_empty() {
        line += &format!("; {switches}");
    }
    escaped(&line)
}

/// The beginning of a line that fits into so many columns.
fn cut(line: &str, columns: usize) -> String {
    line.chars().take(columns).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::log::NarShare;
    use crate::status::text::tests::status;

    fn seen(nars: usize) -> Seen {
        let share = NarShare { source: "ho\u{1b}[31mlder".to_owned(), first_byte: 0, bytes: 5 };
        let nar = NarEntry {
            hash_part: "0".repeat(32),
            name: Some("lib-1.0".to_owned()),
            nar_size: 10,
            took_ms: 1_000,
            sources: vec![share],
            ..NarEntry::default()
        };
        let ended = NarEntry { outcome: LogOutcome::Delivered, ..nar.clone() };
        let nars = (0..nars).map(|number| if number == 0 { nar.clone() } else { ended.clone() });
        Seen { status: status(), nars: nars.collect() }
    }

    #[test]
    fn screen_is_never_larger_than_the_terminal_and_controlled_by_nobody() {
        for size in [(1, 1), (2, 10), (24, 80), (60, 160)] {
            let lines = seen(200).lines(size, false);
            assert!(lines.len() <= size.0 && lines.iter().all(|line| line.chars().count() <= size.1), "{size:?}");
            assert!(lines.iter().all(|line| !line.contains('\u{1b}')));
        }
        let text = seen(3).lines((60, 160), false).join("\n");
        assert!(text.contains("on its way: 1") && text.contains("[########--------]"), "{text}");
        assert!(text.contains("5 B of 10 B") && text.contains("from ho\\u{1b}[31mlder"), "{text}");
        let coloured = seen(0).lines((24, 80), true);
        assert!(coloured.last().is_some_and(|line| line.contains("q ends")));
    }
}
