//! Which peers are dialled, and when, after failures, short connections and learned addresses.

use super::*;
use rand::SeedableRng;

fn address(port: u16) -> Multiaddr {
    format!("/ip4/192.0.2.1/tcp/{port}").parse().unwrap()
}

#[test]
fn redials_configured_peers_with_a_growing_pause() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let peer = PeerId::random();
    let mut dialer = Dialer::new(32);
    dialer.set_peers(Moment(0), &BTreeMap::from([(peer, vec![address(1)])]), 32);
    let mut now = Moment(0);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        assert_eq!(dialer.take_due(now), [(peer, vec![address(1)])]);
        assert!(dialer.take_due(now).is_empty(), "one dial at a time");
        dialer.on_failed(now, &peer, &mut rng);
        let next = dialer.deadline().unwrap();
        let is_soon = next.since(now) <= EXPECTED_MS;
        assert_eq!(dialer.demand(now, &peer), if is_soon { Ok(Demand::Wait) } else { Err(NotNow::Gone) });
        pauses.push(next.0 - now.0);
        now = next;
    }
    assert!(pauses[0] <= PAUSE_MIN_MS * 5 / 4 && pauses[11] >= PAUSE_MAX_MS * 3 / 4, "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= PAUSE_MAX_MS * 5 / 4));
    for _ in 0..FAILURES_SOON_MAX {
        dialer.on_failed(now, &peer, &mut rng);
    }
    assert!(dialer.deadline().unwrap().0 - now.0 >= PAUSE_GONE_MS * 3 / 4, "gone for long");
}

#[test]
fn when_a_cut_off_peer_returns_all_others_are_dialled_at_once() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let [one, other] = [(); 2].map(|()| PeerId::random());
    let mut dialer = Dialer::new(32);
    dialer.set_peers(Moment(0), &BTreeMap::from([(one, vec![address(1)]), (other, vec![address(2)])]), 32);
    let mut now = Moment(0);
    let cut_off = |dialer: &mut Dialer, now: &mut Moment, rng: &mut rand::rngs::StdRng| {
        for _ in 0..5 {
            dialer.take_due(*now);
            [one, other].iter().for_each(|peer| dialer.on_failed(*now, peer, rng));
            *now = Moment(now.0 + 2 * PAUSE_MAX_MS);
        }
        *now = Moment(now.0 - 2 * PAUSE_MAX_MS);
    };
    cut_off(&mut dialer, &mut now, &mut rng);
    assert!(dialer.take_due(now).is_empty(), "both pause");
    dialer.on_connected(now, &one, None);
    assert_eq!(dialer.take_due(now), [(other, vec![address(2)])]);
    dialer.on_failed(now, &other, &mut rng);
    assert!(dialer.deadline().unwrap().since(now) <= PAUSE_MIN_MS * 5 / 4, "soon again: it may have been on the way");
    // When a peer comes and goes, the other is not dialled more often.
    dialer.on_disconnected(now, &one, &mut rng);
    now = Moment(now.0 + RETURNS_MS);
    cut_off(&mut dialer, &mut now, &mut rng);
    dialer.on_connected(now, &one, None);
    assert!(dialer.take_due(now).is_empty(), "within a minute");
}

#[test]
fn a_peer_whose_connections_end_at_once_is_dialled_ever_more_rarely() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let peer = PeerId::random();
    let mut dialer = Dialer::new(32);
    dialer.set_peers(Moment(0), &BTreeMap::from([(peer, vec![address(1)])]), 32);
    let mut now = Moment(0);
    let mut pause = |dialer: &mut Dialer, lasted_ms: u64| {
        assert_eq!(dialer.take_due(now).len(), 1);
        dialer.on_connected(now, &peer, None);
        now = Moment(now.0 + lasted_ms);
        dialer.on_disconnected(now, &peer, &mut rng);
        let pause = dialer.deadline().unwrap().since(now);
        now = Moment(now.0 + pause);
        pause
    };
    assert!(pause(&mut dialer, 10) < PAUSE_MIN_MS, "refused once: back at once");
    let all: u64 = (0..40).map(|_| pause(&mut dialer, 10)).sum();
    assert!(all > 40 * PAUSE_MAX_MS / 3, "{all} ms");
    assert!(pause(&mut dialer, SHORT_MS) < PAUSE_MIN_MS, "it lasted: as before");
}

