//! The log as a weapon: a peer that repeats, as fast as it can, what is logged.

use crate::impostors::{Identity, certificate_of, open};
use crate::peer::{Peer, ask, peer_id};
use crate::report;
use crate::stage::Stage;
use crate::wire::NARINFO;
use narmesh_tests::TestNode;
use std::io::{self, Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long each flood lasts.
const FLOOD: Duration = Duration::from_secs(5);
/// What may be logged at once because of one peer, 96 KiB (`node/src/cli/log/limits/mod.rs`), and what a quiet daemon says.
const LOG_BYTES_MAX: usize = 110 << 10;
const LANES: usize = 32;

/// A daemon with the log that users have, not the one of tests.
fn stage(tag: &str, peer: &Peer) -> Stage {
    Stage::with(&[tag], 64, &[peer], |client| client.run_under(&["env", "NARMESH_LOG=info"]))
}

/// Ends the daemon, so that all it has left out is said, and starts it again; what the flood cost the first one goes into the table.
fn restart(stage: &mut Stage, attack: &str) {
    stage.note(attack, |_| {});
    stage.client.terminate();
    stage.client.start();
}

/// The log is bounded, says how much was left out, and is still there for what concerns the operator.
#[track_caller]
fn assert_log_is_readable(stage: &Stage, attack: &str, times: u64) {
    let log = stage.client.log();
    report::amend(attack, |row| row.outcome = format!("{times} times, {} bytes of log", log.len()));
    assert!(log.len() <= LOG_BYTES_MAX, "{} bytes of log for {times} times:\n{:.4000}", log.len(), log);
    stage.client.wait_logged(&["left out"]);
    stage.client.reload();
    stage.client.wait_logged(&["configuration reloaded"]);
}

#[test]
fn malformed_requests_without_end_leave_the_log_readable() {
    let peer = Peer::honest("shouter");
    let mut stage = stage("shouter", &peer);
    peer.connect(&stage.client);
    let sent = Arc::new(AtomicU64::new(0));
    let until = Instant::now() + FLOOD;
    let lanes: Vec<_> = (0..LANES)
        .map(|_| {
            let (control, to, sent) = (peer.control.clone(), peer_id(&stage.client), Arc::clone(&sent));
            peer.runtime.spawn(async move {
                while Instant::now() < until {
                    let asked = ask(control.clone(), to, NARINFO, vec![1; 19]);
                    tokio::time::timeout(Duration::from_secs(1), asked).await.ok();
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    // It is disconnected, and comes back.
    while Instant::now() < until {
        peer.dial(&stage.client);
        std::thread::park_timeout(Duration::from_millis(10));
    }
    lanes.into_iter().for_each(|lane| peer.runtime.block_on(lane).unwrap());
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent > 1_000, "only {sent} requests: no flood");
    restart(&mut stage, "log: malformed requests");
    assert_log_is_readable(&stage, "log: malformed requests", sent);
    stage.client.wait_logged(&[&peer.id.to_string().to_lowercase(), "sent a malformed request"]);
    stage.finish();
}

/// A yamux frame without a body: version 0, then type, flags, stream and what depends on the type.
fn frame(kind: u8, flags: u16, stream: u32, length: u32) -> [u8; 12] {
    let mut frame = [0; 12];
    frame[1] = kind;
    frame[2..4].copy_from_slice(&flags.to_be_bytes());
    frame[4..8].copy_from_slice(&stream.to_be_bytes());
    frame[8..].copy_from_slice(&length.to_be_bytes());
    frame
}

const WINDOW_UPDATE: u8 = 1;
const SYN: u16 = 1;
const RST: u16 = 8;
/// Frames that are written before what comes back is read.
const BATCH: usize = 1_000;

/// Opens streams and gives them more window than there can be, which the library reports each time.
fn overflow(stage: &Stage, peer: &Peer) -> io::Result<u64> {
    overflow_for(&stage.client, certificate_of(&peer.keys), FLOOD)
}

/// The same for `flood` as whoever has this certificate; returns the number of frames.
pub fn overflow_for(node: &TestNode, identity: Identity, flood: Duration) -> io::Result<u64> {
    let mut socket = open(node, identity)?;
    socket.read_exact(&mut [0; 34])?;
    let (until, mut sent) = (Instant::now() + flood, 0);
    for stream in (1..).step_by(2) {
        let mut batch = frame(WINDOW_UPDATE, SYN, stream, 0).to_vec();
        batch.extend(frame(WINDOW_UPDATE, 0, stream, u32::MAX).repeat(BATCH));
        batch.extend(frame(WINDOW_UPDATE, RST, stream, 0));
        socket.write_all(&batch)?;
        sent += BATCH as u64;
        // Each is answered with a frame; who does not read is not read from either.
        socket.read_exact(&mut vec![0; 12 * BATCH])?;
        if Instant::now() >= until {
            break;
        }
    }
    Ok(sent)
}

#[test]
fn windows_that_overflow_without_end_leave_the_log_readable() {
    let peer = Peer::honest("overflower");
    let mut stage = stage("overflower", &peer);
    let sent = overflow(&stage, &peer).unwrap();
    assert!(sent > 10_000, "only {sent} frames: no flood");
    restart(&mut stage, "log: windows that overflow");
    assert_log_is_readable(&stage, "log: windows that overflow", sent);
    stage.client.wait_logged(&["could not increase the send window"]);
    stage.finish();
}
