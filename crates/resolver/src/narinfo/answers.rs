//! Narinfos that verified once, in memory and, behind it, in the state database.

use super::answer_writer::AnswerWriter;
use super::gate::{Gate, Pass, Passed};
use super::trust::{self, Proof};
use crate::answer_store::{AnswerStore, RememberedAnswer};
use crate::shared::Shared;
use crate::source::{Candidate, SourceId, Sources};
use bytes::Bytes;
use moka::sync::Cache;
use narmesh_protocol::{BuilderKey, HashPart, NarInfo, NarUrl, StoreDir};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bytes of answers in memory.
const MEMORY_BYTES_MAX: u64 = 8 << 20;
/// What an entry costs beside its text, bytes (a guess, not measured).
const ENTRY_BYTES: usize = 512;
/// A longer narinfo is not kept on disk: some 400 references are usual at most, 17,500 were seen once.
const KEPT_BYTES_MAX: usize = 64 << 10;
/// What was forgotten is not read from the disk again for so long: it is written there within a moment.
const FORGOTTEN_FOR: Duration = Duration::from_secs(60);
/// Paths of which that is known.
const FORGOTTEN_MAX: u64 = 4_096;
/// Holders remembered per path.
const HOLDERS_MAX: usize = 16;

/// A verified narinfo and who is known to hold it.
#[derive(Debug)]
pub(crate) struct Answer {
    /// What verified, with trusted signatures only.
    pub(crate) info: NarInfo,
    /// Of its NAR.
    pub(crate) url: NarUrl,
    /// As Nix gets it.
    pub(crate) rendered: Bytes,
    /// Sources that answered with this NarHash, newest first, and under which generation of their summaries.
    holders: Vec<Candidate>,
    /// When it was put into memory.
    pub(crate) since: Instant,
    /// What vouches for it without the policy.
    proof: Proof,
    pass: Pass,
    /// The newest stamp at which the policy still let it through as in `pass`.
    stamp: AtomicU64,
}

impl Answer {
    /// Renders it as `gate` wants it; reads the disk where a policy wants signatures.
    fn new(store_dir: &StoreDir, gate: &Gate, passed: Passed, holders: Vec<Candidate>) -> Self {
        let Passed { info, proof, pass } = passed;
        let url = gate.nar_url(&info, &pass);
        let rendered = gate.signed(&info, &pass).render(store_dir, &url.to_string());
        let stamp = AtomicU64::new(pass.stamp);
        Self { info, url, rendered: Bytes::from(rendered), holders, since: Instant::now(), proof, pass, stamp }
    }

    /// The sources that answered with this NarHash, newest first.
    pub(crate) fn holders(&self) -> impl Iterator<Item = SourceId> {
        self.holders.iter().map(|holder| holder.source)
    }

    /// Whether one of them still has the summary under which it answered: a later one may have dropped the path, or hold another
    /// of that name. From memory.
    pub(crate) fn is_fresh(&self, sources: &dyn Sources) -> bool {
        self.holders.iter().any(|holder| sources.generation(&holder.source) == Some(holder.generation))
    }

    /// Something else is agreed on, but policy and signatures allow it.
    pub(crate) fn is_second_choice(&self) -> bool {
        self.pass.is_second_choice
    }

    /// The builders on whose word it was given.
    pub(crate) fn voters(&self) -> &[BuilderKey] {
        &self.pass.voters
    }

    /// Whether the policy lets it through now, perhaps rendered anew. From memory.
    pub(crate) fn would_stand(&self, gate: &Gate) -> bool {
        gate.decide(&self.info, &self.proof).is_ok_and(|pass| !pass.is_second_choice)
    }

    /// Whether nothing changed since it was rendered, as far as the policy is concerned. From memory.
    pub(crate) fn stands(&self, gate: &Gate) -> bool {
        let now = gate.stamp();
        if self.stamp.load(Ordering::Relaxed) == now {
            return true;
        }
        let same = gate.decide(&self.info, &self.proof).is_ok_and(|pass| pass.gives_as(&self.pass));
        if same {
            self.stamp.store(now, Ordering::Relaxed);
        }
        same
    }
}

/// The remembered answers.
#[derive(Debug)]
pub(crate) struct Answers {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    memory: Cache<HashPart, Arc<Answer>>,
    /// Forgotten lately: perhaps not yet where they are stored.
    forgotten: Cache<HashPart, ()>,
    store: Arc<dyn AnswerStore>,
    writer: AnswerWriter,
    /// Grows with each change of trust, so that an answer judged before it is not put in after it.
    generation: AtomicU64,
}

