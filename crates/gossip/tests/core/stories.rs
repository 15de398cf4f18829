//! Peers that trust each other: what is announced arrives, what is removed disappears, and nothing is lost for long.

use crate::net::{Net, config, part, parts, peer};
use narmesh_gossip::{Event, Input, PathChange, Persisted};
use narmesh_protocol::{AudienceDigest, Envelope, StoreDir};
use std::collections::BTreeSet;

/// Long enough for a publication, one hop of gossip and a pull.
pub(crate) const SOON_MS: u64 = 700;

pub(crate) fn nobody_is_blamed(net: &Net) {
    for (number, node) in &net.nodes {
        assert_eq!(node.misdeeds, [], "node {number} blames someone");
    }
}

#[test]
fn a_path_built_here_is_a_candidate_there() {
    let mut net = Net::full(2);
    assert!(!net.candidate(2, 1, 5));
    net.update(1, 0..10, 0..0);
    net.run(SOON_MS);
    assert!((0..10).all(|path| net.candidate(2, 1, path)));
    assert_eq!(net.view(2, 1).summary.unwrap().paths, 10);
    assert_eq!(net.node(1).core.publication().paths, 10);
    nobody_is_blamed(&net);
}

#[test]
fn the_first_change_after_a_quiet_time_waits_only_for_the_debounce() {
    let mut net = Net::full(2);
    net.run(10_000);
    net.update(1, 0..1, 0..0);
    net.run(99);
    assert!(!net.candidate(2, 1, 0));
    net.run(1 + 3 * 5);
    assert!(net.candidate(2, 1, 0), "100 ms, one hop of gossip, one round trip");
}

#[test]
fn additions_travel_as_deltas() {
    let mut net = Net::full(2);
    net.update(1, 0..2_000, 0..0);
    net.run(SOON_MS);
    net.clear();
    net.update(1, 2_000..2_003, 0..0);
    net.run(SOON_MS);
    let pulled = net.pulled(2);
    assert_eq!(pulled.len(), 1);
    let (owner, from, bytes, delta) = pulled[0];
    assert_eq!((owner, from, delta), (peer(1), peer(1), true));
    assert!(bytes < 3 * 11 * 4 + 64, "{bytes} bytes for three paths");
    assert!((0..2_003).all(|path| net.candidate(2, 1, path)));
}

#[test]
fn a_peer_that_missed_deltas_gets_one_merged_delta() {
    let mut net = Net::full(2);
    net.update(1, 0..500, 0..0);
    net.run(10_000);
    net.clear();
    net.gossip_lost = true;
    for step in 0..5 {
        net.update(1, 500 + step..501 + step, 0..0);
        net.run(600);
    }
    assert_eq!(net.node(1).published.len(), 5);
    net.gossip_lost = false;
    net.update(1, 600..601, 0..0);
    net.run(SOON_MS);
    let pulled = net.pulled(2);
    assert_eq!((pulled.len(), pulled[0].3), (1, true), "one delta: {pulled:?}");
    assert!((500..505).chain([600]).all(|path| net.candidate(2, 1, path)));
}

#[test]
fn a_delta_bigger_than_the_body_is_a_body() {
    let mut net = Net::full(2);
    net.update(1, 0..300, 0..0);
    net.run(SOON_MS);
    assert_eq!(net.pulled(2).last().map(|pulled| pulled.3), Some(false));
    assert!((0..300).all(|path| net.candidate(2, 1, path)));
}

#[test]
fn a_growing_store_takes_a_bigger_filter_in_a_new_epoch() {
    let mut net = Net::full(2);
    let (epoch, bits) = (net.view(2, 1).summary.unwrap().generation.epoch, net.view(2, 1).summary.unwrap().filter_bits);
    net.update(1, 0..5_000, 0..0);
    net.run(SOON_MS);
    let summary = net.view(2, 1).summary.unwrap();
    assert!(summary.filter_bits > bits && summary.generation.epoch > epoch, "{summary:?}");
    assert!((0..5_000).all(|path| net.candidate(2, 1, path)));
    let wrong = (10_000..30_000).filter(|path| net.candidate(2, 1, *path)).count();
    assert!(wrong < 200, "{wrong} false positives in 20,000, promised 0.6 %");
}

