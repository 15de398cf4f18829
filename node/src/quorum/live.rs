//! The one ledger of a process: in memory, shared, and behind it the file.
//!
//! Who reads never waits for the disk: memory is locked for changes of a few dozen statements at a time, after they were written.
//! What another process writes (`narmesh quorum import` without the daemon's socket) is seen within [`LOOK`] once [`keep_up`]
//! runs. Walk of an attestation: [`LiveLedger::take`] -> file -> memory -> [`LiveLedger::generation`] grows -> those who
//! listen on [`LiveLedger::changes`] judge again.
//!
//! [`keep_up`]: LiveLedger::keep_up

use super::db::{BareSignature, LedgerDb, LedgerDbError, NewVote, Stored};
use anyhow::Context as _;
use narmesh_protocol::{BuilderKey, HashPart, StoreDir, StorePath};
use narmesh_quorum::{
    Decision, Evicted, Evidence, FingerprintDigest, Insertion, Ledger, LedgerLimits, Pin, Policy, SERVED_MAX, Served,
    Verdict, WallMs,
};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::sync::watch;

/// How often the file is asked whether another process changed it.
const LOOK: Duration = Duration::from_secs(1);
/// Statements put into memory while readers wait: some 50 us (a guess, not measured).
const AT_ONCE: usize = 32;
/// Rows read at a time.
const ROWS: usize = 4_096;
/// Connections to the file that are kept for the next who reads.
const READERS_IDLE_MAX: usize = 3;
/// Questions that wait to be noted; more are not.
const ASKED_WAITING_MAX: usize = 1 << 16;

/// Whether our store holds a path: from memory, at once.
pub type IsHeld = Box<dyn Fn(&HashPart) -> bool + Send + Sync>;

/// See the module.
pub struct LiveLedger {
    state_dir: PathBuf,
    store_dir: StoreDir,
    repair: bool,
    is_held: IsHeld,
    /// Who changes anything holds this first, then `memory`.
    disk: Mutex<Disk>,
    memory: RwLock<Ledger>,
    policy: RwLock<Arc<Policy>>,
    configured: Mutex<BTreeSet<HashPart>>,
    /// Counts changes of the ledger and of the policy.
    changed: watch::Sender<u64>,
    notes: Mutex<Notes>,
    noted: Condvar,
    /// For reports and signatures, one for each who reads now: readers of a file in write-ahead mode wait for nobody.
    readers: Mutex<Vec<LedgerDb>>,
}

/// The file, and how far it was read.
#[derive(Debug, Default)]
struct Disk {
    db: Option<LedgerDb>,
    version: i64,
    last_row: i64,
}

/// What the narinfo and NAR paths leave for the thread that keeps up.
#[derive(Debug, Default)]
struct Notes {
    asked: BTreeSet<HashPart>,
    served: BTreeMap<HashPart, Served>,
    stopping: bool,
}

/// What became of what was handed in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Taken {
    /// Nobody had said so here.
    pub new: usize,
    /// A bare signature was known, now there is an attestation.
    pub upgraded: usize,
    /// Nothing changed.
    pub known: usize,
    /// The builder said enough different things of the path.
    pub enough_statements: usize,
    /// More builders than are told apart.
    pub too_many_builders: usize,
    /// Builders of which something had to go for what came.
    pub full: BTreeSet<BuilderKey>,
}

/// Keeps a ledger and its file together; ends its thread when dropped.
#[derive(Debug)]
pub struct Keeper {
    ledger: Arc<LiveLedger>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for LiveLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveLedger").field("state_dir", &self.state_dir).finish_non_exhaustive()
    }
}

