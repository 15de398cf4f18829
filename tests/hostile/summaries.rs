//! Lies about what a peer holds, in summaries and in the announcements of them.

use crate::filter::{filter, positions, set};
use crate::formats::hash_part_bytes;
use crate::peer::{Move, Peer, Script, now_ms, peer_id};
use crate::stage::{Expect, Stage};
use crate::wire::{Address, Announcement, GossipReply, Summary, audience_digest, sha256};
use narmesh_tests::{get, promised, wait_until};
use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant};

/// News is promised to be everywhere within this.
pub(crate) const HEARD: Duration = Duration::from_secs(2);
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
pub(crate) fn truth(stage: &Stage, peer: &Peer) -> Summary {
    let part = hash_part_bytes(&stage.path(&peer.name, "a"));
    peer.summary(&filter(&[part], 13), 1, &[peer_id(&stage.client)])
}

/// The truth with another filter.
fn with_filter(stage: &Stage, peer: &Peer, filter_bytes: Vec<u8>) {
    peer.announce(&Summary { filter_bytes, ..truth(stage, peer) });
}

pub(crate) fn announcement(body: &[u8], epoch: u64) -> Announcement {
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
fn summaries_out_of_shape_are_not_used() {
    play(shapes());
}

#[test]
fn false_announcements_and_false_replies_are_not_used() {
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

/// A filter within its bounds claims paths that its owner does not hold, be it a lie or because somebody chose paths that an honest
/// filter claims by chance. After 21 false hits the peer is asked last, and what only it holds still arrives, as long as it is
/// quick, however often it is asked for what it does not hold.
#[test]
fn a_peer_whose_filter_claims_too_much_is_asked_last() {
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
