//! Plays any sequence of sources, answers, rates, failures and offsets in virtual time: the client gets the exact NAR
//! or a short body, never anything else, and a NAR is gone only if nobody could send it.

mod mixed;
mod one_by_one;
mod referrals;
mod scripted;
mod several;
mod trees;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use narmesh_protocol::nar::NarVerifier;
use narmesh_protocol::nar_tree::{LeafHasher, NarTree};
use narmesh_protocol::{HashPart, NarHash, NarUrl};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::scripted::{Act, Break, Script, State, World, flipped};
use super::delivery::{Delivery, Ended};
use super::shortage::Shortage;
use super::transfer::{Transfer, TransferSettings};
use super::waiting_client::{CHUNKS_AHEAD, NAR_PREFIX, WaitingClient};
use super::{Buffers, Checkpoints, Compress, HoldLimits, NarContext, NarFaults};
use crate::ResolverCounters;
use crate::lookup_log::LookupLog;
use crate::source::{Observation, SourceId, TreeAnswer};

const STALL: Duration = Duration::from_secs(5);
const BUFFER_BYTES: u64 = 1 << 20;
const LIMITS: HoldLimits = HoldLimits { tiny: 256, small: 2_048, saved: 8_192, streamed: 1_024 };

/// A NAR of one file with `contents` bytes in it.
fn token(nar: &mut Vec<u8>, bytes: &[u8]) {
    nar.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    nar.extend_from_slice(bytes);
    nar.resize(nar.len().next_multiple_of(8), 0);
}

fn nar_of(contents: usize, seed: u8) -> Vec<u8> {
    let mut nar = NAR_PREFIX.to_vec();
    token(&mut nar, b"regular");
    token(&mut nar, b"contents");
    token(&mut nar, &(0..contents).map(|at| seed ^ u8::try_from(at % 251).unwrap()).collect::<Vec<_>>());
    token(&mut nar, b")");
    nar
}

/// The tree that a holder signs for this NAR.
fn tree_of(nar: &[u8]) -> NarTree {
    let mut hasher = LeafHasher::new(nar.len() as u64, 0).unwrap();
    hasher.update(nar);
    hasher.finish().unwrap()
}

struct Outcome {
    ended: Ended,
    body: Vec<u8>,
    aborted: bool,
    elapsed: Duration,
    observed: Vec<(SourceId, Observation)>,
    requests: HashMap<SourceId, Vec<u64>>,
    sent_bytes: HashMap<SourceId, u64>,
    suspects: HashSet<SourceId>,
    /// What `narmesh why` says.
    told: Vec<String>,
}

/// Other bodies, which hold all memory but `free_bytes`.
#[derive(Clone, Copy)]
struct Others {
    free_bytes: u64,
    lasting: Duration,
    /// Whether something comes in meanwhile from a source that could send the NAR.
    moving: bool,
}

/// Delivers a NAR from these sources, which are asked in this order.
async fn deliver(nar: &[u8], scripts: Vec<Script>, first_byte: u64) -> (Vec<SourceId>, Outcome) {
    deliver_after(nar, nar, scripts, first_byte, None).await
}

/// The same from the first byte on, beside `others`.
async fn deliver_beside(others: Others, nar: &[u8], scripts: Vec<Script>) -> (Vec<SourceId>, Outcome) {
    deliver_after(nar, nar, scripts, 0, Some(others)).await
}

/// The same, but `beginning` of a resumed NAR came from a source that is not asked again.
async fn deliver_after(
    beginning: &[u8],
    nar: &[u8],
    scripts: Vec<Script>,
    first_byte: u64,
    others: Option<Others>,
) -> (Vec<SourceId>, Outcome) {
    let order: Vec<_> = scripts.iter().map(|_| SourceId::random()).collect();
    let outcome = deliver_from(&order, (beginning, nar), scripts, first_byte, others, |_| {}).await;
    (order, outcome)
}

