//! Which peers may hold a path: the filters of all peers, read from any thread while the core writes.

use super::view::{FilterOwner, Rank, View, mix};
use libp2p_identity::PeerId;
use narmesh_protocol::{BitPositions, HashPart};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

/// A peer whose filter says maybe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The peer to ask for the path.
    pub peer: PeerId,
    /// Its filter misled us too often lately: it is asked only when nobody else has the path, and at a bounded pace.
    pub is_demoted: bool,
}

/// The filters of all peers, for any number of reading threads.
#[derive(Debug)]
pub struct FilterTable {
    view: RwLock<Arc<View>>,
    lookups: AtomicU64,
    /// Orders equally good candidates, differently for each path and each process.
    salt: u64,
}

impl FilterTable {
    pub(crate) fn new(salt: u64) -> Self {
        Self { view: RwLock::default(), lookups: AtomicU64::new(0), salt }
    }

    /// Peers whose filter claims this path, best first: the demoted ones last, then ordered by their share of false
    /// hits, and then differently for each path. Peers that are set aside are left out. An empty answer is certain:
    /// none of the others has announced the path. Counted as a lookup, so ask once for each request, and
    /// [`Self::peek_candidates`] when the same request asks again: a filter claims the same paths however often it is
    /// asked, and what chance is expected to make it claim grows with the lookups.
    pub fn find_candidates(&self, part: &HashPart) -> Vec<Candidate> {
        self.lookups.fetch_add(1, Relaxed);
        self.peek_candidates(part)
    }

    /// As [`Self::find_candidates`], but not counted as a lookup.
    pub fn peek_candidates(&self, part: &HashPart) -> Vec<Candidate> {
        let view = self.view();
        // Saves eleven hashes for a machine that knows nobody.
        if view.classes.is_empty() {
            return Vec::new();
        }
        let positions = BitPositions::of(part);
        let mut found = Vec::new();
        for (class, members) in &view.classes {
            members.find(*class, &positions, |member| {
                let rank = member.rank();
                if rank != Rank::Excluded {
                    found.push((rank, member));
                }
            });
        }
        // Nodes with other salts ask in another order, so that not all of them go to the same holder first.
        if found.len() > 1 {
            let [a, b, c, d, e, f, g, h, ..] = part.0;
            let salt = self.salt ^ u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            found.sort_by_key(|(rank, member)| {
                (*rank, member.false_share.load(Relaxed), mix(member.salt ^ salt), member.peer)
            });
        }
        let candidate =
            |(rank, member): (_, &FilterOwner)| Candidate { peer: member.peer, is_demoted: rank == Rank::Last };
        found.into_iter().map(candidate).collect()
    }

    /// Whether this peer's filter says maybe, whatever its conduct. Not counted as a lookup.
    pub fn claims(&self, peer: &PeerId, part: &HashPart) -> bool {
        let positions = BitPositions::of(part);
        let salt = FilterOwner::salt_of(peer);
        let mut found = false;
        for (class, members) in &self.view().classes {
            // The salts are compared first, because that is cheap and rules out all but one of a thousand members.
            members.find(*class, &positions, |member| found |= member.salt == salt && member.peer == *peer);
        }
        found
    }

    /// How many lookups there were since the start.
    pub fn lookups(&self) -> u64 {
        self.lookups.load(Relaxed)
    }

    /// How many peers have a filter here.
    pub fn peers(&self) -> usize {
        self.view().classes.iter().map(|(_, members)| members.len()).sum()
    }

    /// The memory of the filters, bytes.
    pub fn memory_bytes(&self) -> usize {
        self.view().classes.iter().map(|(_, members)| members.memory_bytes()).sum()
    }

    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Publishes a new view and returns the one before.
    pub(crate) fn replace(&self, view: Arc<View>) -> Arc<View> {
        std::mem::replace(&mut self.view.write().unwrap_or_else(PoisonError::into_inner), view)
    }
}
