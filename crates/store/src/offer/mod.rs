//! Decides which paths may leave this machine: one predicate for what is advertised and what is served.
//!
//! A thread of its own checks every valid path once. First it finds what is private (names, derivations, closures), which
//! must be known for all paths before any is offered. Then it finds who vouches for each path, a few hundred paths at a
//! time, so that offering begins while signatures are still being verified. From then on it follows the store's changes.
//! Whether a path is *served* is decided again at each request, from its current row.

mod attested;
mod checking;
mod entries;
mod index;

mod policy;
mod realisations;
mod recheck;
mod rendered;

pub use attested::AttestedPaths;
pub use policy::{OfferPolicy, Withheld};
pub use realisations::OfferedRealisation;

use crate::nar_trees::OfferedTree;
use crate::{BuildLog, NarStream, NixStore, PathInfo, StoreContents, StoreError, Watcher};
use checking::Pending;
use entries::find_excess;
use index::OfferIndex;
use narmesh_protocol::nar_tree::leaf_bytes;
use narmesh_protocol::{HashPart, NarHash, NarInfo, StorePath};
use parking_lot::{Condvar, Mutex, RwLock};
use policy::{BuilderStatement, Origin, Rules, Voucher, origin, read_builders_word};
use rendered::{Rendered, RenderedCache};
use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// An offered path: a peer may have it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OfferedPath {
    /// The path's registration in the Nix database.
    pub info: PathInfo,
    /// Text of the narinfo, with the signatures that peers may see and a [`NarUrl`](narmesh_protocol::NarUrl).
    pub narinfo_text: Arc<[u8]>,
    /// Whether only attestations of builders vouch for it: the signatures are theirs.
    pub is_attested: bool,
}

/// Changes of the offer since the last report. A path that was registered anew is in both lists, because its contents may be
/// others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OfferChange {
    /// Paths that are now offered.
    pub added: Vec<HashPart>,
    /// Paths that are no longer offered.
    pub removed: Vec<HashPart>,
}

/// Whether a path may leave this machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Offering {
    /// The path is offered.
    Offered,
    /// The path is not offered, for this reason.
    Withheld(Withheld),
}

/// The offer of one store: what may leave this machine. A thread keeps it up to date until it is dropped.
pub struct Offer {
    shared: Arc<Shared>,
    watcher: Option<Watcher>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    store: Arc<NixStore>,
    rules: RwLock<Arc<Rules>>,
    index: RwLock<OfferIndex>,
    /// The paths that the listener was told are offered. Apart from the index, so that a "no" never waits for its lock.
    offered: RwLock<HashSet<HashPart>>,
    rendered: Mutex<RenderedCache>,
    pending: Mutex<Pending>,
    woken: Condvar,
    warned: Mutex<Option<Instant>>,
    /// What builders attest, once that is known.
    attested: OnceLock<Box<dyn AttestedPaths>>,
    /// Whether all paths that were there at the start were checked, so that it is known which are private.
    has_looked: AtomicBool,
}

/// Shortest time between two warnings: a locked database fails every request of every peer.
const WARNED_EVERY: Duration = Duration::from_secs(1);

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offer").field("store", &self.shared.store).finish_non_exhaustive()
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        // First, so that nothing new is noted while the thread ends.
        self.watcher = None;
        self.shared.pending.lock().is_stopping = true;
        self.shared.woken.notify_all();
        let Some(thread) = self.thread.take() else { return };
        // The last owner may be this thread itself, which cannot wait for its own end.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            tracing::error!("the thread that decides what is offered panicked");
        }
    }
}

