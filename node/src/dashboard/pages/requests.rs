//! The NARs that Nix asked for, the newest first.

use super::parts::{nars, pager};
use super::{DashboardSource, ROWS, Search};
use crate::status::log::{LogEntry, LogKind, LogOutcome, LogQuery, NarEntry};
use clap::ValueEnum as _;
use maud::{Markup, html};

/// How a NAR can have ended.
const OUTCOMES: [LogOutcome; 6] = [
    LogOutcome::Running,
    LogOutcome::Delivered,
    LogOutcome::Gone,
    LogOutcome::NotNow,
    LogOutcome::CutShort,
    LogOutcome::Left,
];

/// The latest NARs, the newest first.
pub(super) fn latest<S: DashboardSource>(source: &S, most: usize) -> anyhow::Result<Vec<NarEntry>> {
    read(source, LogQuery { most, kind: Some(LogKind::Nar), ..LogQuery::default() })
}

/// The NARs of one path, the newest first.
pub(super) fn of_path<S: DashboardSource>(source: &S, path: &str, most: usize) -> anyhow::Result<Vec<NarEntry>> {
    let path = Some(path.to_owned());
    read(source, LogQuery { path, most, kind: Some(LogKind::Nar), ..LogQuery::default() })
}

fn read<S: DashboardSource>(source: &S, query: LogQuery) -> anyhow::Result<Vec<NarEntry>> {
    let nar = |entry| match entry {
        LogEntry::Nar(nar) => Some(nar),
        LogEntry::Lookup(_) => None,
    };
    Ok(source.read_log(&query)?.entries.into_iter().rev().filter_map(nar).collect())
}

pub(super) fn page<S: DashboardSource>(source: &S, search: &Search, base: &str) -> anyhow::Result<Markup> {
    let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let from = search.page * ROWS;
    let query = LogQuery {
        path: given(&search.text),
        peer: given(&search.source),
        outcome: search.outcome,
        // One more shows whether there is a next page.
        most: from + ROWS + 1,
        kind: Some(LogKind::Nar),
        ..LogQuery::default()
    };
    let found = read(source, query);
    let name =
        |outcome: LogOutcome| outcome.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    Ok(html! {
        form.search method="get" action={ (base) "requests" } role="search" {
            label for="q" { "Path" }
            input #q type="search" name="q" value=(search.text) placeholder="store path or hash";
            label for="source" { "From" }
            input #source type="search" name="source" value=(search.source) placeholder="machine or cache";
            label for="outcome" { "Result" }
            select #outcome name="outcome" {
                option value="" { "all" }
                @for outcome in OUTCOMES {
                    option value=(name(outcome)) selected[search.outcome == Some(outcome)] { (outcome.word()) }
                }
            }
            button type="submit" { "Show" }
        }
        @match found {
            Err(why) => p.alarm role="alert" { (crate::describe::describe(&why)) },
            Ok(found) => {
                @if found.len() <= from {
                    p.empty { "No such request since the daemon started." }
                } @else {
                    @let shown = found.get(from..found.len().min(from + ROWS)).unwrap_or_default();
                    (nars("NARs that Nix asked for, the newest first", shown, base))
                }
                (pager(search, "requests", base, found.len() > from + ROWS))
            }
        }
    })
}
