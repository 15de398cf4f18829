//! The peers, as the daemon sees them: who is not connected and why, who is reached the long way, who runs something else.

use super::Facts;
use super::report::Look;
use crate::cli::findings::{Finding, Mender};
use crate::status::{PeerStatus, Status};
use narmesh_mesh::{DialFailure, Way};

/// Peers that are named one by one; a mesh may have a thousand.
const NAMED_MAX: usize = 10;
/// Fewer questions than this say nothing about a filter (a guess, not measured).
const ASKED_MIN: u64 = 50;
/// A daemon that has just been started has not dialled all its peers yet, seconds.
const SETTLED_S: u64 = 10;

pub(super) fn look(facts: &Facts, look: &mut Look) {
    let Some(status) = facts.status() else {
        return look.unseen("who is connected: the daemon does not answer");
    };
    // After a start peers are still being dialled, so nobody is missed yet.
    if status.uptime_s < SETTLED_S {
        look.unseen(format!("who stays away: the daemon runs for {} s only", status.uptime_s));
    } else {
        look_at_absent(status, &facts.mender, look);
    }
    look_at_ways(&status.peers, &facts.mender, look);
    for peer in status.peers.iter().take(NAMED_MAX) {
        look_at_peer(status, peer, &facts.mender, look);
    }
}

fn look_at_absent(status: &Status, mender: &Mender, look: &mut Look) {
    let absent: Vec<_> = status.peers.iter().filter(|peer| !peer.stats.connected).collect();
    if absent.is_empty() {
        return;
    }
    // Then the cause is most likely here, and is told once and not for each.
    let is_nobody_there = absent.len() == status.peers.len();
    if is_nobody_there {
        look.found(
            Finding::warning(format!(
                "none of {} peers is connected: nothing is shared until one is",
                status.peers.len()
            ))
            .mended_by(mender.narmesh("check-config --probe")),
        );
    }
    for peer in absent.iter().take(NAMED_MAX) {
        look.found(describe_absent(peer, is_nobody_there, mender));
    }
    if absent.len() > NAMED_MAX {
        let more = Finding::note(format!("{} more peers are not connected", absent.len() - NAMED_MAX));
        look.found(more.mended_by(format!("{} # names them", mender.narmesh("status"))));
    }
}

/// A machine that is off is nothing unusual; that nobody is there is.
fn describe_absent(peer: &PeerStatus, is_nobody_there: bool, mender: &Mender) -> Finding {
    let (why, mends) = explain(peer, mender);
    let said = format!("{:?} is not connected: {why}", peer.name);
    let finding = if is_nobody_there { Finding::warning(said) } else { Finding::note(said) };
    mends.into_iter().fold(finding, Finding::mended_by)
}

/// Why there is no connection, and what to do about it, here or there.
fn explain(peer: &PeerStatus, mender: &Mender) -> (String, Vec<String>) {
    let there = |command: &str| format!("on {}: {command}", peer.name);
    let check = mender.narmesh("check-config --probe");
    let Some(why) = peer.stats.why.as_deref() else {
        let what = match peer.stats.addresses.is_empty() {
            true => "no address of it is known, and it has not dialled this machine",
            false => "it has not been dialled yet",
        };
        let address = "addresses = [\"/ip4/ADDRESS/tcp/7280\"] in its [[peer]]";
        return (what.to_owned(), vec![mender.edit(address), there("sudo narmesh doctor")]);
    };
    let mends = match peer.stats.why_kind {
        Some(DialFailure::AnotherPeer) => {
            vec![there("narmesh id"), mender.edit("the peer_id that this prints, in its [[peer]]")]
        }
        Some(DialFailure::Refused) => vec![there("sudo systemctl start narmesh"), there("sudo narmesh doctor")],
        Some(DialFailure::TimedOut | DialFailure::Unreachable) => {
            vec![there("sudo narmesh doctor # its firewall, its address"), check]
        }
        Some(DialFailure::Unresolved) => vec![mender.edit("an address that leads there, in its [[peer]]"), check],
        Some(DialFailure::Closed) => vec![
            there("a [[peer]] with what `narmesh id` prints here, and narmesh reload, if it has none of this machine"),
            check,
        ],
        Some(DialFailure::Other) | None => vec![check],
    };
    (why.to_owned(), mends)
}

/// All peers over a relay, though some should be reached directly.
fn look_at_ways(peers: &[PeerStatus], mender: &Mender, look: &mut Look) {
    let connected: Vec<_> = peers.iter().filter(|peer| peer.stats.connected).collect();
    let relayed: Vec<_> = connected.iter().filter(|peer| peer.stats.way == Some(Way::Relayed)).collect();
    if relayed.is_empty() {
        return;
    }
    // The relay itself is reached directly, so it is not counted.
    let is_relay = |peer: &&&PeerStatus| relayed.iter().any(|other| other.relay_name.as_ref() == Some(&peer.name));
    let relays = connected.iter().filter(is_relay).count();
    let is_everybody = relayed.len() + relays == connected.len() && relayed.len() > 1;
    let finding = |text: String| if is_everybody { Finding::warning(text) } else { Finding::note(text) };
    for peer in relayed.iter().take(NAMED_MAX) {
        let relay = peer.relay_name.as_deref().unwrap_or("a relay");
        let why = peer.stats.not_direct.as_deref().unwrap_or("its addresses have not been tried yet");
        look.found(
            finding(format!("{:?} is reached over {relay} only, at the rate of that line: {why}", peer.name))
                .mended_by(format!(
                    "on one of the two: forward TCP port 7280 of the router to it, and {}",
                    mender.edit("external_addresses = [\"/ip4/ADDRESS/tcp/7280\"] below [node]")
                )),
        );
    }
}