#[test]
fn peers_are_redialled_at_once_however_often_our_address_changes() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let peer = PeerId::random();
    let mut dialer = Dialer::new(32);
    dialer.set_peers(Moment(0), &BTreeMap::from([(peer, vec![address(1)])]), 32);
    let mut now = Moment(SHORT_MS);
    for _ in 0..10 {
        // Our address changes soon after connecting; the first dial from the new one is refused.
        for (has_moved, pause_max) in [(true, PAUSE_MIN_MS), (false, AGAIN_MS)] {
            assert_eq!(dialer.take_due(now).len(), 1);
            dialer.on_connected(now, &peer, None);
            now = Moment(now.0 + 1_000);
            if has_moved {
                dialer.on_moved(now);
            }
            dialer.on_disconnected(now, &peer, &mut rng);
            let pause = dialer.deadline().unwrap().since(now);
            assert!(pause < pause_max, "{pause} ms");
            now = Moment(now.0 + pause);
        }
    }
}

#[test]
fn each_node_dials_peers_in_an_order_of_its_own() {
    let peers: BTreeMap<_, _> = (0..100).map(|_| (PeerId::random(), vec![address(1)])).collect();
    let mut dialled = BTreeMap::new();
    for _ in 0..100 {
        let mut dialer = Dialer::new(32);
        dialer.set_peers(Moment(0), &peers, 32);
        let due = dialer.take_due(Moment(0));
        assert_eq!(due.len(), 32);
        due.into_iter().for_each(|(peer, _)| *dialled.entry(peer).or_insert(0) += 1);
    }
    // 32 of 100 nodes on the average; a hub would have 100.
    assert!(dialled.values().all(|count| *count < 60), "{:?}", dialled.values().max());
    assert!(dialled.len() > 90);
}

/// The longest pause between two of this many dials that fail.
fn longest_pause(dialer: &mut Dialer, now: &mut Moment, failures: u32) -> u64 {
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let mut longest = 0;
    for _ in 0..failures {
        let next = dialer.deadline().unwrap();
        longest = longest.max(next.since(*now));
        *now = next.max(*now);
        for (peer, _) in dialer.take_due(*now) {
            dialer.on_failed(*now, &peer, &mut rng);
        }
    }
    longest
}

#[test]
fn a_machine_that_reaches_nobody_tries_its_relay_every_few_seconds_however_long_it_was_cut_off() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let [relay, other] = [(); 2].map(|()| PeerId::random());
    let mut dialer = Dialer::new(32);
    dialer.set_peers(Moment(0), &BTreeMap::from([(relay, vec![address(1)]), (other, Vec::new())]), 32);
    dialer.set_relays(Moment(0), &BTreeSet::from([relay]), &BTreeSet::new());
    let mut now = Moment(0);
    dialer.on_connected(now, &other, None);
    assert!(longest_pause(&mut dialer, &mut now, 2 * FAILURES_SOON_MAX) > PAUSE_MAX_MS, "others are there: it is gone");
    dialer.on_disconnected(now, &other, &mut rng);
    now = dialer.targets[&relay].next;
    dialer.take_due(now);
    dialer.on_failed(now, &relay, &mut rng);
    let pause = dialer.targets[&relay].next.since(now);
    assert!((PAUSE_CUT_OFF_MS / 2..=PAUSE_CUT_OFF_MS * 5 / 4).contains(&pause), "{pause} ms");
}

#[test]
fn another_address_of_ours_ends_the_pauses_but_not_again_and_again() {
    let peer = PeerId::random();
    let mut dialer = Dialer::new(32);
    dialer.set_peers(Moment(0), &BTreeMap::from([(peer, vec![address(1)])]), 32);
    let mut now = Moment(0);
    longest_pause(&mut dialer, &mut now, 2 * FAILURES_SOON_MAX);
    dialer.on_new_address(now);
    assert_eq!(dialer.take_due(now).len(), 1);
    dialer.on_failed(now, &peer, &mut rand::rngs::StdRng::seed_from_u64(1));
    dialer.on_new_address(Moment(now.0 + MOVED_PAUSE_MS - 1));
    assert!(dialer.take_due(Moment(now.0 + MOVED_PAUSE_MS - 1)).is_empty());
}

