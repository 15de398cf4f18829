//! Answers from the own store.

use super::gate::Gate;
use super::trust::{self, Proof, TrustedNarInfo};
use crate::Resolver;
use crate::decisions::Decision;
use bytes::Bytes;
use moka::sync::Cache;
use narmesh_protocol::{HashPart, NarUrl, StorePath};
use narmesh_quorum::{FingerprintDigest, Refusal};
use narmesh_store::{PathInfo, Store};
use std::sync::Arc;

/// Bytes of rendered narinfos of own paths kept.
const RENDERED_BYTES_MAX: u64 = 8 << 20;

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
    pub(crate) url: NarUrl,
    /// What is given on the word of builders, if that is why.
    pub(super) on_word: Option<(StorePath, FingerprintDigest)>,
    /// As Nix gets it.
    pub(crate) rendered: Bytes,
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
    pub(crate) async fn own_answer(self: Arc<Self>, part: HashPart) -> Result<OwnAnswer, Option<Refusal>> {
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

    pub(crate) fn own_info(&self, part: &HashPart) -> Option<PathInfo> {
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
    pub fn own_not_given(&self, part: &HashPart) -> Option<String> {
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
}
