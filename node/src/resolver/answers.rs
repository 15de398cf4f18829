//! Narinfos that verified once, in memory and, behind it, in the state database.

use super::answer_writer::AnswerWriter;
use super::trust::{self, Proof};
use super::{Resolver, ResolverSettings};
use crate::state_db::{RememberedAnswer, SharedStateDb};
use bytes::Bytes;
use libp2p::PeerId;
use moka::sync::Cache;
use narmesh_protocol::{HashPart, NarInfo, NarUrl, StoreDir};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Bytes of answers in memory.
const MEMORY_BYTES_MAX: u64 = 8 << 20;
/// What an entry costs beside its text, bytes (a guess, not measured).
const ENTRY_BYTES: usize = 512;
/// Holders remembered per path.
const HOLDERS_MAX: usize = 16;

/// A verified narinfo and who is known to hold it.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// What verified, with trusted signatures only.
    pub(crate) info: NarInfo,
    /// As Nix gets it.
    pub(crate) rendered: Bytes,
    /// Peers that answered with this NarHash, newest first.
    pub(crate) holders: Vec<PeerId>,
    /// When it was put into memory.
    pub(crate) since: Instant,
}

impl Answer {
    pub(crate) fn new(store_dir: &StoreDir, info: NarInfo, holders: Vec<PeerId>) -> Self {
        let url = NarUrl { hash_part: info.path.hash_part(), nar_hash: info.nar_hash, nar_size: info.nar_size };
        let rendered = Bytes::from(info.render(store_dir, &url.to_string()));
        Self { info, rendered, holders, since: Instant::now() }
    }
}

/// The remembered answers.
pub(crate) struct Answers {
    memory: Cache<HashPart, Arc<Answer>>,
    state: SharedStateDb,
    writer: AnswerWriter,
    /// Grows with each change of trust, so that an answer judged before it is not put in after it.
    generation: AtomicU64,
}

impl Answers {
    pub(crate) fn new(state: SharedStateDb) -> Self {
        let memory = Cache::builder()
            .max_capacity(MEMORY_BYTES_MAX)
            .weigher(|_, answer: &Arc<Answer>| {
                u32::try_from(2 * answer.rendered.len() + ENTRY_BYTES).unwrap_or(u32::MAX)
            })
            .build();
        Self { memory, writer: AnswerWriter::start(Arc::clone(&state)), state, generation: AtomicU64::new(0) }
    }

    pub(crate) fn in_memory(&self, part: &HashPart) -> Option<Arc<Answer>> {
        self.memory.get(part)
    }

    /// Trust changed: what is in memory is dropped, what is in the database is judged again when it is read.
    pub(crate) fn distrust(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.memory.invalidate_all();
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Remembers a verified answer; a different NarHash replaces what was known, the same one gains a holder.
    pub(crate) fn remember(&self, store_dir: &StoreDir, generation: u64, info: NarInfo, holder: PeerId) -> Arc<Answer> {
        let part = info.path.hash_part();
        let mut holders = vec![holder];
        if let Some(known) = self.memory.get(&part)
            && known.info.nar_hash == info.nar_hash
        {
            holders.extend(known.holders.iter().copied().filter(|peer| *peer != holder).take(HOLDERS_MAX - 1));
        }
        let answer = Arc::new(Answer::new(store_dir, info, holders));
        if generation == self.generation() {
            self.memory.insert(part, Arc::clone(&answer));
            self.persist(part, &answer);
        }
        answer
    }

    /// Persisted later than given: a lost row costs one more question.
    fn persist(&self, part: HashPart, answer: &Answer) {
        let at_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let row = RememberedAnswer { narinfo: answer.rendered.to_vec(), holders: answer.holders.clone(), at_unix_s };
        self.writer.write(part, Some(row));
    }

    /// Reads and judges again what the database holds.
    fn load(&self, part: &HashPart, store_dir: &StoreDir, settings: &ResolverSettings) -> Option<Arc<Answer>> {
        let generation = self.generation();
        let row = match self.state.lock().answer(part) {
            Ok(row) => row?,
            Err(error) => {
                tracing::warn!(%error, "state database: an answer could not be read");
                return None;
            }
        };
        let trusted = trust::judge(&row.narinfo, part, store_dir, &settings.trusted).ok()?;
        // Contents were hashed before it was remembered, but for those keys: ask again instead of reasoning about it.
        if matches!(trusted.proof, Proof::Contents(_)) {
            return None;
        }
        let answer = Arc::new(Answer::new(store_dir, trusted.info, row.holders));
        if generation == self.generation() {
            self.memory.insert(*part, Arc::clone(&answer));
        }
        Some(answer)
    }
}

impl Resolver {
    /// Drops what is remembered of a path whose NAR nobody could send: the next lookup asks again.
    pub(super) fn forget(&self, part: HashPart) {
        self.answers.memory.invalidate(&part);
        self.answers.writer.write(part, None);
    }

    /// What is remembered of a path that somebody still claims to hold.
    pub(super) async fn remembered(self: Arc<Self>, part: HashPart) -> Option<Arc<Answer>> {
        if !self.is_claimed(&part) {
            return None;
        }
        if let Some(answer) = self.answers.in_memory(&part) {
            return Some(answer);
        }
        let resolver = Arc::clone(&self);
        let load = move || resolver.answers.load(&part, &resolver.store_dir, &resolver.settings());
        tokio::task::spawn_blocking(load).await.ok().flatten()
    }
}