#[test]
fn a_learned_address_at_which_a_peer_was_reached_is_redialled_until_the_peer_tells_others() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let peer = PeerId::random();
    let mut dialer = Dialer::new(32);
    dialer.set_peers(Moment(0), &BTreeMap::from([(peer, Vec::new())]), 32);
    dialer.learn(Moment(0), &peer, vec![address(1), address(2)]);
    let mut now = Moment(LEARNED_DELAY_MS);
    assert_eq!(dialer.take_due(now).len(), 1);
    dialer.on_connected(now, &peer, Some(&address(2)));
    now = Moment(now.0 + 2 * LEARNED_PAUSE_MS);
    dialer.on_disconnected(now, &peer, &mut rng);
    assert!(longest_pause(&mut dialer, &mut now, 40) <= PAUSE_MAX_MS * 5 / 4);
    dialer.learn(now, &peer, vec![address(3)]);
    assert!(!dialer.targets[&peer].dialable(now).contains(&address(2)));
}

#[test]
fn a_learned_address_is_dialled_once_a_minute() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let peer = PeerId::random();
    let mut dialer = Dialer::new(32);
    dialer.set_peers(Moment(0), &BTreeMap::from([(peer, Vec::new())]), 32);
    assert_eq!(dialer.demand(Moment(0), &peer), Err(NotNow::NoAddress));
    dialer.learn(Moment(0), &peer, vec![address(2)]);
    assert_eq!(dialer.demand(Moment(0), &peer), Ok(Demand::Dial(vec![address(2)])));
    dialer.on_failed(Moment(0), &peer, &mut rng);
    assert_eq!(dialer.demand(Moment(30_000), &peer), Err(NotNow::NoAddress));
    dialer.learn(Moment(0), &peer, vec![address(2)]);
    assert_eq!(dialer.demand(Moment(59_000), &peer), Err(NotNow::NoAddress), "learning it again renews nothing");
    assert_eq!(dialer.demand(Moment(60_000), &peer), Ok(Demand::Dial(vec![address(2)])));
}

#[test]
fn peer_that_names_other_addresses_each_time_is_dialled_at_eight_a_minute() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let peer = PeerId::random();
    let mut dialer = Dialer::new(32);
    dialer.set_peers(Moment(0), &BTreeMap::from([(peer, Vec::new())]), 32);
    let mut dialled = Vec::new();
    for turn in 0..240_u16 {
        // Two sets in turn, and then ever new ones.
        let first = if turn < 120 { turn % 2 * 8 } else { turn * 8 };
        let now = Moment(u64::from(turn) * 250);
        dialer.learn(now, &peer, (first..first + 8).map(address).collect());
        if let Ok(Demand::Dial(addresses)) = dialer.demand(now, &peer) {
            dialled.extend(addresses);
            dialer.on_failed(now, &peer, &mut rng);
        }
    }
    assert_eq!(dialled, (0..8).map(address).collect::<Vec<_>>(), "in a minute");
    let now = Moment(60_000);
    assert!(matches!(dialer.demand(now, &peer), Ok(Demand::Dial(addresses)) if addresses.len() == 8));
}

#[test]
fn learned_peers_are_not_dialled_while_there_are_enough_connections() {
    let [configured, learned] = [(); 2].map(|()| PeerId::random());
    let mut dialer = Dialer::new(1);
    dialer.set_peers(Moment(0), &BTreeMap::from([(configured, vec![address(1)]), (learned, Vec::new())]), 1);
    dialer.on_connected(Moment(0), &configured, None);
    dialer.learn(Moment(0), &learned, vec![address(2)]);
    assert!(dialer.take_due(Moment(100_000)).is_empty());
    assert_eq!(dialer.deadline(), None);
    assert_eq!(dialer.demand(Moment(100_000), &learned), Ok(Demand::Dial(vec![address(2)])));
}

