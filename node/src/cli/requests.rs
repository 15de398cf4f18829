//! `narmesh log`.

use super::{client, emit};
use crate::control::{ControlReply, ControlRequest};
use crate::status::log::{LOG_ENTRIES_MAX, LogKind, LogOutcome, LogQuery, LogReport};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often `--follow` asks for what is new.
const FOLLOW: Duration = Duration::from_millis(500);

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Only this path: a store path, its base name, or its hash part
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Only what this peer or upstream cache had a part in: its name or peer id
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
    /// Only what ended like this
    #[arg(long)]
    outcome: Option<LogOutcome>,
    /// Only NARs, or only narinfos
    #[arg(long)]
    kind: Option<LogKind>,
    /// Only the last seconds (90), minutes (10m), hours (2h) or days (1d)
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    since: Option<Duration>,
    /// At most so many of the latest
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=LOG_ENTRIES_MAX as u64))]
    last: u64,
    /// Also the steps: who was asked and what they said, and where each NAR was begun and broke off
    #[arg(long)]
    steps: bool,
    /// Go on with what comes, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// Print JSON for programs, one object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn log(config: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    let since = arguments.since.and_then(|since| SystemTime::now().checked_sub(since));
    let since = since.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let mut query = LogQuery {
        path: arguments.path.clone(),
        peer: arguments.peer.clone(),
        outcome: arguments.outcome,
        kind: arguments.kind,
        since_unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        after: None,
        most: usize::try_from(arguments.last).unwrap_or(LOG_ENTRIES_MAX),
        steps: arguments.steps,
    };
    loop {
        let ControlReply::Log(report) = client::ask(config, &ControlRequest::Log(query.clone()))? else {
            return Err(client::mismatched());
        };
        if report.entries.is_empty() && query.after.is_none() && !arguments.json && !arguments.follow {
            let forgotten = if report.forgotten { "; what is older was forgotten" } else { "" };
            emit(&format!("nothing on record{forgotten}\n"))?;
        }
        emit(&render(&report, arguments.json)?)?;
        if !arguments.follow {
            return Ok(());
        }
        // From where this report ended, so that nothing is shown twice or left out.
        (query.after, query.most) = (Some(report.place), LOG_ENTRIES_MAX);
        thread::sleep(FOLLOW);
    }
}

fn render(report: &LogReport, json: bool) -> anyhow::Result<String> {
    if !json {
        return Ok(report.text());
    }
    let mut lines = String::new();
    for entry in &report.entries {
        lines += &(serde_json::to_string(entry)? + "\n");
    }
    Ok(lines)
}

/// A time as `90`, `90s`, `10m`, `2h` or `1d`.
fn parse_span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time; accepted: 90 or 90s, 10m, 2h, 1d");
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h', 'd']) {
        Some(number) => (number, text.get(number.len()..).unwrap_or_default()),
        None => (text, "s"),
    };
    let seconds: u64 = match unit {
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => 1,
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_or_have_a_unit() {
        let seconds = |text| parse_span(text).map(|span| span.as_secs());
        assert_eq!(["90", "90s", "10m", "2h", "1d"].map(seconds), [90, 90, 600, 7_200, 86_400].map(Ok));
        for wrong in ["", "m", "-1", "1w", "1.5h", "99999999999999999999", "18446744073709551615d"] {
            assert!(parse_span(wrong).is_err_and(|why| why.contains("accepted")), "{wrong}");
        }
    }
}