#[test]
fn a_removed_path_is_forgotten_within_its_bound() {
    let mut net = Net::full(3);
    net.update(1, 0..100, 0..0);
    net.run(10_000);
    net.update(1, 0..0, 40..60);
    net.run(900);
    assert!(net.candidate(2, 1, 50), "a removal waits a second for others");
    net.update(1, 0..0, 60..70);
    net.run(200);
    for asker in [2, 3] {
        assert!((40..70).all(|path| !net.candidate(asker, 1, path)));
        assert!((0..40).chain(70..100).all(|path| net.candidate(asker, 1, path)));
    }
    assert_eq!(net.node(1).core.publication().paths, 70);
    // The next removal comes too soon after a new epoch: it waits until five seconds after that.
    net.update(1, 0..0, 0..1);
    net.run(3_000);
    assert!(net.candidate(2, 1, 0));
    net.run(2_100);
    assert!(!net.candidate(2, 1, 0));
    nobody_is_blamed(&net);
}

/// Its contents may be others, and peers keep what they know of a path until its owner begins an epoch.
#[test]
fn a_path_that_came_back_or_was_registered_anew_begins_one_epoch() {
    let mut net = Net::full(2);
    net.update(1, 0..100, 0..0);
    net.run(10_000);
    for is_at_once in [false, true] {
        net.clear();
        let epoch = |net: &Net| net.node(1).core.publication().generation.unwrap().epoch;
        let before = epoch(&net);
        if is_at_once {
            net.update(1, 5..6, 5..6);
        } else {
            net.update(1, 0..0, 5..6);
            net.run(500);
            net.update(1, 5..6, 0..0);
        }
        net.run(10_000);
        assert_eq!(net.node(1).published.len(), 1);
        assert!(epoch(&net) > before);
        assert!(net.candidate(2, 1, 5));
    }
}

#[test]
fn a_relay_hands_bodies_to_their_audience() {
    // 1 and 3 trust each other, but only 2 is connected to both.
    let mut net = Net::with_trust(3, &[(1, 2), (2, 3), (1, 3)]);
    net.connect(1, 2);
    net.connect(2, 3);
    net.run(2_000);
    net.update(1, 0..10, 0..0);
    net.run(SOON_MS);
    assert!((0..10).all(|path| net.candidate(3, 1, path)));
    assert!(net.pulled(3).iter().any(|(owner, from, ..)| (*owner, *from) == (peer(1), peer(2))));
    net.update(1, 0..0, 0..5);
    net.run(6_000);
    assert!((0..5).all(|path| !net.candidate(3, 1, path)), "a removal too");
    nobody_is_blamed(&net);
}

#[test]
fn a_relay_hands_on_deltas() {
    // 1 - 2 - 3 - 4: peers that are not connected with the owner also get only a few bytes, through two relays.
    let mut net = Net::with_trust(4, &[(1, 2), (2, 3), (3, 4), (1, 3), (1, 4), (2, 4)]);
    (1..4).for_each(|number| net.connect(number, number + 1));
    net.run(2_000);
    net.update(1, 0..2_000, 0..0);
    net.run(SOON_MS);
    net.clear();
    net.update(1, 2_000..2_003, 0..0);
    net.run(SOON_MS);
    for asker in 2..=4 {
        let pulled = net.pulled(asker);
        assert!(pulled.iter().all(|(_, _, bytes, delta)| *delta && *bytes < 200), "{pulled:?}");
        assert!((0..2_003).all(|path| net.candidate(asker, 1, path)));
    }
    // A peer that was away gets several deltas as one, and a removal ends the chain.
    net.disconnect(3, 4);
    for step in 0..3 {
        net.update(1, 2_010 + step..2_011 + step, 0..0);
        net.run(700);
    }
    net.clear();
    net.connect(3, 4);
    net.run(SOON_MS);
    assert_eq!(net.pulled(4).iter().map(|pulled| pulled.3).collect::<Vec<_>>(), [true]);
    net.update(1, 0..0, 0..5);
    net.run(10_000);
    assert!((0..5).all(|path| !net.candidate(4, 1, path)) && net.candidate(4, 1, 2_012));
    nobody_is_blamed(&net);
}