#[test]
fn peer_that_a_lookup_waits_for_is_dialled_after_its_pause_despite_enough_connections() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let [there, wanted] = [(); 2].map(|()| PeerId::random());
    let mut dialer = Dialer::new(1);
    dialer.set_peers(Moment(0), &BTreeMap::from([(there, vec![address(1)]), (wanted, vec![address(2)])]), 1);
    dialer.on_connected(Moment(0), &there, None);
    assert_eq!(dialer.demand(Moment(0), &wanted), Ok(Demand::Dial(vec![address(2)])));
    assert_eq!(dialer.demand(Moment(1), &wanted), Ok(Demand::Wait), "another one waits for the same dial");
    dialer.on_failed(Moment(5), &wanted, &mut rng);
    assert_eq!(dialer.deadline(), None, "for gossip it is not needed");
    assert_eq!(dialer.demand(Moment(5), &wanted), Ok(Demand::Wait));
    let again = dialer.deadline().unwrap();
    assert!(again > Moment(5) && dialer.take_due(Moment(again.0 - 1)).is_empty());
    assert_eq!(dialer.take_due(again), [(wanted, vec![address(2)])]);
}

#[test]
fn a_peer_that_is_restarted_is_dialled_often_at_first_and_then_ever_more_rarely() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let peer = PeerId::random();
    let mut dialer = Dialer::new(32);
    dialer.set_peers(Moment(0), &BTreeMap::from([(peer, vec![address(1)])]), 32);
    dialer.take_due(Moment(0));
    dialer.on_connected(Moment(0), &peer, None);
    let lost = Moment(2 * SHORT_MS);
    dialer.on_disconnected(lost, &peer, &mut rng);
    let mut dials = Vec::new();
    let mut now = dialer.deadline().unwrap();
    while now.since(lost) < 60_000 {
        assert_eq!(dialer.take_due(now).len(), 1);
        dials.push(now.since(lost));
        dialer.on_failed(now, &peer, &mut rng);
        now = dialer.deadline().unwrap();
    }
    assert!(dials[0] <= BACK_FIRST_MS);
    let soon: Vec<_> = dials.iter().take_while(|at| **at < BACK_SOON_MS).collect();
    let waits =
        soon.windows(2).all(|pair| pair[1] - pair[0] <= (pair[0] / 6).clamp(BACK_MIN_MS * 2, BACK_MAX_MS * 5 / 4));
    assert!(waits, "a fraction of the time that has passed: {soon:?}");
    assert!((30..=65).contains(&soon.len()) && dials.len() - soon.len() < 25, "{dials:?}");
}

#[test]
fn a_peer_without_an_address_is_awaited_for_a_moment_after_a_start() {
    let peer = PeerId::random();
    let mut dialer = Dialer::new(32);
    dialer.set_peers(Moment(0), &BTreeMap::from([(peer, Vec::new())]), 32);
    assert_eq!(dialer.demand(Moment(0), &peer), Err(NotNow::NoAddress), "never heard of");
    dialer.mark_remembered(Moment(0), &peer);
    assert_eq!(dialer.demand(Moment(BACK_SOON_MS - 1), &peer), Ok(Demand::Wait));
    assert_eq!(dialer.demand(Moment(BACK_SOON_MS), &peer), Err(NotNow::NoAddress));
}

#[test]
fn a_learned_address_where_the_peer_was_reached_is_dialled_again_at_once() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let peer = PeerId::random();
    let mut dialer = Dialer::new(32);
    dialer.set_peers(Moment(0), &BTreeMap::from([(peer, Vec::new())]), 32);
    dialer.learn(Moment(0), &peer, vec![address(2), address(3)]);
    assert_eq!(dialer.demand(Moment(0), &peer), Ok(Demand::Dial(vec![address(2), address(3)])));
    let via = format!("{}/p2p/{peer}", address(3)).parse().unwrap();
    dialer.on_connected(Moment(5), &peer, Some(&via));
    dialer.on_disconnected(Moment(6), &peer, &mut rng);
    assert_eq!(dialer.demand(Moment(7), &peer), Ok(Demand::Dial(vec![address(3)])), "refused once");
}

