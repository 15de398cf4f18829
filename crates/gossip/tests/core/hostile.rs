//! Hostile peers: some on the allowlist, some strangers.

use crate::lone::{Forged, Lone, OTHER, OWNER, STRANGER, sync_reply};
use crate::net::{WALL_MS, part, parts, peer};
use narmesh_gossip::{Event, Forward, Input, Misdeed, Output, ProbeOutcome};
use narmesh_protocol::wire::{GossipReply, GossipRequest, Sync};
use narmesh_protocol::{Announcement, AudienceDigest, Envelope, Generation, SummaryDelta};
use std::collections::BTreeSet;

pub const DAY_MS: u64 = 86_400_000;
/// A third peer, in the tests that allow it.
const HONEST: u8 = 6;

#[test]
fn an_honest_body_is_taken() {
    let mut lone = Lone::new();
    lone.hold(OWNER, &Forged::new(OWNER, 0, &parts(0..20)));
    assert!((0..20).all(|path| lone.is_candidate(OWNER, &part(path))));
    assert!(lone.misdeeds().is_empty());
}

#[test]
fn a_stranger_is_ignored_and_leaves_no_trace() {
    let mut lone = Lone::new();
    let forged = Forged::new(STRANGER, 0, &parts(0..20));
    assert_eq!(lone.announce(STRANGER, forged.envelope.as_bytes()), Forward::Ignore);
    lone.feed(Input::Connected(peer(STRANGER)));
    assert_eq!(lone.requests(), []);
    let pull = |owner: u8| GossipRequest::Pull {
        owner: AudienceDigest::of(&peer(owner)),
        generation: Generation { epoch: WALL_MS + 100, seq: 0 },
        have_seq: None,
    };
    assert_eq!(lone.ask(STRANGER, pull(1).encode().unwrap()), GossipReply::Absent);
    let sync = Sync { store_dir: "/nix/store".into(), software: "x".into(), yours: None, have: vec![] };
    assert_eq!(lone.ask(STRANGER, GossipRequest::Sync(sync).encode().unwrap()), GossipReply::Absent);
    assert_eq!(lone.ask(STRANGER, vec![0xff; 99]), GossipReply::Absent);
    assert!(lone.misdeeds().is_empty() && lone.events().is_empty());
    assert_eq!(lone.core.peers().count(), 2);
}

#[test]
fn only_its_owner_publishes_an_announcement() {
    let mut lone = Lone::new();
    let forged = Forged::new(OWNER, 0, &parts(0..20));
    assert_eq!(lone.announce(OTHER, forged.envelope.as_bytes()), Forward::Ignore);
    assert_eq!(lone.misdeeds(), [(peer(OTHER), Misdeed::ForeignAnnouncement)]);
    assert_eq!(lone.announce(OTHER, &[1; 200]), Forward::Ignore);
    assert_eq!(lone.misdeeds().last(), Some(&(peer(OTHER), Misdeed::MalformedAnnouncement)));
    assert!(lone.pulls().is_empty());
}

#[test]
fn an_unknown_version_is_reported_and_not_punished() {
    let mut lone = Lone::new();
    assert_eq!(lone.announce(OWNER, &[2; 200]), Forward::Ignore);
    assert!(lone.misdeeds().is_empty());
    assert_eq!(lone.events(), [&Event::UnknownVersion { peer: peer(OWNER), version: 2 }]);
    let tomorrow = Forged::with(OWNER, 0, &parts(0..5), |summary| summary.hash_id = 9, |_| {});
    lone.hold(OWNER, &tomorrow);
    assert!(lone.misdeeds().is_empty());
    assert!(lone.events().contains(&&Event::UnknownHashId { peer: peer(OWNER), hash_id: 9 }));
    lone.pass(100_000);
    assert!(lone.pulls().is_empty(), "it is not pulled again");
}

