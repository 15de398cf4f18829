//! Summaries kept over a restart: used at once, checked like new ones, and never handed on when they are outdated.

use crate::lone::{Forged, Lone, OTHER, OWNER, STRANGER, sync_reply};
use crate::net::{WALL_MS, config, part, parts, peer};
use libp2p_identity::PeerId;
use narmesh_gossip::{Event, Flaw, Gossip, Input, KeptSummary, Moment, Now, Persisted, Unfit};
use narmesh_protocol::wire::{GossipReply, GossipRequest, Sync};
use narmesh_protocol::{AudienceDigest, Envelope};
use std::collections::BTreeSet;

const DAY_MS: u64 = 86_400_000;
const LIFETIME_MS: u64 = 14_400_000;

/// A core that has just started with what the last run persisted; nobody is connected.
fn started(newest: &[&Forged], wall_ms: u64) -> Lone {
    started_admitting(newest, wall_ms, vec![])
}

/// The same, also with audiences of the last run.
fn started_admitting(newest: &[&Forged], wall_ms: u64, audiences: Vec<(PeerId, Vec<AudienceDigest>)>) -> Lone {
    let now = Now { moment: Moment(50), wall_ms };
    let newest = newest.iter().map(|forged| forged.envelope.as_bytes().to_vec()).collect();
    let core = Gossip::new(now, config(1), Persisted { newest, audiences, ..Persisted::default() });
    let mut lone = Lone { core, now, outputs: vec![] };
    lone.feed(Input::Allowlist(BTreeSet::from([peer(OWNER), peer(OTHER)])));
    lone
}

fn kept(forged: &Forged) -> KeptSummary {
    KeptSummary { envelope: forged.envelope.as_bytes().to_vec(), accepted_ms: WALL_MS, body: forged.body.clone() }
}

fn restore(lone: &mut Lone, kept: &KeptSummary) -> Result<(), Unfit> {
    let restored = lone.core.restore(lone.now, peer(OWNER), kept);
    lone.outputs.extend(std::iter::from_fn(|| lone.core.poll()));
    restored
}

fn greet(lone: &mut Lone, number: u8, news: &[&Forged]) {
    lone.feed(Input::Connected(peer(number)));
    lone.pass(500);
    let (_, id, _) = lone.requests().into_iter().find(|(to, ..)| *to == peer(number)).unwrap();
    let news = news.iter().map(|forged| forged.envelope.as_bytes().to_vec()).collect();
    lone.reply(number, id, &sync_reply(news, None));
}

/// The envelopes that a peer without any summary is told.
fn news_for(lone: &mut Lone, number: u8) -> Vec<Vec<u8>> {
    let sync = Sync { store_dir: "/nix/store".into(), software: "x".into(), yours: None, have: vec![] };
    match lone.ask(number, GossipRequest::Sync(sync).encode().unwrap()) {
        GossipReply::Sync { news, .. } => news,
        other => panic!("{other:?}"),
    }
}

fn pulled_by(lone: &mut Lone, number: u8, forged: &Forged) -> GossipReply {
    let generation = forged.announcement.generation;
    let pull = GossipRequest::Pull { owner: AudienceDigest::of(&peer(OWNER)), generation, have_seq: None };
    lone.ask(number, pull.encode().unwrap())
}

#[test]
fn a_kept_summary_is_used_before_anyone_is_connected() {
    let forged = Forged::new(OWNER, 3, &parts(0..20));
    // The next run takes exactly what this one gives.
    let mut before = Lone::new();
    before.hold(OWNER, &forged);
    let given = before.core.assemble_kept_summary(&peer(OWNER)).unwrap();
    assert_eq!((&given.body, &given.envelope), (&forged.body, &forged.envelope.as_bytes().to_vec()));
    let mut lone = started(&[&forged], given.accepted_ms + 60_000);
    restore(&mut lone, &given).unwrap();
    assert!((0..20).all(|path| lone.is_candidate(OWNER, &part(path))));
    assert!(!lone.is_candidate(OWNER, &part(99)));
    assert!(matches!(lone.events()[..], [Event::AddressesLearned { .. }]), "where it listens is known as well");
    let summary = lone.core.peers().find(|view| view.peer == peer(OWNER)).unwrap().summary.unwrap();
    assert!(summary.remembered && summary.accepted_ms == given.accepted_ms);
    // It goes to its audience, and hearing the same again pulls nothing.
    assert_eq!(news_for(&mut lone, OTHER), [forged.envelope.as_bytes()]);
    assert_eq!(pulled_by(&mut lone, OTHER, &forged), GossipReply::Body(forged.body.clone()));
    greet(&mut lone, OWNER, &[&forged]);
    assert!(lone.pulls().is_empty() && lone.misdeeds().is_empty());
    let summary = lone.core.peers().find(|view| view.peer == peer(OWNER)).unwrap().summary.unwrap();
    assert!(!summary.remembered, "heard since the start");
    assert_eq!(lone.core.restore(lone.now, peer(OWNER), &given), Err(Unfit::Heard));
}

