//! Answers from the own store.

use super::Resolver;
use super::decisions::Decision;
use super::gate::Gate;
use super::trust::{self, Proof, TrustedNarInfo};
use bytes::Bytes;
use moka::sync::Cache;
use narmesh_http_gateway::{BodyAborted, NarBody};
use narmesh_protocol::{HashPart, NarUrl, StorePath};
use narmesh_quorum::{FingerprintDigest, Refusal};
use narmesh_store::{NarProgress, NarStream, PathInfo, Store};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Bytes of rendered narinfos of own paths kept.
const RENDERED_BYTES_MAX: u64 = 8 << 20;
/// Bytes read at a time; a NAR no longer than this is one buffer, one write.
const READ_BYTES: usize = 256 << 10;
/// Chunks that may wait for Nix.
const CHUNKS_AHEAD: usize = 2;

/// Narinfos of own paths, rendered and signed once.
pub(crate) struct OwnAnswers {
    rendered: Cache<HashPart, OwnAnswer>,
}

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct OwnAnswer {
    /// Of the gate, when it was rendered.
    stamp: u64,
    /// Of its NAR.
    pub(super) url: NarUrl,
    /// What is given on the word of builders, if that is why.
    pub(super) on_word: Option<(StorePath, FingerprintDigest)>,
    /// As Nix gets it.
    pub(super) rendered: Bytes,
}

impl OwnAnswers {
    pub(crate) fn new() -> Self {
        let weigh = |_: &HashPart, it: &OwnAnswer| u32::try_from(it.rendered.len() + 320).unwrap_or(u32::MAX);
        Self { rendered: Cache::builder().max_capacity(RENDERED_BYTES_MAX).weigher(weigh).build() }
    }

    pub(crate) fn get(&self, part: &HashPart, stamp: u64) -> Option<OwnAnswer> {
        self.rendered.get(part).filter(|answer| answer.stamp == stamp)
    }

    pub(crate) fn invalidate(&self, parts: &[HashPart]) {
        parts.iter().for_each(|part| self.rendered.invalidate(part));
    }

    pub(crate) fn clear(&self) {
        self.rendered.invalidate_all();
    }
}

impl Resolver {
    /// Our own narinfo, if somebody trusted (or our builder key) vouches for the path, and the policy lets it through: with the
    /// gateway key under it another store on this machine takes it, however it came into ours. Gives the refusal of the
    /// policy, if that is why there is none; it was not counted.
    pub(super) async fn own_answer(self: Arc<Self>, part: HashPart) -> Result<OwnAnswer, Option<Refusal>> {
        let (resolver, stamp) = (Arc::clone(&self), self.gate.stamp());
        if let Some(answer) = self.own.get(&part, stamp) {
            return Ok(answer);
        }
        let render = move || resolver.render_own(&part, stamp);
        let answer = tokio::task::spawn_blocking(render).await.unwrap_or(Err(None))?;
        self.own.rendered.insert(part, answer.clone());
        self.decisions.note(part, Decision::OwnStore);
        Ok(answer)
    }

    fn own_info(&self, part: &HashPart) -> Option<PathInfo> {
        match self.store.path_info(part) {
            Ok(info) => info,
            Err(error) => {
                tracing::warn!(%part, %error, "own store cannot be read");
                None
            }
        }
    }

    /// Our own copy, if it is whole and somebody trusted (or our builder key) vouches for it. Reads the disk.
    fn own_judged(&self, part: &HashPart) -> Option<TrustedNarInfo> {
        // A copy that failed its hash before cannot be opened.
        let info = self.own_info(part).filter(|info| self.store.open_nar(info).is_ok())?;
        let settings = self.settings();
        let mut signatures = info.signatures.clone();
        if info.ultimate
            && let Some(key) = &settings.builder_key
        {
            signatures.push(key.sign(&info.fingerprint(&self.store_dir)));
        }
        let (narinfo, by_verdict) = (info.narinfo(signatures), self.gate.demands());
        let judged = trust::judge_info(narinfo, &self.store_dir, &settings.trusted, by_verdict).ok()?;
        let proof = match judged.proof {
            // Our own NarHash of a content-addressed path was computed here.
            Proof::ContentAddress | Proof::Contents(_) => Proof::ContentAddress,
            Proof::Signed | Proof::Verdict => judged.proof,
        };
        Some(TrustedNarInfo { info: judged.info, proof })
    }

