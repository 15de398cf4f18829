//! Hostile peers that answer a sync with news of others.

use crate::hostile::DAY_MS;
use crate::lone::{Forged, Lone, OTHER, OWNER, STRANGER, sync_reply};
use crate::net::{WALL_MS, keypair, parts, peer};
use libp2p_identity::{Keypair, PeerId};
use narmesh_gossip::{Event, Input, Misdeed, Output, Record};
use narmesh_protocol::wire::{GossipReply, GossipRequest, Have, Sync};
use narmesh_protocol::{Announcement, AudienceDigest, Envelope, Generation};

/// Reconnects `number`; returns the id of the first sync that the core then sends to it.
fn next_sync(lone: &mut Lone, number: u8) -> u64 {
    lone.outputs.clear();
    lone.feed(Input::Disconnected(peer(number)));
    lone.feed(Input::Connected(peer(number)));
    lone.requests().into_iter().find(|(to, ..)| *to == peer(number)).unwrap().1
}

#[test]
fn forged_news_is_blamed_on_the_peer_that_told_it() {
    let mut lone = Lone::new();
    let id = next_sync(&mut lone, OTHER);
    let good = Forged::new(OWNER, 0, &parts(0..5));
    let mut forged = good.envelope.as_bytes().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    lone.reply(OTHER, id, &sync_reply(vec![good.envelope.as_bytes().to_vec(), forged], None));
    assert_eq!(lone.misdeeds(), [(peer(OTHER), Misdeed::ForgedNews)]);
    assert_eq!(lone.pulls().len(), 1, "the good one counts");
    let id = next_sync(&mut lone, OTHER);
    lone.reply(OTHER, id, &sync_reply(vec![], Some(good.envelope.as_bytes().to_vec())));
    assert_eq!(lone.misdeeds(), [(peer(OTHER), Misdeed::ForgedNews)], "`yours` with another's signature");
}

#[test]
fn nothing_is_pulled_from_a_peer_with_another_store_directory() {
    let mut lone = Lone::new();
    let id = next_sync(&mut lone, OWNER);
    lone.reply(OWNER, id, &GossipReply::StoreDirDiffers { store_dir: "/gnu/store".into() });
    lone.announce(OWNER, Forged::new(OWNER, 0, &parts(0..5)).envelope.as_bytes());
    lone.pass(100_000);
    assert_eq!(lone.pulls(), [], "neither from it nor from others");
    assert!(lone.misdeeds().is_empty());
    // The peer's operator has corrected that.
    let id = next_sync(&mut lone, OWNER);
    lone.reply(OWNER, id, &sync_reply(vec![], None));
    assert_eq!(lone.pulls().first().map(|(to, ..)| *to), Some(peer(OWNER)));
}

#[test]
fn news_of_strangers_leave_no_trace() {
    let mut lone = Lone::new();
    let id = next_sync(&mut lone, OTHER);
    let stranger = Forged::new(STRANGER, 0, &parts(0..5));
    lone.reply(OTHER, id, &sync_reply(vec![stranger.envelope.as_bytes().to_vec()], None));
    assert!(lone.pulls().is_empty() && lone.misdeeds().is_empty());
    assert_eq!(lone.core.peers().count(), 2);
}

/// Whose announcements the core has written to disk.
fn persisted(lone: &Lone) -> Vec<PeerId> {
    let newest = |output: &Output| match output {
        Output::Persist(Record::Newest { peer, .. }) => Some(*peer),
        _ => None,
    };
    lone.outputs.iter().filter_map(newest).collect()
}

/// The same body, announced so many times.
fn renewals(author: u8, seqs: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    seqs.map(|seq| Forged::new(author, seq, &parts(0..5)).envelope.as_bytes().to_vec()).collect()
}

#[test]
fn of_many_envelopes_of_one_signer_in_one_answer_the_newest_counts() {
    let mut lone = Lone::new();
    for (teller, first) in [(OWNER, 0), (OTHER, 10_000)] {
        let id = next_sync(&mut lone, teller);
        lone.reply(teller, id, &sync_reply(renewals(OWNER, first..first + 1_024), None));
        assert_eq!(persisted(&lone), [peer(OWNER)]);
        let view = lone.core.peers().find(|view| view.peer == peer(OWNER)).unwrap();
        assert_eq!(view.announced.unwrap().seq, first + 1_023);
        assert_eq!(lone.misdeeds(), []);
    }
}

#[test]
fn a_peer_that_redials_without_end_and_tells_something_new_each_time_is_stopped() {
    let mut lone = Lone::new();
    let mut written = 0;
    for (seq, envelope) in renewals(OWNER, 0..200).into_iter().enumerate() {
        let id = next_sync(&mut lone, OWNER);
        lone.reply(OWNER, id, &sync_reply(vec![envelope], None));
        written += persisted(&lone).len();
        assert_eq!(lone.misdeeds().len(), usize::from(seq == 39), "{seq}");
    }
    assert_eq!(written, 40);
    lone.pass(1_000);
    let id = next_sync(&mut lone, OWNER);
    lone.reply(OWNER, id, &sync_reply(renewals(OWNER, 300..301), None));
    assert_eq!(persisted(&lone), [peer(OWNER)], "later it is heard again");
}

