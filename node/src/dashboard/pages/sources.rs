//! The upstream caches and their health, and what came from each source.

use super::ROWS;
use super::parts::Column::{Number, Text, Unseen};
use super::parts::{Kind, badge, rate, table};
use crate::status::given::SourceGiven;
use crate::status::text::{bytes, duration};
use crate::status::{Status, UpstreamStatus};
use maud::{Markup, html};

pub(super) fn page(status: &Status) -> Markup {
    html! {
        section aria-labelledby="caches" {
            h2 #caches { "Upstream caches" }
            @if status.upstreams.is_empty() {
                p.empty { "None: there is no " code { "[[upstream]]" } " in the configuration." }
            } @else { (caches(&status.upstreams)) }
        }
        section aria-labelledby="week" {
            h2 #week { "What came this week" }
            (given("Bytes that Nix got in the last seven days, over restarts", &status.given.week))
        }
        section aria-labelledby="start" {
            h2 #start { "What came since the start" }
            (given("Bytes that Nix got since the daemon started", &status.given.since_start))
        }
    }
}

fn caches(upstreams: &[UpstreamStatus]) -> Markup {
    let columns = [
        Text("Cache"),
        Text("State"),
        Number("Tier"),
        Number("Answers"),
        Number("Answers in"),
        Number("Packed bytes"),
        Text("Last failure"),
    ];
    let rows = html! {
        @for cache in upstreams.iter().take(ROWS) {
            tr {
                th scope="row" { span.name { (cache.name) } div.note { (cache.url) } }
                td {
                    (badge(&cache.state, if cache.state == "up" { Kind::Good } else { Kind::Bad }))
                    @if let Some(left) = cache.down_s { div.note { "tried again in " (duration(left)) } }
                }
                td.number { (cache.tier) }
                td.number { (cache.answers) }
                td.number { @match cache.latency_ms { Some(latency) => { (format!("{latency:.1} ms")) } None => "–" } }
                td.number { (bytes(cache.bytes_in)) }
                td { @if let (Some(failure), Some(age)) = (&cache.last_failure, cache.last_failure_age_s) {
                    (failure) div.note { (duration(age)) " ago" }
                } @else { "–" } }
            }
        }
    };
    table("Upstream caches", "Lower tiers are asked first", &columns, &rows)
}

fn given(caption: &str, sources: &[SourceGiven]) -> Markup {
    let mut sources: Vec<_> =
        sources.iter().filter(|source| source.given.received_bytes > 0 || source.given.nars > 0).collect();
    sources.sort_by_key(|source| std::cmp::Reverse(source.given.bytes));
    let most = sources.first().map_or(0, |most| most.given.bytes).max(1);
    let columns =
        [Text("Source"), Text("Kind"), Number("NARs"), Number("Bytes"), Unseen("Share"), Number("Rate of one NAR")];
    let rows = html! {
        @for source in sources.iter().take(ROWS) {
            tr {
                th scope="row" { span.name { (source.name) } }
                td { @if source.is_peer { "machine" } @else { "cache" } }
                td.number { (source.given.nars) }
                td.number { (bytes(source.given.bytes)) }
                td.bar { meter min="0" max=(most) value=(source.given.bytes) { (bytes(source.given.bytes)) } }
                td.number { (rate(source.given.rate())) }
            }
        }
    };
    html! {
        @if sources.is_empty() { p.empty { "Nothing yet." } }
        @else {
            (table(caption, caption, &columns, &rows))
            @if sources.len() > ROWS { p.note { "and " (sources.len() - ROWS) " more that gave less" } }
        }
    }
}
