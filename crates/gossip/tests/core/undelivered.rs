//! Bodies that were announced and are not there: from liars, and from owners that published again or restarted.

use crate::lone::{Forged, Lone, OTHER, OWNER, sync_reply};
use crate::net::{part, parts, peer};
use narmesh_gossip::{Event, Input, Misdeed};
use narmesh_protocol::wire::{GossipReply, GossipRequest};

/// For a minute, answers each pull with nothing and each sync with this news; returns how many pulls there were.
fn deliver_nothing(lone: &mut Lone, news: &[Vec<u8>]) -> usize {
    let mut pulls = 0;
    for _ in 0..60 {
        for (to, id, request) in lone.requests() {
            let reply = match request {
                GossipRequest::Sync(_) => sync_reply(if to == peer(OWNER) { news.to_vec() } else { vec![] }, None),
                GossipRequest::Pull { .. } => GossipReply::Absent,
            };
            pulls += usize::from(reply == GossipReply::Absent);
            lone.feed(Input::Response { from: to, id, bytes: reply.encode().unwrap() });
        }
        lone.pass(1_000);
    }
    pulls
}

#[test]
fn an_undelivered_body_is_given_up_and_its_owner_blamed() {
    let mut lone = Lone::new();
    let announced = Forged::new(OWNER, 0, &parts(0..5)).envelope.as_bytes().to_vec();
    lone.tell(OWNER, OWNER, &announced);
    assert_eq!(deliver_nothing(&mut lone, &[]), 10);
    assert_eq!(lone.misdeeds(), [(peer(OWNER), Misdeed::Undelivered)]);
    assert!(lone.events().iter().any(|event| matches!(event, Event::PullGivenUp { .. })));
    // Another peer told of it, and the owner confirmed it itself.
    let mut lone = Lone::new();
    lone.announce(OWNER, &announced);
    deliver_nothing(&mut lone, &[announced]);
    assert_eq!(lone.misdeeds().first(), Some(&(peer(OWNER), Misdeed::Undelivered)));
}

#[test]
fn a_restarted_peer_is_not_blamed_for_its_earlier_announcements() {
    let announced = Forged::new(OWNER, 0, &parts(0..5)).envelope.as_bytes().to_vec();
    for told_by_itself in [false, true] {
        let mut lone = Lone::new();
        lone.tell(OWNER, if told_by_itself { OWNER } else { OTHER }, &announced);
        lone.feed(Input::Disconnected(peer(OWNER)));
        lone.feed(Input::Connected(peer(OWNER)));
        // It still reads its store: it announces nothing, and has nothing.
        assert_eq!(deliver_nothing(&mut lone, &[]), 10);
        for _ in 0..4 {
            lone.announce(OWNER, &announced);
            deliver_nothing(&mut lone, &[]);
        }
        assert!(lone.misdeeds().is_empty(), "{:?}", lone.misdeeds());
        lone.tell(OWNER, OWNER, Forged::new(OWNER, 1, &parts(0..5)).envelope.as_bytes());
        assert_eq!(lone.pulls().len(), 1, "then it is asked for what it announces next");
    }
}

#[test]
fn announcing_something_else_each_time_does_not_avoid_blame() {
    let mut lone = Lone::new();
    for seq in 0..40 {
        lone.tell(OWNER, OWNER, Forged::new(OWNER, seq, &parts(0..5)).envelope.as_bytes());
        for (to, id, _) in lone.pulls() {
            lone.feed(Input::Response { from: to, id, bytes: GossipReply::Absent.encode().unwrap() });
        }
        lone.pass(2_000);
        assert!(lone.misdeeds().len() <= usize::from(seq >= 29), "not in the first minute, nor again and again");
    }
    assert_eq!(lone.misdeeds(), [(peer(OWNER), Misdeed::Undelivered)]);
}

#[test]
fn an_unanswered_pull_fails_after_ten_seconds() {
    let mut lone = Lone::new();
    lone.announce(OWNER, Forged::new(OWNER, 0, &parts(0..5)).envelope.as_bytes());
    let (_, late, _) = lone.pulls()[0];
    lone.pass(10_200);
    assert_eq!(lone.pulls().len(), 1, "asked again after ten seconds");
    lone.reply(OWNER, late, &GossipReply::Body(Forged::new(OWNER, 0, &parts(0..5)).body));
    assert!(!lone.is_candidate(OWNER, &part(3)), "what comes too late is dropped");
}
