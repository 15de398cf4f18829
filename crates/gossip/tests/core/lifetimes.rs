//! How long an announcement holds: restarts, lost states, wrong clocks, goodbyes, and two machines with one key.

use crate::lone::Lone;
use crate::net::{Net, WALL_MS, parts, peer};
use crate::stories::{SOON_MS, nobody_is_blamed};
use narmesh_gossip::{Event, Input, Output, PathChange, Record};
use narmesh_protocol::Envelope;

#[test]
fn a_peer_that_lost_its_state_is_heard_again() {
    let mut net = Net::full(2);
    net.update(1, 0..10, 0..0);
    net.run(10_000);
    // Its clock's battery is dead too: its epochs begin at 1970, far below what 2 has seen.
    net.wall_skew_ms.insert(1, -i64::try_from(WALL_MS).unwrap());
    net.restart(1, false);
    net.trust(1, &[(1, 2)]);
    net.paths(1, 100..110);
    net.run(1_000);
    net.connect(1, 2);
    net.run(1_000);
    assert!((100..110).all(|path| net.candidate(2, 1, path)));
    assert!((0..10).all(|path| !net.candidate(2, 1, path)));
    assert!(net.node(1).events.iter().any(|event| matches!(event, Event::Overtaken { .. })));
}

#[test]
fn lost_state_is_noticed_before_the_first_publication() {
    let mut net = Net::full(2);
    net.wall_skew_ms.insert(1, -10_000_000);
    net.restart(1, false);
    net.trust(1, &[(1, 2)]);
    net.connect(1, 2);
    net.run(100);
    net.paths(1, 100..110);
    net.run(SOON_MS);
    assert!((100..110).all(|path| net.candidate(2, 1, path)));
    assert_eq!(net.node(1).published.len(), 1, "its first epoch was high enough");
}

#[test]
fn a_restart_with_its_disk_begins_a_later_epoch_and_remembers_the_others() {
    let mut net = Net::full(2);
    net.update(1, 0..10, 0..0);
    net.update(2, 50..60, 0..0);
    net.run(10_000);
    let before = net.view(2, 1).summary.unwrap().generation;
    let old = net.node(2).published.first().unwrap().clone();
    let newest = net.node(2).published.last().unwrap().clone();
    net.wall_skew_ms.insert(1, -3_600_000);
    net.restart(1, true);
    net.trust(1, &[(1, 2)]);
    net.paths(1, 0..10);
    // What 2 announced is only a floor: older announcements are refused, and 2 is no candidate before its
    // body is pulled again.
    let replay = |bytes: Vec<u8>| Input::Announcement { id: 1, author: peer(2), from: peer(2), bytes };
    net.input(1, replay(old));
    assert_eq!(net.view(1, 2).announced, Some(Envelope::open(&newest).unwrap().announcement().generation));
    assert!(!net.candidate(1, 2, 55) && net.view(1, 2).summary.is_none());
    net.run(1_000);
    net.connect(1, 2);
    net.run(1_000);
    assert!(net.candidate(1, 2, 55), "the same generation is pulled again");
    assert!(net.view(2, 1).summary.unwrap().generation > before);
    assert!((0..10).all(|path| net.candidate(2, 1, path)));
    nobody_is_blamed(&net);
}

#[test]
fn a_summary_lives_from_its_first_sight_and_repeats_do_not_renew_it() {
    let mut net = Net::full(2);
    net.update(1, 0..10, 0..0);
    net.run(1_000);
    let last = net.node(1).published.last().unwrap().clone();
    net.disconnect(1, 2);
    let gone = net.nodes.remove(&1).unwrap();
    net.run(10_000_000);
    net.input(2, Input::Announcement { id: 1, author: peer(1), from: peer(1), bytes: last.clone() });
    assert!(net.candidate(2, 1, 5));
    net.run(14_400_000 - 10_000_000 - 1_000);
    assert!(net.candidate(2, 1, 5));
    net.run(2_000);
    assert!(!net.candidate(2, 1, 5));
    assert!(net.node(2).events.contains(&Event::Expired { peer: peer(1) }));
    // Once its lifetime is over, the body does not come back under the same generation.
    net.clear();
    net.nodes.insert(1, gone);
    net.input(2, Input::Announcement { id: 2, author: peer(1), from: peer(1), bytes: last });
    net.run(10);
    assert!(net.pulled(2).is_empty());
}

