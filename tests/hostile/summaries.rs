//! Lies about what a peer holds, and attacks on those who believe announcements.

use crate::filter::{filter, positions, set};
use crate::formats::hash_part_bytes;
use crate::gossipsub::{FRAME_BYTES, MESHSUB, frame, message};
use crate::peer::{Move, Peer, Script, now_ms, peer_id, sync_request, timed};
use crate::stage::{Expect, Stage};
use crate::wire::{
    Address, Announcement, GOSSIP, GossipReply, GossipRequest, Summary, TOPIC, audience_digest, open_envelope, sha256,
};
use futures::AsyncWriteExt as _;
use libp2p::identity::Keypair;
use narmesh_tests::{get, promised, wait_until};
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// News is promised to be everywhere within this.
const HEARD: Duration = Duration::from_secs(2);
/// A body that nobody delivers is asked for ten times, 16 s in all.
const GIVEN_UP: Duration = Duration::from_secs(6);

/// A liar and what it announces once it is connected.
struct Row {
    peer: Peer,
    announce: fn(&Stage, &Peer),
    expect: Expect,
}

fn row(name: &str, label: Expect, script: Script, announce: fn(&Stage, &Peer)) -> Row {
    Row { peer: Peer::liar(name, script), announce, expect: label }
}

/// A true summary of the leaf `a` of the liar's own tag.
fn truth(stage: &Stage, peer: &Peer) -> Summary {
    let part = hash_part_bytes(&stage.path(&peer.name, "a"));
    peer.summary(&filter(&[part], 13), 1, &[peer_id(&stage.client)])
}

/// The truth with another filter.
fn with_filter(stage: &Stage, peer: &Peer, filter_bytes: Vec<u8>) {
    peer.announce(&Summary { filter_bytes, ..truth(stage, peer) });
}

fn announcement(body: &[u8], epoch: u64) -> Announcement {
    Announcement {
        epoch,
        seq: 0,
        path_count: 1,
        body_digest: sha256(body),
        body_bytes: u32::try_from(body.len()).unwrap(),
        lifetime_s: 14_400,
        issued_at_ms: now_ms(),
    }
}

fn shapes() -> Vec<Row> {
    let dense = Expect::Blamed("announced a filter that is too dense", "dense_filter");
    let invalid = Expect::Blamed("announced a body that breaks its bounds", "invalid_body");
    let honest = Script::default;
    vec![
        row("all-ones", dense, honest(), |stage, peer| with_filter(stage, peer, vec![0xff; 1_024])),
        row("all-ones-2-mib", dense, honest(), |stage, peer| with_filter(stage, peer, vec![0xff; 1 << 21])),
        row("just-too-dense", dense, honest(), |stage, peer| {
            // The rule allows a share of 0.5672.
            let ones = 8_192 * 5_672 / 10_000 + 2;
            let mut bytes = vec![0; 1_024];
            (0..ones).for_each(|bit| bytes[bit / 8] |= 1 << (bit % 8));
            with_filter(stage, peer, bytes);
        }),
        row("tiny-filter", invalid, honest(), |stage, peer| with_filter(stage, peer, vec![0x55; 512])),
        row("odd-filter", invalid, honest(), |stage, peer| with_filter(stage, peer, vec![0; 1_025])),
        row("no-filter", invalid, honest(), |stage, peer| with_filter(stage, peer, Vec::new())),
        row("audience-out-of-order", invalid, honest(), |stage, peer| {
            let mut summary = truth(stage, peer);
            summary.audience.reverse();
            peer.announce(&summary);
        }),
        row("1000-addresses", invalid, honest(), |stage, peer| {
            let addresses = (0..1_000).map(|port| Address::V4([127, 0, 0, 1], port)).collect();
            peer.announce(&Summary { addresses, ..truth(stage, peer) });
        }),
        row("trailing-body", invalid, honest(), |stage, peer| {
            let body = [truth(stage, peer).encode(), vec![0]].concat();
            peer.announce_body(body, 1, now_ms(), 0);
        }),
        row(
            "other-count",
            Expect::Blamed("announced another path count than its body has", "path_count_differs"),
            honest(),
            |stage, peer| peer.announce_body(truth(stage, peer).encode(), 7, now_ms(), 0),
        ),
        row("unknown-hash-id", Expect::Unblamed, honest(), |stage, peer| {
            peer.announce(&Summary { hash_id: 2, ..truth(stage, peer) });
            stage.client.wait_logged(&["unknown hash id", &peer.id.to_string().to_lowercase()]);
        }),
        row("wrong-audience", Expect::Unblamed, honest(), |stage, peer| {
            peer.announce(&Summary { audience: vec![audience_digest(&peer.id)], ..truth(stage, peer) });
        }),
    ]
}