#[test]
fn only_its_owner_confirms_a_kept_summary() {
    let forged = Forged::new(OWNER, 3, &parts(0..20));
    let mut lone = started(&[&forged], WALL_MS + 60_000);
    restore(&mut lone, &kept(&forged)).unwrap();
    lone.core.restore(lone.now, peer(OTHER), &kept(&Forged::new(OTHER, 3, &parts(0..20)))).unwrap();
    let is_remembered = |lone: &Lone, number| {
        lone.core.peers().find(|view| view.peer == peer(number)).unwrap().summary.unwrap().remembered
    };
    assert!(!lone.core.has_heard_all());
    greet(&mut lone, OTHER, &[]);
    assert!(is_remembered(&lone, OWNER) && !is_remembered(&lone, OTHER));
    // It says nothing new, so what we hold is its newest.
    greet(&mut lone, OWNER, &[]);
    assert!(!is_remembered(&lone, OWNER) && lone.core.has_heard_all());
}

#[test]
fn only_the_rest_of_the_lifetime_is_left_and_repeats_do_not_renew_it() {
    let forged = Forged::new(OWNER, 0, &parts(0..20));
    let age_ms = LIFETIME_MS - 100_000;
    let mut lone = started(&[&forged], WALL_MS + age_ms);
    restore(&mut lone, &kept(&forged)).unwrap();
    greet(&mut lone, OWNER, &[&forged]);
    lone.pass(90_000);
    assert!(lone.is_candidate(OWNER, &part(5)));
    lone.pass(20_000);
    assert!(!lone.is_candidate(OWNER, &part(5)));
    assert!(lone.events().contains(&&Event::Expired { peer: peer(OWNER) }));
    assert!(lone.core.assemble_kept_summary(&peer(OWNER)).is_none(), "nothing is left to keep");
    // A summary that is announced again before the end lives on.
    let again = Forged::new(OWNER, 1, &parts(0..20));
    let mut lone = started(&[&forged], WALL_MS + age_ms);
    restore(&mut lone, &kept(&forged)).unwrap();
    greet(&mut lone, OWNER, &[&again]);
    lone.pass(LIFETIME_MS - 10_000);
    assert!(lone.is_candidate(OWNER, &part(5)));
}

#[test]
fn clock_jumps_do_not_extend_the_lifetime() {
    let forged = Forged::new(OWNER, 0, &parts(0..20));
    for (wall_ms, restored) in [
        (WALL_MS + LIFETIME_MS, Err(Unfit::Expired)),
        (WALL_MS + 40 * DAY_MS, Err(Unfit::Expired)),
        (WALL_MS - DAY_MS - 1, Err(Unfit::Ahead)),
        (WALL_MS - 3_600_000, Ok(())),
    ] {
        assert_eq!(restore(&mut started(&[&forged], wall_ms), &kept(&forged)), restored, "{wall_ms}");
    }
    // The clock went back an hour: the summary lives no longer than one that was just accepted.
    let mut lone = started(&[&forged], WALL_MS - 3_600_000);
    restore(&mut lone, &kept(&forged)).unwrap();
    lone.pass(LIFETIME_MS - 1_000);
    assert!(lone.is_candidate(OWNER, &part(5)));
    lone.pass(2_000);
    assert!(!lone.is_candidate(OWNER, &part(5)));
}

#[test]
fn a_kept_summary_changed_on_disk_is_dropped_and_nobody_is_blamed() {
    let honest = Forged::new(OWNER, 0, &parts(0..20));
    let of_other = Forged::new(OTHER, 0, &parts(0..20));
    let dense = Forged::with(OWNER, 0, &parts(0..20), |summary| summary.filter_bytes.fill(0xff), |_| {});
    let counts = Forged::with(OWNER, 0, &parts(0..20), |_| {}, |announcement| announcement.path_count = 7);
    let foreign = Forged::with(
        OWNER,
        0,
        &parts(0..20),
        |summary| summary.audience = vec![AudienceDigest::of(&peer(STRANGER))],
        |_| {},
    );
    let tomorrow = Forged::with(OWNER, 0, &parts(0..20), |summary| summary.hash_id = 9, |_| {});
    let next_year = Forged::with(OWNER, 0, &parts(0..20), |_| {}, |it| it.generation.epoch += 400 * DAY_MS);
    let signature_changed = {
        let mut kept = kept(&honest);
        kept.envelope[50] ^= 1;
        kept
    };
    let bit_changed = {
        let mut kept = kept(&honest);
        *kept.body.last_mut().unwrap() ^= 1;
        kept
    };
    let torn = KeptSummary { body: honest.body[..500].to_vec(), ..kept(&honest) };
    for (kept, unfit) in [
        (signature_changed, Unfit::Forged),
        (kept(&of_other), Unfit::Forged),
        (KeptSummary { envelope: vec![], ..kept(&honest) }, Unfit::Forged),
        (bit_changed, Unfit::OtherBody),
        (torn, Unfit::OtherBody),
        (kept(&dense), Unfit::Flawed(Flaw::Dense)),
        (kept(&counts), Unfit::Flawed(Flaw::PathCount)),
        (kept(&foreign), Unfit::Flawed(Flaw::ForeignAudience)),
        (kept(&tomorrow), Unfit::Flawed(Flaw::UnknownHashId { hash_id: 9 })),
        (kept(&next_year), Unfit::Ahead),
    ] {
        let mut lone = started(&[], WALL_MS);
        assert_eq!(restore(&mut lone, &kept), Err(unfit));
        assert!(lone.outputs.is_empty() && !lone.is_candidate(OWNER, &part(5)), "{unfit:?}");
    }
    let mut lone = started(&[], WALL_MS);
    lone.feed(Input::Allowlist(BTreeSet::from([peer(OTHER)])));
    assert_eq!(restore(&mut lone, &kept(&honest)), Err(Unfit::NotTrusted));
}