#[test]
fn an_unchanged_summary_is_announced_again_and_lives_on() {
    let mut net = Net::full(2);
    net.update(1, 0..10, 0..0);
    net.run(1_000);
    net.clear();
    net.run(50_000_000);
    assert!(net.candidate(2, 1, 5));
    let pulled = net.pulled(2);
    assert!(pulled.len() >= 50_000 / 1_800, "every half hour");
    assert!(pulled.iter().all(|(_, _, bytes, _)| *bytes == 0), "nothing was transferred");
}

#[test]
fn a_goodbye_ends_a_summary_at_once_and_is_passed_on() {
    let mut net = Net::with_trust(3, &[(1, 2), (2, 3), (1, 3)]);
    net.connect(1, 2);
    net.connect(2, 3);
    net.update(1, 0..10, 0..0);
    net.run(10_000);
    assert!(net.candidate(2, 1, 5) && net.candidate(3, 1, 5));
    // 3 misses the goodbye.
    net.disconnect(2, 3);
    net.input(1, Input::Goodbye);
    net.run(100);
    assert!(!net.candidate(2, 1, 5) && net.candidate(3, 1, 5));
    assert!(net.node(2).events.contains(&Event::Departed { peer: peer(1) }));
    net.update(1, 10..20, 0..0);
    net.run(10_000);
    assert!(net.node(1).core.publication().generation.is_none(), "nothing is published after it");
    net.disconnect(1, 2);
    net.connect(2, 3);
    net.run(1_000);
    assert!(!net.candidate(3, 1, 5));
    // 1 comes back later.
    net.restart(1, true);
    net.trust(1, &[(1, 2), (1, 3)]);
    net.paths(1, 0..10);
    net.connect(1, 2);
    net.run(5_000);
    assert!(net.candidate(2, 1, 5) && net.candidate(3, 1, 5));
}

#[test]
fn a_corrected_clock_dates_the_announcement_anew() {
    let mut net = Net::with_trust(2, &[(1, 2)]);
    net.wall_skew_ms.insert(1, -200_000_000);
    net.restart(1, false);
    net.trust(1, &[(1, 2)]);
    net.paths(1, 0..10);
    net.connect(1, 2);
    net.run(2_000);
    assert!(!net.candidate(2, 1, 5), "first heard with a date two days off");
    assert!(net.node(2).events.iter().any(|event| matches!(event, Event::ClockDiffers { .. })));
    net.wall_skew_ms.remove(&1);
    net.input(1, Input::Tick);
    net.run(2_000);
    assert!(net.candidate(2, 1, 5));
    nobody_is_blamed(&net);
}

#[test]
fn two_machines_with_one_key_do_not_chase_each_other() {
    // A copied disk: 2 is connected with both machines, and shows each what the other has published.
    let mut net = Net::with_trust(2, &[(1, 2)]);
    net.connect(1, 2);
    net.run(10_000);
    let mut shown = 0;
    for _ in 0..600 {
        let newest = net.view(2, 1).announced.unwrap();
        let theirs = narmesh_protocol::Announcement {
            generation: narmesh_protocol::Generation { epoch: newest.epoch + 1, seq: 0 },
            path_count: 0,
            body_digest: [7; 32],
            body_bytes: 1_100,
            lifetime_s: 3_600,
            issued_at_ms: WALL_MS,
        };
        let envelope = Envelope::seal(&crate::net::keypair(1), theirs).unwrap().as_bytes().to_vec();
        net.input(2, Input::Announcement { id: 0, author: peer(1), from: peer(1), bytes: envelope });
        net.disconnect(1, 2);
        net.connect(1, 2);
        net.run(100);
        shown += 1;
    }
    let epochs = net.node(1).published.len();
    assert!(shown == 600 && (5..=16).contains(&epochs), "{epochs} epochs in a minute");
}

/// Each epoch is written to disk, and whoever builds and collects paths here decides how often there would be one.
#[test]
fn paths_that_come_and_go_without_end_write_an_epoch_every_five_seconds_at_most() {
    const SECONDS: usize = 120;
    let mut lone = Lone::new();
    for round in 0..10 * u32::try_from(SECONDS).unwrap() {
        lone.feed(Input::Paths(PathChange::Replace(parts(round..round + 10))));
        lone.pass(100);
    }
    let is_epoch = |output: &&Output| matches!(output, Output::Persist(Record::OwnEpoch(_)));
    let written = lone.outputs.iter().filter(is_epoch).count();
    assert!((SECONDS / 10..=SECONDS / 5 + 1).contains(&written), "{written} epochs in {SECONDS} s");
}
