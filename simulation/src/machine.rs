//! One machine: an unmodified core, what its disk keeps, what it truly holds, whom it trusts.

use crate::cores::gossip::{Gossip, GossipConfig, Input, Moment, Now, PathChange, Persisted, Record};
use crate::draw::Draw;
use crate::malice::Malice;
use crate::number::{Number, Path, part};
use crate::schedule::WALL_MS;
use crate::traffic::Traffic;
use libp2p_identity::{Keypair, PeerId};
use narmesh_protocol::StoreDir;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// What a machine does at present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Running,
    /// Suspended: nothing reaches it, its clocks run on.
    Asleep,
    /// Crashed, stopped or not there yet; its core is gone.
    Down,
}

/// A path and the versions of its store that have it: from `since` up to but not including `until`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldPath {
    pub(crate) path: Path,
    pub(crate) since: u32,
    pub(crate) until: u32,
}

impl HeldPath {
    pub(crate) fn is_in(&self, version: u32) -> bool {
        self.since <= version && version < self.until
    }
}

/// What a store truly holds, now and at each earlier version.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) version: u32,
    pub(crate) held: Vec<HeldPath>,
    pub(crate) live: BTreeSet<Path>,
    /// How many paths each version added and removed; the first entry is version 1.
    changes: Vec<(u32, u32)>,
}

impl Store {
    pub(crate) fn add(&mut self, paths: impl IntoIterator<Item = Path>) {
        self.version += 1;
        let before = self.live.len();
        for path in paths {
            if self.live.insert(path) {
                self.held.push(HeldPath { path, since: self.version, until: u32::MAX });
            }
        }
        self.changes.push((u32::try_from(self.live.len() - before).unwrap_or(0), 0));
    }

    /// How many paths were added and removed after version `from`, up to and with version `to`.
    pub(crate) fn count_changed(&self, from: u32, to: u32) -> (u64, u64) {
        let versions = self.changes.iter().take(to as usize).skip(from as usize);
        versions.fold((0, 0), |(came, went), (c, w)| (came + u64::from(*c), went + u64::from(*w)))
    }

    /// Removes those for which `choose` is true, and returns them.
    pub(crate) fn collect(&mut self, mut choose: impl FnMut() -> bool) -> Vec<Path> {
        self.version += 1;
        let version = self.version;
        let mut removed = Vec::new();
        for held in self.held.iter_mut().filter(|held| held.until == u32::MAX) {
            if choose() {
                held.until = version;
                removed.push(held.path);
            }
        }
        self.changes.push((0, u32::try_from(removed.len()).unwrap_or(0)));
        removed.iter().for_each(|path| {
            self.live.remove(path);
        });
        removed
    }
}

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) peer: PeerId,
    pub(crate) keypair: Keypair,
    pub(crate) core: Gossip,
    pub(crate) state: State,
    /// Grows with each start and each waking: what was planned before is void.
    pub(crate) run: u64,
    /// It performs only a part of its next outputs, and then it is down.
    pub(crate) doomed: bool,
    pub(crate) store: Store,
    /// The number of the reading, while it still reads its store and its core knows of no paths.
    pub(crate) reading: Option<u64>,
    /// The peers that its operator trusts.
    pub(crate) trusted: Arc<BTreeSet<Number>>,
    /// The peers that its core was last told to trust: a machine that sleeps hears of changes when it wakes.
    pub(crate) told: Arc<BTreeSet<Number>>,
    pub(crate) site: usize,
    pub(crate) skew_ms: i64,
    /// Its clock was wrong once, so its epochs may be ahead of the right time.
    pub(crate) ever_skewed: bool,
    /// It lost its disk and has published nothing since: its clock alone keeps it above the epochs that it used.
    pub(crate) blank: bool,
    disk_epoch: Option<u64>,
    disk_newest: BTreeMap<PeerId, Vec<u8>>,
    /// When the planned tick is due, milliseconds.
    pub(crate) tick: Option<u64>,
    pub(crate) malice: Option<Malice>,
    /// When a peer that had been cut off returned, microseconds.
    pub(crate) returned_us: Option<u64>,
    /// For a while it passes nothing on, though it is honest otherwise.
    pub(crate) withholding: bool,
    /// How often it changed its address.
    pub(crate) moves: u8,
    /// On nobody's allowlist.
    pub(crate) stranger: bool,
    /// When its line is free again to send, microseconds.
    pub(crate) up_free_us: u64,
    /// When its line is free again to receive, microseconds.
    pub(crate) down_free_us: u64,
    pub(crate) traffic: Traffic,
    /// Peers whose connection ended while it slept.
    pub(crate) lost_asleep: BTreeSet<Number>,
}