impl Offer {
    /// Watches the store and calls `on_change` with changes of the offer, on a thread of its own. The
    /// first calls report all paths.
    pub fn start(
        store: Arc<NixStore>,
        policy: OfferPolicy,
        on_change: Box<dyn Fn(OfferChange) + Send>,
    ) -> Result<Self, StoreError> {
        let rules = Rules::new(policy, store.store_dir().clone(), 1);
        let shared = Arc::new(Shared {
            store: Arc::clone(&store),
            rules: RwLock::new(Arc::new(rules)),
            index: RwLock::default(),
            offered: RwLock::default(),
            rendered: Mutex::default(),
            pending: Mutex::default(),
            woken: Condvar::new(),
            warned: Mutex::default(),
            attested: OnceLock::new(),
            has_looked: AtomicBool::new(false),
        });
        let watched = Arc::clone(&shared);
        let watcher = store.watch(Box::new(move |change| watched.touch(&change)))?;
        // Listed only after the watch began, so that no path is missed in between.
        shared.pending.lock().touched.extend(store.outputs_and_sources());
        if shared.rules().offers_derivations() {
            shared.pending.lock().touched.extend(store.derivations());
        }
        let worker = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("store-offer".to_owned())
            .spawn(move || worker.run(&on_change))
            .map_err(|source| StoreError::Thread { source })?;
        Ok(Self { shared, watcher: Some(watcher), thread: Some(thread) })
    }

    /// Applies another policy. Paths that it withholds by name are withheld when this returns;
    /// the rest follows shortly after.
    pub fn set_policy(&self, policy: OfferPolicy) {
        let (rules, is_other_kind) = {
            let mut current = self.shared.rules.write();
            let is_other_kind = policy.derivations != current.offers_derivations();
            *current = Arc::new(Rules::new(policy, self.shared.store.store_dir().clone(), current.number + 1));
            (Arc::clone(&current), is_other_kind)
        };
        {
            let mut index = self.shared.index.write();
            index.apply(&rules);
            // Before this returns: a path that the operator has just excluded must not leave any more.
            self.shared.offered.write().retain(|part| index.is_offered(part));
        }
        // Texts that were rendered hold signatures which the new policy may not give.
        self.shared.rendered.lock().clear();
        let mut pending = self.shared.pending.lock();
        pending.is_unpublished = true;
        if is_other_kind {
            pending.touched.extend(self.shared.store.derivations());
        }
        drop(pending);
        self.shared.woken.notify_all();
    }

    /// Offers what the policy allows, or nothing at all. Nothing is offered any more when this returns; what is offered
    /// again follows shortly after.
    pub fn set_serving(&self, is_serving: bool) {
        let policy = OfferPolicy { is_serving, ..self.shared.rules().policy().clone() };
        self.set_policy(policy);
    }

    /// The hash parts of all offered paths.
    pub fn hash_parts(&self) -> BTreeSet<HashPart> {
        self.shared.offered.read().iter().copied().collect()
    }

    /// Whether the path is offered. Answered from memory alone.
    pub fn is_offered(&self, part: &HashPart) -> bool {
        self.shared.offered.read().contains(part)
    }

    /// Whether this path would be offered if our copy were as it should be. From memory. So whoever may have the path may have
    /// it of somebody else.
    pub fn lacks_only_copy(&self, part: &HashPart) -> bool {
        // It stays offered until the index has heard of the fault.
        let is_known_only_to_store = self.is_offered(part) && self.shared.store.has_failed_copy(part);
        is_known_only_to_store || self.shared.index.read().lacks_only_copy(&self.shared.rules(), part)
    }

    /// The path with this hash part, if a peer may have it now. "No" is answered from memory, whatever the reason; "yes"
    /// only after the row and our copy were checked again. Blocks for some microseconds, or longer while Nix commits.
    ///
    /// # Errors
    /// When this cannot be decided now. It is also logged, at most once a second.
    pub fn find_offered(&self, part: &HashPart) -> Result<Option<Arc<OfferedPath>>, StoreError> {
        if !self.is_offered(part) {
            return Ok(None);
        }
        let rechecked = self.shared.recheck(part).inspect_err(|error| self.shared.warn(part, error))?;
        Ok(rechecked.map(|rendered| rendered.path))
    }

