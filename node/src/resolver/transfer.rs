//! One NAR from the mesh: a series of (source, offset) with a verifier behind it, never "a response piped from a peer".
//!
//! A holder that dies or stalls is continued at the same byte by the next, because a NAR is canonical; a small one, which Nix has not
//! seen yet, is begun anew, so that nobody is judged by another's bytes. A holder that lied has spoilt
//! what was read: up to [`SMALL_NAR_BYTES_MAX`] nothing has reached Nix yet and the NAR is read again from another; above it the
//! body is closed short.

use super::Resolver;
use super::decisions::Decision;
use crate::mesh::{NarPiece, NarSource, SMALL_NAR_BYTES_MAX};
use crate::settings::Compress;
use bytes::Bytes;
use libp2p::PeerId;
use narmesh_gossip::Misdeed;
use narmesh_http_gateway::{BodyAborted, NarBody};
use narmesh_protocol::nar::NarVerifier;
use narmesh_protocol::wire::NarRequest;
use narmesh_protocol::{ContentAddress, HashPart, NarInfo, NarUrl};
use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// What one larger transfer holds in memory: the chunk held back, those waiting for Nix, and one being read.
const LARGE_NAR_BUFFER_BYTES: u64 = 2 << 20;
/// Chunks that may wait for Nix.
const CHUNKS_AHEAD: usize = 2;
/// A holder that does not answer a request for a NAR within this is left.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(3);
/// A holder that sends less than [`PACE_BYTES_MIN`] in this time is left, like one that stalls: 1.6 kB/s is no modem's pace.
const PACE_WINDOW: Duration = Duration::from_secs(10);
/// See [`PACE_WINDOW`].
const PACE_BYTES_MIN: u64 = 16 << 10;
/// All holders busy, or no buffer free: waited at most this long, well under Nix's `stalled-download-timeout` of 30 s.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(20);
/// Pause before busy holders are asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// Below this rate compression at level 1 is quicker than the link: 200 Mbit/s.
const COMPRESS_BELOW_BYTES_S: u64 = 25_000_000;
/// A content-addressed path without signature is hashed before its narinfo is given: only up to this size.
const CONTENTS_CHECK_BYTES_MAX: u64 = 256 << 20;

/// One NAR being read from holders, one after the other.
struct Transfer {
    resolver: Arc<Resolver>,
    url: NarUrl,
    holders: VecDeque<PeerId>,
    busy: Vec<PeerId>,
    /// Up to [`SMALL_NAR_BYTES_MAX`]: read from one holder alone, so that nobody's bytes are judged with another's.
    alone: bool,
    started: Instant,
    source: Option<NarSource>,
    /// Time spent waiting for this source.
    waited: Duration,
    /// From which time waited, and from which offset on, its pace is measured.
    pace: (Duration, u64),
    verifier: NarVerifier,
    offset: u64,
    contributors: Vec<PeerId>,
}

/// A whole NAR and its share of the memory, which goes with its bytes: hyper lets go of a body as soon as it has taken the
/// last of it, and may hold that for as long as the client does not read.
struct HeldNar {
    nar: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for HeldNar {
    fn as_ref(&self) -> &[u8] {
        &self.nar
    }
}

/// What one step brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Bytes were appended.
    Data,
    /// All bytes are there and their hash is the one promised.
    Verified,
    /// All bytes are there, and they are not the NAR promised.
    Lie,
    /// No holder is left.
    Exhausted,
}

impl Resolver {
    /// The NAR from the mesh, or `None` when nobody can send its first bytes.
    pub(super) async fn mesh_nar(self: Arc<Self>, url: NarUrl, first_byte: u64) -> Option<NarBody> {
        let holders = Arc::clone(&self).holders(&url).await;
        if holders.is_empty() {
            return None;
        }
        let small = url.nar_size <= SMALL_NAR_BYTES_MAX;
        let buffer_kib = self.buffer_kib(if small { url.nar_size } else { LARGE_NAR_BUFFER_BYTES });
        let buffer = Arc::clone(&self.buffers_kib).acquire_many_owned(buffer_kib);
        let buffer = tokio::time::timeout(BUSY_WAIT_MAX, buffer).await.ok()?.ok()?;
        if small {
            let nar = Arc::clone(&self).small_nar(url, holders, buffer).await?;
            self.counters.nars_complete.inc();
            let body = nar.slice(usize::try_from(first_byte).ok()?..);
            return Some(Box::pin(futures::stream::iter([Ok(body)])));
        }
        let mut transfer = Transfer::new(Arc::clone(&self), url, holders);
        let mut first = Vec::new();
        if transfer.step(&mut first).await != Step::Data {
            return None;
        }
        let (sender, mut receiver) = mpsc::channel(CHUNKS_AHEAD);
        tokio::spawn(async move {
            transfer.deliver(Bytes::from(first), first_byte, &sender).await;
            drop(buffer);
        });
        Some(Box::pin(futures::stream::poll_fn(move |context| receiver.poll_recv(context))))
    }