impl LiveLedger {
    /// An empty one, over the file in `state_dir`, which is opened and read by the first who needs it, and made if it is
    /// missing. `is_held` is asked while memory is locked.
    pub fn new(state_dir: &Path, store_dir: &StoreDir, policy: Policy, is_held: IsHeld) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            store_dir: store_dir.clone(),
            repair: false,
            is_held,
            disk: Mutex::default(),
            memory: RwLock::new(Ledger::new(LedgerLimits::default())),
            policy: RwLock::new(Arc::new(policy)),
            configured: Mutex::default(),
            changed: watch::Sender::new(0),
            notes: Mutex::default(),
            noted: Condvar::new(),
            readers: Mutex::default(),
        }
    }

    /// Moves a damaged file aside instead of refusing it.
    pub fn repairing(self) -> Self {
        Self { repair: true, ..self }
    }

    /// Other bounds. To be called before anything is in it.
    pub fn bounded(self, limits: LedgerLimits) -> Self {
        Self { memory: RwLock::new(Ledger::new(limits)), ..self }
    }

    /// Opens the file if it is not open, and takes in what other processes stored.
    pub fn catch_up(&self) -> Result<(), LedgerDbError> {
        self.opened(&mut self.disk.lock()).map(drop)
    }

    /// Catches up at once and then every second, on a thread of its own; a file that cannot be used is tried again.
    pub fn keep_up(self: &Arc<Self>) -> anyhow::Result<Keeper> {
        let ledger = Arc::clone(self);
        let thread = thread::Builder::new().name("ledger".to_owned()).spawn(move || ledger.run());
        let thread = Some(thread.context("the ledger's thread")?);
        Ok(Keeper { ledger: Arc::clone(self), thread })
    }

    /// The store directory of all that is in it.
    pub fn store_dir(&self) -> &StoreDir {
        &self.store_dir
    }

    /// Grows with each change of what is attested, and of the policy.
    pub fn generation(&self) -> u64 {
        *self.changed.borrow()
    }

    /// Hears each change; changes in quick succession may be heard as one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Looks at the ledger in memory. Others can read meanwhile, and nobody can write: not for long.
    pub fn read<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        // Recursive: does not queue behind a writer that waits for another reader.
        look(&self.memory.read_recursive())
    }

    /// The policy in force.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read_recursive())
    }

    /// Another policy from now on; attestations of `configured` are kept.
    pub fn set_policy(&self, policy: Policy, configured: impl IntoIterator<Item = HashPart>) {
        *self.policy.write() = Arc::new(policy);
        self.keep(configured);
        self.tell();
    }

    /// Attestations of these paths are kept, and no longer for this reason those of others.
    pub fn keep(&self, configured: impl IntoIterator<Item = HashPart>) {
        let configured: BTreeSet<_> = configured.into_iter().collect();
        let old = std::mem::replace(&mut *self.configured.lock(), configured.clone());
        self.in_portions(old.difference(&configured), |ledger, part| ledger.unpin(*part, Pin::Configured));
        self.in_portions(configured.difference(&old), |ledger, part| ledger.pin(*part, Pin::Configured));
    }

    /// What the builders of the policy say of a path.
    pub fn verdict(&self, path: &StorePath) -> Verdict {
        let policy = self.policy();
        self.read(|ledger| policy.verdict(ledger, path))
    }

    /// What the policy says of one NAR of a path.
    pub fn decide(&self, path: &StorePath, fingerprint: FingerprintDigest, content_addressed: bool) -> Decision {
        let policy = self.policy();
        self.read(|ledger| policy.decide(ledger, path, fingerprint, content_addressed))
    }

    /// Stores verified attestations, first in the file, then in memory. `now` is when they count as first stored.
    pub fn take(&self, verified: &[(Stored, Evidence)], now: WallMs) -> Result<Taken, LedgerDbError> {
        self.take_all(verified, now)
    }

    /// The same of bare signatures.
    pub fn take_bare(&self, verified: &[(BareSignature, Evidence)], now: WallMs) -> Result<Taken, LedgerDbError> {
        self.take_all(verified, now)
    }

    fn take_all<T>(&self, verified: &[(T, Evidence)], now: WallMs) -> Result<Taken, LedgerDbError>
    where
        for<'a> NewVote<'a>: From<&'a T>,
    {
        let mut disk = self.disk.lock();
        let db = self.opened(&mut disk)?;
        let is_new = |(_, evidence): &&(T, Evidence)| !self.read(|ledger| ledger.knows(evidence));
        let new: Vec<_> =
            verified.iter().filter(is_new).map(|(vote, evidence)| (NewVote::from(vote), evidence)).collect();
        let mut taken = Taken { known: verified.len() - new.len(), ..Taken::default() };
        if !new.is_empty() {
            db.store(&new, now)?;
            let gone = self.show(new.iter().map(|(_, evidence)| (*evidence, Some(now))), &mut taken);
            if !gone.is_empty() {
                db.remove(&gone)?;
            }
        }
        Ok(taken)
    }

    /// Takes statements back, first from the file, then from memory.
    pub fn withdraw(&self, gone: &[Evicted]) -> Result<(), LedgerDbError> {
        if gone.is_empty() {
            return Ok(());
        }
        let mut disk = self.disk.lock();
        self.opened(&mut disk)?.remove(gone)?;
        self.in_portions(gone, Ledger::withdraw);
        self.tell();
        Ok(())
    }

    /// All attestations of a path that are stored, whole.
    pub fn attestations(&self, hash_part: &HashPart) -> Result<Vec<Stored>, LedgerDbError> {
        self.on_disk(|db| db.attestations(hash_part))
    }

    /// Reads the file beside those who write, and beside others who read.
    pub fn on_disk<T>(&self, look: impl FnOnce(&LedgerDb) -> Result<T, LedgerDbError>) -> Result<T, LedgerDbError> {
        let idle = self.readers.lock().pop();
        let db = match idle {
            Some(db) => db,
            None => LedgerDb::open_existing(&self.state_dir, &self.store_dir)?,
        };
        let found = look(&db);
        let mut readers = self.readers.lock();
        if found.is_ok() && readers.len() < READERS_IDLE_MAX {
            readers.push(db);
        }
        found
    }

    /// Our Nix asks for it: its attestations are kept from now on. Waits for nobody.
    pub fn note_asked(&self, hash_part: HashPart) {
        if self.read(|ledger| ledger.is_pinned(&hash_part, Pin::Asked)) {
            return;
        }
        let mut notes = self.notes.lock();
        if notes.asked.len() < ASKED_WAITING_MAX && notes.asked.insert(hash_part) {
            self.noted.notify_one();
        }
    }

    /// Our Nix gets it. Waits for nobody; in the file within moments.
    pub fn note_served(&self, served: Served) {
        let mut notes = self.notes.lock();
        if notes.served.len() < SERVED_MAX {
            notes.served.insert(served.path.hash_part(), served);
            self.noted.notify_one();
        }
    }

    /// Our store got these, and lost those.
    pub fn store_changed<'a>(
        &self,
        added: impl IntoIterator<Item = &'a HashPart>,
        removed: impl IntoIterator<Item = &'a HashPart>,
    ) {
        // Of what nobody spoke, nothing is kept; `show` asks the store when somebody does.
        self.in_portions(added, |ledger, part| {
            if ledger.has_votes(part) {
                ledger.pin(*part, Pin::Held);
            }
        });
        self.in_portions(removed, |ledger, part| ledger.unpin(*part, Pin::Held));
    }

    /// Writes what was noted so far; after it a report knows it.
    pub fn flush(&self) -> Result<(), LedgerDbError> {
        let mut disk = self.disk.lock();
        let (asked, served) = {
            let mut notes = self.notes.lock();
            (std::mem::take(&mut notes.asked), std::mem::take(&mut notes.served))
        };
        self.in_portions(&asked, |ledger, part| ledger.pin(*part, Pin::Asked));
        if served.is_empty() {
            return Ok(());
        }
        let served: Vec<Served> = served.into_values().collect();
        let written = self.opened(&mut disk).and_then(|db| {
            db.note_served(&served)?;
            self.remember_served(db, served.clone())
        });
        if written.is_err() {
            let mut notes = self.notes.lock();
            for served in served {
                notes.served.entry(served.path.hash_part()).or_insert(served);
            }
        }
        written
    }

    /// What was noted in the file, in memory too; what that forgets for it goes from the file.
    fn remember_served(&self, db: &LedgerDb, served: Vec<Served>) -> Result<(), LedgerDbError> {
        let mut forgotten = Vec::new();
        self.in_portions(served, |ledger, served| forgotten.extend(ledger.note_served(served)));
        if forgotten.is_empty() { Ok(()) } else { db.forget_served(&forgotten) }
    }

    /// The open file, with memory as far as it is.
    fn opened<'a>(&self, disk: &'a mut Disk) -> Result<&'a LedgerDb, LedgerDbError> {
        let is_first = disk.db.is_none();
        let db = match disk.db.take() {
            Some(db) => db,
            None => {
                disk.last_row = 0;
                self.open()?
            }
        };
        let version = db.data_version()?;
        if is_first || version != disk.version {
            if is_first {
                self.remember_served(&db, db.served()?)?;
            }
            self.read_rows(&db, &mut disk.last_row)?;
            disk.version = version;
        }
        // One that failed is opened again by the next who needs it.
        Ok(disk.db.insert(db))
    }

    fn open(&self) -> Result<LedgerDb, LedgerDbError> {
        let (db, moved_to) = LedgerDb::open(&self.state_dir, &self.store_dir, self.repair)?;
        if let Some(moved_to) = moved_to {
            tracing::warn!(
                moved_to = %moved_to.display(),
                "the attestations could not be read and were moved aside: those that come again count as first stored then"
            );
        }
        Ok(db)
    }

    fn read_rows(&self, db: &LedgerDb, last_row: &mut i64) -> Result<(), LedgerDbError> {
        loop {
            let (rows, last) = db.stored_after(*last_row, ROWS)?;
            let gone = self.show(rows.iter().map(|(evidence, at)| (evidence, *at)), &mut Taken::default());
            if !gone.is_empty() {
                db.remove(&gone)?;
            }
            *last_row = last;
            if rows.len() < ROWS {
                return Ok(());
            }
        }
    }

    /// Puts what is in the file into memory; gives what has to go from the file.
    fn show<'a>(
        &self,
        statements: impl IntoIterator<Item = (&'a Evidence, Option<WallMs>)>,
        taken: &mut Taken,
    ) -> Vec<Evicted> {
        let mut gone = Vec::new();
        let before = (taken.new, taken.upgraded);
        self.in_portions(statements, |ledger, (evidence, stored_at)| {
            if (self.is_held)(&evidence.hash_part()) {
                ledger.pin(evidence.hash_part(), Pin::Held);
            }
            match ledger.insert(evidence, stored_at) {
                Insertion::New { evicted } => {
                    taken.new += 1;
                    taken.full.extend(evicted.iter().map(|gone| gone.builder));
                    gone.extend(evicted);
                }
                Insertion::Upgraded => taken.upgraded += 1,
                Insertion::Known => taken.known += 1,
                Insertion::EnoughStatements => {
                    taken.enough_statements += 1;
                    gone.push(itself(evidence));
                }
                Insertion::TooManyBuilders => {
                    taken.too_many_builders += 1;
                    gone.push(itself(evidence));
                }
            }
        });
        if (taken.new, taken.upgraded) != before {
            self.tell();
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

    fn tell(&self) {
        self.changed.send_modify(|generation| *generation += 1);
    }

    fn run(&self) {
        let mut is_well = true;
        loop {
            let kept = self.catch_up().and_then(|()| self.flush());
            match kept {
                Ok(()) => is_well = true,
                // Said once, until it works again.
                Err(error) => {
                    if std::mem::take(&mut is_well) {
                        tracing::warn!(%error, "attestations can be neither read nor kept now");
                    }
                }
            }
            let mut notes = self.notes.lock();
            let idle = notes.asked.is_empty() && notes.served.is_empty();
            if (idle || !is_well) && !notes.stopping {
                self.noted.wait_for(&mut notes, LOOK);
            }
            if notes.stopping {
                drop(notes);
                if let Err(error) = self.flush() {
                    tracing::warn!(%error, "what was served last is not on record");
                }
                return;
            }
        }
    }
}

/// A statement that was stored and is not to be.
fn itself(evidence: &Evidence) -> Evicted {
    let builder: BuilderKey = evidence.builder();
    Evicted { builder, hash_part: evidence.hash_part(), fingerprint: evidence.facts().fingerprint }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.ledger.notes.lock().stopping = true;
        self.ledger.noted.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the ledger's thread panicked");
        }
    }
}