    /// Opens the NAR of the path with this hash part, if a peer may have it now: it checks as [`Self::find_offered`]
    /// does, and opens what it checked. `from` gets the registration and returns the first byte wanted, or
    /// `None` if the path is not wanted.
    ///
    /// # Errors
    /// As for [`Self::find_offered`], and when the NAR cannot be opened.
    pub fn find_nar(
        &self,
        part: &HashPart,
        from: impl FnOnce(&PathInfo) -> Option<u64>,
    ) -> Result<Option<NarStream>, StoreError> {
        // From memory: most of what nobody may have costs no read of the database.
        if !self.is_offered(part) {
            return Ok(None);
        }
        let rechecked = self.shared.recheck(part).inspect_err(|error| self.shared.warn(part, error))?;
        let Some(Rendered { row, path, .. }) = rechecked else { return Ok(None) };
        from(&path.info).map(|first_byte| self.shared.store.open_row(row, &path.info, first_byte)).transpose()
    }

    /// The whole NAR, if a peer may have it now, it is small, and it can be had without waiting:
    /// [`NixStore::read_nar_at_once`] says what that takes. `None` says nothing about the path: ask [`Self::find_nar`].
    pub fn read_nar_at_once(&self, part: &HashPart, is_wanted: impl FnOnce(&PathInfo) -> bool) -> Option<Vec<u8>> {
        let Rendered { row, path, .. } = self.shared.recall(part).filter(|_| self.is_offered(part))?;
        if is_wanted(&path.info) { self.shared.store.read_row_at_once(row, &path.info) } else { None }
    }

    /// The contents of the path with this hash part, if a peer may have it now; checked as [`Self::find_offered`] does.
    ///
    /// # Errors
    /// As for [`Self::find_offered`], and when the store's directory cannot be opened.
    pub fn find_contents(&self, part: &HashPart) -> Result<Option<StoreContents>, StoreError> {
        if !self.is_offered(part) {
            return Ok(None);
        }
        let rechecked = self.shared.recheck(part).inspect_err(|error| self.shared.warn(part, error))?;
        let Some(Rendered { row, path, .. }) = rechecked else { return Ok(None) };
        self.shared.store.open_contents(row, path.info.clone())
    }

    /// The log of this derivation, if a peer may have an output of it now. The derivation has to be valid, because only then
    /// its outputs are known.
    ///
    /// # Errors
    /// As for [`Self::find_offered`], and when the log cannot be opened.
    pub fn find_log(&self, derivation: &StorePath) -> Result<Option<BuildLog>, StoreError> {
        let outputs = self.shared.store.read_outputs(&derivation.hash_part())?;
        // A log tells what an output is made of, so it goes where one of the outputs may go.
        for output in outputs {
            if self.find_offered(&output)?.is_some() {
                return self.shared.store.find_log(derivation);
            }
        }
        Ok(None)
    }

    /// The log of the derivation with this hash part, as [`Self::find_log`] finds it.
    ///
    /// # Errors
    /// As for [`Self::find_log`].
    pub fn find_log_of(&self, derivation: &HashPart) -> Result<Option<BuildLog>, StoreError> {
        let info = self.shared.store.read_path_info(derivation)?;
        let path = info.map(|info| info.path).filter(StorePath::is_derivation);
        path.map_or(Ok(None), |path| self.find_log(&path))
    }

    /// The tree of a NAR. The predicate is asked again, with the row as it is now.
    pub fn find_tree(&self, part: &HashPart, nar_hash: &NarHash, nar_size: u64) -> Result<OfferedTree, StoreError> {
        if !self.is_offered(part) || leaf_bytes(nar_size).is_none() {
            return Ok(OfferedTree::Absent);
        }
        let rechecked = self.shared.recheck(part).inspect_err(|error| self.shared.warn(part, error))?;
        let is_wanted = |info: &PathInfo| info.nar_hash == *nar_hash && info.nar_size == nar_size;
        if !rechecked.is_some_and(|rendered| is_wanted(&rendered.path.info)) {
            return Ok(OfferedTree::Absent);
        }
        Ok(self.shared.store.known_tree(part, nar_hash).map_or(OfferedTree::NotComputed, OfferedTree::Known))
    }