#[test]
fn an_old_generation_is_refused_quietly() {
    let mut lone = Lone::new();
    lone.hold(OWNER, &Forged::new(OWNER, 5, &parts(0..20)));
    let old = Forged::new(OWNER, 4, &parts(100..120));
    assert_eq!(lone.announce(OWNER, old.envelope.as_bytes()), Forward::Ignore);
    let repeated = Forged::new(OWNER, 5, &parts(0..20));
    assert_eq!(lone.announce(OWNER, repeated.envelope.as_bytes()), Forward::Ignore);
    assert!(lone.pulls().is_empty() && lone.misdeeds().is_empty());
    assert!(lone.is_candidate(OWNER, &part(5)) && !lone.is_candidate(OWNER, &part(105)));
}

#[test]
fn equivocation_keeps_the_first() {
    let mut lone = Lone::new();
    lone.hold(OWNER, &Forged::new(OWNER, 0, &parts(0..20)));
    let other = Forged::new(OWNER, 0, &parts(100..120));
    assert_eq!(lone.announce(OWNER, other.envelope.as_bytes()), Forward::Ignore);
    assert_eq!(lone.misdeeds(), [(peer(OWNER), Misdeed::Equivocation)]);
    assert!(lone.pulls().is_empty());
    assert!(lone.is_candidate(OWNER, &part(5)));
}

#[test]
fn far_future_epochs_and_old_first_sights_are_refused() {
    let mut lone = Lone::new();
    let at = |epoch: u64, issued_at_ms: u64| {
        Forged::with(
            OWNER,
            0,
            &parts(0..5),
            |_| {},
            |announcement: &mut Announcement| {
                announcement.generation.epoch = epoch;
                announcement.issued_at_ms = issued_at_ms;
            },
        )
    };
    let future = at(WALL_MS + DAY_MS + 60_000, WALL_MS);
    assert_eq!(lone.announce(OWNER, future.envelope.as_bytes()), Forward::Ignore);
    assert_eq!(lone.misdeeds(), [(peer(OWNER), Misdeed::FutureEpoch)]);
    for (epoch, issued_at_ms) in [
        (WALL_MS + 2 * DAY_MS, WALL_MS + 2 * DAY_MS),
        (5, WALL_MS - DAY_MS - 60_000),
        (WALL_MS, WALL_MS + DAY_MS + 60_000),
        (u64::MAX, u64::MAX),
    ] {
        assert_eq!(lone.announce(OWNER, at(epoch, issued_at_ms).envelope.as_bytes()), Forward::Ignore);
    }
    assert_eq!(lone.misdeeds().len(), 1);
    assert!(lone.pulls().is_empty());
    // Peers that we know may have a wrong date, but an epoch far ahead stays refused.
    lone.hold(OWNER, &at(WALL_MS, WALL_MS));
    let dated = at(WALL_MS + 1, WALL_MS - 3 * DAY_MS);
    assert_eq!(lone.announce(OWNER, dated.envelope.as_bytes()), Forward::Accept);
    assert_eq!(lone.announce(OWNER, future.envelope.as_bytes()), Forward::Ignore);
}

#[test]
fn oversized_announcements_are_refused_before_any_pull() {
    let mut lone = Lone::new();
    let large = Forged::with(OWNER, 0, &parts(0..5), |_| {}, |announcement| announcement.body_bytes = u32::MAX);
    let many = Forged::with(OWNER, 1, &parts(0..5), |_| {}, |announcement| announcement.path_count = 1 << 40);
    for forged in [large, many] {
        assert_eq!(lone.announce(OWNER, forged.envelope.as_bytes()), Forward::Ignore);
        assert_eq!(lone.misdeeds().last(), Some(&(peer(OWNER), Misdeed::OversizedAnnouncement)));
    }
    assert!(lone.pulls().is_empty());
}

