//! Narinfos of paths in our own store.

use super::gate::Gate;
use super::trust::{self, Distrust, Proof, TrustedNarInfo};
use crate::lookup_log::LookupEvent;
use crate::own_reads::NotNow;
use crate::shared::Shared;
use bytes::Bytes;
use moka::sync::Cache;
use narmesh_protocol::{HashPart, NarUrl, StorePath};
use narmesh_quorum::{FingerprintDigest, Refusal};
use narmesh_store::StoreError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The most bytes of rendered narinfos that are kept.
const RENDERED_BYTES_MAX: u64 = 8 << 20;

/// Narinfos of paths in our own store, rendered and signed once.
#[derive(Debug)]
pub(crate) struct OwnAnswers {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    rendered: Cache<HashPart, OwnAnswer>,
    /// How often all answers were dropped, so that one rendered before it is not kept after it.
    clears: AtomicU64,
}

/// The rendered narinfo of a path in our own store.
#[derive(Clone, Debug)]
pub(crate) struct OwnAnswer {
    /// [`Gate::stamp`] when it was rendered.
    stamp: u64,
    /// The URL of its NAR.
    pub(crate) url: NarUrl,
    /// The path and fingerprint, if it is given on the word of builders.
    pub(super) on_word: Option<(StorePath, FingerprintDigest)>,
    /// The text that Nix gets.
    pub(crate) rendered: Bytes,
}

/// An answer, and [`OwnAnswers::clears`] when it was begun.
struct Rendered {
    answer: Result<OwnAnswer, NoOwnAnswer>,
    clears: u64,
}

/// Why a path of our own store is not given, whatever the policy says.
#[derive(Debug, thiserror::Error)]
enum NotOurs {
    /// It has no row in the Nix database any more.
    #[error("it is no longer valid")]
    Row,
    /// Its row in the Nix database or its copy on disk cannot be read.
    #[error(transparent)]
    Copy(#[from] StoreError),
    /// Neither a trusted signature nor our builder key vouches for it.
    #[error("no trusted key has signed it: {0}")]
    Distrusted(#[from] Distrust),
}

impl NotOurs {
    fn passes_soon(&self) -> bool {
        match self {
            Self::Copy(error) => error.passes_soon(),
            Self::Row | Self::Distrusted(_) => false,
        }
    }
}

/// Why there is no answer from our own store.
#[derive(Clone, Copy, Debug)]
pub(super) enum NoOwnAnswer {
    /// The store cannot be read now: [`OwnAnswers::wait_for`] waits until it can.
    NotNow,
    /// The policy refuses it. This is not counted yet.
    Refused(Refusal),
    /// It is not there, cannot be read, or nobody vouches for it.
    Absent,
}

impl OwnAnswers {
    pub(crate) fn new(shared: Arc<Shared>, gate: Arc<Gate>) -> Self {
        let weigh = |_: &HashPart, it: &OwnAnswer| u32::try_from(it.rendered.len() + 320).unwrap_or(u32::MAX);
        let rendered = Cache::builder().max_capacity(RENDERED_BYTES_MAX).weigher(weigh).build();
        Self { shared, gate, rendered, clears: AtomicU64::new(0) }
    }

    /// The narinfo of a path in our own store, if it was rendered while the policy and the ledger were the same. From
    /// memory.
    pub(crate) fn in_memory(&self, part: &HashPart) -> Option<OwnAnswer> {
        let stamp = self.gate.stamp();
        self.rendered.get(part).filter(|answer| answer.stamp == stamp)
    }

    /// The name of a path in our own store whose narinfo is in memory.
    pub(crate) fn name_in_memory(&self, part: &HashPart) -> Option<String> {
        let rendered = self.in_memory(part)?.rendered;
        let line = rendered.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"StorePath: "))?;
        let base = str::from_utf8(line).ok()?.rsplit('/').next()?;
        StorePath::parse(base).ok().map(|path| path.name().to_owned())
    }

    pub(crate) fn invalidate(&self, parts: &[HashPart]) {
        parts.iter().for_each(|part| self.rendered.invalidate(part));
    }