fn announcements() -> Vec<Row> {
    let honest = Script::default;
    vec![
        row(
            "equivocation",
            Expect::Blamed("announced two summaries under one epoch and seq", "equivocation"),
            // Its body never comes, so that neither of the two becomes what is held.
            Script::default().pull(|_, _| vec![Move::Hold]),
            |stage, peer| {
                let (one, epoch) = (truth(stage, peer).encode(), now_ms());
                peer.announce_as(announcement(&one, epoch), one.clone());
                wait_published(peer, Announcement { path_count: 2, ..announcement(&one, epoch) }.seal(&peer.keys));
            },
        ),
        row(
            "far-future",
            Expect::Blamed("announced an epoch more than a day ahead", "future_epoch"),
            honest(),
            |stage, peer| peer.announce_body(truth(stage, peer).encode(), 1, now_ms() + 2 * 86_400_000, 0),
        ),
        row(
            "too-large",
            Expect::Blamed("announced a body or a path count over the limit", "oversized_announcement"),
            honest(),
            |stage, peer| {
                let body = truth(stage, peer).encode();
                peer.announce_as(Announcement { body_bytes: u32::MAX, ..announcement(&body, now_ms()) }, body);
            },
        ),
        row(
            "malformed-announcement",
            Expect::Blamed("published a malformed announcement", "malformed_announcement"),
            honest(),
            |_, peer| wait_published(peer, vec![1; 200]),
        ),
        row(
            "of-another",
            Expect::Blamed("published an announcement of another peer", "foreign_announcement"),
            honest(),
            |stage, peer| {
                let Ok(GossipReply::Sync { news, .. }) = peer.sync(&stage.client) else { panic!("answered") };
                wait_published(peer, news[0].clone());
            },
        ),
        row("newer-version", Expect::Unblamed, honest(), |stage, peer| {
            let mut envelope = announcement(&[0; 9], now_ms()).seal(&peer.keys);
            envelope[0] = 2;
            wait_published(peer, envelope);
            stage.client.wait_logged(&["newer protocol version", &peer.id.to_string().to_lowercase()]);
        }),
        row(
            "other-body",
            Expect::Blamed("sent a body with another digest than announced", "wrong_body"),
            Script::default().pull(|own, _| {
                let mut body = own.body.clone();
                *body.last_mut().unwrap() ^= 1;
                vec![Move::Send(GossipReply::Body(body).encode())]
            }),
            |stage, peer| peer.announce(&truth(stage, peer)),
        ),
        row(
            "delta-without-base",
            Expect::Blamed("sent a delta that does not lead to the announced body", "wrong_delta"),
            Script::default().pull(|_, _| {
                let delta =
                    crate::wire::Delta { base_seq: 5, items: 1, positions: vec![1], audience: None, addresses: None };
                vec![Move::Send(GossipReply::Delta(delta.encode()).encode())]
            }),
            |stage, peer| peer.announce(&truth(stage, peer)),
        ),
        row(
            "never-delivered",
            Expect::Blamed("announced a body and did not deliver it", "undelivered"),
            Script::default().pull(|_, _| vec![Move::Send(GossipReply::Absent.encode())]),
            |stage, peer| peer.announce(&truth(stage, peer)),
        ),
        row(
            "reply-to-another-question",
            Expect::Blamed("sent a malformed reply", "malformed_reply"),
            Script::default().pull(|_, _| {
                let reply = GossipReply::StoreDirDiffers { store_dir: "/nix/store".to_owned() };
                vec![Move::Send(reply.encode())]
            }),
            |stage, peer| peer.announce(&truth(stage, peer)),
        ),
        row("pull-never-answered", Expect::Unblamed, Script::default().pull(|_, _| vec![Move::Hold]), |stage, peer| {
            peer.announce(&truth(stage, peer));
        }),
    ]
}

/// gossipsub needs a moment before it has anybody to publish to.
fn wait_published(peer: &Peer, data: Vec<u8>) {
    wait_until("somebody takes the message", promised(HEARD), || peer.publish(data.clone()));
}

/// Each announces its lie; the daemon goes on as if it had not been, and says who it was.
fn play(rows: Vec<Row>) {
    let mut tags: Vec<_> = rows.iter().map(|row| row.peer.name.clone()).collect();
    tags.push("nobody".to_owned());
    let tags: Vec<_> = tags.iter().map(String::as_str).collect();
    let peers: Vec<_> = rows.iter().map(|row| &row.peer).collect();
    let stage = Stage::new(&tags, 64, &peers);
    let started = Instant::now();
    stage.nix_build("nobody", "single").expect_success("nix-build while nobody lies");
    let alone = started.elapsed();
    let mut failed = Vec::new();
    for row in &rows {
        if panic::catch_unwind(AssertUnwindSafe(|| play_one(&stage, row, alone))).is_err() {
            failed.push(row.peer.name.clone());
        }
    }
    assert!(failed.is_empty(), "these attacks did harm: {failed:?}");
    stage.finish();
}