#[test]
fn the_owner_is_blamed_for_an_invalid_body_which_is_not_pulled_again() {
    let all_ones = Forged::with(OWNER, 0, &parts(0..5), |summary| summary.filter_bytes.fill(0xff), |_| {});
    let shape = Forged::with(OWNER, 0, &parts(0..5), |summary| summary.filter_bytes.truncate(1_000), |_| {});
    let order = Forged::with(OWNER, 0, &parts(0..5), |summary| summary.audience.reverse(), |_| {});
    let count = Forged::with(OWNER, 0, &parts(0..5), |summary| summary.items += 1, |_| {});
    let many = vec!["192.0.2.7:1".parse().unwrap(); 1_000];
    let addresses = Forged::with(OWNER, 0, &parts(0..5), |summary| summary.addresses = many, |_| {});
    for (forged, misdeed) in [
        (all_ones, Misdeed::DenseFilter),
        (shape, Misdeed::InvalidBody),
        (order, Misdeed::InvalidBody),
        (count, Misdeed::PathCountDiffers),
        (addresses, Misdeed::InvalidBody),
    ] {
        let mut lone = Lone::new();
        // The body comes from another peer, which is not to blame.
        lone.announce(OWNER, forged.envelope.as_bytes());
        let (_, id, _) = lone.pulls()[0];
        lone.feed(Input::RequestFailed { to: peer(OWNER), id });
        lone.pass(100);
        let (to, id, _) = lone.pulls()[0];
        assert_eq!(to, peer(OTHER));
        lone.reply(OTHER, id, &GossipReply::Body(forged.body.clone()));
        assert_eq!(lone.misdeeds(), [(peer(OWNER), misdeed)]);
        lone.pass(50_000);
        lone.announce(OWNER, forged.envelope.as_bytes());
        assert!(lone.pulls().is_empty(), "{misdeed}: pulled again");
        assert!(!lone.is_candidate(OWNER, &part(3)));
        // A valid summary is pulled.
        lone.hold(OWNER, &Forged::new(OWNER, 1, &parts(0..5)));
        assert!(lone.is_candidate(OWNER, &part(3)));
    }
}

#[test]
fn a_body_for_others_is_ignored() {
    let mut lone = Lone::new();
    let forged = Forged::with(
        OWNER,
        0,
        &parts(0..5),
        |summary| summary.audience = vec![AudienceDigest::of(&peer(OTHER))],
        |_| {},
    );
    lone.hold(OWNER, &forged);
    assert!(!lone.is_candidate(OWNER, &part(3)));
    assert!(lone.misdeeds().is_empty());
    assert!(
        lone.events().iter().all(|event| !matches!(event, Event::AddressesLearned { .. } | Event::BodyPulled { .. }))
    );
}

#[test]
fn the_sender_is_blamed_for_a_false_body_and_another_peer_is_asked() {
    let mut lone = Lone::new();
    let forged = Forged::new(OWNER, 0, &parts(0..5));
    lone.announce(OWNER, forged.envelope.as_bytes());
    let (to, id, _) = lone.pulls()[0];
    assert_eq!(to, peer(OWNER));
    lone.feed(Input::RequestFailed { to, id });
    lone.pass(100);
    let (to, id, _) = lone.pulls()[0];
    assert_eq!(to, peer(OTHER));
    lone.reply(OTHER, id, &GossipReply::Body(Forged::new(OWNER, 0, &parts(50..55)).body));
    assert_eq!(lone.misdeeds(), [(peer(OTHER), Misdeed::WrongBody)]);
    assert!(!lone.is_candidate(OWNER, &part(52)));
    lone.pass(400);
    let (to, id, _) = lone.pulls()[0];
    assert_eq!(to, peer(OTHER).max(peer(OWNER)).min(to), "one of the two");
    lone.feed(Input::Response { from: to, id, bytes: GossipReply::Body(forged.body.clone()).encode().unwrap() });
    assert!(lone.is_candidate(OWNER, &part(3)));
}