    pub(crate) fn clear(&self) {
        self.clears.fetch_add(1, Ordering::SeqCst);
        self.rendered.invalidate_all();
    }

    /// The narinfo of a path in our own store, if a trusted key (or our builder key) vouches for it and the policy lets
    /// it through. The policy is asked because another store on this machine takes what the gateway key has signed,
    /// however it came into our store.
    pub(super) async fn answer(self: &Arc<Self>, part: HashPart) -> Result<OwnAnswer, NoOwnAnswer> {
        if let Some(answer) = self.in_memory(&part) {
            return Ok(answer);
        }
        let this = Arc::clone(self);
        match self.shared.own_reads.try_read(move || this.render(&part)).await {
            Ok(rendered) => self.keep(part, rendered),
            Err(NotNow) => Err(NoOwnAnswer::NotNow),
        }
    }

    /// The same; waits until our own store can be read. The caller bounds the time.
    pub(super) async fn wait_for(self: &Arc<Self>, part: HashPart) -> Result<OwnAnswer, NoOwnAnswer> {
        let this = Arc::clone(self);
        let rendered = self.shared.own_reads.wait_read(move || this.render(&part)).await;
        self.keep(part, rendered)
    }

    /// Keeps an answer in memory, unless all were dropped since it was begun.
    fn keep(&self, part: HashPart, rendered: Rendered) -> Result<OwnAnswer, NoOwnAnswer> {
        let answer = rendered.answer?;
        if rendered.clears == self.clears.load(Ordering::SeqCst) {
            self.rendered.insert(part, answer.clone());
        }
        self.shared.lookup_log.note(part, LookupEvent::OwnStore);
        Ok(answer)
    }

    /// The metadata of our own copy, if it can be read and a trusted key (or our builder key) vouches for it; otherwise
    /// why not. Reads the disk.
    fn judge(&self, part: &HashPart) -> Result<TrustedNarInfo, NotOurs> {
        // Opening it fails if the copy is known to have failed its hash.
        let info = self.shared.read_own_info(part)?.filter(|info| info.nar_size > 0).ok_or(NotOurs::Row)?;
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
            // Our own store has computed the NarHash from the contents, so they need not be hashed again.
            Proof::ContentAddress | Proof::Contents(_) => Proof::ContentAddress,
            Proof::Signed | Proof::Verdict => judged.proof,
        };
        Ok(TrustedNarInfo { info: judged.info, proof })
    }

    /// Why a path of our own store is not given to Nix, in words. Reads the disk.
    pub(crate) fn explain_refusal(&self, part: &HashPart) -> Option<String> {
        match self.judge(part) {
            Ok(TrustedNarInfo { info, proof }) => {
                self.gate.decide(&info, &proof).err().map(|refusal| refusal.to_string())
            }
            Err(why) => Some(why.to_string()),
        }
    }

    fn render(&self, part: &HashPart) -> Result<Rendered, NotNow> {
        // Before anything is read: what changes meanwhile must count.
        let (stamp, clears) = (self.gate.stamp(), self.clears.load(Ordering::SeqCst));
        let answer = match self.judge(part) {
            Ok(trusted) => self.render_trusted(trusted, stamp),
            Err(why) if why.passes_soon() => return Err(NotNow),
            Err(_) => Err(NoOwnAnswer::Absent),
        };
        Ok(Rendered { answer, clears })
    }

    fn render_trusted(&self, trusted: TrustedNarInfo, stamp: u64) -> Result<OwnAnswer, NoOwnAnswer> {
        let TrustedNarInfo { info, proof } = trusted;
        let pass = self.gate.admit(&info, &proof).map_err(NoOwnAnswer::Refused)?;
        let url = self.gate.nar_url(&info, &pass);
        let rendered = self.gate.sign(&info, &pass).render(&self.shared.store_dir, &url.to_string());
        let on_word = self.gate.given_on_word(&info, &pass.voters);
        Ok(OwnAnswer { stamp, url, on_word, rendered: Bytes::from(rendered) })
    }
}