    /// A small NAR that Nix has not asked for yet: only if memory for it is free at once. `None` when it was not read.
    pub(super) async fn nar_in_advance(self: Arc<Self>, url: NarUrl) -> Option<Bytes> {
        let buffer = Arc::clone(&self.buffers_kib).try_acquire_many_owned(self.buffer_kib(url.nar_size)).ok()?;
        let holders = Arc::clone(&self).holders(&url).await;
        self.small_nar(url, holders, buffer).await
    }

    /// A NAR of up to [`SMALL_NAR_BYTES_MAX`], whole and verified.
    async fn small_nar(
        self: Arc<Self>,
        url: NarUrl,
        holders: VecDeque<PeerId>,
        buffer: OwnedSemaphorePermit,
    ) -> Option<Bytes> {
        let nar = Transfer::new(self, url, holders).whole().await?;
        Some(Bytes::from_owner(HeldNar { nar, _permit: buffer }))
    }

    fn buffer_kib(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(1_024)).unwrap_or(u32::MAX).min(self.buffers_kib_max)
    }

    /// Who to ask for this NAR: those that confirmed its NarHash, then other candidates; without those that lied about it.
    async fn holders(self: Arc<Self>, url: &NarUrl) -> VecDeque<PeerId> {
        let liars = self.spoilt.liars(&url.nar_hash);
        let ranked: Vec<_> = self.ranked(&url.hash_part).into_iter().filter(|peer| !liars.contains(peer)).collect();
        let confirmed: HashSet<PeerId> = match Arc::clone(&self).remembered(url.hash_part).await {
            Some(answer) if answer.info.nar_hash == url.nar_hash => answer.holders.iter().copied().collect(),
            Some(_) | None => HashSet::new(),
        };
        let (first, then): (Vec<_>, Vec<_>) = ranked.into_iter().partition(|peer| confirmed.contains(peer));
        first.into_iter().chain(then).collect()
    }

    /// Whether the NAR that `peer` sends is what `info` says and hashes to the content address.
    pub(super) async fn contents_match(
        self: &Arc<Self>,
        peer: PeerId,
        info: &NarInfo,
        address: &ContentAddress,
    ) -> bool {
        if info.nar_size > CONTENTS_CHECK_BYTES_MAX {
            return false;
        }
        let hash_part: HashPart = info.path.hash_part();
        let url = NarUrl::new(hash_part, info.nar_hash, info.nar_size);
        let self_reference = info.references.contains(&info.path).then_some(&hash_part);
        let mut contents = address.verifier(self_reference);
        let mut transfer = Transfer::new(Arc::clone(self), url, VecDeque::from([peer]));
        let mut chunk = Vec::new();
        loop {
            chunk.clear();
            let step = transfer.step(&mut chunk).await;
            contents.feed(&chunk);
            match step {
                Step::Data => {}
                Step::Verified => {
                    let matches = contents.matches();
                    if !matches {
                        self.mesh.misbehaved(peer, Misdeed::FalseNarInfo);
                    }
                    return matches;
                }
                Step::Lie | Step::Exhausted => return false,
            }
        }
    }
}

impl Transfer {
    fn new(resolver: Arc<Resolver>, url: NarUrl, holders: VecDeque<PeerId>) -> Self {
        Self {
            resolver,
            url,
            holders,
            busy: Vec::new(),
            alone: url.nar_size <= SMALL_NAR_BYTES_MAX,
            started: Instant::now(),
            source: None,
            waited: Duration::ZERO,
            pace: (Duration::ZERO, 0),
            verifier: NarVerifier::new(),
            offset: 0,
            contributors: Vec::new(),
        }
    }

    /// The whole NAR in one buffer, verified; a lie is thrown away and the NAR read again from another holder.
    async fn whole(&mut self) -> Option<Vec<u8>> {
        let mut nar = Vec::with_capacity(usize::try_from(self.url.nar_size).ok()?);
        loop {
            match self.step(&mut nar).await {
                Step::Data => {}
                Step::Verified => return Some(nar),
                Step::Lie => {
                    nar.clear();
                    self.start_over();
                }
                Step::Exhausted => return None,
            }
        }
    }

