//! What several pages are made of.

use self::Column::{Number, Text, Unseen};
use super::Search;
use crate::status::log::{LogOutcome, NarEntry};
use crate::status::text::{bytes, duration};
use maud::{Markup, html};
use std::time::{SystemTime, UNIX_EPOCH};

/// A figure with what it means.
pub(super) fn figure(label: &str, value: &str, more: &str) -> Markup {
    html! {
        div.figure {
            dt { (label) }
            dd { span.value { (value) } @if !more.is_empty() { span.more { (more) } } }
        }
    }
}

/// A word about how something is; the word alone says it, the colour repeats it.
pub(super) fn badge(word: &str, kind: Kind) -> Markup {
    let class = match kind {
        Kind::Good => "badge good",
        Kind::Bad => "badge bad",
        Kind::Busy => "badge busy",
        Kind::Plain => "badge",
    };
    html! { span class=(class) { (word) } }
}

/// What a badge says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Good,
    Bad,
    Busy,
    Plain,
}

pub(super) fn outcome(outcome: LogOutcome) -> Markup {
    let kind = match outcome {
        LogOutcome::Delivered | LogOutcome::Found => Kind::Good,
        LogOutcome::CutShort | LogOutcome::NotNow | LogOutcome::Refused => Kind::Bad,
        LogOutcome::Running => Kind::Busy,
        LogOutcome::Gone | LogOutcome::NotFound | LogOutcome::Left => Kind::Plain,
    };
    badge(outcome.word(), kind)
}

/// The path of a NAR, as a link to its page: the name first, because the hash says nothing to people.
pub(super) fn path_link(nar: &NarEntry, base: &str) -> Markup {
    html! {
        a.path href={ (base) "path/" (nar.path()) } {
            @match &nar.name {
                Some(name) => { span.name { (name) } " " span.hash { (short(&nar.hash_part)) } }
                None => span.hash { (nar.hash_part) }
            }
        }
    }
}

fn short(hash_part: &str) -> &str {
    hash_part.get(..8).unwrap_or(hash_part)
}

/// How long ago that was.
pub(super) fn ago(unix_ms: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let past_ms = u64::try_from(now).unwrap_or(u64::MAX).saturating_sub(unix_ms);
    format!("{} ago", duration(past_ms / 1_000))
}

pub(super) fn rate(bytes_s: Option<u64>) -> String {
    bytes_s.map_or_else(|| "–".to_owned(), |rate| format!("{}/s", bytes(rate)))
}

/// The head of a column.
#[derive(Clone, Copy, Debug)]
pub(super) enum Column {
    Text(&'static str),
    /// Its cells are numbers, and stand at the right.
    Number(&'static str),
    /// What it shows needs no head for those who see it.
    Unseen(&'static str),
}

/// A table in a region of its own, which a narrow screen scrolls by itself; `label` names the region.
pub(super) fn table(label: &str, caption: &str, columns: &[Column], rows: &Markup) -> Markup {
    html! {
        div.wide role="region" aria-label=(label) tabindex="0" {
            table {
                caption { (caption) }
                thead { tr { @for column in columns {
                    @match column {
                        Text(head) => th scope="col" { (head) },
                        Number(head) => th.number scope="col" { (head) },
                        Unseen(head) => th scope="col" { span.hidden { (head) } },
                    }
                } } }
                tbody { (rows) }
            }
        }
    }
}

/// A table of NARs.
pub(super) fn nars(caption: &str, nars: &[NarEntry], base: &str) -> Markup {
    let columns = [Text("Path"), Text("Result"), Number("Size"), Text("From"), Number("Rate"), Number("When")];
    table(caption, caption, &columns, &html! { @for nar in nars { (nar_row(nar, base)) } })
}

fn nar_row(nar: &NarEntry, base: &str) -> Markup {
    let switches = nar.switches();
    let is_running = nar.outcome == LogOutcome::Running;
    let moved = is_running || nar.arrived_bytes() > 0;
    html! {
        tr {
            th scope="row" { (path_link(nar, base)) }
            td { (outcome(nar.outcome)) }
            td.number {
                @if is_running {
                    progress max=(nar.wanted_bytes().max(1)) value=(nar.arrived_bytes()) aria-label="bytes that are here" {}
                    (bytes(nar.arrived_bytes())) " of "
                }
                (bytes(nar.wanted_bytes()))
            }
            td.from {
                (nar.from())
                @if !switches.is_empty() { div.note { (switches) } }
            }
            td.number { @if moved { (rate(Some(nar.rate()))) } @else { "–" } }
            td.number { (ago(nar.started_unix_ms)) }
        }
    }
}

/// Links to the page before and after this one.
pub(super) fn pager(search: &Search, address: &str, base: &str, has_more: bool) -> Markup {
    let page = search.page;
    let link = |page: usize| format!("{base}{address}{}", search.query(page));
    html! {
        @if page > 0 || has_more {
            nav.pager aria-label="Pages of this table" {
                @if page > 0 { a rel="prev" href=(link(page - 1)) { "← Before" } }
                span { "Page " (page + 1) }
                @if has_more && page + 1 < super::PAGES_MAX { a rel="next" href=(link(page + 1)) { "Next →" } }
            }
        }
    }
}
