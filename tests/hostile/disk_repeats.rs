//! What else a peer and a local user can repeat, each measured in bytes written to the disk, beside an idle minute.

use crate::disk_floods::{ANNOUNCED_EVERY, FLOOD, IDLE_BYTES_MAX};
use crate::formats::NixKey;
use crate::peer::{Move, Peer, Script, peer_id};
use crate::quorum_wire::{BUSY, QuorumRequest, ROOT, attestation, attestations, builder_digest, items};
use crate::stage::Stage;
use crate::tree_wire::signed_tree;
use crate::wire::QUORUM;
use libp2p::identity::Keypair;
use narmesh_tests::{get, nar_url, narinfo_url, request};
use rand::RngExt as _;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A minute in which nobody does anything.
const IDLE: Duration = Duration::from_secs(60);
/// The size of a NAR that is passed on while it comes, KiB.
const LARGE_KIB: u32 = 9 << 10;
/// After so many bytes the user leaves it: what is whole is kept for half a minute, and not written again meanwhile.
const LEFT_AFTER: u64 = 4 << 20;

/// What a peer has: so many times all these leaves.
const TAGS: usize = 20;
const LEAVES: [&str; 5] = ["a", "b", "c", "both", "later"];

fn quiet_log(client: &mut narmesh_tests::TestNode) {
    client.run_under(&["env", "NARMESH_LOG=info"]);
}

/// What a daemon writes when nobody does anything: the other rows are to be compared with this one. It also proves that what
/// is written to the disk of the state directory is counted at all.
#[test]
fn an_idle_minute_writes_next_to_nothing() {
    let peer = Peer::honest("idler");
    let stage = Stage::with(&["idler"], 64, &[&peer], quiet_log);
    stage.enter(&peer, "idler", &["a"]);
    stage.spent();
    std::thread::park_timeout(IDLE);
    let before = stage.client.costs();
    stage.note("nothing: an idle minute", |row| row.outcome = "idle".to_owned());
    let spent = before.disk_bytes;
    assert!(spent <= 2 * IDLE_BYTES_MAX, "{spent} bytes written since the start");
    let own = || {
        let io = fs::read_to_string("/proc/self/io").unwrap();
        io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap().parse::<u64>().unwrap()
    };
    let counted = own();
    fs::write(stage.client.dir().join("state/of-this-test"), vec![7; 1 << 20]).unwrap();
    assert!(own() >= counted + (1 << 20), "the state directory is on no disk: nothing is measured there");
    stage.finish();
}

/// A local user begins to fetch large NARs of a peer, and leaves each before its end, again and again: what is passed on to
/// other peers is written while it comes.
#[test]
fn a_large_nar_fetched_again_and_again_is_written_within_a_budget() {
    const SPACE: u32 = 10 << 20;
    // Four times the space, and one NAR that was let in with the rest.
    const WRITTEN_BYTES_MAX: u64 = 5 * (SPACE as u64) + IDLE_BYTES_MAX;
    let keys = Keypair::generate_ed25519();
    let signer = keys.clone();
    // Only what a signed tree proves is passed on.
    let script =
        Script::default().tree(move |item, request| vec![Move::Send(signed_tree(&signer, &request, &item.nar))]);
    let peer = Peer::new("holder", keys, script);
    let stage = Stage::with(&["holder"], LARGE_KIB, &[&peer], |client| {
        quiet_log(client);
        client.config.partial_copies_bytes = Some(SPACE);
    });
    stage.enter(&peer, "holder", &["a"]);
    let gateway = stage.client.gateway();
    let narinfo = get(gateway, &narinfo_url(&stage.path("holder", "a"))).unwrap();
    let url = nar_url(&narinfo).unwrap();
    stage.spent();
    let (before, until, mut fetched) = (stage.client.costs(), Instant::now() + FLOOD, 0_u64);
    while Instant::now() < until {
        let Ok(mut body) = request(gateway, "GET", &url, &[]) else { continue };
        body.read_some(LEFT_AFTER);
        fetched += 1;
    }
    let written = stage.client.costs().since(before).disk_bytes;
    stage.note("disk: a large NAR, fetched again and again", |row| {
        row.outcome = format!("{fetched} times in {} s, {written} bytes written", FLOOD.as_secs());
    });
    assert!(fetched * LEFT_AFTER > 2 * WRITTEN_BYTES_MAX, "only {fetched} times: no flood");
    assert!(written <= WRITTEN_BYTES_MAX, "{written} bytes written for {fetched} fetches");
    assert!(written >= u64::from(SPACE), "{written} bytes: nothing was passed on");
    stage.finish();
}

/// A local user fetches a small NAR of a peer as often as he can. What Nix asked for, and what came from whom, is counted.
#[test]
fn a_small_nar_fetched_again_and_again_writes_next_to_nothing() {
    let peer = Peer::honest("giver");
    let stage = Stage::with(&["giver"], 64, &[&peer], quiet_log);
    stage.enter(&peer, "giver", &["a"]);
    let gateway = stage.client.gateway();
    let path = narinfo_url(&stage.path("giver", "a"));
    let narinfo = get(gateway, &path).unwrap();
    let url = nar_url(&narinfo).unwrap();
    stage.spent();
    let (before, until, mut fetched) = (stage.client.costs(), Instant::now() + FLOOD, 0);
    while Instant::now() < until {
        assert_eq!(get(gateway, &path).unwrap().status, 200);
        fetched += u64::from(get(gateway, &url).unwrap().status == 200);
    }
    let written = stage.client.costs().since(before).disk_bytes;
    stage.note("disk: a small NAR, fetched again and again", |row| {
        row.outcome = format!("{fetched} times in {} s, {written} bytes written", FLOOD.as_secs());
    });
    assert!(fetched > 500, "only {fetched} times: no flood");
    assert!(written <= IDLE_BYTES_MAX, "{written} bytes written for {fetched} NARs");
    stage.finish();
}

