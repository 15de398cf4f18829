//! The peers: how each is reached, how quick it is, and how it stands.

use super::parts::Column::{self, Number, Text};
use super::parts::{Kind, badge, pager, rate, table};
use super::{ROWS, Search};
use crate::status::text::{bytes, duration};
use crate::status::{PeerStatus, Status};
use maud::{Markup, html};
use narmesh_mesh::Way;

const CAPTION: &str = "The machines of the allowlist; those that are not connected come first";
const COLUMNS: [Column; 9] = [
    Text("Machine"),
    Text("State"),
    Number("Answers in"),
    Number("Rate"),
    Number("From it"),
    Number("To it"),
    Number("Found"),
    Number("Paths"),
    Text("Remarks"),
];

pub(super) fn page(status: &Status, search: &Search, base: &str) -> Markup {
    let wanted = search.text.to_lowercase();
    let fits = |peer: &&PeerStatus| {
        wanted.is_empty() || peer.name.to_lowercase().contains(&wanted) || peer.peer_id.to_lowercase().contains(&wanted)
    };
    let mut peers: Vec<_> = status.peers.iter().filter(fits).collect();
    // What needs a look comes first.
    peers.sort_by_key(|peer| (peer.set_aside_s.is_none(), peer.stats.connected));
    let from = search.page * ROWS;
    let shown = peers.iter().skip(from).take(ROWS);
    html! {
        form.search method="get" action={ (base) "machines" } role="search" {
            label for="q" { "Name or peer id" }
            input #q type="search" name="q" value=(search.text);
            button type="submit" { "Show" }
        }
        @if status.peers.is_empty() {
            p.empty { "There are no other machines yet: join a mesh with " code { "narmesh join" } ", or add a " code { "[[peer]]" } "." }
        } @else {
            p.count { (peers.len()) " of " (status.peers.len()) " machines" }
            (table("Machines", CAPTION, &COLUMNS, &html! { @for peer in shown { (row(peer)) } }))
            (pager(search, "machines", base, peers.len() > from + ROWS))
        }
    }
}

fn row(peer: &PeerStatus) -> Markup {
    let stats = &peer.stats;
    let way = match stats.way {
        Some(Way::Direct) => "directly",
        Some(Way::Met) => "through NATs",
        Some(Way::Relayed) => "over a relay",
        None => "",
    };
    let remarks = peer.remarks();
    html! {
        tr {
            th scope="row" { span.name { (peer.name) } div.note.mono title=(peer.peer_id) { (tail(&peer.peer_id)) } }
            td {
                @match (peer.set_aside_s, stats.connected) {
                    (Some(left), _) => { (badge("set aside", Kind::Bad)) div.note { "for " (duration(left)) } }
                    (None, true) => { (badge("connected", Kind::Good)) div.note { (way) } }
                    (None, false) => (badge("not connected", Kind::Plain)),
                }
            }
            td.number { @match peer.rtt_ms { Some(rtt) => { (format!("{rtt:.1} ms")) } None => "–" } }
            td.number { (rate(stats.rate_bytes_s)) }
            td.number { (bytes(stats.bytes_in)) }
            td.number { (bytes(stats.bytes_out)) }
            td.number { (stats.hits) " of " (stats.asked) }
            td.number {
                @match &peer.summary {
                    Some(summary) => { (summary.paths) div.note { (duration(summary.age_s)) " old" } }
                    None => "–",
                }
            }
            td { @for remark in &remarks { div.note { (remark) } } }
        }
    }
}

/// The end of a peer id, by which people tell them apart: all begin alike.
fn tail(peer_id: &str) -> String {
    let from = peer_id.char_indices().rev().nth(9).map_or(0, |(at, _)| at);
    format!("…{}", peer_id.get(from..).unwrap_or_default())
}