#[test]
fn a_greeting_brings_a_thousand_peers_at_once_and_no_teller_brings_more_without_end() {
    let keypairs: Vec<_> = (0..1_024_u32)
        .map(|number| {
            let mut seed = [99; 32];
            seed[..4].copy_from_slice(&number.to_le_bytes());
            Keypair::ed25519_from_bytes(seed).unwrap()
        })
        .collect();
    let announcement = Forged::new(OWNER, 0, &parts(0..1)).announcement;
    let news = |seq: u64| {
        let announcement = Announcement { generation: Generation { seq, ..announcement.generation }, ..announcement };
        let seal = |keypair| Envelope::seal(keypair, announcement).unwrap().as_bytes().to_vec();
        keypairs.iter().map(seal).collect::<Vec<_>>()
    };
    let mut lone = Lone::new();
    let allowed = keypairs.iter().map(|keypair| keypair.public().to_peer_id());
    lone.feed(Input::Allowlist(allowed.chain([OWNER, OTHER].map(peer)).collect()));
    let told = |lone: &mut Lone, teller: u8, seq: u64| {
        let id = next_sync(lone, teller);
        lone.reply(teller, id, &sync_reply(news(seq), None));
        persisted(lone).len()
    };
    assert_eq!(told(&mut lone, OTHER, 0), 1_024);
    assert_eq!(told(&mut lone, OTHER, 0), 0, "what is known costs nothing");
    assert_eq!(told(&mut lone, OTHER, 1), 1_024);
    assert_eq!(told(&mut lone, OTHER, 2), 0);
    assert_eq!(told(&mut lone, OWNER, 3), 1_024, "another peer may tell as much");
    lone.pass(10_000);
    assert_eq!(told(&mut lone, OTHER, 4), 200);
    assert_eq!(lone.misdeeds(), []);
}

/// Their signatures do not hold, which nobody sees who does not verify them.
#[test]
fn news_that_cannot_count_are_not_opened() {
    let mut lone = Lone::new();
    let dated = |author: u8, issued_at_ms: u64| {
        let change = |announcement: &mut Announcement| announcement.issued_at_ms = issued_at_ms;
        let mut bytes = Forged::with(author, 0, &parts(0..5), |_| {}, change).envelope.as_bytes().to_vec();
        bytes[40] ^= 1;
        bytes
    };
    let (of_stranger, week_old) = (dated(STRANGER, WALL_MS), dated(OWNER, WALL_MS - 7 * DAY_MS));
    let id = next_sync(&mut lone, OTHER);
    lone.reply(OTHER, id, &sync_reply(vec![of_stranger, week_old.clone()], None));
    assert_eq!(lone.misdeeds(), []);
    let id = next_sync(&mut lone, OWNER);
    lone.reply(OWNER, id, &sync_reply(vec![week_old], None));
    assert_eq!(
        lone.misdeeds(),
        [(peer(OWNER), Misdeed::ForgedNews)],
        "what the signer itself says of its clock counts"
    );
}

#[test]
fn what_contradicts_another_envelope_of_the_same_answer_is_opened_too() {
    let mut lone = Lone::new();
    let announce = |paths| Forged::new(OWNER, 0, &parts(0..paths)).envelope.as_bytes().to_vec();
    let id = next_sync(&mut lone, OTHER);
    lone.reply(OTHER, id, &sync_reply((5..50).map(announce).collect(), None));
    assert_eq!(lone.misdeeds(), [(peer(OWNER), Misdeed::Equivocation)]);
    let id = next_sync(&mut lone, OTHER);
    lone.reply(OTHER, id, &sync_reply(vec![vec![2; 200]; 1_000], None));
    let unknown = lone.events().into_iter().filter(|event| matches!(event, Event::UnknownVersion { .. }));
    assert_eq!(unknown.count(), 1);
}

#[test]
fn a_stolen_key_cannot_push_our_epoch_far_ahead() {
    let mut lone = Lone::new();
    let before = lone.core.publication().generation.unwrap();
    let stolen = |epoch: u64| {
        let announcement =
            Announcement { generation: Generation { epoch, seq: 0 }, ..Forged::new(1, 0, &parts(0..1)).announcement };
        Envelope::seal(&keypair(1), announcement).unwrap().as_bytes().to_vec()
    };
    for epoch in [u64::MAX, WALL_MS + 3 * DAY_MS] {
        let id = next_sync(&mut lone, OTHER);
        lone.reply(OTHER, id, &sync_reply(vec![], Some(stolen(epoch))));
        lone.pass(1_000);
        assert_eq!(lone.core.publication().generation, Some(before));
    }
    let id = next_sync(&mut lone, OTHER);
    lone.reply(OTHER, id, &sync_reply(vec![], Some(stolen(WALL_MS + 3_600_000))));
    assert_eq!(lone.core.publication().generation.unwrap().epoch, WALL_MS + 3_600_001);
}

#[test]
fn too_long_lists_are_refused() {
    let mut lone = Lone::new();
    let have = Have { owner: AudienceDigest([0; 8]), generation: Generation { epoch: 0, seq: 0 } };
    let sync = Sync { store_dir: "/nix/store".into(), software: "x".into(), yours: None, have: vec![have; 2_049] };
    assert_eq!(lone.ask(OTHER, GossipRequest::Sync(sync).encode().unwrap()), GossipReply::Absent);
    assert_eq!(lone.misdeeds(), [(peer(OTHER), Misdeed::MalformedRequest)]);
    let id = next_sync(&mut lone, OTHER);
    lone.reply(OTHER, id, &sync_reply(vec![vec![]; 1_025], None));
    assert_eq!(lone.misdeeds(), [(peer(OTHER), Misdeed::MalformedReply)]);
}

#[test]
fn control_characters_in_software_names_are_removed() {
    let mut lone = Lone::new();
    let id = next_sync(&mut lone, OTHER);
    let software = format!("evil\n\u{1b}[2J{}", "x".repeat(500));
    let reply = GossipReply::Sync { store_dir: "/nix/store".into(), software, yours: None, news: vec![] };
    lone.reply(OTHER, id, &reply);
    let view = lone.core.peers().find(|view| view.peer == peer(OTHER)).unwrap();
    assert_eq!(view.software.unwrap(), format!("evil[2J{}", "x".repeat(57)));
}