/// The same from sources with these names; `prepare` sees the transfer before it begins.
async fn deliver_from(
    order: &[SourceId],
    (beginning, nar): (&[u8], &[u8]),
    scripts: Vec<Script>,
    first_byte: u64,
    others: Option<Others>,
    prepare: impl FnOnce(&mut Transfer),
) -> Outcome {
    let visible = order.iter().zip(&scripts).filter(|(_, script)| !script.is_hidden);
    let known: Vec<_> = visible.map(|(source, _)| *source).collect();
    let scripts = order.iter().copied().zip(scripts).collect();
    let nar = Arc::new(nar.to_vec());
    let state = Arc::<Mutex<State>>::default();
    let (nar_of_world, state_of_world) = (Arc::clone(&nar), Arc::clone(&state));
    let world =
        World { order: order.to_vec(), known: known.clone(), scripts, nar: nar_of_world, state: state_of_world };
    let context = Arc::new(NarContext {
        sources: Arc::new(world),
        lookup_log: Arc::<LookupLog>::default(),
        request_log: Arc::default(),
        counters: ResolverCounters::default(),
        nar_faults: NarFaults::default(),
        checkpoints: Checkpoints::default(),
        // What is read from several sources at once needs memory for what comes before its turn.
        buffers: Buffers::new(if nar.len() > 8 << 20 { 64 << 20 } else { BUFFER_BYTES }),
        tiny_buffers: Buffers::new(1 << 10),
        own_buffers: Buffers::new(1 << 20),
        shortage: Shortage::default(),
        limits: LIMITS,
    });
    let url = NarUrl::new(HashPart([1; 20]), NarHash(Sha256::digest(&*nar).into()), nar.len() as u64);
    let settings = TransferSettings { stall_timeout: STALL, compress: Compress::Never };
    let mut transfer = if first_byte == 0 || nar.len() as u64 <= LIMITS.small {
        Transfer::new(Arc::clone(&context), settings, url, known)
    } else {
        let mut verifier = NarVerifier::new();
        let offset = first_byte / 2;
        verifier.feed(&beginning[..usize::try_from(offset).unwrap()]).unwrap();
        let (sources, verified) = (known, Some((verifier, vec![SourceId::random()])));
        Transfer::resume(Arc::clone(&context), settings, url, sources, offset, verified)
    };
    prepare(&mut transfer);
    if let Some(others) = others {
        let held = context.buffers.try_take(BUFFER_BYTES - others.free_bytes).unwrap();
        let (state, source) = (Arc::clone(&state), order[0]);
        tokio::spawn(async move {
            let until = Instant::now() + others.lasting;
            while Instant::now() < until {
                if others.moving {
                    state.lock().lines.entry(source).or_default().last_received = Some(Instant::now());
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            drop(held);
        });
    }
    let (client, mut body) = mpsc::channel(CHUNKS_AHEAD);
    let since = Instant::now();
    let client = WaitingClient::new(client, first_byte);
    let delivery = Delivery { context: Arc::clone(&context), url, transfer, client, find_user: Arc::new(|| None) };
    let read = async {
        let (mut got, mut aborted) = (Vec::new(), false);
        while let Some(chunk) = body.recv().await {
            match chunk {
                Ok(bytes) => got.extend_from_slice(&bytes),
                Err(_) => aborted = true,
            }
        }
        (got, aborted)
    };
    let (ended, (body, aborted)) = tokio::join!(delivery.run(), read);
    let elapsed = since.elapsed();
    let state = state.lock();
    let (observed, requests, sent_bytes) = (state.observed.clone(), state.requests.clone(), state.sent_bytes.clone());
    let suspects = context.nar_faults.suspects();
    let told = context.lookup_log.of(&url.hash_part).into_iter().map(|(_, said)| said).collect();
    Outcome { ended, body, aborted, elapsed, observed, requests, sent_bytes, suspects, told }
}

/// Asserts that the client got just this NAR.
fn assert_exact(outcome: &Outcome, nar: &[u8]) {
    assert_eq!((outcome.ended, outcome.aborted), (Ended::Complete, false));
    assert!(outcome.body == nar);
}

fn is_blamed(outcome: &Outcome, source: SourceId) -> bool {
    outcome.observed.contains(&(source, Observation::FalseNar))
}

fn has_timed_out(outcome: &Outcome, source: SourceId) -> bool {
    let waited = [Observation::TimedOut, Observation::Unfinished];
    waited.into_iter().any(|observation| outcome.observed.contains(&(source, observation)))
}