#[test]
fn a_peer_that_said_goodbye_is_not_restored() {
    let forged = Forged::new(OWNER, 3, &parts(0..20));
    let goodbye = Forged::with(OWNER, 4, &BTreeSet::new(), |_| {}, |announcement| announcement.lifetime_s = 0);
    let mut lone = started(&[&goodbye], WALL_MS);
    assert_eq!(restore(&mut lone, &kept(&forged)), Err(Unfit::Departed));
    // A goodbye that comes after the start ends the summary as well.
    let mut lone = started(&[&forged], WALL_MS);
    restore(&mut lone, &kept(&forged)).unwrap();
    lone.tell(OWNER, OTHER, goodbye.envelope.as_bytes());
    assert!(!lone.is_candidate(OWNER, &part(5)) && lone.core.assemble_kept_summary(&peer(OWNER)).is_none());
}

#[test]
fn an_outdated_kept_summary_serves_only_us_until_the_newest_is_pulled() {
    let (older, newest) = (Forged::new(OWNER, 3, &parts(0..20)), Forged::new(OWNER, 4, &parts(0..30)));
    let mut lone = started(&[&newest], WALL_MS + 60_000);
    restore(&mut lone, &kept(&older)).unwrap();
    assert!((0..20).all(|path| lone.is_candidate(OWNER, &part(path))) && !lone.is_candidate(OWNER, &part(25)));
    assert!(news_for(&mut lone, OTHER).is_empty(), "it is no news");
    assert_eq!(pulled_by(&mut lone, OTHER, &older), GossipReply::Absent);
    // An older announcement stays refused. The newest body is pulled once its announcement is heard again, as
    // a delta if possible.
    lone.feed(Input::Connected(peer(OTHER)));
    lone.pass(500);
    lone.requests();
    lone.tell(OWNER, OTHER, older.envelope.as_bytes());
    assert!(lone.pulls().is_empty());
    lone.tell(OWNER, OTHER, newest.envelope.as_bytes());
    let pulls = lone.pulls();
    let [(_, id, Some(3))] = pulls[..] else { panic!("{pulls:?}") };
    lone.reply(OTHER, id, &GossipReply::Body(newest.body.clone()));
    assert!(lone.is_candidate(OWNER, &part(25)));
    assert_eq!(news_for(&mut lone, OTHER), [newest.envelope.as_bytes()]);
}

#[test]
fn restoring_an_older_body_admits_nobody_again() {
    let (older, newest) = (Forged::new(OWNER, 3, &parts(0..20)), Forged::new(OWNER, 4, &parts(0..30)));
    let alone = vec![AudienceDigest::of(&peer(1))];
    for (of_last_run, told) in [(&older, true), (&newest, false)] {
        let mut lone = started_admitting(&[of_last_run], WALL_MS + 60_000, vec![(peer(OWNER), alone.clone())]);
        restore(&mut lone, &kept(&older)).unwrap();
        assert_eq!(lone.core.admits(&peer(OWNER), &peer(OTHER)), told);
    }
    // The older audience does not count either when the newest one is unknown.
    let mut lone = started(&[&newest], WALL_MS + 60_000);
    restore(&mut lone, &kept(&older)).unwrap();
    assert!(lone.core.audience(&peer(OWNER)).is_none());
}

#[test]
fn a_kept_body_announced_again_unchanged_is_the_newest() {
    let (first, again) = (Forged::new(OWNER, 3, &parts(0..20)), Forged::new(OWNER, 4, &parts(0..20)));
    let mut lone = started(&[&again], WALL_MS + 60_000);
    restore(&mut lone, &kept(&first)).unwrap();
    let held = lone.core.peers().find(|view| view.peer == peer(OWNER)).unwrap().summary.unwrap();
    assert_eq!(held.generation, again.announcement.generation);
    assert_eq!(held.expires, Moment(50) + (LIFETIME_MS - 60_000));
    let envelope = lone.core.assemble_kept_summary(&peer(OWNER)).unwrap().envelope;
    assert_eq!(Envelope::open(&envelope).unwrap().announcement().generation, again.announcement.generation);
}