#[test]
fn the_sender_is_blamed_for_a_false_delta_and_the_whole_body_is_pulled() {
    let base = Forged::new(OWNER, 0, &parts(0..5));
    let next = Forged::new(OWNER, 1, &parts(0..6));
    let delta = |base_seq: u64, items: u64, positions: Vec<u32>| {
        let delta = SummaryDelta { base_seq, items, positions, audience: None, addresses: None };
        GossipReply::Delta(delta.encode().unwrap())
    };
    let endless = [&[0u8; 16][..], &2u64.to_le_bytes(), &[0xff, 0xff], &[0, 0]].concat();
    for false_delta in [
        delta(0, 6, vec![1, 2, 3]),
        delta(0, 6, vec![u32::MAX]),
        delta(7, 6, vec![]),
        GossipReply::Delta(endless.clone()),
        GossipReply::Delta(vec![9; 50]),
    ] {
        let mut lone = Lone::new();
        lone.hold(OWNER, &base);
        lone.announce(OWNER, next.envelope.as_bytes());
        let (to, id, have_seq) = lone.pulls()[0];
        assert_eq!((to, have_seq), (peer(OWNER), Some(0)));
        lone.reply(OWNER, id, &false_delta);
        assert_eq!(lone.misdeeds(), [(peer(OWNER), Misdeed::WrongDelta)]);
        lone.pass(100);
        let (to, id, have_seq) = lone.pulls()[0];
        assert_eq!(have_seq, None, "a delta is not asked for again");
        lone.feed(Input::Response { from: to, id, bytes: GossipReply::Body(next.body.clone()).encode().unwrap() });
        assert!((0..6).all(|path| lone.is_candidate(OWNER, &part(path))));
    }
}

#[test]
fn a_delta_without_a_base_is_refused() {
    let mut lone = Lone::new();
    lone.announce(OWNER, Forged::new(OWNER, 3, &parts(0..5)).envelope.as_bytes());
    let (_, id, have_seq) = lone.pulls()[0];
    assert_eq!(have_seq, None);
    let delta = SummaryDelta { base_seq: 2, items: 5, positions: vec![1], audience: None, addresses: None };
    lone.reply(OWNER, id, &GossipReply::Delta(delta.encode().unwrap()));
    assert_eq!(lone.misdeeds(), [(peer(OWNER), Misdeed::WrongDelta)]);
}

#[test]
fn a_flood_of_announcements_is_not_even_opened() {
    let mut lone = Lone::new();
    let mut accepted = 0;
    for seq in 0..2_000 {
        let forged = Forged::new(OWNER, seq, &parts(0..1));
        accepted += u32::from(lone.tell(OWNER, OWNER, forged.envelope.as_bytes()) == Forward::Accept);
    }
    assert_eq!(accepted, 40);
    assert!(lone.misdeeds().iter().all(|misdeed| *misdeed == (peer(OWNER), Misdeed::AnnouncementFlood)));
    assert!(!lone.misdeeds().is_empty());
    assert_eq!(lone.pulls().len(), 1, "one pull an owner, whatever it announces");
    lone.pass(1_000);
    let later = Forged::new(OWNER, 5_000, &parts(0..1));
    assert_eq!(lone.announce(OWNER, later.envelope.as_bytes()), Forward::Accept);
}

