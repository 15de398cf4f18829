//! Bytes, streams and requests that no honest peer sends, and answers that it does not read.

use crate::filter::filter;
use crate::formats::hash_part_bytes;
use crate::log_wire::{LOG, REALISATION};
use crate::peer::{Control, Peer, Stream, ask, open, peer_id, sync_request};
use crate::stage::Stage;
use crate::wire::{GOSSIP, GossipReply, GossipRequest, NAR, NARINFO, QUORUM, audience_digest};
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use narmesh_tests::{get, hash_part};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a daemon may hold above idle.
const MEMORY_RISE_MAX: u64 = 64 << 20;
/// The same for its own summaries of 2 MiB, of which two may be unread: 32 of them would be 64 MiB, without their copies.
const SUMMARIES_RISE_MAX: u64 = 32 << 20;
/// So many streams, or as many as a slow machine opens in this time.
const STREAMS: u64 = 100_000;
/// See [`STREAMS`].
const STREAMS_TIME_MAX: Duration = Duration::from_secs(40);

fn requests_of_garbage() -> Vec<(&'static str, Vec<u8>)> {
    let sync = sync_request(None).encode();
    vec![
        (GOSSIP, Vec::new()),
        (GOSSIP, vec![0xa5; 1_000]),
        (GOSSIP, sync[..sync.len() - 1].to_vec()),
        (GOSSIP, [&sync[..], &[0]].concat()),
        (GOSSIP, vec![0; 100_000]),
        // A list that is said to have 2^61 entries.
        (GOSSIP, [&sync[..sync.len() - 8], &(1_u64 << 61).to_le_bytes()].concat()),
        (NARINFO, Vec::new()),
        (NARINFO, vec![1; 19]),
        (NARINFO, vec![1; 21]),
        (NARINFO, vec![1; 1 << 20]),
        (REALISATION, Vec::new()),
        (REALISATION, [&[1; 32][..], &1_u64.to_le_bytes(), b"?"].concat()),
        (LOG, Vec::new()),
        (LOG, vec![1; 27]),
        (LOG, vec![1; 100_000]),
        (QUORUM, Vec::new()),
        (QUORUM, vec![0xa5; 1_000]),
        (QUORUM, vec![0; 100_000]),
        (NAR, vec![0xff; 4_096]),
        (NAR, [&69_u32.to_le_bytes()[..], &[2; 69]].concat()),
        (NAR, [&68_u32.to_le_bytes()[..], &[0; 68]].concat()),
        (NAR, [&200_u32.to_le_bytes()[..], &[0; 200]].concat()),
    ]
}

#[test]
fn garbage_is_blamed_on_who_sent_it() {
    let requests = requests_of_garbage();
    let peers: Vec<_> = (0..requests.len()).map(|number| Peer::honest(&format!("garbage{number}"))).collect();
    let stage = Stage::new(&["garbage"], 64, &peers.iter().collect::<Vec<_>>());
    let memory = stage.client.watch_memory();
    for (peer, (protocol, request)) in peers.iter().zip(requests) {
        peer.connect(&stage.client);
        for _ in 0..3 {
            // Whatever comes back, it is no error of the daemon's.
            peer.ask(&stage.client, protocol, &request).ok();
        }
        stage.assert_blamed(peer, "sent a malformed request", "malformed_request", 3);
        let known = stage.client.status();
        assert!(known.peer(&peer.name).unwrap()["set_aside_s"].is_u64(), "after the third");
    }
    let rise = memory.rise_bytes();
    assert!(rise <= MEMORY_RISE_MAX, "{rise} bytes above idle");
    let outcome = stage.build_under_attack("garbage", "single", &["a"]);
    stage.note("garbage on every protocol", |row| {
        row.rise_bytes = Some(rise.max(outcome.rise_bytes));
        row.outcome = "builds it".to_owned();
        row.set_aside = Some("after the third: malformed_request".to_owned());
    });
    stage.finish();
}

