//! The upload queue of a holder, as peers that ask for NARs see it.

use crate::peer::{Peer, Stream, open, peer_id, timed};
use crate::stage::Stage;
use crate::wire::{NAR, Reader};
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use narmesh_tests::TestNode;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Large NARs that a holder sends to one peer at a time.
const PER_PEER: usize = 16;
/// Streams that a holder accepts from one peer.
const STREAMS: usize = 64;
/// A waiting peer hears about its place at least this often.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// Rate of a slow reader, bytes a second.
const CRAWL_BYTES_S: usize = 9_500;
/// `upload_bytes_per_s` of the holder.
const LIMIT_BYTES_S: u32 = 1 << 20;

/// The head of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    Body,
    Absent,
    NotNow { place: u32, ask_again_ms: u32 },
}

async fn head(stream: &mut Stream) -> io::Result<Head> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let mut frame = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut frame).await?;
    let mut from = Reader(&frame);
    Ok(match from.u32().unwrap() {
        0 => Head::Body,
        1 => Head::Absent,
        2 => Head::NotNow { place: from.u32().unwrap(), ask_again_ms: from.u32().unwrap() },
        other => panic!("no such head: {other}"),
    })
}

async fn request(peer: &Peer, holder: libp2p::PeerId, frame: &[u8]) -> io::Result<Stream> {
    let mut stream = open(peer.control.clone(), holder, NAR).await?;
    stream.write_all(frame).await?;
    stream.flush().await?;
    Ok(stream)
}

#[test]
fn a_waiting_peer_is_told_its_place_and_moves_up() {
    let peer = Peer::honest("queued");
    let stage = Stage::new(&["queued"], 64, &[&peer]);
    let frame = stage.nar_frame("huge");
    peer.connect(&stage.client);
    peer.runtime.block_on(timed(queue_up(&peer, &stage.client, &frame))).unwrap();
    stage.finish();
}

async fn queue_up(peer: &Peer, holder: &TestNode, frame: &[u8]) -> io::Result<()> {
    let holder = peer_id(holder);
    let (mut bodies, mut waiting) = (Vec::new(), Vec::new());
    for _ in 0..STREAMS {
        let mut stream = request(peer, holder, frame).await?;
        match head(&mut stream).await? {
            Head::Body => bodies.push(stream),
            Head::NotNow { place, ask_again_ms } => {
                assert!(ask_again_ms >= 1_000, "{ask_again_ms}");
                waiting.push((place, stream));
            }
            Head::Absent => panic!("it is here"),
        }
    }
    assert_eq!(bodies.len(), PER_PEER);
    let places: Vec<_> = waiting.iter().map(|(place, _)| *place).collect();
    assert_eq!(places, (1..=48).collect::<Vec<_>>(), "in the order of asking");

    let mut over = request(peer, holder, frame).await?;
    assert!(matches!(head(&mut over).await?, Head::NotNow { place: 0, .. }), "a stream too many");
    assert_eq!(over.read(&mut [0]).await?, 0, "and it is closed");

    // A stream that is dropped makes room, whether in the middle of its body or while it waits.
    let gone = waiting.remove(9);
    drop((bodies.pop(), gone));
    let mut seen = BTreeSet::new();
    for (before, stream) in &mut waiting {
        let since = Instant::now();
        let place = loop {
            match head(stream).await? {
                Head::Body => break 0,
                Head::NotNow { place, .. } if place < *before => break place,
                Head::NotNow { place, .. } => assert_eq!(place, *before, "nobody moves back"),
                Head::Absent => panic!("it is here"),
            }
        };
        assert!(since.elapsed() < 10 * SILENCE_MAX);
        seen.insert(place);
    }
    // Two streams are gone: the first in the queue is served, and the others move up by one or two places.
    assert_eq!(seen.first(), Some(&0));
    assert!(seen.last().is_some_and(|last| (46..=47).contains(last)), "{seen:?}");
    Ok(())
}