#[test]
fn the_author_is_not_blamed_for_what_another_peer_replays() {
    let mut lone = Lone::new();
    let dated = |epoch: u64, issued_at_ms: u64| {
        let change = |announcement: &mut Announcement| {
            (announcement.generation.epoch, announcement.issued_at_ms) = (epoch, issued_at_ms);
        };
        Forged::with(OWNER, 0, &parts(0..1), |_| {}, change)
    };
    // All that an owner said in a week, correctly signed, told to a node that knows nothing of the owner
    // and cannot reach it.
    for hour in 0..200 {
        let at = WALL_MS - (200 - hour) * 3_600_000;
        lone.tell(OWNER, OTHER, dated(at, at).envelope.as_bytes());
    }
    assert_eq!(lone.misdeeds(), []);
    let told_of_clock = |output: &Output| matches!(output, Output::Event(Event::ClockDiffers { .. }));
    assert!(!lone.outputs.iter().any(told_of_clock));
    // The owner is back: what it says is accepted at once, whether it comes through another peer or from itself.
    lone.feed(Input::Allowlist(BTreeSet::from([peer(OWNER), peer(OTHER), peer(HONEST)])));
    assert_eq!(lone.tell(OWNER, HONEST, dated(WALL_MS, WALL_MS).envelope.as_bytes()), Forward::Accept);
    assert_eq!(lone.tell(OWNER, OWNER, dated(WALL_MS + 1, WALL_MS).envelope.as_bytes()), Forward::Accept);
    assert_eq!(lone.misdeeds(), []);
    // When the owner itself gives a date that is more than a day off, its clock is wrong.
    let mut other = Lone::new();
    other.tell(OWNER, OWNER, dated(5, WALL_MS - 2 * DAY_MS).envelope.as_bytes());
    assert!(other.outputs.iter().any(told_of_clock));
}

/// It may be honest: these are the announcements of peers that it allows and we do not.
#[test]
fn a_peer_that_hands_on_messages_of_strangers_is_not_blamed_however_many_they_are() {
    let mut lone = Lone::new();
    let bytes = Forged::new(STRANGER, 1, &parts(0..1)).envelope.as_bytes().to_vec();
    for _ in 0..20_000 {
        assert_eq!(lone.tell(STRANGER, OTHER, &bytes), Forward::Ignore);
    }
    assert_eq!(lone.misdeeds(), []);
}

#[test]
fn a_flood_of_requests_is_answered_with_busy() {
    let mut lone = Lone::new();
    let sync = Sync { store_dir: "/nix/store".into(), software: "x".into(), yours: None, have: vec![] };
    let sync = GossipRequest::Sync(sync).encode().unwrap();
    let answered = (0..3_000).filter(|_| lone.ask(OWNER, sync.clone()) != GossipReply::Busy).count();
    assert_eq!(answered, 1_024);
    assert_ne!(lone.ask(OTHER, sync.clone()), GossipReply::Busy, "others are not harmed");
    lone.pass(1_000);
    assert_ne!(lone.ask(OWNER, sync), GossipReply::Busy);
}

#[test]
fn the_third_misdeed_sets_aside_for_five_minutes() {
    let mut lone = Lone::new();
    let forged = Forged::new(OWNER, 0, &parts(0..20));
    lone.hold(OWNER, &forged);
    lone.hold(OTHER, &Forged::new(OTHER, 0, &parts(0..20)));
    for seq in 0..3 {
        assert!(lone.is_candidate(OWNER, &part(5)));
        lone.announce(OWNER, &vec![1; 150 + seq]);
    }
    assert!(!lone.is_candidate(OWNER, &part(5)) && lone.is_candidate(OTHER, &part(5)));
    let view = |lone: &Lone| lone.core.peers().find(|view| view.peer == peer(OWNER)).unwrap();
    assert_eq!(view(&lone).set_aside_until, Some(lone.now.moment + 300_000));
    assert_eq!((view(&lone).misdeeds, view(&lone).last_misdeed), (3, Some(Misdeed::MalformedAnnouncement)));
    let next = Forged::new(OWNER, 1, &parts(0..30));
    lone.announce(OWNER, next.envelope.as_bytes());
    lone.pass(299_000);
    assert!(lone.requests().iter().all(|(to, ..)| *to != peer(OWNER)), "it is asked nothing");
    assert!(!lone.is_candidate(OWNER, &part(5)));
    lone.pass(1_100);
    assert!(lone.is_candidate(OWNER, &part(5)), "it comes back by itself");
    assert!(lone.pulls().iter().any(|(to, ..)| *to == peer(OWNER)), "and what it announced meanwhile is pulled");
}