#[test]
fn a_relay_hands_nothing_to_peers_outside_the_audience() {
    let mut net = Net::with_trust(3, &[(1, 2), (2, 3)]);
    net.connect(1, 2);
    net.connect(2, 3);
    net.update(1, 0..10, 0..0);
    net.run(100_000);
    assert!(net.candidate(2, 1, 3) && !net.candidate(3, 1, 3));
    assert!(net.node(3).core.peers().all(|view| view.peer != peer(1)));
    let newest = Envelope::open(net.node(1).published.last().unwrap()).unwrap();
    for (to, bytes) in &net.node(2).responses {
        let told = bytes.windows(newest.as_bytes().len()).any(|window| window == newest.as_bytes());
        assert!(!(told && *to == peer(3)), "2 told 3 of 1");
    }
    // 3 now trusts 1, but 1 does not trust 3: 3 still gets nothing.
    net.trust(3, &[(3, 2), (3, 1)]);
    net.update(1, 10..20, 0..0);
    net.run(100_000);
    assert!((0..20).all(|path| !net.candidate(3, 1, path)));
    assert!(net.candidate(2, 1, 15));
}

#[test]
fn only_a_valid_kept_audience_counts_after_a_restart() {
    let trust = [(1, 2), (2, 3), (2, 4), (1, 3)];
    let mut net = Net::with_trust(4, &trust);
    net.connect(1, 2);
    net.update(1, 0..10, 0..0);
    net.run(10_000);
    let admitted = |net: &Net| [1, 3, 4].map(|number| net.node(2).core.admits(&peer(1), &peer(number)));
    assert_eq!(admitted(&net), [true, true, false]);
    let kept = net.node(2).core.audience(&peer(1)).unwrap().to_vec();

    let restart = |net: &mut Net, audience: Vec<AudienceDigest>| {
        net.disconnect(1, 2);
        net.start(2, Persisted { audiences: vec![(peer(1), audience)], ..Persisted::default() });
        assert_eq!(admitted(net), [true, false, false], "nobody is trusted yet");
        net.trust(2, &trust);
    };
    restart(&mut net, kept.clone());
    assert_eq!(admitted(&net), [true, true, false], "though 1 is away");
    restart(&mut net, kept.iter().rev().copied().collect());
    assert!(net.node(2).core.audience(&peer(1)).is_none(), "this is no audience");
    restart(&mut net, Vec::new());
    assert!(net.node(2).core.audience(&peer(1)).is_none());
    // A peer that lost our trust meanwhile, in this run or before it, has no audience when it is trusted again.
    restart(&mut net, kept.clone());
    net.trust(2, &[(2, 3)]);
    net.trust(2, &trust);
    assert_eq!(admitted(&net), [true, false, false]);
    net.start(2, Persisted { audiences: vec![(peer(1), kept.clone())], ..Persisted::default() });
    net.trust(2, &[(2, 3)]);
    net.trust(2, &trust);
    assert_eq!(admitted(&net), [true, false, false]);
    // What 1 says now counts, not what was kept.
    restart(&mut net, kept);
    net.trust(1, &[(1, 2), (1, 4)]);
    net.connect(1, 2);
    net.run(10_000);
    assert_eq!(admitted(&net), [true, false, true]);
}

#[test]
fn a_sync_finds_what_gossip_lost() {
    let mut net = Net::full(2);
    net.run(10_000);
    net.gossip_lost = true;
    net.update(1, 0..10, 0..0);
    net.run(67_000);
    assert!((0..10).all(|path| net.candidate(2, 1, path)), "the timer of a minute, a tenth more or less");
}

#[test]
fn the_second_sync_finds_what_was_published_just_after_connecting() {
    let mut net = Net::with_trust(2, &[(1, 2)]);
    net.run(1_000);
    net.connect(1, 2);
    net.run(50);
    net.gossip_lost = true;
    net.update(1, 0..10, 0..0);
    net.run(3_100);
    assert!((0..10).all(|path| net.candidate(2, 1, path)));
}

#[test]
fn each_connection_is_synced_in_turn() {
    let trust: Vec<_> = (2..=8).map(|other| (1, other)).collect();
    let mut net = Net::with_trust(8, &trust);
    for other in 2..=8 {
        // Only 1 has a sync timer.
        net.start_with(
            other,
            Persisted::default(),
            narmesh_gossip::GossipConfig { sync_interval_ms: 1_000_000_000, ..config(other) },
        );
        net.trust(other, &trust);
        net.paths(other, 0..0);
        net.connect(1, other);
    }
    net.run(10_000);
    net.gossip_lost = true;
    // Only one peer has news, so that one peer's news does not cause syncs with the others.
    let last = (2..=8).max_by_key(|other| peer(*other)).unwrap();
    net.update(last, 0..1, 0..0);
    net.run(7 * 66_000 + 1_000);
    assert!(net.candidate(1, last, 0), "seven intervals for seven connections");
}