    /// Why a path of our own store is not given to Nix, in words. Reads the disk.
    pub(super) fn own_not_given(&self, part: &HashPart) -> Option<String> {
        let Some(TrustedNarInfo { info, proof }) = self.own_judged(part) else {
            return Some("no trusted key has signed it, or it cannot be read".to_owned());
        };
        self.gate.decide(&self.store_dir, &info, &proof).err().map(|refusal| refusal.to_string())
    }

    fn render_own(&self, part: &HashPart, stamp: u64) -> Result<OwnAnswer, Option<Refusal>> {
        let TrustedNarInfo { info, proof } = self.own_judged(part).ok_or(None)?;
        let pass = self.admitted(&info, &proof)?;
        let url = Gate::nar_url(&self.store_dir, &info, &pass);
        let rendered = self.gate.signed(&self.store_dir, &info, &pass).render(&self.store_dir, &url.to_string());
        let on_word = Gate::on_word(&self.store_dir, &info, &pass.voters);
        Ok(OwnAnswer { stamp, url, on_word, rendered: Bytes::from(rendered) })
    }

    /// Our own NAR, if it is the one asked for; `None` also when its copy on disk is damaged and small enough to be read first.
    pub(super) async fn own_nar(self: Arc<Self>, url: NarUrl, first_byte: u64) -> Option<NarBody> {
        let resolver = Arc::clone(&self);
        let open = move || {
            let info = resolver.own_info(&url.hash_part)?;
            if info.nar_hash != url.nar_hash || info.nar_size != url.nar_size {
                return None;
            }
            let mut nar = resolver.store.open_nar(&info).ok()?;
            let mut first = Vec::with_capacity(READ_BYTES.min(usize::try_from(info.nar_size).unwrap_or(READ_BYTES)));
            let progress = nar.fill(&mut first, READ_BYTES).ok()?;
            Some((nar, first, progress))
        };
        let (nar, first, progress) = tokio::task::spawn_blocking(open).await.ok().flatten()?;
        if progress == NarProgress::Complete {
            self.counters.nars_complete.inc();
            let body = Bytes::from(first).slice(usize::try_from(first_byte).ok()?..);
            return Some(Box::pin(futures::stream::once(async { Ok(body) })));
        }
        let (sender, mut receiver) = mpsc::channel(CHUNKS_AHEAD);
        let resolver = self;
        tokio::task::spawn_blocking(move || resolver.read_own(url, nar, first, first_byte, &sender));
        Some(Box::pin(futures::stream::poll_fn(move |context| receiver.poll_recv(context))))
    }

    fn read_own(
        &self,
        url: NarUrl,
        mut nar: NarStream,
        first: Vec<u8>,
        first_byte: u64,
        chunks: &mpsc::Sender<Result<Bytes, BodyAborted>>,
    ) {
        let (mut skip, mut sent) = (first_byte, 0);
        let mut buffer = first;
        let mut progress = NarProgress::More;
        loop {
            sent += buffer.len() as u64;
            let skipped = skip.min(buffer.len() as u64);
            skip -= skipped;
            let mut chunk = Bytes::from(buffer);
            bytes::Buf::advance(&mut chunk, usize::try_from(skipped).unwrap_or(usize::MAX));
            if !chunk.is_empty() && chunks.blocking_send(Ok(chunk)).is_err() {
                // Nix hung up.
                return;
            }
            if progress == NarProgress::Complete {
                self.counters.nars_complete.inc();
                return;
            }
            buffer = Vec::with_capacity(READ_BYTES);
            match nar.fill(&mut buffer, READ_BYTES) {
                Ok(next) => progress = next,
                Err(error) => {
                    tracing::warn!(hash_part = %url.hash_part, %error, "own copy cannot be read whole");
                    self.own.rendered.invalidate(&url.hash_part);
                    let aborted = self.cut_short(url, sent);
                    // Fails only when Nix hung up first.
                    drop(chunks.blocking_send(Err(aborted)));
                    return;
                }
            }
        }
    }

    /// Notes that a body ends so that Nix builds or goes on: short, and 404 for what it asks next.
    pub(super) fn cut_short(&self, url: NarUrl, at: u64) -> BodyAborted {
        self.spoilt.spoil(url.nar_hash);
        self.counters.nars_aborted.inc();
        self.decisions.note(url.hash_part, Decision::NarCutShort(at));
        BodyAborted
    }
}