#[test]
fn misdeeds_told_by_the_caller_count() {
    let mut lone = Lone::new();
    lone.hold(OWNER, &Forged::new(OWNER, 0, &parts(0..20)));
    for misdeed in [Misdeed::FalseNarInfo, Misdeed::FalseNar, Misdeed::FalseNar] {
        lone.feed(Input::Misbehaved { peer: peer(OWNER), misdeed });
    }
    assert!(!lone.is_candidate(OWNER, &part(5)));
}

#[test]
fn false_hits_order_the_candidates_and_demote_the_liar() {
    let mut lone = Lone::new();
    lone.hold(OWNER, &Forged::new(OWNER, 0, &parts(0..20)));
    lone.hold(OTHER, &Forged::new(OTHER, 0, &parts(0..20)));
    let first = |lone: &Lone| lone.core.find_candidates(&part(5)).first().unwrap().peer;
    let probe = |number: u8, outcome| Input::Probe { peer: peer(number), outcome };
    lone.feed(probe(OWNER, ProbeOutcome::FalseHit));
    assert_eq!(first(&lone), peer(OTHER));
    (0..2).for_each(|_| lone.feed(probe(OTHER, ProbeOutcome::FalseHit)));
    assert_eq!(first(&lone), peer(OWNER));
    (0..19).for_each(|_| lone.feed(probe(OWNER, ProbeOutcome::FalseHit)));
    assert!(!lone.is_demoted(OWNER, &part(5)));
    lone.feed(probe(OWNER, ProbeOutcome::FalseHit));
    assert!(lone.is_demoted(OWNER, &part(5)));
    assert_eq!(first(&lone), peer(OTHER), "whoever is demoted comes last");
    assert!(lone.events().iter().any(|event| matches!(event, Event::Demoted { .. })));
    assert_eq!(lone.misdeeds(), [(peer(OWNER), Misdeed::FalseClaims)]);
    lone.pass(300_000);
    assert!(!lone.is_demoted(OWNER, &part(5)), "five minutes later it may try again");
    (0..40).for_each(|_| lone.feed(probe(OWNER, ProbeOutcome::FalseHit)));
    assert!(lone.is_demoted(OWNER, &part(5)));
    let next = Forged::with(
        OWNER,
        0,
        &parts(0..20),
        |summary| summary.addresses.clear(),
        |announcement| {
            announcement.generation.epoch += 1;
        },
    );
    lone.hold(OWNER, &next);
    assert!(!lone.is_demoted(OWNER, &part(5)), "a new epoch is a new filter");
    (0..21).for_each(|_| lone.feed(probe(OWNER, ProbeOutcome::FalseHit)));
    let next = Forged::with(OWNER, 0, &parts(0..20), |_| {}, |announcement| announcement.generation.epoch += 2);
    lone.announce(OWNER, next.envelope.as_bytes());
    assert!(lone.is_demoted(OWNER, &part(5)), "but one in five minutes, and nobody is set aside for it");
}

#[test]
fn false_hits_that_the_density_explains_do_not_demote() {
    let mut lone = Lone::new();
    // 500 paths in 8,192 bits: 49 % ones, a rate of 0.04 %, so 8 false hits are to be expected.
    lone.hold(OWNER, &Forged::new(OWNER, 0, &parts(0..500)));
    (0..2_000_000u32).step_by(100).for_each(|path| drop(lone.core.find_candidates(&part(path))));
    (0..60).for_each(|_| lone.feed(Input::Probe { peer: peer(OWNER), outcome: ProbeOutcome::FalseHit }));
    let view = lone.core.peers().find(|view| view.peer == peer(OWNER)).unwrap();
    assert_eq!(view.false_hits, 60);
    assert_eq!(view.demoted_until.is_some(), lone.is_demoted(OWNER, &part(5)));
    assert_eq!(view.demoted_until, None, "20,000 lookups at that density explain them");
}

