//! Is it working?

use super::parts::{ago, figure, nars, path_link, rate};
use super::warnings;
use crate::status::Status;
use crate::status::given::{DayGiven, sum};
use crate::status::log::NarEntry;
use crate::status::text::{bytes, utc};
use maud::{Markup, html};

pub(super) fn page(status: &Status, latest: &[NarEntry], base: &str) -> Markup {
    let given = &status.given;
    let (week, start) = (&given.week, &given.since_start);
    let (mesh_week, caches_week) = (sum(week, true), sum(week, false));
    let (mesh, caches) = (sum(start, true), sum(start, false));
    let connected = status.peers.iter().filter(|peer| peer.stats.connected).count();
    let warnings = warnings::find(status);
    let asked = &status.requests;
    html! {
        section.verdict.good[warnings.is_empty()].bad[!warnings.is_empty()] aria-labelledby="working" {
            h2 #working { @if warnings.is_empty() { "It works" } @else { (warnings.len()) " to look at" } }
            p {
                @match &given.last {
                    Some(last) => {
                        "Last path: " (path_link(last, base)) ", " (bytes(last.wanted_bytes())) " from " strong { (last.from()) }
                        ", " (ago(last.started_unix_ms)) "."
                    }
                    None => "Nix has taken no path since the daemon started.",
                }
            }
            @if let Some(first) = warnings.first() {
                p { (first.what) " " a href={ (base) "warnings" } { "What to do" } }
            }
        }
        dl.figures {
            (figure("From machines this week", &bytes(mesh_week.bytes), &format!("{} NARs", mesh_week.nars)))
            (figure("From caches this week", &bytes(caches_week.bytes), &format!("{} NARs", caches_week.nars)))
            (figure("From machines since start", &bytes(mesh.bytes), &format!("{} NARs", mesh.nars)))
            (figure("Machines connected", &connected.to_string(), &format!("of {}", status.peers.len())))
            (figure("Rate of machines", &rate(mesh_week.rate()), "one NAR, this week"))
            (figure("Rate of caches", &rate(caches_week.rate()), "one NAR, this week"))
        }
        section aria-labelledby="week" {
            h2 #week { "This week" }
            (chart(&given.days))
        }
        section aria-labelledby="latest" {
            h2 #latest { "Latest requests" }
            @if latest.is_empty() {
                p.empty { "None since the daemon started." }
            } @else {
                (nars("The last NARs that Nix asked for", latest, base))
                p { a href={ (base) "requests" } { "All requests" } }
            }
        }
        section aria-labelledby="counts" {
            h2 #counts { "Since the start" }
            dl.pairs {
                div { dt { "Narinfos" } dd { (asked.narinfo) " asked, " (asked.narinfo_hits) " found, " (asked.narinfo_misses) " not found" } }
                div { dt { "NARs" } dd { (asked.nar) " asked, " (asked.nar_ok) " delivered, " (asked.nar_absent) " not found, " (asked.nar_aborted) " cut short" } }
                div { dt { "From caches" } dd { (bytes(caches.bytes)) " in " (caches.nars) " NARs" } }
                div { dt { "Given to other machines" } dd { (bytes(status.bytes.sent)) } }
                div { dt { "Advertised" } dd { (status.store.advertised_paths) " of " (status.store.valid_paths) " paths" } }
                @if let Some(quorum) = &status.quorum {
                    div { dt { "Quorum" } dd { (quorum.mode) ", " (quorum.attestations) " attestations, "
                        (quorum.paths.get("conflict").copied().unwrap_or(0)) " paths in conflict" } }
                }
            }
        }
    }
}

/// Two bars for each day. The same is in the table below, for those who do not see it.
fn chart(days: &[DayGiven]) -> Markup {
    const HEIGHT: u64 = 96;
    const STEP: u64 = 96;
    const BAR: u64 = 30;
    let most = days.iter().map(|day| day.from_peers.max(day.from_caches)).max().unwrap_or(0).max(1);
    let height = |count: u64| {
        // What is there at all is to be seen, however little it is beside the most.
        let part = u128::from(count) * u128::from(HEIGHT) / u128::from(most);
        u64::try_from(part).unwrap_or(HEIGHT).max(u64::from(count > 0))
    };
    let day_name = |day: u64| utc(day * 86_400).get(5..10).unwrap_or_default().to_owned();
    html! {
        figure.chart {
            svg viewBox={ "0 0 " (STEP * 7) " " (HEIGHT + 24) } role="img" aria-label="Bytes a day; the table says the same" {
                @for (at, day) in (0..).zip(days) {
                    @let (mesh, cache, x) = (height(day.from_peers), height(day.from_caches), at * STEP + 16);
                    rect.mesh x=(x) y=(HEIGHT - mesh) width=(BAR) height=(mesh) rx="1" {}
                    rect.cache x=(x + BAR + 2) y=(HEIGHT - cache) width=(BAR) height=(cache) rx="1" {}
                    text x=(x + BAR) y=(HEIGHT + 17) text-anchor="middle" { (day_name(day.day)) }
                }
                line x1="0" x2=(STEP * 7) y1=(HEIGHT) y2=(HEIGHT) {}
            }
            figcaption {
                span.key.mesh { "from machines" } span.key.cache { "from caches" }
                details {
                    summary { "As a table" }
                    table {
                        caption { "Bytes that Nix got on each day (UTC)" }
                        thead { tr { th scope="col" { "Day" } th.number scope="col" { "From machines" } th.number scope="col" { "From caches" } } }
                        tbody { @for day in days { tr {
                            th scope="row" { (day_name(day.day)) }
                            td.number { (bytes(day.from_peers)) }
                            td.number { (bytes(day.from_caches)) }
                        } } }
                    }
                }
            }
        }
    }
}
