//! The one ledger of a process: shared in memory, and kept in a file.
//!
//! Readers never wait for the disk: statements are written first, and then memory is locked for a few dozen of them at
//! a time. What another process writes (`narmesh quorum import` without the daemon's socket) is seen when `ledger_thread`
//! looks next, mostly within a second. Walk of an attestation: [`LiveLedger::take`] -> file -> memory ->
//! [`LiveLedger::revision`] grows -> those who listen on [`LiveLedger::changes`] judge again.

mod file;
mod notes;
mod repair;

pub(super) use self::file::on_disk_bytes;
pub use self::file::{BareSignature, FirstStored, LedgerDb, LedgerDbError, NewStatement, StoredStatement};

use self::notes::{Notes, Unwritten};
use super::key_names::KeyNames;
use narmesh_protocol::{BuilderKey, HashPart, NixSignature, StoreDir, StorePath};
use narmesh_quorum::{
    Evicted, FingerprintDigest, Insertion, Ledger, LedgerLimits, Pin, Policy, Ruling, Verdict, VerifiedStatement,
    WallMs,
};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

/// How many statements are put into memory at a time, while readers wait: some 50 us (a guess, not measured).
const AT_ONCE: usize = 32;
/// How many rows are read at a time.
const ROWS: usize = 4_096;
/// How many idle connections to the file are kept for the next readers.
const READERS_IDLE_MAX: usize = 3;

/// Tells from memory, at once, whether our store holds a path.
pub type IsHeld = Box<dyn Fn(&HashPart) -> bool + Send + Sync>;

/// Is told of paths with new statements, on the thread that took them; it must not ask the ledger.
pub(super) type OnAttested = Box<dyn Fn(&[HashPart]) + Send + Sync>;

/// The ledger of a process, in memory and on disk.
pub struct LiveLedger {
    state_dir: PathBuf,
    store_dir: StoreDir,
    access: Access,
    is_held: IsHeld,
    /// Locked before `memory` by everybody who changes statements.
    disk: Mutex<Disk>,
    memory: RwLock<Ledger>,
    policy: RwLock<Arc<Policy>>,
    names: RwLock<Arc<KeyNames>>,
    /// Paths that are pinned because the configuration names them.
    configured: Mutex<BTreeSet<HashPart>>,
    on_attested: OnceLock<OnAttested>,
    /// The number of changes of the ledger and of the policy.
    changed: watch::Sender<u64>,
    notes: Mutex<Notes>,
    unwritten: Mutex<Unwritten>,
    readers: Mutex<Readers>,
    /// The number of repairs that lost something that was known.
    losses: AtomicU64,
}

/// What this process may do with the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    /// Read it.
    Look,
    /// Add statements, and remove those that have to go for them.
    Write,
    /// The same, and move a damaged file aside.
    Repair,
}

/// Connections for reports and signatures, one for each reader: in write-ahead mode readers wait for nobody.
#[derive(Debug, Default)]
struct Readers {
    idle: Vec<LedgerDb>,
    /// The number of the current file. A connection to an earlier one, which was moved aside, is not kept.
    file: u64,
}

/// The open file, and how far it was read.
#[derive(Debug, Default)]
struct Disk {
    db: Option<LedgerDb>,
    version: i64,
    last_row: i64,
    /// The names of keys that were last written to it.
    names: Option<Arc<KeyNames>>,
    /// A file that was moved aside, and that has not yet been restored into the new one as far as it can be read.
    moved_to: Option<PathBuf>,
}

/// What became of the statements that [`LiveLedger::take`] was given.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TakeOutcome {
    /// How many are new in memory.
    pub new: usize,
    /// How many are attestations of which only the bare signature was known.
    pub upgraded: usize,
    /// How many were known.
    pub known: usize,
    /// How many were refused because the builder has already said too many different things of the path.
    pub enough_statements: usize,
    /// How many were refused because they come from more builders than can be told apart.
    pub too_many_builders: usize,
    /// Builders that are at their bounds, so that earlier statements of theirs were evicted, or these refused.
    pub full: BTreeSet<BuilderKey>,
}

impl fmt::Debug for LiveLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveLedger").field("state_dir", &self.state_dir).finish_non_exhaustive()
    }
}