#[test]
fn a_held_body_goes_to_its_audience_only() {
    let mut lone = Lone::new();
    let only_us = |summary: &mut narmesh_protocol::Summary| summary.audience = vec![AudienceDigest::of(&peer(1))];
    let private = Forged::with(OWNER, 0, &parts(0..5), only_us, |_| {});
    lone.hold(OWNER, &private);
    let pull = |forged: &Forged| {
        let owner = AudienceDigest::of(&peer(OWNER));
        GossipRequest::Pull { owner, generation: forged.announcement.generation, have_seq: None }.encode().unwrap()
    };
    assert!(lone.is_candidate(OWNER, &part(3)));
    assert_eq!(lone.ask(OTHER, pull(&private)), GossipReply::Absent);
    let sync = Sync { store_dir: "/nix/store".into(), software: "x".into(), yours: None, have: vec![] };
    let news = |lone: &mut Lone| match lone.ask(OTHER, GossipRequest::Sync(sync.clone()).encode().unwrap()) {
        GossipReply::Sync { news, .. } => news.iter().map(|news| Envelope::open(news).unwrap().peer()).collect(),
        _ => vec![],
    };
    assert_eq!(news(&mut lone), [peer(1)]);
    let shared = Forged::new(OWNER, 1, &parts(0..6));
    lone.hold(OWNER, &shared);
    assert_eq!(lone.ask(OTHER, pull(&shared)), GossipReply::Body(shared.body.clone()));
    assert_eq!(lone.ask(STRANGER, pull(&shared)), GossipReply::Absent);
    assert_eq!(lone.ask(OTHER, pull(&private)), GossipReply::Absent, "an old generation is not kept");
    assert_eq!(news(&mut lone).len(), 2);
}

#[test]
fn our_own_body_goes_to_the_audience_that_it_names() {
    let mut lone = Lone::new();
    let generation = lone.core.publication().generation.unwrap();
    let owner = AudienceDigest::of(&peer(1));
    let pull = |generation| GossipRequest::Pull { owner, generation, have_seq: None }.encode().unwrap();
    assert!(matches!(lone.ask(OTHER, pull(generation)), GossipReply::Body(_)));
    // This peer is trusted since a moment ago: the body that we published does not name it yet.
    lone.feed(Input::Allowlist(BTreeSet::from([peer(OTHER), peer(OWNER), peer(STRANGER)])));
    assert_eq!(lone.ask(STRANGER, pull(generation)), GossipReply::Absent);
    lone.pass(1_000);
    let next = lone.core.publication().generation.unwrap();
    assert!(matches!(lone.ask(STRANGER, pull(next)), GossipReply::Body(_)));
}

#[test]
fn garbage_is_blamed_on_its_sender() {
    let mut lone = Lone::new();
    assert_eq!(lone.ask(OTHER, vec![0xff; 10]), GossipReply::Absent);
    assert_eq!(lone.misdeeds(), [(peer(OTHER), Misdeed::MalformedRequest)]);
    lone.outputs.clear();
    lone.announce(OWNER, Forged::new(OWNER, 0, &parts(0..5)).envelope.as_bytes());
    let (to, id, _) = lone.pulls()[0];
    lone.feed(Input::Response { from: peer(OTHER), id, bytes: vec![0xff; 10] });
    assert!(lone.misdeeds().is_empty(), "an answer to a question put to another is nobody's");
    lone.feed(Input::Response { from: to, id, bytes: vec![0xff; 10] });
    assert_eq!(lone.misdeeds(), [(peer(OWNER), Misdeed::MalformedReply)]);
    lone.pass(100);
    let (to, id, _) = lone.pulls()[0];
    let cut = GossipReply::Body(vec![7; 1_000]).encode().unwrap();
    lone.feed(Input::Response { from: to, id, bytes: cut[..500].to_vec() });
    assert_eq!(lone.misdeeds().len(), 1, "what ends too early may be the fault of the connection");
    lone.pass(200);
    let (to, id, _) = lone.pulls()[0];
    lone.feed(Input::Response { from: to, id, bytes: sync_reply(vec![], None).encode().unwrap() });
    assert_eq!(lone.misdeeds().last(), Some(&(to, Misdeed::MalformedReply)));
}