#[test]
fn a_peer_that_is_shown_newer_summaries_asks_back() {
    let trust = [(1, 2), (2, 3), (1, 3)];
    let mut net = Net::with_trust(3, &trust);
    net.start_with(
        3,
        Persisted::default(),
        narmesh_gossip::GossipConfig { sync_interval_ms: 1_000_000_000, ..config(3) },
    );
    net.trust(3, &trust);
    net.paths(3, 0..0);
    net.connect(1, 2);
    net.connect(2, 3);
    net.run(10_000);
    net.gossip_lost = true;
    net.update(1, 0..10, 0..0);
    net.run(3 * 66_000);
    assert!(net.candidate(3, 1, 5), "3 has no timer, but 2 compares with it");
}

#[test]
fn news_from_a_sync_spreads_hop_by_hop() {
    let trust = [(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)];
    let mut net = Net::with_trust(4, &trust);
    for silent in [1, 3, 4] {
        let no_timer = narmesh_gossip::GossipConfig { sync_interval_ms: 1_000_000_000, ..config(silent) };
        net.start_with(silent, Persisted::default(), no_timer);
        net.trust(silent, &trust);
        net.paths(silent, 0..0);
    }
    [(1, 2), (2, 3), (3, 4)].into_iter().for_each(|(a, b)| net.connect(a, b));
    net.run(20_000);
    net.gossip_lost = true;
    net.update(1, 0..10, 0..0);
    for _ in 0..200 {
        if !net.candidate(2, 1, 5) {
            net.run(1_000);
        }
    }
    assert!(net.candidate(2, 1, 5) && !net.candidate(4, 1, 5));
    net.run(5_000);
    assert!(net.candidate(3, 1, 5) && net.candidate(4, 1, 5), "two hops, two seconds each");
}

#[test]
fn loss_delays_but_does_not_stop() {
    let mut net = Net::with_trust(3, &[(1, 2), (2, 3), (1, 3)]);
    net.loss = 100;
    net.connect(1, 2);
    net.connect(2, 3);
    for step in 0..20 {
        net.update(1, step * 10..step * 10 + 10, 0..0);
        net.update(3, 1_000 + step..1_001 + step, 0..0);
        net.run(5_000);
    }
    net.run(200_000);
    assert!((0..200).all(|path| net.candidate(2, 1, path) && net.candidate(3, 1, path)));
    assert!((1_000..1_020).all(|path| net.candidate(1, 3, path) && net.candidate(2, 3, path)));
    assert!(net.nodes.values().all(|node| node.misdeeds.is_empty()));
}

#[test]
fn an_unchanged_body_is_not_pulled_again() {
    let mut net = Net::full(2);
    net.update(1, 0..10, 0..0);
    net.run(10_000);
    net.clear();
    net.restart(1, true);
    net.trust(1, &[(1, 2)]);
    net.paths(1, 0..10);
    net.connect(1, 2);
    net.run(1_000);
    let pulled = net.pulled(2);
    assert_eq!(pulled, [(peer(1), peer(1), 0, false)], "the digest was the same");
    assert_eq!(net.view(2, 1).announced, net.node(1).core.publication().generation);
}

#[test]
fn a_peer_taken_off_the_allowlist_is_forgotten_at_once() {
    let mut net = Net::full(3);
    net.update(1, 0..10, 0..0);
    net.run(1_000);
    assert!(net.candidate(2, 1, 5));
    let epoch = net.node(2).core.publication().generation.unwrap().epoch;
    net.trust(2, &[(2, 3)]);
    assert!(!net.candidate(2, 1, 5));
    assert!(net.node(2).core.peers().all(|view| view.peer != peer(1)));
    net.run(1_000);
    assert!(net.node(2).core.publication().generation.unwrap().epoch > epoch, "an audience shrinks in a new epoch");
    net.update(2, 70..80, 0..0);
    net.run(100_000);
    assert!(net.candidate(3, 2, 75));
    assert!(!net.candidate(1, 2, 75), "and 1 gets nothing of 2 any more, neither from 2 nor from 3");
    assert!(net.node(2).core.peers().all(|view| view.peer != peer(1)), "nor is anything of 1 heard again");
    // Trusted again, it is a candidate again.
    net.trust(2, &[(2, 3), (2, 1)]);
    net.disconnect(1, 2);
    net.connect(1, 2);
    net.run(5_000);
    assert!(net.candidate(1, 2, 75) && net.candidate(2, 1, 5));
}