    /// Streams to Nix, the newest chunk held back until the hash of all is right.
    async fn deliver(&mut self, first: Bytes, first_byte: u64, nix: &mpsc::Sender<Result<Bytes, BodyAborted>>) {
        let mut held = first;
        let mut skip = first_byte;
        loop {
            let mut next = Vec::new();
            let step = self.step(&mut next).await;
            match step {
                Step::Data | Step::Verified => {
                    let skipped = skip.min(held.len() as u64);
                    skip -= skipped;
                    bytes::Buf::advance(&mut held, usize::try_from(skipped).unwrap_or(usize::MAX));
                    if !held.is_empty() && nix.send(Ok(held)).await.is_err() {
                        // Nix hung up.
                        return;
                    }
                    held = Bytes::from(next);
                }
                Step::Lie | Step::Exhausted => {
                    let aborted = self.resolver.cut_short(self.url, self.offset);
                    self.resolver.forget(self.url.hash_part);
                    // Fails only when Nix hung up first.
                    drop(nix.send(Err(aborted)).await);
                    return;
                }
            }
            if step == Step::Verified {
                self.resolver.counters.nars_complete.inc();
                return;
            }
        }
    }

    /// Reads the next bytes onto the end of `out`, from the next holder if this one fails; of a small NAR, which nobody has seen
    /// yet, `out` is emptied and the next holder begins anew.
    ///
    /// [`Step::Verified`] may follow right after the last [`Step::Data`] without new bytes.
    async fn step(&mut self, out: &mut Vec<u8>) -> Step {
        loop {
            if self.offset == self.url.nar_size {
                return self.finish().await;
            }
            let Some(source) = &mut self.source else {
                if self.alone && self.offset > 0 {
                    out.clear();
                    self.start_over();
                }
                if self.open_next().await {
                    continue;
                }
                return Step::Exhausted;
            };
            let (peer, before) = (source.peer(), out.len());
            let left = self.url.nar_size - self.offset;
            let stall = self.resolver.settings().stall_timeout;
            let asked = Instant::now();
            let read = tokio::time::timeout(stall, source.next(out, left)).await;
            // Only this is the holder's time; how long Nix takes to read is not its doing.
            self.waited += asked.elapsed();
            match read {
                Ok(Ok(NarPiece::Data)) => {
                    let new = out.get(before..).unwrap_or_default();
                    if !new.is_empty() && !self.contributors.contains(&peer) {
                        self.contributors.push(peer);
                    }
                    if self.verifier.feed(new).is_err() {
                        out.truncate(before);
                        return self.lie();
                    }
                    let has_new = !new.is_empty();
                    self.offset += new.len() as u64;
                    if self.is_crawling() {
                        self.leave(peer, format!("slower than {PACE_BYTES_MIN} bytes in {PACE_WINDOW:?}"));
                    }
                    if has_new {
                        return Step::Data;
                    }
                }
                Ok(Ok(NarPiece::NotNow { .. })) if self.holders.is_empty() => {}
                Ok(Ok(NarPiece::NotNow { .. })) => {
                    self.busy.push(peer);
                    self.source = None;
                }
                Ok(Ok(NarPiece::Absent)) => self.leave(peer, "absent".to_owned()),
                Ok(Ok(NarPiece::Complete)) => {
                    self.resolver.mesh.misbehaved(peer, Misdeed::FalseNar);
                    self.leave(peer, "said complete before the end".to_owned());
                }
                Ok(Ok(NarPiece::Failed)) => self.leave(peer, "cannot finish it".to_owned()),
                Ok(Err(error)) => {
                    out.truncate(before);
                    if error.kind() == io::ErrorKind::InvalidData {
                        let misdeed = if source.has_begun() { Misdeed::FalseNar } else { Misdeed::MalformedReply };
                        self.resolver.mesh.misbehaved(peer, misdeed);
                    }
                    self.leave(peer, error.to_string());
                }
                Err(_) => {
                    out.truncate(before);
                    self.resolver.mesh.board().timed_out(&peer);
                    self.leave(peer, format!("nothing for {stall:?}"));
                }
            }
        }
    }

