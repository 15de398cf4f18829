//! Holders that name others falsely, and peers that ask a daemon for what is only coming in there.

use crate::formats::hash_part_bytes;
use crate::peer::{Item, Move, Peer, Play, Script, honest_nar, peer_id};
use crate::stage::{Expect, Stage};
use crate::table::{Attack, Gets, play};
use crate::tree_wire::signed_tree;
use crate::wire::{NAR, NarRequest, audience_digest, nar_absent, nar_chunks, nar_head, nar_others, sha256};
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::identity::Keypair;
use narmesh_tests::{poll, promised, wait_until};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Something is asked for, or has come, within this.
const SOON: Duration = Duration::from_secs(4);
/// A NAR that is read leaf by leaf.
const LARGE_KIB: u32 = 9 << 10;

/// Names these to who takes names, and sends the NAR to all others.
fn names(named: Vec<[u8; 8]>) -> Script {
    Script::default().nar(move |item, request| match request.referral {
        0 => honest_nar(&item.nar, request),
        _ => vec![Move::Send(nar_others(&named))],
    })
}

fn attack(name: &'static str, expect: Expect, gets: Gets, script: Script) -> Attack {
    let keys = Keypair::generate_ed25519();
    let signer = keys.clone();
    let script = script.tree(move |item, request| vec![Move::Send(signed_tree(&signer, &request, &item.nar))]);
    Attack { keys: Some(keys), gets, ..Attack::new(name, expect, script) }
}

#[test]
fn holders_that_name_nobody_strangers_or_too_many_do_no_harm() {
    const MALFORMED: Expect = Expect::Blamed("sent a malformed reply", "malformed_reply");
    let always = |_: &Item, _: NarRequest| -> Play { vec![Move::Send(nar_others(&[[7; 8]]))] };
    let attacks = vec![
        attack("names-nobody", MALFORMED, Gets::Builds, names(Vec::new())),
        attack("names-five", MALFORMED, Gets::Builds, names(vec![[7; 8]; 5])),
        attack("names-always", MALFORMED, Gets::Builds, Script::default().nar(always)),
        attack("names-strangers", Expect::Unblamed, Gets::Takes, names(vec![[7; 8]; 4])),
    ];
    play(attacks, LARGE_KIB, |_, peer, name| assert!(!peer.asked().nars.is_empty(), "{name} took place"));
}

/// What a daemon says to a request, as far as `bytes`; the stream stays open.
fn exchange(peer: &Peer, stage: &Stage, request: &NarRequest, bytes: usize) -> (crate::peer::Stream, Vec<u8>) {
    let (mut stream, mut answer) = (peer.open(&stage.client, NAR).unwrap(), vec![0; bytes]);
    peer.runtime.block_on(async {
        stream.write_all(&request.frame()).await.unwrap();
        stream.flush().await.unwrap();
        tokio::time::timeout(promised(SOON), stream.read_exact(&mut answer)).await.expect("an answer").unwrap();
    });
    (stream, answer)
}

fn request_for(path: &str, nar: &[u8]) -> NarRequest {
    let (hash_part, nar_hash, nar_size) = (hash_part_bytes(path), sha256(nar), nar.len() as u64);
    let (accept_zstd, passes_on, referral) = (false, false, 0);
    NarRequest { hash_part, nar_hash, nar_size, offset: 0, end: nar_size, accept_zstd, passes_on, referral }
}

#[test]
fn a_daemon_names_who_passes_a_nar_on_to_who_takes_names_and_nobody_else() {
    let [first, second] = ["first", "second"].map(Peer::honest);
    let stage = Stage::new(&["selfish", "passing"], LARGE_KIB, &[&first, &second]);
    for tag in ["selfish", "passing"] {
        stage.nix_build(tag, "single").expect_success("nix-build while nobody claims anything");
    }
    stage.client.wait_all_advertised(&[&stage.good]);
    first.connect(&stage.client);
    second.connect(&stage.client);
    let [selfish, passing] = ["selfish", "passing"].map(|tag| request_for(&stage.path(tag, "a"), &stage.nar(tag, "a")));
    let body = nar_head(false);
    let says = |peer: &Peer, request: &NarRequest, expected: &[u8]| {
        let (stream, answer) = exchange(peer, &stage, request, expected.len());
        assert_eq!(answer, expected, "{}: {request:?}", peer.name);
        stream
    };
    let welcome = |request: NarRequest| NarRequest { referral: 1, ..request };
    let _first = says(&first, &welcome(selfish), &body);
    let _second = says(&second, &welcome(selfish), &body);
    let _passing = says(&first, &NarRequest { passes_on: true, ..welcome(passing) }, &body);
    says(&second, &welcome(passing), &nar_others(&[audience_digest(&first.id)]));
    says(&first, &welcome(passing), &body);
    says(&second, &passing, &body);
    stage.finish();
}