impl Answers {
    pub(crate) fn new(shared: Arc<Shared>, gate: Arc<Gate>, store: Arc<dyn AnswerStore>) -> Self {
        let memory = Cache::builder()
            .max_capacity(MEMORY_BYTES_MAX)
            .weigher(|_, answer: &Arc<Answer>| {
                u32::try_from(2 * answer.rendered.len() + ENTRY_BYTES).unwrap_or(u32::MAX)
            })
            .build();
        let forgotten = Cache::builder().max_capacity(FORGOTTEN_MAX).time_to_live(FORGOTTEN_FOR).build();
        Self {
            shared,
            gate,
            memory,
            forgotten,
            writer: AnswerWriter::start(Arc::clone(&store)),
            store,
            generation: AtomicU64::new(0),
        }
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
    pub(crate) fn remember(&self, generation: u64, passed: Passed, holder: Candidate) -> Arc<Answer> {
        let part = passed.info.path.hash_part();
        let mut holders = vec![holder];
        if let Some(known) = self.memory.get(&part)
            && known.info.nar_hash == passed.info.nar_hash
        {
            holders.extend(
                known.holders.iter().copied().filter(|known| known.source != holder.source).take(HOLDERS_MAX - 1),
            );
        }
        let answer = self.render(passed, holders);
        if generation == self.generation() {
            self.forgotten.invalidate(&part);
            self.memory.insert(part, Arc::clone(&answer));
            self.persist(part, &answer);
        }
        answer
    }

    /// Persisted later than given: a lost row costs one more question, and so does one too long to be kept.
    fn persist(&self, part: HashPart, answer: &Answer) {
        if answer.rendered.len() > KEPT_BYTES_MAX {
            return;
        }
        let at_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let row = RememberedAnswer { narinfo: answer.rendered.to_vec(), holders: answer.holders.clone(), at_unix_s };
        self.writer.write(part, Some(row));
    }

    /// Reads what the database holds.
    fn stored(&self, part: &HashPart) -> Option<RememberedAnswer> {
        if self.forgotten.contains_key(part) {
            return None;
        }
        self.store.answer(part).unwrap_or_else(|error| {
            tracing::warn!(%error, "an answer could not be read");
            None
        })
    }

    /// Drops what is remembered of a path whose NAR nobody could send: the next lookup asks again.
    pub(crate) fn forget(&self, part: HashPart) {
        self.forgotten.insert(part, ());
        self.memory.invalidate(&part);
        self.writer.write(part, None);
    }

    /// Whether a source claims this path, and neither our own store nor memory has an answer that is not to be asked again.
    pub(super) fn is_open(&self, part: &HashPart) -> bool {
        let sources = &self.shared.sources;
        let is_known = || self.in_memory(part).is_some_and(|answer| answer.is_fresh(&**sources));
        !self.shared.has(part) && !is_known() && sources.is_claimed(part)
    }

    /// What is remembered of a path and is given without asking anybody again.
    pub(super) async fn fresh(self: &Arc<Self>, part: HashPart) -> Option<Arc<Answer>> {
        self.remembered(part).await.filter(|answer| answer.is_fresh(&*self.shared.sources))
    }

    /// What is remembered of a path that somebody still claims to hold.
    pub(crate) async fn remembered(self: &Arc<Self>, part: HashPart) -> Option<Arc<Answer>> {
        if !self.shared.sources.is_claimed(&part) {
            return None;
        }
        let known = self.in_memory(&part);
        if let Some(answer) = known.as_ref().filter(|answer| answer.stands(&self.gate)) {
            return Some(Arc::clone(answer));
        }
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || this.judge_again(&part, known)).await.ok().flatten()
    }

    /// Judges what was answered before, be it in memory or in the database, and renders it anew.
    fn judge_again(&self, part: &HashPart, known: Option<Arc<Answer>>) -> Option<Arc<Answer>> {
        let generation = self.generation();
        let (info, proof, holders) = match known {
            Some(known) => (known.info.clone(), known.proof.clone(), known.holders.clone()),
            None => {
                let RememberedAnswer { narinfo, holders, .. } = self.stored(part)?;
                let (trusted, by_verdict) = (&self.shared.settings().trusted, self.gate.demands());
                let judged = trust::judge(&narinfo, part, &self.shared.store_dir, trusted, by_verdict).ok()?;
                // Contents were hashed before it was remembered, but for those keys: ask again instead of reasoning about it.
                if matches!(judged.proof, Proof::Contents(_)) {
                    return None;
                }
                (judged.info, judged.proof, holders)
            }
        };
        let pass = self.gate.admitted(&info, &proof).ok().filter(|pass| !pass.is_second_choice);
        let Some(pass) = pass else {
            // Another candidate may have what is agreed on.
            self.memory.invalidate(part);
            return None;
        };
        let answer = self.render(Passed { info, proof, pass }, holders);
        if generation == self.generation() {
            self.memory.insert(*part, Arc::clone(&answer));
        }
        Some(answer)
    }

    fn render(&self, passed: Passed, holders: Vec<Candidate>) -> Arc<Answer> {
        Arc::new(Answer::new(&self.shared.store_dir, &self.gate, passed, holders))
    }
}
