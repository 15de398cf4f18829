//! Answers from the own store.

use super::gate::Gate;
use super::trust::{self, Distrust, Proof, TrustedNarInfo};
use crate::lookup_log::LookupEvent;
use crate::shared::Shared;
use bytes::Bytes;
use moka::sync::Cache;
use narmesh_protocol::{HashPart, NarUrl, StorePath};
use narmesh_quorum::{FingerprintDigest, Refusal};
use narmesh_store::{Store, StoreError};
use std::sync::Arc;

/// Bytes of rendered narinfos of own paths kept.
const RENDERED_BYTES_MAX: u64 = 8 << 20;

/// Narinfos of own paths, rendered and signed once.
#[derive(Debug)]
pub(crate) struct OwnAnswers {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
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

/// Why a path of our own store is not ours to give, before any policy.
#[derive(Debug, thiserror::Error)]
enum NotOurs {
    /// Its row.
    #[error("its row in the Nix database cannot be read, or it is not valid any more")]
    Row,
    /// Its copy.
    #[error(transparent)]
    Copy(#[from] StoreError),
    /// Nobody vouches for it.
    #[error("no trusted key has signed it: {0}")]
    Distrusted(#[from] Distrust),
}

impl OwnAnswers {
    pub(crate) fn new(shared: Arc<Shared>, gate: Arc<Gate>) -> Self {
        let weigh = |_: &HashPart, it: &OwnAnswer| u32::try_from(it.rendered.len() + 320).unwrap_or(u32::MAX);
        let rendered = Cache::builder().max_capacity(RENDERED_BYTES_MAX).weigher(weigh).build();
        Self { shared, gate, rendered }
    }

    /// The narinfo of an own path, if it was rendered before and the policy is still the same. From memory.
    pub(crate) fn in_memory(&self, part: &HashPart) -> Option<OwnAnswer> {
        let stamp = self.gate.stamp();
        self.rendered.get(part).filter(|answer| answer.stamp == stamp)
    }

    pub(crate) fn invalidate(&self, parts: &[HashPart]) {
        parts.iter().for_each(|part| self.rendered.invalidate(part));
    }

    pub(crate) fn clear(&self) {
        self.rendered.invalidate_all();
    }

    /// Our own narinfo, if somebody trusted (or our builder key) vouches for the path, and the policy lets it through: with the
    /// gateway key under it another store on this machine takes it, however it came into ours. Gives the refusal of the
    /// policy, if that is why there is none; it was not counted.
    pub(crate) async fn answer(self: &Arc<Self>, part: HashPart) -> Result<OwnAnswer, Option<Refusal>> {
        if let Some(answer) = self.in_memory(&part) {
            return Ok(answer);
        }
        let (this, stamp) = (Arc::clone(self), self.gate.stamp());
        let render = move || this.render(&part, stamp);
        let answer = tokio::task::spawn_blocking(render).await.unwrap_or(Err(None))?;
        self.rendered.insert(part, answer.clone());
        self.shared.lookup_log.note(part, LookupEvent::OwnStore);
        Ok(answer)
    }

    /// Our own copy, if it is whole and somebody trusted (or our builder key) vouches for it; else why not. Reads the disk.
    fn judged(&self, part: &HashPart) -> Result<TrustedNarInfo, NotOurs> {
        // A copy that failed its hash before cannot be opened.
        let info = self.shared.own_info(part).filter(|info| info.nar_size > 0).ok_or(NotOurs::Row)?;
        self.shared.store.open_nar(&info)?;
        let (settings, store_dir) = (self.shared.settings(), &self.shared.store_dir);
        let mut signatures = info.signatures.clone();
        if info.ultimate
            && let Some(key) = &settings.builder_key
        {
            signatures.push(key.sign(&info.fingerprint(store_dir)));
        }
        let (narinfo, by_verdict) = (info.narinfo(signatures), self.gate.demands());
        let judged = trust::judge_info(narinfo, store_dir, &settings.trusted, by_verdict)?;
        let proof = match judged.proof {
            // Our own NarHash of a content-addressed path was computed here.
            Proof::ContentAddress | Proof::Contents(_) => Proof::ContentAddress,
            Proof::Signed | Proof::Verdict => judged.proof,
        };
        Ok(TrustedNarInfo { info: judged.info, proof })
    }

    /// Why a path of our own store is not given to Nix, in words. Reads the disk.
    pub(crate) fn not_given(&self, part: &HashPart) -> Option<String> {
        match self.judged(part) {
            Ok(TrustedNarInfo { info, proof }) => {
                self.gate.decide(&info, &proof).err().map(|refusal| refusal.to_string())
            }
            Err(why) => Some(why.to_string()),
        }
    }

    fn render(&self, part: &HashPart, stamp: u64) -> Result<OwnAnswer, Option<Refusal>> {
        let TrustedNarInfo { info, proof } = self.judged(part).map_err(|_| None)?;
        let pass = self.gate.admitted(&info, &proof)?;
        let url = self.gate.nar_url(&info, &pass);
        let rendered = self.gate.signed(&info, &pass).render(&self.shared.store_dir, &url.to_string());
        let on_word = self.gate.on_word(&info, &pass.voters);
        Ok(OwnAnswer { stamp, url, on_word, rendered: Bytes::from(rendered) })
    }
}