/// A peer announces itself anew as often as it may, and a local user asks for all that it has each time: each answer is asked
/// for and written again.
#[test]
fn answers_that_are_asked_anew_are_written_once_each() {
    // A page of the table and one of its index, each into the log of the database and into its file, and the text.
    const BYTES_OF_ONE: u64 = 17 << 10;
    let tags: Vec<_> = (0..TAGS).map(|number| format!("anew{number}")).collect();
    let tags: Vec<_> = tags.iter().map(String::as_str).collect();
    let peer = Peer::honest("renewer");
    let stage = Stage::with(&tags, 4, &[&peer], quiet_log);
    let all = || tags.iter().flat_map(|tag| LEAVES.map(|leaf| (*tag, leaf)));
    let items: Vec<_> = all().map(|(tag, leaf)| stage.item(tag, leaf)).collect();
    stage.enter_with(&peer, &items);
    let urls: Vec<_> = all().map(|(tag, leaf)| narinfo_url(&stage.path(tag, leaf))).collect();
    let gateway = stage.client.gateway();
    stage.spent();
    let (before, until, asked_before) = (stage.client.costs(), Instant::now() + FLOOD, peer.asked().narinfos.len());
    while Instant::now() < until {
        for url in &urls {
            assert_eq!(get(gateway, url).unwrap().status, 200);
        }
        peer.offer(&items, &[peer_id(&stage.client)]);
        std::thread::sleep(ANNOUNCED_EVERY);
    }
    let written = stage.client.costs().since(before).disk_bytes;
    let asked = (peer.asked().narinfos.len() - asked_before) as u64;
    stage.note("disk: answers of a peer that announces itself anew", |row| {
        row.outcome = format!("{asked} questions in {} s, {written} bytes written", FLOOD.as_secs());
    });
    stage.assert_unblamed(&peer);
    assert!(asked > 4 * urls.len() as u64, "only {asked} questions: no flood");
    assert!(written <= 2 * IDLE_BYTES_MAX + asked * BYTES_OF_ONE, "{written} bytes written for {asked} answers");
    stage.finish();
}

/// The node of a builder that counts hands over as many attestations as it can make, each of another path; a local user asks
/// for reports of them meanwhile. Each is kept, so each is written.
#[test]
fn attestations_without_end_are_written_once_each() {
    // A row, its place in two indices, and a page now and then, each into the log of the database and into its file.
    const BYTES_OF_ONE: u64 = 16 << 10;
    let builder = NixKey::new("talker-1");
    let (key, handed) = (builder.clone(), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&handed);
    let script = Script::default().quorum(move |request| match request {
        QuorumRequest::Compare { nodes, .. } => {
            let named: Vec<[u8; 16]> = (0..24).map(|_| rand::rng().random()).collect();
            vec![Move::Send(items(nodes.len(), &named))]
        }
        QuorumRequest::Pull { wanted, .. } => {
            let made: Vec<_> =
                wanted.iter().map(|_| attestation(&key, &any_path(), rand::rng().random(), 112)).collect();
            count.fetch_add(made.len() as u64, Ordering::Relaxed);
            vec![Move::Send(attestations(wanted.len(), &made))]
        }
        QuorumRequest::Ask { .. } => vec![Move::Send(BUSY.to_vec())],
    });
    let talker = Peer::liar("talker", script);
    let stage = Stage::with(&["talker"], 64, &[&talker], |client| {
        quiet_log(client);
        client.config.more =
            format!("\n[[builder]]\nname = 'talker'\npublic_key = '{}'\npeer = 'talker'\n", builder.public());
    });
    talker.connect(&stage.client);
    talker.offer(&[], &[peer_id(&stage.client)]);
    let news =
        QuorumRequest::Compare { builders: vec![builder_digest(&builder)], nodes: vec![(ROOT, [9; 16])], news: true };
    stage.spent();
    let (before, until, mut reports) = (stage.client.costs(), Instant::now() + FLOOD, 0);
    while Instant::now() < until {
        talker.ask(&stage.client, QUORUM, &news.encode()).ok();
        reports += u64::from(stage.client.narmesh(&["quorum", "export"]).status.success());
    }
    let written = stage.client.costs().since(before).disk_bytes;
    let handed = handed.load(Ordering::Relaxed);
    stage.note("disk: attestations, and reports of them", |row| {
        row.outcome =
            format!("{handed} handed over and {reports} reports in {} s, {written} bytes written", FLOOD.as_secs());
    });
    let kept = stage.client.narmesh(&["quorum", "export"]).stdout.lines().count() as u64 - 1;
    assert!(handed >= 100 && kept <= handed && kept * 2 >= handed, "{handed} handed over, {kept} kept: no flood");
    assert!(written <= IDLE_BYTES_MAX + handed * BYTES_OF_ONE, "{written} bytes written for {handed} attestations");
    stage.finish();
}

fn any_path() -> String {
    format!("/nix/store/{}-x", crate::disk_floods::any_hash_part())
}
