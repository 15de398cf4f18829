//! Announcements and other messages without end, and those of others handed on.

use crate::filter::filter;
use crate::formats::hash_part_bytes;
use crate::gossipsub::{FRAME_BYTES, MESHSUB, frame, message};
use crate::peer::{Peer, now_ms, peer_id, sync_request, timed};
use crate::stage::Stage;
use crate::summaries::{announcement, truth};
use crate::wire::{Announcement, GOSSIP, GossipRequest, Summary, TOPIC, open_envelope};
use futures::AsyncWriteExt as _;
use libp2p::identity::Keypair;
use narmesh_tests::{promised, wait_until};
use std::time::{Duration, Instant};

const FLOOD: Duration = Duration::from_secs(5);

/// An announcement with all that gossipsub puts around it, at most.
const MESSAGE_BYTES: usize = 500;

/// Announcements without end, each signed and new: the connection is closed, and no other is taken for a while, however often the
/// peer dials.
#[test]
fn announcements_without_end_close_the_connection() {
    let peer = Peer::honest("flood");
    let stage = Stage::new(&["flood"], 64, &[&peer]);
    stage.enter(&peer, "flood", &["a"]);
    let (body, epoch) = (truth(&stage, &peer).encode(), now_ms());
    let memory = stage.client.watch_memory();
    let mut stream = peer.open(&stage.client, MESHSUB).unwrap();
    let (mut sent, mut messages) = (0_u64, Vec::new());
    let started = Instant::now();
    loop {
        messages.clear();
        while messages.len() < FRAME_BYTES - MESSAGE_BYTES {
            let envelope = Announcement { seq: 10 + sent, ..announcement(&body, epoch) }.seal(&peer.keys);
            messages.extend(message(&peer.keys, TOPIC, sent, &envelope));
            sent += 1;
        }
        if peer.runtime.block_on(timed(stream.write_all(&frame(&messages)))).is_err() {
            break;
        }
        assert!(started.elapsed() < promised(FLOOD), "nobody closes the connection after {sent} announcements");
    }
    let (closed, mut dials) = (started.elapsed(), 0_u64);
    while started.elapsed() < FLOOD {
        peer.dial(&stage.client);
        dials += 1;
        std::thread::park_timeout(Duration::from_millis(10));
        // A connection may be there for a moment; nothing is answered on it.
        let answer = peer.ask(&stage.client, GOSSIP, &sync_request(None).encode());
        assert!(!answer.is_ok_and(|answer| !answer.is_empty()), "it is let in again");
    }
    stage.client.wait_logged(&["peer is disconnected"]);
    let outcome = stage.build_under_attack("flood", "single", &[]);
    stage.assert_blamed(&peer, "published announcements too fast", "announcement_flood", 1);
    let rise = memory.rise_bytes();
    assert!(rise <= 64 << 20, "{rise} bytes above idle after {sent} announcements");
    stage.note("flood of announcements", |row| {
        row.outcome = format!("closed after {sent} in {:.1} s; then {dials} dials refused", closed.as_secs_f64());
        row.rise_bytes = Some(rise.max(outcome.rise_bytes));
    });
    stage.finish();
}

/// Messages that are known already, messages with false signatures, and new ones of a stranger, as fast as the line takes them.
/// Gossipsub verifies each before it drops it or hands it to us, and nobody can be blamed: an honest peer hands on what those announce
/// whom it allows and we do not. So only the pace at which they are read bounds what they cost.
#[test]
fn messages_that_are_repeated_or_forged_or_of_strangers_are_read_at_a_bounded_pace() {
    let peers = ["repeated", "forged", "stranger"].map(Peer::honest);
    let stage = Stage::new(&["repeated", "forged", "stranger"], 64, &peers.each_ref());
    for peer in &peers {
        stage.enter(peer, &peer.name, &["a"]);
        let (body, epoch) = (truth(&stage, peer).encode(), now_ms());
        let stranger = Keypair::generate_ed25519();
        let author = if peer.name == "stranger" { &stranger } else { &peer.keys };
        let signed = |number: u64| {
            message(author, TOPIC, number, &Announcement { seq: number, ..announcement(&body, epoch) }.seal(author))
        };
        let mut same = signed(1);
        if peer.name == "forged" {
            *same.last_mut().unwrap() ^= 1;
        }
        let mut number = 1;
        let mut next_frame = || {
            let mut messages = Vec::new();
            while messages.len() < FRAME_BYTES - MESSAGE_BYTES {
                number += 1;
                messages.extend(if peer.name == "stranger" { signed(number) } else { same.clone() });
            }
            frame(&messages)
        };
        let memory = stage.client.watch_memory();
        let mut stream = peer.open(&stage.client, MESHSUB).unwrap();
        let mut sent_bytes = 0;
        let pushing = async {
            loop {
                let frame = next_frame();
                if stream.write_all(&frame).await.is_err() {
                    return;
                }
                sent_bytes += frame.len();
            }
        };
        let ended = peer.runtime.block_on(async { tokio::time::timeout(FLOOD, pushing).await });
        assert!(ended.is_err(), "the stream was closed after {sent_bytes} bytes");
        // 4 MiB at once and 256 KiB a second are read, and windows of up to 2 MiB wait; half as much again for a busy machine.
        assert!(sent_bytes > 2 << 20, "only {sent_bytes} bytes: no flood");
        assert!(sent_bytes < 12 << 20, "{sent_bytes} bytes were taken");
        let outcome = stage.build_under_attack(&peer.name, "single", &["a"]);
        stage.assert_unblamed(peer);
        stage.note(&format!("{} messages", peer.name), |row| {
            row.outcome = format!("{:.1} MB read in 5 s", sent_bytes as f64 / 1e6);
            row.rise_bytes = Some(memory.rise_bytes().max(outcome.rise_bytes));
        });
    }
    stage.finish();
}