#[test]
fn a_found_address_is_dialled_at_once_beside_a_dial_under_way() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let [peer, stranger] = [(); 2].map(|()| PeerId::random());
    let mut dialer = Dialer::new(32);
    dialer.set_peers(Moment(0), &BTreeMap::from([(peer, vec![address(1)])]), 32);
    assert_eq!(dialer.take_due(Moment(0)).len(), 1, "at an address that leads nowhere");
    assert_eq!(dialer.find(Moment(10), &stranger, vec![address(2)]), []);
    assert_eq!(dialer.find(Moment(10), &peer, vec![address(2)]), [address(2)]);
    assert_eq!(dialer.find(Moment(20), &peer, vec![address(2)]), [], "once");
    assert_eq!(dialer.addresses(&peer), [address(1), address(2)]);
    dialer.on_connected(Moment(30), &peer, Some(&address(2)));
    assert_eq!(dialer.find(Moment(60_000), &peer, vec![address(3)]), [], "while there is a connection");
    // Where it was, it is looked for again, as at a configured address.
    dialer.on_disconnected(Moment(60_001), &peer, &mut rng);
    let again = dialer.take_due(Moment(60_100));
    assert_eq!(again, [(peer, vec![address(1), address(2), address(3)])]);
    dialer.on_failed(Moment(60_100), &peer, &mut rng);
    assert_eq!(dialer.take_due(Moment(80_000)), [(peer, vec![address(1), address(2)])]);
    // A peer that is shut out is left alone.
    dialer.on_failed(Moment(80_000), &peer, &mut rng);
    dialer.leave(Moment(80_000), &peer, Duration::from_secs(60));
    assert_eq!(dialer.find(Moment(90_000), &peer, vec![address(4)]), []);
}

#[test]
fn a_peer_whose_addresses_fail_is_dialled_over_two_relays_and_then_at_its_addresses_again() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let [peer, hidden, one, other, third] = [(); 5].map(|()| PeerId::random());
    let mut dialer = Dialer::new(32);
    let mut peers = BTreeMap::from([(peer, vec![address(1)]), (hidden, Vec::new())]);
    peers.extend([one, other, third].map(|relay| (relay, vec![address(2)])));
    dialer.set_peers(Moment(0), &peers, 32);
    let due = |dialer: &mut Dialer, now: Moment, peer: PeerId| {
        dialer.take_due(now).into_iter().find(|(due, _)| *due == peer).map(|(_, addresses)| addresses)
    };
    assert_eq!(due(&mut dialer, Moment(0), peer), Some(vec![address(1)]));
    assert_eq!(dialer.demand(Moment(0), &hidden), Err(NotNow::NoAddress));
    let relays = BTreeSet::from([one, other, third]);
    relays.iter().for_each(|relay| dialer.on_connected(Moment(1), relay, None));
    dialer.set_relays(Moment(1), &relays, &relays);
    assert!(matches!(dialer.demand(Moment(1), &hidden), Ok(Demand::Dial(over)) if over.len() == RELAYS_TRIED_MAX));
    dialer.on_failed(Moment(2), &peer, &mut rng);
    let over = due(&mut dialer, Moment(2), peer).expect("at once");
    assert!(over.len() == RELAYS_TRIED_MAX && over.iter().all(|address| Way::of(address) == Way::Relayed), "{over:?}");
    dialer.on_failed(Moment(3), &peer, &mut rng);
    assert_eq!(due(&mut dialer, Moment(3), peer), None, "a pause");
    assert_eq!(due(&mut dialer, Moment(3 + 2 * PAUSE_MIN_MS), peer), Some(vec![address(1)]));
    // A relay is not reached over itself.
    dialer.on_disconnected(Moment(9_000), &one, &mut rng);
    dialer.set_relays(Moment(9_000), &relays, &BTreeSet::from([one]));
    assert_eq!(due(&mut dialer, Moment(9_100), one), Some(vec![address(2)]));
}

#[test]
fn relays_are_dialled_however_many_connections_there_are() {
    let [peer, relay] = [(); 2].map(|()| PeerId::random());
    let mut dialer = Dialer::new(1);
    dialer.set_peers(Moment(0), &BTreeMap::from([(peer, vec![address(1)]), (relay, vec![address(2)])]), 1);
    dialer.on_connected(Moment(0), &peer, None);
    assert!(dialer.take_due(Moment(0)).is_empty());
    dialer.set_relays(Moment(0), &BTreeSet::from([relay]), &BTreeSet::new());
    assert_eq!(dialer.take_due(Moment(0)), [(relay, vec![address(2)])]);
}