impl LiveLedger {
    /// A ledger that is still empty. The file in `state_dir` is opened and read when it is first needed, and made if it
    /// is missing. `is_held` is called while memory is locked.
    pub fn new(state_dir: &Path, store_dir: &StoreDir, policy: Policy, is_held: IsHeld) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            store_dir: store_dir.clone(),
            access: Access::Write,
            is_held,
            disk: Mutex::default(),
            memory: RwLock::new(Ledger::new(LedgerLimits::default())),
            policy: RwLock::new(Arc::new(policy)),
            names: RwLock::default(),
            configured: Mutex::default(),
            on_attested: OnceLock::new(),
            changed: watch::Sender::new(0),
            notes: Mutex::default(),
            unwritten: Mutex::default(),
            readers: Mutex::default(),
            losses: AtomicU64::default(),
        }
    }

    /// The same ledger, which moves a damaged file aside instead of refusing it.
    pub fn repairing(self) -> Self {
        Self { access: Access::Repair, ..self }
    }

    /// The same ledger, which only reads a file that exists. It evicts nothing: only a writer knows which paths'
    /// attestations have to be kept.
    pub fn looking(self) -> Self {
        let limits = LedgerLimits { per_builder: usize::MAX, bytes_per_builder: u64::MAX };
        Self { access: Access::Look, ..self.bounded(limits) }
    }

    /// The same ledger, which shows keys under these names, whatever names they came under.
    pub fn named(self, names: KeyNames) -> Self {
        Self { names: RwLock::new(Arc::new(names)), ..self }
    }

    /// The same ledger with other bounds. To be called while it is empty.
    pub fn bounded(self, limits: LedgerLimits) -> Self {
        Self { memory: RwLock::new(Ledger::new(limits)), ..self }
    }

    /// Opens the file if it is not open, and reads what other processes stored.
    pub fn catch_up(&self) -> Result<(), LedgerDbError> {
        self.with_file(|_| Ok(()))
    }

    /// The store directory of all paths in it.
    pub fn store_dir(&self) -> &StoreDir {
        &self.store_dir
    }

    /// A number that grows with each change of the statements and of the policy.
    pub fn revision(&self) -> u64 {
        *self.changed.borrow()
    }

    /// A receiver that is told of each change. Changes in quick succession may be told as one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// From now on tells which paths have new statements; only the first call counts.
    pub(super) fn tell_attested(&self, on_attested: OnAttested) {
        drop(self.on_attested.set(on_attested));
    }

    /// Reads the ledger in memory. `look` must not take long: others can read meanwhile, but nobody can write.
    pub fn read<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        // Recursive, so that it does not queue behind a writer that waits for another reader.
        look(&self.memory.read_recursive())
    }

    /// A number that grows when something that was known was lost with the file. What this node attested has to be
    /// attested again then.
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    /// The policy in force.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read_recursive())
    }

    /// Replaces the policy and the names of keys. From now on attestations of `configured` are kept.
    pub fn set_policy(&self, policy: Policy, names: KeyNames, configured: impl IntoIterator<Item = HashPart>) {
        *self.names.write() = Arc::new(names);
        *self.policy.write() = Arc::new(policy);
        self.keep(configured);
        self.tell();
    }

    /// Keeps the attestations of these paths because the configuration names them. Those of paths named earlier are no
    /// longer kept for this reason.
    pub fn keep(&self, configured: impl IntoIterator<Item = HashPart>) {
        let configured: BTreeSet<_> = configured.into_iter().collect();
        let old = std::mem::replace(&mut *self.configured.lock(), configured.clone());
        self.in_portions(old.difference(&configured), |ledger, part| ledger.unpin(*part, Pin::Configured));
        self.in_portions(configured.difference(&old), |ledger, part| {
            ledger.pin(*part, Pin::Configured);
        });
    }

    /// What the builders of the policy say of a path.
    pub fn verdict(&self, path: &StorePath) -> Verdict {
        let policy = self.policy();
        self.read(|ledger| policy.judge(ledger, path))
    }

    /// Whether the policy lets Nix have one NAR of a path.
    pub fn decide(&self, path: &StorePath, fingerprint: FingerprintDigest, content_addressed: bool) -> Ruling {
        let policy = self.policy();
        self.read(|ledger| policy.decide(ledger, path, fingerprint, content_addressed))
    }

    /// Stores verified attestations, first in the file, then in memory. `now` is when they count as first stored.
    pub fn take(
        &self,
        statements: &[(StoredStatement, VerifiedStatement)],
        now: WallMs,
    ) -> Result<TakeOutcome, LedgerDbError> {
        self.take_all(statements, now)
    }

    /// The same for bare signatures.
    pub fn take_bare(
        &self,
        statements: &[(BareSignature, VerifiedStatement)],
        now: WallMs,
    ) -> Result<TakeOutcome, LedgerDbError> {
        self.take_all(statements, now)
    }

    fn take_all<T>(&self, statements: &[(T, VerifiedStatement)], now: WallMs) -> Result<TakeOutcome, LedgerDbError>
    where
        for<'a> NewStatement<'a>: From<&'a T>,
    {
        let names = self.names();
        self.with_file(|db| {
            // Known ones are dropped here: peers say the same again and again, and each write costs a sync of the disk.
            let is_new = |(_, verified): &&(T, VerifiedStatement)| !self.read(|ledger| ledger.knows(verified));
            let new = statements.iter().filter(is_new);
            let new: Vec<_> = new.map(|(vote, verified)| (NewStatement::from(vote).under(&names), verified)).collect();
            let mut taken = TakeOutcome { known: statements.len() - new.len(), ..TakeOutcome::default() };
            if !new.is_empty() {
                // The file first: what memory shows has to survive the death of the process.
                db.store(&new, now)?;
                let gone = self.show(new.iter().map(|(_, verified)| (*verified, Some(now))), &mut taken);
                // What memory has no room for must not come back from the file at the next start.
                if !gone.is_empty() {
                    db.remove(&gone)?;
                }
            }
            Ok(taken)
        })
    }

    /// Takes statements back, first from the file, then from memory.
    pub fn withdraw(&self, gone: &[Evicted]) -> Result<(), LedgerDbError> {
        if gone.is_empty() {
            return Ok(());
        }
        // If the file cannot be changed, memory must not forget what comes back from it at the next start.
        self.with_file(|db| {
            db.remove(gone)?;
            self.in_portions(gone, Ledger::withdraw);
            self.tell();
            Ok(())
        })
    }

    /// All stored attestations of a path, whole, each under the name that its key has.
    pub fn read_attestations(&self, hash_part: &HashPart) -> Result<Vec<StoredStatement>, LedgerDbError> {
        let mut found = self.with_reader(|db| db.read_attestations(hash_part))?;
        let names = self.names();
        found.iter_mut().for_each(|stored| stored.key = names.own(&stored.key).clone());
        Ok(found)
    }

    /// The Nix signatures over this fingerprint, in the order of the keys, each under the name that its key has.
    pub fn read_signatures(&self, of: FingerprintDigest) -> Result<Vec<(BuilderKey, NixSignature)>, LedgerDbError> {
        let mut found = self.with_reader(|db| db.read_signatures(of))?;
        let names = self.names();
        for (key, signature) in &mut found {
            if let Some(name) = names.of(key) {
                name.clone_into(&mut signature.key_name);
            }
        }
        Ok(found)
    }

    /// Reads the file on a connection of its own, beside writers and other readers.
    pub fn with_reader<T>(&self, look: impl FnOnce(&LedgerDb) -> Result<T, LedgerDbError>) -> Result<T, LedgerDbError> {
        let (idle, file) = {
            let mut readers = self.readers.lock();
            (readers.idle.pop(), readers.file)
        };
        let opened = idle.map_or_else(|| LedgerDb::open_existing(&self.state_dir, &self.store_dir), Ok);
        let found = opened.and_then(|db| {
            let found = look(&db)?;
            let mut readers = self.readers.lock();
            // A connection to a file that was moved aside must not be used for the new one.
            if readers.idle.len() < READERS_IDLE_MAX && readers.file == file {
                readers.idle.push(db);
            }
            Ok(found)
        });
        // After damage the writer has to open the file again, which repairs it; unless it is at work just now.
        if found.as_ref().is_err_and(LedgerDbError::is_damage)
            && let Some(mut disk) = self.disk.try_lock()
        {
            disk.db = None;
        }
        found
    }

    /// To be called when paths came into our store or went from it.
    pub fn on_store_changed<'a>(
        &self,
        added: impl IntoIterator<Item = &'a HashPart>,
        removed: impl IntoIterator<Item = &'a HashPart>,
    ) {
        // A path without statements needs no pin yet: `show` asks the store when the first statement comes.
        self.in_portions(added, |ledger, part| {
            if ledger.has_votes(part) {
                ledger.pin(*part, Pin::Held);
            }
        });
        self.in_portions(removed, |ledger, part| ledger.unpin(*part, Pin::Held));
    }

    /// Works with the open file; nobody else of this process does meanwhile.
    fn with_file<T>(&self, work: impl FnOnce(&LedgerDb) -> Result<T, LedgerDbError>) -> Result<T, LedgerDbError> {
        let mut disk = self.disk.lock();
        let done = self.open_up_to_date(&mut disk).and_then(work);
        if done.as_ref().is_err_and(LedgerDbError::is_damage) {
            // Whoever needs it next opens it again, which repairs it.
            disk.db = None;
        }
        done
    }

    /// The open file, after memory was brought up to date with it.
    fn open_up_to_date<'a>(&self, disk: &'a mut Disk) -> Result<&'a LedgerDb, LedgerDbError> {
        let is_first = disk.db.is_none();
        let db = match disk.db.take() {
            Some(db) => db,
            None => self.open(disk)?,
        };
        // Only other connections change this number: what this one wrote is in memory already.
        let version = db.read_data_version()?;
        if is_first || version != disk.version {
            if is_first {
                self.remember_noted(&db)?;
            }
            self.read_rows(&db, &mut disk.last_row)?;
            disk.version = version;
        }
        let names = self.names();
        if self.access != Access::Look && disk.names.as_ref().is_none_or(|held| !Arc::ptr_eq(held, &names)) {
            db.name(names.keys())?;
            disk.names = Some(names);
        }
        // Kept only now: after a failure above, whoever needs the file next opens it again.
        Ok(disk.db.insert(db))
    }

    fn open(&self, disk: &mut Disk) -> Result<LedgerDb, LedgerDbError> {
        // All rows are read again: the file may be another one now. Memory knows what it has already.
        (disk.last_row, disk.names) = (0, None);
        let db = match self.access {
            Access::Look => LedgerDb::open_existing(&self.state_dir, &self.store_dir)?,
            Access::Write => LedgerDb::open(&self.state_dir, &self.store_dir, false)?.0,
            Access::Repair => {
                let (db, moved_to) = LedgerDb::open(&self.state_dir, &self.store_dir, true)?;
                // If an earlier restore failed, it is tried again.
                disk.moved_to = moved_to.or(disk.moved_to.take());
                db
            }
        };
        if let Some(moved_to) = &disk.moved_to {
            self.restore(&db, moved_to)?;
            disk.moved_to = None;
        }
        Ok(db)
    }

    fn read_rows(&self, db: &LedgerDb, last_row: &mut i64) -> Result<(), LedgerDbError> {
        loop {
            let (rows, last) = db.read_stored_after(*last_row, ROWS)?;
            let gone = self.show(rows.iter().map(|(verified, at)| (verified, *at)), &mut TakeOutcome::default());
            // Whoever only looks, beside a daemon, changes nothing in its file.
            if !gone.is_empty() && self.access != Access::Look {
                db.remove(&gone)?;
            }
            *last_row = last;
            if rows.len() < ROWS {
                return Ok(());
            }
        }
    }

    /// Puts statements that are in the file into memory. Returns those that have to be removed from the file.
    fn show<'a>(
        &self,
        statements: impl IntoIterator<Item = (&'a VerifiedStatement, Option<WallMs>)>,
        taken: &mut TakeOutcome,
    ) -> Vec<Evicted> {
        let (mut gone, mut attested) = (Vec::new(), Vec::new());
        let before = (taken.new, taken.upgraded);
        self.in_portions(statements, |ledger, (verified, stored_at)| {
            // Pinned before it is inserted: otherwise it could be evicted by itself.
            if (self.is_held)(&verified.hash_part()) {
                ledger.pin(verified.hash_part(), Pin::Held);
            }
            match ledger.insert(verified, stored_at) {
                Insertion::New { evicted } => {
                    taken.new += 1;
                    attested.push(verified.hash_part());
                    taken.full.extend(evicted.iter().map(|gone| gone.builder));
                    gone.extend(evicted);
                }
                Insertion::Upgraded => {
                    taken.upgraded += 1;
                    attested.push(verified.hash_part());
                }
                Insertion::Known => taken.known += 1,
                Insertion::EnoughStatements => {
                    taken.enough_statements += 1;
                    gone.push(itself(verified));
                }
                Insertion::TooLong => {
                    // As with any bound that a builder has reached, its rest is not asked for again for a while.
                    taken.full.insert(verified.builder());
                    gone.push(itself(verified));
                }
                Insertion::TooManyBuilders => {
                    taken.too_many_builders += 1;
                    gone.push(itself(verified));
                }
            }
        });
        // Only news wakes others; known ones would make peers compare without end.
        if (taken.new, taken.upgraded) != before {
            self.tell();
            if let Some(tell) = self.on_attested.get() {
                tell(&attested);
            }
        }
        gone
    }

    /// Changes memory a little at a time, so that readers wait for microseconds.
    fn in_portions<T>(&self, items: impl IntoIterator<Item = T>, mut change: impl FnMut(&mut Ledger, T)) {
        let mut items = items.into_iter().peekable();
        while items.peek().is_some() {
            let mut ledger = self.memory.write();
            items.by_ref().take(AT_ONCE).for_each(|item| change(&mut ledger, item));
        }
    }

    fn names(&self) -> Arc<KeyNames> {
        Arc::clone(&self.names.read_recursive())
    }

    fn tell(&self) {
        self.changed.send_modify(|revision| *revision += 1);
    }
}

/// The statement itself, as one that has to be removed from the file.
fn itself(verified: &VerifiedStatement) -> Evicted {
    let builder: BuilderKey = verified.builder();
    Evicted { builder, hash_part: verified.hash_part(), fingerprint: verified.claim().fingerprint }
}