/// Two peers read sixteen bodies each very slowly, beside an honest peer that reads as fast as it can.
fn crawlers(limited: bool) {
    let tag = if limited { "crawl-limited" } else { "crawl" };
    let slow = ["one", "two"].map(|name| Peer::honest(&format!("{tag}-{name}")));
    let honest = Peer::honest(&format!("{tag}-honest"));
    let stage = Stage::with(&[tag], 64, &[&slow[0], &slow[1], &honest], |client| {
        client.config.upload_bytes_per_s = limited.then_some(LIMIT_BYTES_S);
    });
    let frame = stage.nar_frame("huge");
    let holder = peer_id(&stage.client);
    let crawled = Arc::new(AtomicU64::new(0));
    for peer in &slow {
        peer.connect(&stage.client);
        for _ in 0..PER_PEER {
            let stream = peer.runtime.block_on(timed(request(peer, holder, &frame))).unwrap();
            peer.runtime.spawn(crawl(stream, Arc::clone(&crawled)));
        }
    }
    honest.connect(&stage.client);
    let before = crawled.load(Ordering::Relaxed);
    let wanted = if limited { 4 << 20 } else { 64 << 20 };
    let since = Instant::now();
    honest.runtime.block_on(async {
        let mut stream = request(&honest, holder, &frame).await.unwrap();
        assert_eq!(head(&mut stream).await.unwrap(), Head::Body, "whatever others do");
        let mut body = vec![0; 1 << 16];
        let mut got = 0;
        while got < wanted {
            let bytes = timed(stream.read(&mut body)).await.unwrap();
            assert!(bytes > 0, "the body ends after {got} bytes");
            got += bytes;
        }
    });
    let (took, crawled) = (since.elapsed().as_secs_f64(), crawled.load(Ordering::Relaxed) - before);
    let rate = wanted as f64 / took;
    let others = crawled as f64 / took;
    // The honest peer gets at least half of a fair third, of what all three got and of the limit.
    let fair = (rate + others) / 3.0;
    assert!(rate >= fair / 2.0, "{rate:.0} bytes a second beside {others:.0}");
    if limited {
        assert!(rate >= f64::from(LIMIT_BYTES_S) / 6.0, "{rate:.0} of {LIMIT_BYTES_S} bytes a second");
    }
    stage.note(tag, |row| row.outcome = format!("{:.1} MB/s beside 32 bodies that crawl", rate / 1e6));
    stage.finish();
}

async fn crawl(mut stream: Stream, read: Arc<AtomicU64>) {
    let mut piece = vec![0; CRAWL_BYTES_S / 10];
    loop {
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(bytes) => read.fetch_add(bytes as u64, Ordering::Relaxed),
        };
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn peers_that_crawl_leave_an_honest_one_its_share() {
    crawlers(false);
}

#[test]
fn peers_that_crawl_leave_an_honest_one_its_share_of_a_limited_rate() {
    crawlers(true);
}

/// Bursts right after a new bulk connection, again and again: no stream is dropped and nothing fails.
#[test]
fn sixteen_requests_at_a_time_right_after_a_new_connection_all_succeed() {
    const ROUNDS: usize = 20;
    let peer = Peer::honest("burst");
    let stage = Stage::new(&["burst"], 64, &[&peer]);
    let frame: Arc<[u8]> = stage.nar_frame("lib").into();
    peer.connect(&stage.client);
    let holder = peer_id(&stage.client);
    let peer = Arc::new(peer);
    for round in 0..ROUNDS {
        let failed = peer.runtime.block_on(async {
            peer.control.dial_bulk(holder).await.unwrap();
            let lanes = (0..16).map(|_| {
                let (peer, frame) = (Arc::clone(&peer), Arc::clone(&frame));
                tokio::spawn(async move {
                    let mut failed = 0;
                    for _ in 0..4 {
                        let body = timed(whole(&peer, holder, &frame)).await;
                        failed += usize::from(body.is_err());
                    }
                    failed
                })
            });
            let mut failed = 0;
            for lane in lanes.collect::<Vec<_>>() {
                failed += lane.await.unwrap();
            }
            failed
        });
        assert_eq!(failed, 0, "in round {round}");
    }
    stage.finish();
}

async fn whole(peer: &Peer, holder: libp2p::PeerId, frame: &[u8]) -> io::Result<usize> {
    let mut stream = request(peer, holder, frame).await?;
    while let Head::NotNow { .. } = head(&mut stream).await? {}
    let mut body = 0;
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length).await?;
        match u32::from_le_bytes(length) as usize {
            0 => return Ok(body),
            bytes => {
                let mut chunk = vec![0; bytes];
                stream.read_exact(&mut chunk).await?;
                body += bytes;
            }
        }
    }
}
