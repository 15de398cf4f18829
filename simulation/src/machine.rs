//! One machine: an unmodified core, what its disk keeps, what it truly holds, whom it trusts.

use crate::draw::Draw;
use libp2p_identity::{Keypair, PeerId};
use narmesh_gossip::{Gossip, GossipConfig, Input, Moment, Now, PathChange, Persisted, Record};
use narmesh_protocol::{HashPart, StoreDir};
use std::collections::{BTreeMap, BTreeSet};

/// A machine's number, from 0.
pub(crate) type Number = usize;
/// A path's number; its hash part follows from it.
pub(crate) type Path = u32;

/// The wall clock of a machine without skew at the beginning, milliseconds since 1970: 2026-11-21.
const WALL_MS: u64 = 1_795_219_200_000;

/// What a machine does at present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Running,
    /// Suspended: nothing reaches it, its clocks run on.
    Asleep,
    /// Crashed; its core is gone.
    Down,
}

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) peer: PeerId,
    keypair: Keypair,
    pub(crate) core: Gossip,
    pub(crate) state: State,
    /// The next output list is performed in part only, and then the machine is down.
    pub(crate) doomed: bool,
    /// What the store truly holds.
    pub(crate) paths: BTreeSet<Path>,
    pub(crate) trusted: BTreeSet<Number>,
    pub(crate) skew_ms: i64,
    /// Its clock was wrong once, so its epochs may be ahead of the right time.
    pub(crate) ever_skewed: bool,
    disk_epoch: Option<u64>,
    disk_newest: BTreeMap<PeerId, Vec<u8>>,
    /// gossipsub messages that it has had.
    pub(crate) seen: BTreeSet<u64>,
    /// When a tick is on its way.
    pub(crate) tick: Option<u64>,
}

/// The hash part of a path's number.
pub(crate) fn part(path: Path) -> HashPart {
    let mut bytes = [0; 20];
    let words = [path, path.wrapping_mul(2_654_435_761), !path, path.rotate_left(16), path ^ 0x5bd1_e995];
    for (to, from) in bytes.iter_mut().zip(words.iter().flat_map(|word| word.to_le_bytes())) {
        *to = from;
    }
    HashPart(bytes)
}

impl Machine {
    pub(crate) fn new(draw: &mut Draw) -> Self {
        let keypair = Keypair::ed25519_from_bytes(draw.seed()).expect("32 bytes are a key");
        let core = core(Now { moment: Moment(0), wall_ms: WALL_MS }, &keypair, draw.seed(), Persisted::default());
        Self {
            peer: keypair.public().to_peer_id(),
            keypair,
            core,
            state: State::Running,
            doomed: false,
            paths: BTreeSet::new(),
            trusted: BTreeSet::new(),
            skew_ms: 0,
            ever_skewed: false,
            disk_epoch: None,
            disk_newest: BTreeMap::new(),
            seen: BTreeSet::new(),
            tick: None,
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
        }
        let newest = self.disk_newest.values().cloned().collect();
        let persisted = Persisted { own_epoch: self.disk_epoch, newest };
        self.core = core(self.now(now_ms), &self.keypair, draw.seed(), persisted);
        self.state = State::Running;
        self.doomed = false;
        self.seen.clear();
        self.tick = None;
    }

    pub(crate) fn persist(&mut self, record: Record) {
        match record {
            Record::OwnEpoch(epoch) => self.disk_epoch = Some(epoch),
            Record::Newest { peer, envelope } => drop(self.disk_newest.insert(peer, envelope)),
            Record::Forget(peer) => drop(self.disk_newest.remove(&peer)),
        }
    }

    /// All its paths, as the store tells them at start.
    pub(crate) fn all_paths(&self) -> Input {
        Input::Paths(PathChange::Replace(self.paths.iter().copied().map(part).collect()))
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state == State::Running
    }
}

fn core(now: Now, keypair: &Keypair, rng_seed: [u8; 32], persisted: Persisted) -> Gossip {
    let store_dir = StoreDir::parse("/nix/store").expect("a store directory");
    Gossip::new(now, GossipConfig::new(keypair.clone(), store_dir, "narmesh-sim", rng_seed), persisted)
}
