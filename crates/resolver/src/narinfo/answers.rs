//! Narinfos that have verified, remembered in memory and in the state database behind it.

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

/// The most bytes of answers in memory.
const MEMORY_BYTES_MAX: u64 = 8 << 20;
/// What an entry takes besides its text, bytes (a guess, not measured).
const ENTRY_BYTES: usize = 512;
/// A longer narinfo is not kept on disk: at most some 400 references are usual, 17,500 were seen once.
const KEPT_BYTES_MAX: usize = 64 << 10;
/// For this long a forgotten answer is not read from the disk again; it is deleted there within a moment.
const FORGOTTEN_FOR: Duration = Duration::from_secs(60);
/// The most paths remembered as forgotten.
const FORGOTTEN_MAX: u64 = 4_096;
/// The most holders remembered per path.
const HOLDERS_MAX: usize = 16;

/// A verified narinfo and who is known to hold it.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The verified narinfo, with trusted signatures only.
    pub(crate) info: NarInfo,
    /// The URL of its NAR.
    pub(crate) url: NarUrl,
    /// The text that Nix gets.
    pub(crate) rendered: Bytes,
    /// The sources that answered with this NarHash, newest first, with the epoch of their summaries at that time.
    holders: Vec<Candidate>,
    /// When it was put into memory.
    pub(crate) since: Instant,
    /// What vouches for it without the policy.
    proof: Proof,
    pass: Pass,
    /// The newest [`Gate::stamp`] at which the policy still let it through as in `pass`.
    stamp: AtomicU64,
}

impl Answer {
    /// Renders the narinfo as `gate` demands; reads the disk if the policy needs the signatures of builders.
    fn new(store_dir: &StoreDir, gate: &Gate, passed: Passed, holders: Vec<Candidate>) -> Self {
        let Passed { info, proof, pass } = passed;
        let url = gate.nar_url(&info, &pass);
        let rendered = gate.sign(&info, &pass).render(store_dir, &url.to_string());
        let stamp = AtomicU64::new(pass.stamp);
        Self { info, url, rendered: Bytes::from(rendered), holders, since: Instant::now(), proof, pass, stamp }
    }

    /// The sources that answered with this NarHash, newest first.
    pub(crate) fn holders(&self) -> impl Iterator<Item = SourceId> {
        self.holders.iter().map(|holder| holder.source)
    }

    /// Whether a holder still has the summary under which it answered: under a later one it may have dropped the path,
    /// or hold another NAR for it. From memory.
    pub(crate) fn is_fresh(&self, sources: &dyn Sources) -> bool {
        self.holders.iter().any(|holder| sources.summary_epoch(&holder.source) == Some(holder.summary_epoch))
    }

    /// Whether policy and signatures allow it although another fingerprint is agreed on.
    pub(crate) fn is_second_choice(&self) -> bool {
        self.pass.is_second_choice
    }

    /// The builders on whose word it was given.
    pub(crate) fn voters(&self) -> &[BuilderKey] {
        &self.pass.voters
    }

    /// Whether the policy lets it through now, even if it has to be rendered again. From memory.
    pub(crate) fn would_stand(&self, gate: &Gate) -> bool {
        gate.decide(&self.info, &self.proof).is_ok_and(|pass| !pass.is_second_choice)
    }