    /// All bytes are there: is it the NAR promised?
    async fn finish(&mut self) -> Step {
        let verified = std::mem::replace(&mut self.verifier, NarVerifier::new()).finish();
        if !verified.is_ok_and(|nar| nar.nar_hash == self.url.nar_hash && nar.nar_size == self.url.nar_size) {
            return self.lie();
        }
        let Some(mut source) = self.source.take() else { return Step::Verified };
        let peer = source.peer();
        self.count(&source);
        let elapsed = self.started.elapsed();
        self.resolver.decisions.note(self.url.hash_part, Decision::NarVerified(peer, self.offset, elapsed));
        // The end mark puts the stream back into the pool. It is there already when the NAR was one write; else nobody waits for
        // it, and without it the stream is closed, that is all. What comes instead of it is none of the NAR.
        let mesh = self.resolver.mesh.clone();
        let mut end = Box::pin(async move {
            let end = source.next(&mut Vec::new(), 0).await;
            if end.is_err_and(|error| error.kind() == io::ErrorKind::InvalidData) {
                mesh.misbehaved(peer, Misdeed::FalseNar);
            }
        });
        if futures::poll!(&mut end).is_pending() {
            tokio::spawn(tokio::time::timeout(FIRST_BYTE_TIMEOUT, end));
        }
        Step::Verified
    }

    fn lie(&mut self) -> Step {
        self.source = None;
        for peer in &self.contributors {
            self.resolver.spoilt.lied(self.url.nar_hash, *peer);
            self.resolver.decisions.note(self.url.hash_part, Decision::NarLie(*peer));
        }
        // With two contributors nobody can tell who it was: neither is blamed, neither is asked again for this NAR.
        if let [peer] = self.contributors.as_slice() {
            self.resolver.mesh.misbehaved(*peer, Misdeed::FalseNar);
        }
        Step::Lie
    }

    /// Whether the last window brought next to nothing: one byte now and then keeps no stall timeout busy, but a build waiting.
    fn is_crawling(&mut self) -> bool {
        let (since, from) = self.pace;
        if self.waited.saturating_sub(since) < PACE_WINDOW {
            return false;
        }
        self.pace = (self.waited, self.offset);
        self.offset - from < PACE_BYTES_MIN && self.offset < self.url.nar_size
    }

    /// Forgets what was read; those that contributed are not asked again.
    fn start_over(&mut self) {
        self.verifier = NarVerifier::new();
        self.offset = 0;
        self.contributors.clear();
    }

    /// Goes on without this holder.
    fn leave(&mut self, peer: PeerId, why: String) {
        if let Some(source) = self.source.take() {
            self.count(&source);
        }
        self.resolver.decisions.note(self.url.hash_part, Decision::NarBroken(peer, self.offset, why));
    }

    fn count(&self, source: &NarSource) {
        let bytes = source.wire_bytes();
        self.resolver.counters.bytes_in.inc_by(bytes);
        self.resolver.mesh.board().received(&source.peer(), bytes, self.waited);
    }

    /// Opens the NAR at the current offset at the next holder that has it; waits for busy ones when there is no other.
    async fn open_next(&mut self) -> bool {
        let waiting_since = Instant::now();
        loop {
            while let Some(peer) = self.holders.pop_front() {
                match open(&self.resolver, self.url, self.offset, peer).await {
                    Ok(source) => {
                        if self.offset > 0 {
                            self.resolver.counters.continued.inc();
                        }
                        self.resolver.decisions.note(self.url.hash_part, Decision::NarFrom(peer, self.offset));
                        (self.source, self.waited) = (Some(source), Duration::ZERO);
                        self.pace = (Duration::ZERO, self.offset);
                        return true;
                    }
                    Err(error) => {
                        if error.kind() == io::ErrorKind::TimedOut {
                            self.resolver.mesh.board().timed_out(&peer);
                        }
                        let broken = Decision::NarBroken(peer, self.offset, error.to_string());
                        self.resolver.decisions.note(self.url.hash_part, broken);
                    }
                }
            }
            if self.busy.is_empty() || waiting_since.elapsed() > BUSY_WAIT_MAX {
                return false;
            }
            tokio::time::sleep(BUSY_PAUSE).await;
            self.holders.extend(self.busy.drain(..));
        }
    }
}

async fn open(resolver: &Resolver, url: NarUrl, offset: u64, peer: PeerId) -> io::Result<NarSource> {
    let mesh = &resolver.mesh;
    mesh.nar().prepare(peer);
    let connected = tokio::time::timeout(FIRST_BYTE_TIMEOUT, mesh.connect(peer)).await?;
    connected.map_err(io::Error::other)?;
    let accept_zstd = match resolver.settings().compress {
        Compress::Always => true,
        Compress::Never => false,
        Compress::Auto => {
            let rate = mesh.board().stats(&peer).and_then(|stats| stats.rate_bytes_s);
            rate.is_some_and(|rate| rate < COMPRESS_BELOW_BYTES_S)
        }
    };
    let NarUrl { hash_part, nar_hash, nar_size, .. } = url;
    let request = NarRequest { hash_part, nar_hash, nar_size, offset, accept_zstd };
    Ok(tokio::time::timeout(FIRST_BYTE_TIMEOUT, mesh.nar().request(peer, request)).await??)
}
