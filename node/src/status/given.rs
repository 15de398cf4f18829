//! What came from each source, since the start and in the last week.

use super::log::NarEntry;
use serde::{Deserialize, Serialize};

/// What Nix got, and from whom.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct GivenStatus {
    /// Since the start of the daemon.
    pub since_start: Vec<SourceGiven>,
    /// In the last seven days, today included, by UTC; over restarts.
    pub week: Vec<SourceGiven>,
    /// The same seven days one by one, the oldest first.
    pub days: Vec<DayGiven>,
    /// The last NAR that Nix got whole since the start.
    pub last: Option<NarEntry>,
}

/// What came from one source.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SourceGiven {
    /// Its name; a peer that is no longer in the configuration has its peer id.
    pub name: String,
    /// Whether it is a peer; if not, it is an upstream cache.
    pub is_peer: bool,
    /// Its NARs and bytes, and how long they took.
    #[serde(flatten)]
    pub given: Given,
}

/// What was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Given {
    /// NARs that Nix got whole, in which it had a part.
    pub nars: u64,
    /// Its bytes of these, as Nix got them.
    pub bytes: u64,
    /// All bytes of NARs that it sent, unpacked, also those that could not be used.
    pub received_bytes: u64,
    /// How long requests waited for these, microseconds; two at once count twice.
    pub waited_us: u64,
}

/// What came on one day.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DayGiven {
    /// The day, counted since 1970.
    pub day: u64,
    /// Bytes that came from peers.
    pub from_peers: u64,
    /// Bytes that came from upstream caches.
    pub from_caches: u64,
}

impl Given {
    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        let Self { nars, bytes, received_bytes, waited_us } = other;
        self.nars = self.nars.saturating_add(*nars);
        self.bytes = self.bytes.saturating_add(*bytes);
        self.received_bytes = self.received_bytes.saturating_add(*received_bytes);
        self.waited_us = self.waited_us.saturating_add(*waited_us);
    }

    /// Bytes per second of one request, on average; `None` if there were too few to tell.
    pub fn rate(&self) -> Option<u64> {
        /// What is smaller is over before the line is full. A guess.
        const TOO_FEW: u64 = 1 << 20;
        if self.received_bytes < TOO_FEW {
            return None;
        }
        let rate = u128::from(self.received_bytes) * 1_000_000 / u128::from(self.waited_us.max(1));
        Some(u64::try_from(rate).unwrap_or(u64::MAX))
    }
}

/// All peers together, or all upstream caches.
pub fn sum(sources: &[SourceGiven], of_peers: bool) -> Given {
    let mut all = Given::default();
    sources.iter().filter(|source| source.is_peer == of_peers).for_each(|source| all.add(&source.given));
    all
}