fn play_one(stage: &Stage, row: &Row, alone: Duration) {
    let Row { peer, announce, expect } = row;
    let tag = peer.name.as_str();
    peer.connect(&stage.client);
    announce(stage, peer);
    if let Expect::Blamed(words, label) = expect {
        stage.assert_blamed_within(peer, words, label, 1, GIVEN_UP);
    }
    let outcome = stage.build_under_attack(tag, "single", &["a"]);
    assert!(outcome.substituted.is_empty(), "{tag}: nothing can be had of it");
    assert_eq!(stage.client.status().summary_paths(tag), None, "{tag}: no summary of it is used");
    assert!(peer.asked().narinfos.is_empty(), "{tag}: nothing is asked of it");
    if *expect == Expect::Unblamed {
        stage.assert_unblamed(peer);
    }
    stage.note(tag, |row| {
        row.outcome = "builds it; the summary is not used".to_owned();
        row.rise_bytes = Some(outcome.rise_bytes);
        row.added = Some(outcome.took.as_secs_f64() - alone.as_secs_f64());
        row.set_aside = Some(match expect {
            Expect::Blamed(_, label) => format!("after three of {label}"),
            Expect::Unblamed => "no: ignored".to_owned(),
        });
    });
}

#[test]
fn summaries_out_of_shape() {
    play(shapes());
}

#[test]
fn false_announcements_and_pulls() {
    play(announcements());
}

/// Three lies of a kind set aside: asked nothing, neither for bodies nor for paths; a body that was good before is unused.
#[test]
fn a_liar_about_summaries_is_set_aside() {
    let peer = Peer::liar("thrice", Script::default());
    let stage = Stage::new(&["thrice"], 64, &[&peer]);
    stage.enter(&peer, "thrice", &["a", "later"]);
    for _ in 0..3 {
        with_filter(&stage, &peer, vec![0xff; 1_024]);
        let epoch = peer.state(|state| state.published.as_ref().unwrap().announcement.epoch);
        wait_until("the false body is pulled", promised(HEARD), || {
            let known = stage.client.status();
            known.peer("thrice").unwrap()["set_aside_s"].is_u64() || peer.state(|state| state.pulled.contains(&epoch))
        });
    }
    stage.assert_blamed(&peer, "announced a filter that is too dense", "dense_filter", 3);
    stage.assert_set_aside(&peer, "thrice");
    stage.finish();
}

/// Announcements without end, each signed and new: the connection is closed, and no other is taken for a while, however often the
/// peer dials.
#[test]
fn a_flood_of_announcements() {
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

const FLOOD: Duration = Duration::from_secs(5);
/// An announcement with all that gossipsub puts around it, at most.
const MESSAGE_BYTES: usize = 500;

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
fn an_old_announcement_replayed() {
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

/// Addresses that a peer tells are dialled only where that can do no harm.
#[test]
fn addresses_as_a_weapon() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let peer = Peer::honest("addresses");
    let stage = Stage::with(&["addresses"], 64, &[&peer], |client| client.config.advertise_loopback = false);
    peer.connect(&stage.client);
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];
    let mut link_local = [0; 16];
    (link_local[0], link_local[1], link_local[15]) = (0xfe, 0x80, 1);
    let addresses = vec![
        Address::V4([127, 0, 0, 1], port),
        Address::V4([127, 0, 0, 1], 22),
        Address::V6(mapped, port),
        Address::V4([169, 254, 169, 254], 80),
        Address::V6(link_local, 80),
        Address::V4([0, 0, 0, 0], port),
        Address::V4([255, 255, 255, 255], 80),
        Address::V4([224, 0, 0, 1], 80),
    ];
    let part = hash_part_bytes(&stage.path("addresses", "a"));
    let summary = peer.summary(&filter(&[part], 13), 1, &[peer_id(&stage.client)]);
    peer.announce(&Summary { addresses, ..summary });
    stage.wait_heard(&peer, 1);
    let status = stage.client.status();
    assert_eq!(status.peer("addresses").unwrap()["addresses"], serde_json::json!([]), "none of them is kept");
    peer.leave(&stage.client);
    stage.client.wait_connected("addresses", false, HEARD);
    // With nobody there, it would dial what it had learned.
    assert_eq!(stage.client.get_narinfo(&stage.path("addresses", "a")).status, 404);
    assert!(listener.accept().is_err(), "somebody was sent to a port of this machine");
    stage.finish();
}