/// A holder that sends half of each NAR and then nothing more.
fn half(keys: &Keypair) -> Script {
    let signer = keys.clone();
    Script::default().tree(move |item, request| vec![Move::Send(signed_tree(&signer, &request, &item.nar))]).nar(
        |item, _| {
            let half = &item.nar[..item.nar.len() / 2];
            let chunks: Vec<u8> = half.chunks(64 << 10).flat_map(nar_chunks).collect();
            vec![Move::Send([nar_head(false), chunks].concat()), Move::Hold]
        },
    )
}

#[test]
fn a_peer_gets_what_is_coming_in_only_as_far_as_it_is_proven_and_would_be_offered() {
    let (keys, asker) = (Keypair::generate_ed25519(), Peer::honest("asker"));
    let holder = Peer::new("holder", keys.clone(), half(&keys));
    let stage = Stage::with(&["open", "withheld"], LARGE_KIB, &[&holder, &asker], |client| {
        client.config.exclude = vec!["*withheld*".to_owned()];
        // The one that is asked first is still coming in when the other one is asked, however long that takes.
        client.config.stall_timeout_ms = Some(60_000);
    });
    stage.enter_with(&holder, &[stage.item("open", "a"), stage.item("withheld", "a")]);
    asker.connect(&stage.client);
    std::thread::scope(|scope| {
        // One after the other: two that write Nix's cache of narinfos at once can fail with "SQLite database is busy".
        for (tag, coming) in [("open", 1), ("withheld", 2)] {
            let path = stage.path(tag, "a");
            let client = &stage.client;
            scope.spawn(move || client.realise(&[path]).expect_failure("only half of it comes"));
            wait_until("it is coming in", promised(SOON), || holder.asked().nars.len() >= coming);
        }
        let [open, withheld] = ["open", "withheld"].map(|tag| (stage.path(tag, "a"), stage.nar(tag, "a")));
        let bytes = 4 << 20;
        let part = NarRequest { end: bytes as u64, ..request_for(&open.0, &open.1) };
        let (mut stream, head) = wait_for_head(&asker, &stage, &part);
        assert_eq!(head, nar_head(false));
        assert_eq!(read_chunks(&asker, &mut stream, bytes), open.1[..bytes]);
        let absent = nar_absent();
        assert_eq!(exchange(&asker, &stage, &request_for(&withheld.0, &withheld.1), absent.len()).1, absent);
        // Another NarHash, and another path for this one, are no NAR that is coming in.
        for other in [
            NarRequest { nar_hash: [7; 32], ..part },
            NarRequest { hash_part: hash_part_bytes(&withheld.0), ..part },
            NarRequest { nar_size: part.nar_size + 8, ..part },
        ] {
            assert_eq!(exchange(&asker, &stage, &other, absent.len()).1, absent, "{other:?}");
        }
        stage.client.narmesh(&["serve", "off"]).expect_success("peers get nothing any more");
        assert_eq!(exchange(&asker, &stage, &part, absent.len()).1, absent);
        holder.leave(&stage.client);
    });
    stage.finish();
}

/// Asks until the head of a body comes, as nothing may be proven yet.
fn wait_for_head(peer: &Peer, stage: &Stage, request: &NarRequest) -> (crate::peer::Stream, Vec<u8>) {
    let answer = poll(promised(SOON), || {
        let (stream, head) = exchange(peer, stage, request, nar_absent().len());
        (head != nar_absent()).then_some((stream, head))
    });
    let (mut stream, head) = answer.expect("it is coming in");
    let mut rest = vec![0; nar_head(false).len() - head.len()];
    peer.runtime.block_on(stream.read_exact(&mut rest)).unwrap();
    (stream, [head, rest].concat())
}

/// The contents of the chunks that come, `bytes` in all.
fn read_chunks(peer: &Peer, stream: &mut crate::peer::Stream, bytes: usize) -> Vec<u8> {
    let mut contents = Vec::new();
    peer.runtime.block_on(async {
        while contents.len() < bytes {
            let mut length = [0; 4];
            stream.read_exact(&mut length).await.unwrap();
            let mut chunk = vec![0; u32::from_le_bytes(length) as usize];
            stream.read_exact(&mut chunk).await.unwrap();
            contents.extend(chunk);
        }
    });
    contents
}

/// The id of a daemon is no name of another one.
#[test]
fn a_daemon_that_is_named_to_itself_asks_the_holder() {
    let named = Arc::<OnceLock<[u8; 8]>>::default();
    let names = Arc::clone(&named);
    let script = Script::default().nar(move |item, request| match request.referral {
        0 => honest_nar(&item.nar, request),
        _ => vec![Move::Send(nar_others(&[*names.get().unwrap()]))],
    });
    let peer = Peer::liar("names-you", script);
    let stage = Stage::new(&["names-you"], LARGE_KIB, &[&peer]);
    named.set(audience_digest(&peer_id(&stage.client))).unwrap();
    stage.enter(&peer, "names-you", &["a"]);
    let outcome = stage.build_under_attack("names-you", "single", &["a"]);
    assert_eq!(outcome.substituted, ["a"]);
    stage.assert_unblamed(&peer);
    stage.finish();
}