/// Streams of every protocol and of one that does not exist, opened as fast as can be: closed at once, half closed, or
/// left open.
#[test]
fn streams_without_end_do_no_harm() {
    let peer = Peer::honest("streams");
    let stage = Stage::new(&["streams"], 64, &[&peer]);
    peer.connect(&stage.client);
    let memory = stage.client.watch_memory();
    let started = Instant::now();
    let opened = peer.runtime.block_on(open_many(&peer, peer_id(&stage.client)));
    let seconds = started.elapsed().as_secs_f64();
    let outcome = stage.build_under_attack("streams", "single", &["a"]);
    let rise = memory.rise_bytes();
    assert!(rise <= MEMORY_RISE_MAX, "{rise} bytes above idle after {opened} streams");
    assert!(opened > 1_000, "only {opened} streams: no flood");
    stage.note("flood of streams", |row| {
        row.rise_bytes = Some(rise.max(outcome.rise_bytes));
        row.outcome = format!("unharmed by {opened} streams in {seconds:.0} s");
    });
    stage.finish();
}

async fn open_many(peer: &Peer, to: libp2p::PeerId) -> u64 {
    let started = Instant::now();
    let mut opened = 0;
    let mut held = std::collections::VecDeque::new();
    while opened < STREAMS && started.elapsed() < STREAMS_TIME_MAX {
        for protocol in [NARINFO, GOSSIP, NAR, "/narmesh/9/unknown"] {
            let opening = open(peer.control.clone(), to, protocol);
            let Ok(Ok(mut stream)) = tokio::time::timeout(Duration::from_secs(1), opening).await else { continue };
            opened += 1;
            match opened % 3 {
                0 => drop(stream),
                1 => {
                    // Half closed: nothing was asked, and nothing will be.
                    stream.close().await.ok();
                    held.push_back(stream);
                }
                _ => held.push_back(stream),
            }
            if held.len() > 300 {
                held.pop_front();
            }
        }
    }
    opened
}

/// Large answers that nobody reads, on as many streams as there may be.
#[test]
fn answers_that_are_not_read() {
    let peers: Vec<_> = (0..4).map(|number| Peer::honest(&format!("unread{number}"))).collect();
    let stage = Stage::new(&["unread"], 64, &peers.iter().collect::<Vec<_>>());
    let frame = stage.nar_frame("huge");
    let memory = stage.client.watch_memory();
    let mut held = Vec::new();
    for peer in &peers {
        peer.connect(&stage.client);
        for _ in 0..40 {
            held.extend(peer.runtime.block_on(ask_only(peer.control.clone(), peer_id(&stage.client), &frame)));
        }
    }
    assert!(held.len() > 100, "{} streams", held.len());
    let outcome = stage.build_under_attack("unread", "single", &["a"]);
    let rise = memory.rise_bytes();
    assert!(rise <= MEMORY_RISE_MAX, "{rise} bytes above idle with {} answers unread", held.len());
    stage.note("answers that are not read", |row| {
        row.rise_bytes = Some(rise.max(outcome.rise_bytes));
        row.outcome = format!("unharmed by {} NARs unread", held.len());
    });
    drop(held);
    stage.finish();
}

/// Requests of a peer's own largest summary, as many as are let in at a time, whose answers nobody reads.
#[test]
fn own_summaries_that_are_not_read() {
    const PATHS: u64 = 400_000;
    const REQUESTS: usize = 32;
    let peer = Peer::honest("unreadsummary");
    let stage = Stage::new(&["unreadsummary"], 64, &[&peer]);
    peer.connect(&stage.client);
    // 2 MiB.
    peer.announce(&peer.summary(&filter(&[[7; 20]], 24), PATHS, &[peer_id(&stage.client)]));
    stage.wait_heard(&peer, PATHS);
    let (epoch, seq) = peer.state(|state| {
        let announcement = &state.published.as_ref().unwrap().announcement;
        (announcement.epoch, announcement.seq)
    });
    let pull = GossipRequest::Pull { owner: audience_digest(&peer.id), epoch, seq, have_seq: None };
    let whole = peer.ask_gossip(&stage.client, &pull);
    assert!(matches!(&whole, Ok(GossipReply::Body(body)) if body.len() > 2 << 20), "it is handed out");
    let memory = stage.client.watch_memory();
    let begin = || peer.runtime.block_on(begin_gossip(peer.control.clone(), peer_id(&stage.client), &pull.encode()));
    let held: Vec<_> = (0..REQUESTS).filter_map(|_| begin()).collect();
    assert!(held.len() > REQUESTS / 2, "{} answers were begun", held.len());
    let outcome = stage.build_under_attack("unreadsummary", "single", &["a"]);
    let rise = memory.rise_bytes();
    assert!(rise <= SUMMARIES_RISE_MAX, "{rise} bytes above idle with {} answers unread", held.len());
    stage.note("its own summary, asked for 32 times and not read", |row| {
        row.rise_bytes = Some(rise.max(outcome.rise_bytes));
        row.outcome = format!("unharmed by {} answers unread", held.len());
    });
    drop(held);
    stage.finish();
}