    /// Whether the policy lets it through now just as it was rendered. From memory.
    pub(crate) fn stands(&self, gate: &Gate) -> bool {
        let now = gate.stamp();
        // Most answers are given many times between two changes of ledger or policy.
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
    /// Paths forgotten lately, whose rows may not be deleted from the database yet.
    forgotten: Cache<HashPart, ()>,
    store: Arc<dyn AnswerStore>,
    writer: AnswerWriter,
    /// How often trust has changed, so that an answer judged before it is not put in after it.
    trust_changes: AtomicU64,
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
            trust_changes: AtomicU64::new(0),
        }
    }

    pub(crate) fn in_memory(&self, part: &HashPart) -> Option<Arc<Answer>> {
        self.memory.get(part)
    }

    /// Drops what is in memory, because trust has changed; answers in the database are judged again when they are read.
    pub(crate) fn distrust(&self) {
        self.trust_changes.fetch_add(1, Ordering::SeqCst);
        self.memory.invalidate_all();
    }

    pub(crate) fn trust_changes(&self) -> u64 {
        self.trust_changes.load(Ordering::SeqCst)
    }

    /// Remembers a verified answer; a different NarHash replaces what was known, the same one gains a holder.
    pub(crate) fn remember(&self, trust_changes: u64, passed: Passed, holder: Candidate) -> Arc<Answer> {
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
        // If trust changed since the answer was judged, it must not be given again without another judgement.
        if trust_changes == self.trust_changes() {
            self.forgotten.invalidate(&part);
            self.memory.insert(part, Arc::clone(&answer));
            self.persist(part, &answer);
        }
        answer
    }

    /// Writes an answer to the database, after it was given: a lost row costs one more question, and so does an answer
    /// that is too long to be kept.
    fn persist(&self, part: HashPart, answer: &Answer) {
        // What an upstream cache said is not kept: after a restart its keys may be others.
        let holders: Vec<_> = answer.holders.iter().filter(|holder| holder.source.peer().is_some()).copied().collect();
        if answer.rendered.len() > KEPT_BYTES_MAX || holders.is_empty() {
            return;
        }
        let at_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let row = RememberedAnswer { narinfo: answer.rendered.to_vec(), holders, at_unix_s };
        self.writer.write(part, Some(row));
    }

    /// Reads the answer from the database.
    fn read_stored(&self, part: &HashPart) -> Option<RememberedAnswer> {
        // The row may still be there, because it is deleted by another thread, later.
        if self.forgotten.contains_key(part) {
            return None;
        }
        self.store.read_answer(part).unwrap_or_else(|error| {
            tracing::warn!(%error, "a remembered answer could not be read");
            None
        })
    }

    /// Forgets the answer about a path whose NAR nobody could send, so that the next lookup asks again.
    pub(crate) fn forget(&self, part: HashPart) {
        self.forgotten.insert(part, ());
        self.memory.invalidate(&part);
        self.writer.write(part, None);
    }

    /// Whether a source claims this path, and neither our own store nor a fresh answer in memory has it. Counts as a lookup.
    pub(super) fn is_open(&self, part: &HashPart) -> bool {
        let sources = &self.shared.sources;
        let is_known = || self.in_memory(part).is_some_and(|answer| answer.is_fresh(&**sources));
        !self.shared.has(part) && !is_known() && sources.look_up(part)
    }

    /// The remembered answer about a path, if it may be given without asking anybody again.
    pub(super) async fn recall_fresh(self: &Arc<Self>, part: HashPart) -> Option<Arc<Answer>> {
        self.recall(part).await.filter(|answer| answer.is_fresh(&*self.shared.sources))
    }

    /// The remembered answer about a path that a source still claims.
    pub(crate) async fn recall(self: &Arc<Self>, part: HashPart) -> Option<Arc<Answer>> {
        // Nobody claims it any more, so whoever held it has lost it, and the answer is of no use.
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

    /// Judges an earlier answer from memory or from the database again, and renders it again.
    fn judge_again(&self, part: &HashPart, known: Option<Arc<Answer>>) -> Option<Arc<Answer>> {
        let trust_changes = self.trust_changes();
        let (info, proof, holders) = match known {
            Some(known) => (known.info.clone(), known.proof.clone(), known.holders.clone()),
            None => {
                let RememberedAnswer { narinfo, holders, .. } = self.read_stored(part)?;
                let (trusted, by_verdict) = (&self.shared.settings().trusted, self.gate.demands());
                let mut judged = trust::judge(&narinfo, part, &self.shared.store_dir, trusted, by_verdict).ok()?;
                // Perhaps nobody hashed the contents: a signature or a verdict may have been enough at that time. Ask
                // again.
                if matches!(judged.proof, Proof::Contents(_)) {
                    return None;
                }
                // We wrote it there only after we had found its signature good.
                judged.info.deriver = NarInfo::parse(&self.shared.store_dir, &narinfo).ok().and_then(|it| it.deriver);
                (judged.info, judged.proof, holders)
            }
        };
        let pass = self.gate.admit(&info, &proof).ok().filter(|pass| !pass.is_second_choice);
        let Some(pass) = pass else {
            // Dropped, so that the candidates are asked: another one may have what is agreed on.
            self.memory.invalidate(part);
            return None;
        };
        let answer = self.render(Passed { info, proof, pass }, holders);
        if trust_changes == self.trust_changes() {
            self.memory.insert(*part, Arc::clone(&answer));
        }
        Some(answer)
    }

    fn render(&self, passed: Passed, holders: Vec<Candidate>) -> Arc<Answer> {
        Arc::new(Answer::new(&self.shared.store_dir, &self.gate, passed, holders))
    }
}