/// Whoever is at an address that a peer names sees one connection, whatever he does with it, and however often and in
/// whatever form the peer names it.
#[test]
fn an_address_that_a_peer_names_sees_one_connection() {
    let hold: fn(TcpStream) -> Option<TcpStream> = Some;
    let close: fn(TcpStream) -> Option<TcpStream> = |_| None;
    let refuse: fn(TcpStream) -> Option<TcpStream> = |mut socket| {
        drop(socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
        None
    };
    let targets: Vec<(u16, Arc<AtomicUsize>)> = [hold, close, refuse].map(listen).into();
    let peer = Peer::honest("addresses");
    let stage = Stage::new(&["addresses"], 64, &[&peer]);
    peer.connect(&stage.client);
    let part = hash_part_bytes(&stage.path("addresses", "a"));
    let summary = peer.summary(&filter(&[part], 13), 1, &[peer_id(&stage.client)]);
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];
    let forms = |port| [Address::V4([127, 0, 0, 1], port), Address::V6(mapped, port)];
    let mut addresses: Vec<_> = targets.iter().flat_map(|(port, _)| forms(*port)).collect();
    addresses.extend(forms(targets[0].0));
    peer.announce(&Summary { addresses, ..summary });
    stage.wait_heard(&peer, 1);
    peer.leave(&stage.client);
    stage.client.wait_connected("addresses", false, HEARD);
    // A lookup has it dialled, and so does gossip; the holder of the connection lets the handshake run out.
    let port = targets[0].0.to_string();
    wait_until("the dial has failed", HEARD, || {
        assert_eq!(stage.client.get_narinfo(&stage.path("addresses", "a")).status, 404);
        stage.client.status().peer("addresses").unwrap()["why"].as_str().is_some_and(|why| why.contains(&port))
    });
    assert_eq!(stage.client.get_narinfo(&stage.path("addresses", "a")).status, 404);
    for (_, seen) in &targets {
        assert_eq!(seen.load(Ordering::Relaxed), 1);
    }
    stage.finish();
}

/// A port of this machine where connections are counted, and given to `take`; what it returns is held open.
fn listen(take: fn(TcpStream) -> Option<TcpStream>) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::<AtomicUsize>::default();
    let counter = Arc::clone(&seen);
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for socket in listener.incoming().flatten() {
            counter.fetch_add(1, Ordering::Relaxed);
            held.extend(take(socket));
        }
    });
    (port, seen)
}

/// A filter within its bounds claims paths that its owner does not hold, be it a lie or because somebody chose paths that an honest
/// filter claims by chance. After 21 false hits the peer is asked last, and what only it holds still arrives, as long as it is
/// quick, however often it is asked for what it does not hold.
#[test]
fn a_filter_that_claims_what_it_has_not() {
    let peer = Peer::honest("claims");
    let stage = Stage::new(&["claims"], 64, &[&peer]);
    peer.connect(&stage.client);
    let held = ["a", "later"].map(|leaf| stage.path("claims", leaf));
    peer.offer(&["a", "later"].map(|leaf| stage.item("claims", leaf)), &[peer_id(&stage.client)]);
    stage.wait_heard(&peer, 2);
    let absent: Vec<[u8; 20]> = (0..120).map(|number| sha256(&[number])[..20].try_into().unwrap()).collect();
    let mut bytes = filter(&held.each_ref().map(|path| hash_part_bytes(path)), 13);
    absent.iter().for_each(|part| set(&mut bytes, &positions(part, 13)));
    peer.announce(&peer.summary(&bytes, 122, &[peer_id(&stage.client)]));
    stage.wait_heard(&peer, 122);
    let look_up = |parts: &[[u8; 20]]| {
        for part in parts {
            let path = format!("/{}.narinfo", crate::formats::nix32(part));
            assert_eq!(get(stage.client.gateway(), &path).unwrap().status, 404);
        }
        peer.asked().narinfos.len()
    };
    assert_eq!(look_up(&absent[..21]), 21, "20 are free");
    stage.assert_blamed(&peer, "its filter claims paths that it does not hold", "false_claims", 1);
    let asked = look_up(&absent[21..]);
    assert_eq!(asked, 120, "it answers quickly");
    assert_eq!(stage.client.get_narinfo(&held[0]).status, 200, "what only the demoted peer holds");
    assert_eq!(stage.client.get_narinfo(&held[1]).status, 200, "it holds what is wanted, so it is asked as before");
    let status = stage.client.status();
    assert!(status.peer("claims").unwrap()["set_aside_s"].is_null());
    stage.note("filter claims what it has not", |row| {
        row.outcome = format!("404, and builds it; {asked} questions for 120 paths; what the peer holds arrives");
        row.set_aside = Some("never; asked last after 21 false hits".to_owned());
    });
    stage.finish();
}

/// A state stolen and shown to its owner, and a `yours` that is forged.
#[test]
fn somebody_else_s_envelope_in_yours() {
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