fn look_at_peer(status: &Status, peer: &PeerStatus, mender: &Mender, look: &mut Look) {
    let name = &peer.name;
    if let Some(theirs) = &peer.stats.store_dir_differs {
        let differs = Finding::warning(format!(
            "{name:?} has the store directory {theirs}, and this machine {}: nothing can be shared with it",
            status.store.dir
        ));
        look.found(
            differs.mended_by(mender.edit(&format!("no [[peer]] {name:?}, or another store_dir below [store]"))),
        );
    } else if peer.stats.connected && peer.summary.is_none() && status.uptime_s >= SETTLED_S {
        let silent = Finding::warning(format!(
            "{name:?} is connected and has told nothing of what it has: it does not have this machine on its allowlist, or \
             has not been reloaded"
        ));
        look.found(silent.mended_by(mender.narmesh("check-config --probe")));
    }
    look_at_misleading(peer, look);
    if let Some(left_s) = peer.set_aside_s {
        look.found(Finding::warning(format!(
            "{name:?} is asked nothing for {left_s} s more: {}",
            peer.stats.last_misdeed.as_deref().unwrap_or("it misbehaved")
        )));
    }
    if let Some(software) = peer.stats.software.as_ref().filter(|software| **software != status.software) {
        look.found(Finding::note(format!("{name:?} runs {software}, and this machine {}", status.software)));
    }
}

/// Some false hits are filters at work; more of them than hits are not.
fn look_at_misleading(peer: &PeerStatus, look: &mut Look) {
    let name = &peer.name;
    let (asked, false_hits) = (peer.stats.asked, peer.stats.false_hits);
    if asked >= ASKED_MIN && false_hits > asked / 2 {
        look.found(Finding::warning(format!(
            "{name:?} was asked for {asked} paths, and had {false_hits} of them not although its filter promised them: its \
             summary is out of date, or it lies"
        )));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::findings::Severity;
    use narmesh_mesh::PeerStats;

    fn peer(name: &str, stats: PeerStats) -> PeerStatus {
        PeerStatus { name: name.to_owned(), stats, ..PeerStatus::default() }
    }

    #[test]
    fn each_reason_has_a_command_of_its_own() {
        let mend = |kind: Option<DialFailure>| {
            let why = kind.map(|_| "as it was said".to_owned());
            let stats = PeerStats { why, why_kind: kind, ..PeerStats::default() };
            describe_absent(&peer("b", stats), false, &Mender::plain()).mend.join("; ")
        };
        for (kind, words) in [
            (Some(DialFailure::Refused), "on b: sudo systemctl start narmesh"),
            (Some(DialFailure::TimedOut), "firewall"),
            (Some(DialFailure::Unreachable), "firewall"),
            (Some(DialFailure::Unresolved), "an address that leads there"),
            (Some(DialFailure::AnotherPeer), "on b: narmesh id"),
            (Some(DialFailure::Closed), "narmesh id"),
            (Some(DialFailure::Other), "check-config --probe"),
            (None, "addresses = "),
        ] {
            assert!(mend(kind).contains(words), "{kind:?}: {}", mend(kind));
        }
    }

    #[test]
    fn kinds_of_a_newer_daemon_are_taken() {
        let read = |kind: &str| serde_json::from_value::<DialFailure>(kind.into()).unwrap();
        assert_eq!((read("timed_out"), read("of_tomorrow")), (DialFailure::TimedOut, DialFailure::Other));
    }

    #[test]
    fn filter_that_mostly_promises_too_much_is_a_warning() {
        let found = |asked, false_hits| {
            let stats = PeerStats { asked, false_hits, ..PeerStats::default() };
            let mut look = Look::at("peers");
            look_at_misleading(&peer("b", stats), &mut look);
            look.findings().len()
        };
        assert_eq!((found(100, 51), found(100, 50), found(10, 10)), (1, 0, 0));
    }

    #[test]
    fn long_way_to_everybody_is_a_warning_and_to_one_a_note() {
        let direct = || PeerStats { connected: true, way: Some(Way::Direct), ..PeerStats::default() };
        let relayed = |name: &str| PeerStatus {
            relay_name: Some("relay".to_owned()),
            ..peer(
                name,
                PeerStats {
                    connected: true,
                    way: Some(Way::Relayed),
                    not_direct: Some("Timeout".to_owned()),
                    ..PeerStats::default()
                },
            )
        };
        let severity = |peers: Vec<PeerStatus>| {
            let mut look = Look::at("peers");
            look_at_ways(&peers, &Mender::plain(), &mut look);
            look.findings().iter().map(|finding| finding.severity).collect::<Vec<_>>()
        };
        assert_eq!(severity(vec![peer("relay", direct()), relayed("a"), relayed("b")]), [Severity::Warning; 2]);
        assert_eq!(severity(vec![peer("relay", direct()), peer("c", direct()), relayed("a")]), [Severity::Note]);
        assert_eq!(severity(vec![peer("c", direct())]), []);
    }
}