    /// Why peers may not hear of a path with these references, whether it is still here or deleted; `None` if they may.
    /// Other reasons not to offer a path (nobody vouches for it, a damaged copy, the limit) are not private.
    ///
    /// A deleted path is judged by its own name and those of its references, by its derivation if that is still here, and
    /// by what is known about references that are still here. The result is [`Withheld::Unchecked`] for a path that was not
    /// checked yet. May read a file.
    pub fn why_withheld(&self, path: &StorePath, references: &[StorePath]) -> Option<Withheld> {
        self.shared.why_withheld(path, references)
    }

    /// Whether a path that is not here yet would be offered, by all that is known of it now: its name, those of its
    /// references, derivations of ours that make it, and who vouches for it. A derivation would not be: what it builds is not
    /// known before it is here. May read files.
    pub fn would_offer(&self, info: &NarInfo) -> bool {
        self.shared.would_offer(info)
    }

    /// Whether all paths that were in the store at the start were checked, so that [`Self::why_withheld`] knows what is private.
    pub fn has_looked(&self) -> bool {
        self.shared.has_looked.load(Ordering::Acquire)
    }

    /// Whether paths remain to be checked, so that the offer and [`Self::list`] are incomplete.
    pub fn is_busy(&self) -> bool {
        let pending = self.shared.pending.lock();
        !(pending.is_waiting && pending.is_idle())
    }

    /// Every output and source with its NarSize in bytes and whether it is offered, sorted by path. Derivations are left out
    /// unless they are offered, too.
    pub fn list(&self) -> Vec<(StorePath, u64, Offering)> {
        let rules = self.shared.rules();
        self.shared.index.read().list(&rules)
    }
}

impl Shared {
    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read())
    }

    fn warn(&self, part: &HashPart, error: &dyn fmt::Display) {
        let mut warned = self.warned.lock();
        if warned.is_none_or(|at| at.elapsed() >= WARNED_EVERY) {
            *warned = Some(Instant::now());
            tracing::warn!(store_path = %part, %error, "cannot tell whether it may be served, so it is not");
        }
    }

    fn why_withheld(&self, path: &StorePath, references: &[StorePath]) -> Option<Withheld> {
        if !self.has_looked.load(Ordering::Acquire) {
            return Some(Withheld::Unchecked);
        }
        let (rules, part) = (self.rules(), path.hash_part());
        if let Some(known) = self.index.read().why_withheld(&rules, &part) {
            return known;
        }
        if self.store.contains(&part) {
            return Some(Withheld::Unchecked);
        }
        // The derivation may become readable again soon. So attestations of the path are not taken
        // back, only not told meanwhile.
        let word = self.store.read_valid_derivers(path).ok().map(|derivers| read_builders_word(&self.store, &derivers));
        let word = word.filter(|word| *word != BuilderStatement::Unreadable);
        let of_closure = || {
            let index = self.index.read();
            let why = |reference: &StorePath| {
                let of_name = || rules.privacy(reference.name(), BuilderStatement::Silent);
                let known = index.why_referrers_stay(&reference.hash_part());
                known.or_else(|| of_name().map(|_| Withheld::ClosureWithheld))
            };
            // A reason that is known goes before a row that cannot be read.
            references.iter().filter(|reference| *reference != path).filter_map(why).min()
        };
        let of_include = || (!rules.includes(path.name())).then_some(Withheld::NotIncluded);
        let known = rules.privacy(path.name(), word.unwrap_or(BuilderStatement::Silent));
        let unread = || word.is_none().then_some(Withheld::Unchecked);
        known.or_else(of_closure).or_else(of_include).or_else(unread)
    }

    fn would_offer(&self, info: &NarInfo) -> bool {
        let rules = self.rules();
        if !rules.is_serving() || info.path.is_derivation() || self.why_withheld(&info.path, &info.references).is_some()
        {
            return false;
        }
        let info = PathInfo::of_another_store(info);
        match (origin(&self.store, &info, &[]), rules.vouchers(&info, &[]).0) {
            (_, Voucher::Nobody) | (Origin::Added | Origin::Unknown, Voucher::Contents) => false,
            (Origin::Output, Voucher::Contents) | (_, Voucher::Signature | Voucher::Attestation) => {
                find_excess(&info).is_none()
            }
        }
    }
}