#[test]
fn a_joiner_costs_a_delta_not_an_epoch() {
    let mut net = Net::with_trust(3, &[(1, 2)]);
    net.connect(1, 2);
    net.update(1, 0..400, 0..0);
    net.run(2_000);
    let epoch = net.node(1).core.publication().generation.unwrap().epoch;
    net.clear();
    net.trust(1, &[(1, 2), (1, 3)]);
    net.trust(3, &[(1, 3)]);
    net.connect(1, 3);
    net.run(2_000);
    assert!(net.candidate(3, 1, 5));
    assert_eq!(net.node(1).core.publication().generation.unwrap().epoch, epoch);
    assert!(net.pulled(2).iter().all(|(owner, _, bytes, delta)| *owner != peer(1) || (*delta && *bytes < 100)));
}

#[test]
fn addresses_are_learned_and_changed() {
    let mut net = Net::full(2);
    let learned = |net: &Net| {
        let learned = |event: &Event| match event {
            Event::AddressesLearned { peer, addresses } => Some((*peer, addresses.clone())),
            _ => None,
        };
        net.node(2).events.iter().filter_map(learned).collect::<Vec<_>>()
    };
    assert!(learned(&net).is_empty());
    let first = vec!["192.0.2.1:7280".parse().unwrap(), "[2001:db8::1]:7280".parse().unwrap()];
    net.input(1, Input::Addresses(first.clone()));
    net.run(SOON_MS);
    assert_eq!(learned(&net), [(peer(1), first.clone())]);
    net.clear();
    net.input(1, Input::Addresses(first));
    net.run(SOON_MS);
    assert!(net.node(1).published.is_empty(), "the same addresses are no news");
    let many: Vec<_> = (1..20).map(|port| std::net::SocketAddr::from(([192, 0, 2, 9], port))).collect();
    net.input(1, Input::Addresses(many.clone()));
    net.run(SOON_MS);
    assert_eq!(learned(&net), [(peer(1), many[..8].to_vec())]);
    assert!(net.pulled(2).iter().all(|(_, _, _, delta)| *delta));
    nobody_is_blamed(&net);
}

#[test]
fn another_store_directory_is_refused_by_name() {
    let mut net = Net::with_trust(1, &[(1, 2)]);
    let mut other = config(2);
    other.store_dir = StoreDir::parse("/gnu/store").unwrap();
    net.start_with(2, Persisted::default(), other);
    net.trust(2, &[(1, 2)]);
    net.paths(2, 0..5);
    net.paths(1, 5..9);
    net.connect(1, 2);
    net.run(10_000);
    assert!(!net.candidate(1, 2, 2) && !net.candidate(2, 1, 6));
    assert_eq!(net.view(1, 2).store_dir_differs.as_deref(), Some("/gnu/store"));
    assert_eq!(net.view(2, 1).store_dir_differs.as_deref(), Some("/nix/store"));
    nobody_is_blamed(&net);
}

#[test]
fn more_paths_than_the_limit_are_withheld() {
    let mut net = Net::new();
    let mut small = config(1);
    small.path_count_max = 50;
    net.start_with(1, Persisted::default(), small);
    net.paths(1, 0..50);
    net.update(1, 50..60, 0..0);
    let view = net.node(1).core.publication();
    assert_eq!((view.paths, view.withheld), (50, 10));
    net.paths(1, 20..60);
    let view = net.node(1).core.publication();
    assert_eq!((view.paths, view.withheld), (40, 0));
}

#[test]
fn nothing_is_published_before_the_paths_are_known() {
    let mut net = Net::new();
    net.start(1, Persisted::default());
    net.trust(1, &[(1, 2)]);
    net.input(1, Input::Addresses(vec!["192.0.2.1:7280".parse().unwrap()]));
    net.update(1, 0..5, 0..0);
    net.run(100_000);
    assert!(net.node(1).published.is_empty());
    net.input(1, Input::Paths(PathChange::Replace(BTreeSet::new())));
    net.run(101);
    assert_eq!(net.node(1).published.len(), 1);
    assert_eq!(net.node(1).core.publication().paths, 0);
    assert_eq!(parts(0..3).len(), 3);
    assert!(net.node(1).core.find_candidates(&part(1)).is_empty());
}

#[test]
fn a_quiet_core_sleeps() {
    let mut net = Net::full(2);
    net.run(10_000);
    let before = net.now_ms;
    let deadline = net.node(1).core.deadline().unwrap().0;
    assert!(deadline > before && deadline <= before + 66_000, "the next comparison");
}