impl Machine {
    pub(crate) fn new(draw: &mut Draw) -> Self {
        let keypair = Keypair::ed25519_from_bytes(draw.seed()).expect("32 bytes are a key");
        let core = core(Now { moment: Moment(0), wall_ms: WALL_MS }, &keypair, draw.seed(), Persisted::default());
        Self {
            peer: keypair.public().to_peer_id(),
            keypair,
            core,
            state: State::Down,
            run: 0,
            doomed: false,
            store: Store::default(),
            reading: None,
            trusted: Arc::default(),
            told: Arc::default(),
            site: 0,
            skew_ms: 0,
            ever_skewed: false,
            blank: false,
            disk_epoch: None,
            disk_newest: BTreeMap::new(),
            tick: None,
            malice: None,
            returned_us: None,
            withholding: false,
            moves: 0,
            stranger: false,
            up_free_us: 0,
            down_free_us: 0,
            traffic: Traffic::default(),
            lost_asleep: BTreeSet::new(),
        }
    }

    pub(crate) fn now(&self, now_ms: u64) -> Now {
        Now { moment: Moment(now_ms), wall_ms: (WALL_MS + now_ms).saturating_add_signed(self.skew_ms) }
    }

    /// Starts a new core over the disk, or over an empty one.
    pub(crate) fn start(&mut self, now_ms: u64, keep_disk: bool, draw: &mut Draw) {
        if !keep_disk {
            self.disk_epoch = None;
            self.disk_newest.clear();
            self.blank = true;
        }
        let newest = self.disk_newest.values().cloned().collect();
        let persisted = Persisted { own_epoch: self.disk_epoch, newest, ..Persisted::default() };
        self.core = core(self.now(now_ms), &self.keypair, draw.seed(), persisted);
        self.state = State::Running;
        self.run += 1;
        self.doomed = false;
        self.tick = None;
        self.returned_us = None;
    }

    pub(crate) fn persist(&mut self, record: Record) {
        match record {
            Record::OwnEpoch(epoch) => (self.disk_epoch, self.blank) = (Some(epoch), false),
            Record::Newest { peer, envelope } => drop(self.disk_newest.insert(peer, envelope)),
            Record::Forget(peer) => drop(self.disk_newest.remove(&peer)),
        }
    }

    /// Envelopes on its disk.
    pub(crate) fn disk_envelopes(&self) -> usize {
        self.disk_newest.len()
    }

    /// All its paths, as its store tells them at the start.
    pub(crate) fn all_paths(&self) -> Input {
        Input::Paths(PathChange::Replace(self.store.live.iter().copied().map(part).collect()))
    }

    /// The addresses that it listens on; they change when it moves.
    pub(crate) fn addresses(&self, number: Number) -> Vec<SocketAddr> {
        let [.., high, low] = u32::try_from(number).unwrap_or(0).to_be_bytes();
        vec![SocketAddr::from(([10, high, low, self.moves + 1], 7280))]
    }

    /// Whether it keeps what it knows from others.
    pub(crate) fn withholds(&self) -> bool {
        self.withholding || self.malice.as_ref().is_some_and(Malice::withholds)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state == State::Running
    }

    pub(crate) fn is_honest(&self) -> bool {
        self.malice.is_none()
    }
}

fn core(now: Now, keypair: &Keypair, rng_seed: [u8; 32], persisted: Persisted) -> Gossip {
    let store_dir = StoreDir::parse("/nix/store").expect("a store directory");
    let config = GossipConfig::new(keypair.clone(), store_dir, "narmesh-sim", rng_seed);
    Gossip::new(now, config, persisted)
}