/// Asks, and reads the first byte of the answer.
pub async fn begin_gossip(control: Control, to: libp2p::PeerId, request: &[u8]) -> Option<Stream> {
    let mut stream = open(control, to, GOSSIP).await.ok()?;
    stream.write_all(request).await.ok()?;
    stream.close().await.ok()?;
    let mut byte = [0];
    tokio::time::timeout(Duration::from_secs(2), stream.read_exact(&mut byte)).await.ok()?.ok()?;
    Some(stream)
}

/// Asks for a NAR, and reads the first byte of the answer.
pub async fn ask_only(control: Control, to: libp2p::PeerId, frame: &[u8]) -> Option<Stream> {
    let mut stream = open(control, to, NAR).await.ok()?;
    stream.write_all(frame).await.ok()?;
    stream.flush().await.ok()?;
    // The first byte of the answer, so that it has begun.
    let mut byte = [0];
    tokio::time::timeout(Duration::from_secs(2), stream.read_exact(&mut byte)).await.ok()?.ok()?;
    Some(stream)
}

/// Requests of eight peers together, a second; a slow machine sends as many as it can.
const REQUESTS_PER_S: u32 = 10_000;
const LANES: u32 = 32;

/// Ten thousand requests a second; what this daemon asks of the honest one keeps its latency.
#[test]
fn requests_without_end_do_no_harm() {
    let floods = Peer::crowd((0..8).map(|number| format!("asker{number}")));
    let tags: Vec<_> = (0..20).map(|number| format!("latency{number}")).collect();
    let tags: Vec<_> = tags.iter().map(String::as_str).collect();
    let stage = Stage::new(&tags, 4, &floods.iter().collect::<Vec<_>>());
    floods.iter().for_each(|peer| peer.connect(&stage.client));
    let before = median_lookup(&stage, &tags, "held");
    let memory = stage.client.watch_memory();
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let part = hash_part_bytes(&stage.path(tags[0], "later"));
    for peer in &floods {
        for lane in 0..LANES {
            let (control, to) = (peer.control.clone(), peer_id(&stage.client));
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            let sync = sync_request(None).encode();
            let peers = u32::try_from(floods.len()).unwrap();
            peer.runtime.spawn(async move {
                let mut pace = tokio::time::interval(Duration::from_secs(1) * peers * LANES / REQUESTS_PER_S);
                while !stop.load(Ordering::Relaxed) {
                    pace.tick().await;
                    let (protocol, request) =
                        if lane % 4 == 0 { (GOSSIP, sync.clone()) } else { (NARINFO, part.to_vec()) };
                    ask(control.clone(), to, protocol, request).await.ok();
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }
    let counted = (sent.load(Ordering::Relaxed), Instant::now());
    std::thread::park_timeout(Duration::from_secs(1));
    let during = median_lookup(&stage, &tags, "both");
    let rate = (sent.load(Ordering::Relaxed) - counted.0) as f64 / counted.1.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    stage.assert_good_unharmed();
    let rise = memory.rise_bytes();
    assert!(rise <= MEMORY_RISE_MAX, "{rise} bytes above idle");
    // The two cores of the smallest machine are shared with those who flood: 20 ms are given for that.
    let bound = (before * 2).max(before + Duration::from_millis(20));
    assert!(during <= bound, "{before:?} alone, {during:?} under {rate:.0} requests a second");
    stage.note("flood of requests", |row| {
        row.outcome = format!("lookups {before:.1?} alone, {during:.1?} under {rate:.0} requests a second");
        row.rise_bytes = Some(rise);
    });
    stage.finish();
}

/// What the daemon may hold above idle with three hostile peers.
const THREE_PEERS_RISE_MAX: u64 = 128 << 20;
/// Lookups, of which the second slowest is compared.
const LOOKUPS: usize = 60;

/// Three peers at once leave NARs unread, hold streams open, and ask as fast as a peer may.
#[test]
fn three_hostile_peers_at_once_leave_lookups_quick_and_memory_bounded() {
    let peers = Peer::crowd((0..3).map(|number| format!("three{number}")));
    let tags: Vec<_> = (0..LOOKUPS).map(|number| format!("beside{number}")).collect();
    let tags: Vec<_> = tags.iter().map(String::as_str).collect();
    let stage = Stage::new(&tags, 4, &peers.iter().collect::<Vec<_>>());
    let frame = stage.nar_frame("huge");
    peers.iter().for_each(|peer| peer.connect(&stage.client));
    let before = lookups(&stage, &tags, "held");
    let memory = stage.client.watch_memory();
    let (to, part) = (peer_id(&stage.client), hash_part_bytes(&stage.path(tags[0], "later")));
    let stop = Arc::new(AtomicBool::new(false));
    let mut unread = Vec::new();
    for peer in &peers {
        for _ in 0..40 {
            unread.extend(peer.runtime.block_on(ask_only(peer.control.clone(), to, &frame)));
        }
        for lane in 0..16 {
            let (control, stop, sync) = (peer.control.clone(), Arc::clone(&stop), sync_request(None).encode());
            peer.runtime.spawn(async move {
                let mut held = std::collections::VecDeque::new();
                // Below what is a flood, so that the peer is not disconnected.
                let mut pace = tokio::time::interval(Duration::from_millis(20));
                while !stop.load(Ordering::Relaxed) {
                    pace.tick().await;
                    let (protocol, request) =
                        if lane % 4 == 0 { (GOSSIP, sync.clone()) } else { (NARINFO, part.to_vec()) };
                    ask(control.clone(), to, protocol, request.clone()).await.ok();
                    let Ok(mut half) = open(control.clone(), to, protocol).await else { continue };
                    half.write_all(&request[..request.len() / 2]).await.ok();
                    held.push_back(half);
                    if held.len() > 20 {
                        held.pop_front();
                    }
                }
            });
        }
    }
    assert!(unread.len() >= 90, "{} NARs unread", unread.len());
    std::thread::park_timeout(Duration::from_secs(1));
    let during = lookups(&stage, &tags, "both");
    stop.store(true, Ordering::Relaxed);
    stage.assert_good_unharmed();
    let rise = memory.rise_bytes();
    assert!(rise <= THREE_PEERS_RISE_MAX, "{rise} bytes above idle");
    let [before, during] = [before, during].map(|times| times[LOOKUPS - 2]);
    // As in `a_flood_of_requests`.
    let bound = (before * 2).max(before + Duration::from_millis(20));
    assert!(during <= bound, "{before:?} alone, {during:?} beside three hostile peers");
    stage.note("three hostile peers at once", |row| {
        row.outcome = format!("lookups p98 {before:.1?} alone, {during:.1?} beside them");
        row.rise_bytes = Some(rise);
    });
    drop(unread);
    stage.finish();
}

/// The median time of lookups that have to be asked of the honest node.
fn median_lookup(stage: &Stage, tags: &[&str], leaf: &str) -> Duration {
    let times = lookups(stage, tags, leaf);
    times[times.len() / 2]
}

/// The times of lookups that have to be asked of the honest node, the quickest first.
fn lookups(stage: &Stage, tags: &[&str], leaf: &str) -> Vec<Duration> {
    let mut times: Vec<_> = tags
        .iter()
        .map(|tag| {
            let url = format!("/{}.narinfo", hash_part(&stage.path(tag, leaf)));
            let started = Instant::now();
            let answer = get(stage.client.gateway(), &url).unwrap();
            assert_eq!(answer.status, 200, "{tag}");
            started.elapsed()
        })
        .collect();
    times.sort_unstable();
    times
}

/// More questions than are answered: the rest is told *busy*, and pulls of bodies are no way around it.
#[test]
fn gossip_requests_beyond_the_budget_are_busy() {
    let peer = Peer::honest("greedy");
    let stage = Stage::new(&["greedy"], 64, &[&peer]);
    peer.connect(&stage.client);
    let pull = GossipRequest::Pull { owner: [0; 8], epoch: 1, seq: 1, have_seq: None };
    let busy =
        (0..8_000).position(|_| peer.ask_gossip(&stage.client, &pull).is_ok_and(|reply| reply == GossipReply::Busy));
    assert!(busy.is_some_and(|asked| asked >= 1_000), "{busy:?}");
    assert!(filter(&[[0; 20]], 13).iter().any(|byte| *byte != 0));
    stage.finish();
}