/// Messages of one byte: the pace of bytes does not bound them, and no honest peer sends any.
#[test]
fn empty_messages_without_end_close_the_connection() {
    let peer = Peer::honest("empty");
    let stage = Stage::new(&["empty"], 64, &[&peer]);
    stage.enter(&peer, "empty", &["a"]);
    let mut stream = peer.open(&stage.client, MESHSUB).unwrap();
    let frames = vec![0; 10_000];
    let mut sent = 0;
    let pushing = async {
        while stream.write_all(&frames).await.is_ok() {
            sent += frames.len();
        }
    };
    let ended = peer.runtime.block_on(async { tokio::time::timeout(promised(FLOOD), pushing).await });
    assert!(ended.is_ok(), "nobody closes the connection after {sent} messages");
    stage.client.wait_logged(&["peer is disconnected"]);
    let outcome = stage.build_under_attack("empty", "single", &[]);
    stage.assert_blamed(&peer, "published announcements too fast", "announcement_flood", 1);
    stage.note("empty messages", |row| {
        row.outcome = format!("closed after {sent} at most");
        row.rise_bytes = Some(outcome.rise_bytes);
    });
    stage.finish();
}

/// An old announcement of an honest node, replayed by somebody else, changes nothing.
#[test]
fn an_old_announcement_replayed_changes_nothing() {
    let peer = Peer::honest("replayer");
    let stage = Stage::new(&["replay"], 64, &[&peer]);
    peer.connect(&stage.client);
    let good = peer_id(&stage.good);
    let owner = |envelope: &Vec<u8>| open_envelope(envelope).is_some_and(|(key, _)| good.to_bytes().ends_with(&key));
    let before = stage.client.status().summary_version("good").unwrap();
    // What the replayer once got by gossip.
    let old = stage.envelope_of_good(&peer);
    assert!(owner(&old));
    stage.good.store.build_fresh("newer");
    stage.good.wait_all_advertised(&[&stage.client]);
    let after = stage.client.status().summary_version("good").unwrap();
    assert!(after > before);
    peer.state(|state| state.news.push(old));
    // Both ways in which it may be told.
    let syncs = peer.asked().syncs.len();
    peer.announce(&truth_of(&stage, &peer));
    wait_until("it is compared with again", promised(Duration::from_secs(8)), || peer.asked().syncs.len() > syncs);
    stage.wait_heard(&peer, 1);
    assert_eq!(stage.client.status().summary_version("good").unwrap(), after);
    stage.assert_unblamed(&peer);
    stage.finish();
}

fn truth_of(stage: &Stage, peer: &Peer) -> Summary {
    let part = hash_part_bytes(&stage.path("replay", "a"));
    peer.summary(&filter(&[part], 13), 1, &[peer_id(&stage.client)])
}

/// A state stolen and shown to its owner, and a `yours` that is forged.
#[test]
fn a_forged_envelope_in_yours_is_blamed() {
    let peer = Peer::honest("forger");
    let stage = Stage::new(&["yours"], 64, &[&peer]);
    peer.connect(&stage.client);
    let forged = announcement(&[0; 9], now_ms()).seal(&peer.keys);
    let GossipRequest::Sync { store_dir, software, have, .. } = sync_request(None) else { unreachable!() };
    let sync = GossipRequest::Sync { store_dir, software, have, yours: Some(forged) };
    peer.ask_gossip(&stage.client, &sync).unwrap();
    stage.assert_blamed(&peer, "handed on a forged envelope", "forged_news", 1);
    stage.finish();
}
