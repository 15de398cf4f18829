//! One path: who holds it, from where it came and why, and who attests it.

use super::parts::Column::Text;
use super::parts::{Kind, ago, badge, nars, table};
use super::{DashboardSource, requests};
use crate::describe::describe;
use crate::status::text::{bytes, duration};
use crate::status::{WhyReport, WouldAnswer};
use maud::{Markup, html};

/// Requests of the path that are shown.
const REQUESTS_MAX: usize = 20;

pub(super) async fn page<S: DashboardSource>(source: &S, path: &str, base: &str) -> anyhow::Result<Markup> {
    let why = source.read_why(path.to_owned()).await?;
    let asked = requests::of_path(source, path, REQUESTS_MAX)?;
    let whole = asked.iter().map(crate::status::log::NarEntry::path).find(|path| path.contains('-'));
    let verdict = source.read_verdict(whole.unwrap_or_else(|| path.to_owned())).await;
    let answer = match why.answer {
        WouldAnswer::OwnStore => "It is in our own store.",
        WouldAnswer::Remembered => "It is remembered who has it: Nix gets its narinfo at once.",
        WouldAnswer::AskCandidates => "Those who may have it would be asked.",
        WouldAnswer::Absent => "Nobody is known to have it: Nix would be told 404 at once.",
    };
    Ok(html! {
        section aria-labelledby="now" {
            h2 #now { "If Nix asked now" }
            p { (answer) }
            @if let Some(not_given) = &why.own_store.not_given { p.alarm { "Our own copy is not given to Nix: " (not_given) } }
            @if why.own_store.held {
                p {
                    @if why.own_store.advertised { "Other machines may have our copy." }
                    @else { "Other machines may not have our copy: " (why.own_store.reason.as_deref().unwrap_or("no reason given")) }
                }
            }
            @if let Some(remembered) = &why.remembered {
                p { "Held by " strong { (remembered.holders.join(", ")) } ", as answered " (duration(remembered.age_s)) " ago"
                    @if let Some(size) = remembered.nar_size { ", " (bytes(size)) }
                    "." }
            }
        }
        section aria-labelledby="asked" {
            h2 #asked { "Requests for it" }
            @if asked.is_empty() { p.empty { "None since the daemon started." } }
            @else { (nars("NARs of this path that Nix asked for", &asked, base)) }
        }
        section aria-labelledby="decided" {
            h2 #decided { "What was decided" }
            @if why.decisions.is_empty() { p.empty { "Nothing on record." } }
            @else {
                ol.decisions {
                    @for decision in &why.decisions {
                        li { span.when { (ago(decision.at_unix_ms)) } " " (why.named(&decision.sentence)) }
                    }
                }
            }
        }
        section aria-labelledby="attested" {
            h2 #attested { "Who attests it" }
            @match verdict {
                Ok(sentences) if sentences.is_empty() => p.empty { "Nobody." },
                Ok(sentences) => ul { @for sentence in &sentences { li { (sentence) } } },
                Err(why) => p.empty { (describe(&why)) },
            }
        }
        (candidates(&why))
    })
}

fn candidates(why: &WhyReport) -> Markup {
    // The others say nothing about this path.
    let shown = why.peers.iter().chain(&why.upstreams).filter(|it| it.would_ask).take(super::ROWS);
    let others = why.peers.iter().chain(&why.upstreams).filter(|it| !it.would_ask).count();
    let caption = format!("In the order of asking; {others} others would not be asked");
    let rows = html! {
        @for candidate in shown {
            tr {
                th scope="row" { span.name { (candidate.name) } }
                td { (badge("would be asked", Kind::Good)) }
                td { (candidate.reason) }
            }
        }
    };
    html! {
        section aria-labelledby="candidates" {
            h2 #candidates { "Who may have it" }
            (table("Who may have it", &caption, &[Text("Source"), Text("Asked"), Text("Why")], &rows))
        }
    }
}
