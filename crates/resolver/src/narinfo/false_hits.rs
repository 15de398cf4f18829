//! Peers whose filters misled us: a path counts once per peer, however often the peer is asked for it, and what a peer
//! that misled us too often can make lookups wait is bounded.

use crate::nar::Recent;
use crate::source::SourceId;
use narmesh_protocol::HashPart;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The same answer is not counted again for this long; a collected path leaves its holder's filter well before that.
const COUNTED_FOR: Duration = Duration::from_secs(60);

/// The most questions at a time to one demoted peer. A build asks for some dozens of paths that only one peer has.
const PLACES: usize = 64;
/// While more places than this are kept, a lookup does not wait for one: the peer is slow, so the wait would be lost.
const KEPT_MAX: usize = PLACES / 2;
/// An answer within this time costs no place: then it is the asker, not the peer, who decides how much is asked. It is
/// the longest time until the next candidate is asked.
pub(super) const QUICK: Duration = Duration::from_millis(250);
/// After a slower question its place is kept for this many times what it took beyond [`QUICK`]. So a peer that lets each
/// question wait for the usual deadline of a second is asked 64 times, and then some three times a second.
const KEPT_FACTOR: u32 = 30;

/// The answers counted lately, and the places for questions to demoted peers.
#[derive(Debug)]
pub(crate) struct FalseHits {
    counted: Recent<(SourceId, HashPart)>,
    /// There are few, because only peers of the allowlist are asked.
    demoted: Mutex<HashMap<SourceId, Arc<Places>>>,
}

/// The places for questions to one demoted peer, given in the order in which they are asked for.
#[derive(Debug)]
struct Places {
    free: Arc<Semaphore>,
    /// Number of places that are kept after slow questions.
    kept: Mutex<usize>,
}

/// A place for one question, which begins with it. When it is dropped the question has ended, and the place is free
/// again, at once or later.
#[derive(Debug)]
pub(crate) struct AskingPlace {
    permit: Option<OwnedSemaphorePermit>,
    places: Arc<Places>,
    since: Instant,
}

impl AskingPlace {
    /// Gives the place back at once, because the peer has what it was asked for.
    pub(crate) fn give_back(mut self) {
        self.permit = None;
    }
}

impl Drop for AskingPlace {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        let keep_for = self.since.elapsed().saturating_sub(QUICK) * KEPT_FACTOR;
        // Without a runtime there are no further questions.
        if let (false, Ok(runtime)) = (keep_for.is_zero(), Handle::try_current()) {
            let places = Arc::clone(&self.places);
            *places.kept.lock() += 1;
            runtime.spawn(async move {
                tokio::time::sleep(keep_for).await;
                *places.kept.lock() -= 1;
                drop(permit);
            });
        }
    }
}

impl Default for FalseHits {
    fn default() -> Self {
        Self { counted: Recent::new(COUNTED_FOR), demoted: Mutex::default() }
    }
}

impl FalseHits {
    /// Takes a place for a question to this demoted peer; waits, after those who came before, until one is free. `None`
    /// if the peer is so slow that the wait would be in vain.
    pub(crate) async fn take_place(&self, peer: &SourceId) -> Option<AskingPlace> {
        let places =
            Arc::clone(self.demoted.lock().entry(*peer).or_insert_with(|| {
                Arc::new(Places { free: Arc::new(Semaphore::new(PLACES)), kept: Mutex::default() })
            }));
        let free = Arc::clone(&places.free);
        let permit = match Arc::clone(&free).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) if *places.kept.lock() > KEPT_MAX => return None,
            Err(_) => free.acquire_owned().await.ok()?,
        };
        Some(AskingPlace { permit: Some(permit), places, since: Instant::now() })
    }

    /// Whether this answer has to be counted. It is remembered, so that it is not counted again.
    pub(crate) fn note_if_new(&self, peer: SourceId, part: HashPart) -> bool {
        self.counted.note_if_new((peer, part), ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test(start_paused = true)]
    async fn each_demoted_peer_has_its_own_places() {
        let false_hits = FalseHits::default();
        let [one, other] = [SourceId::random(), SourceId::random()];
        let take = |peer: SourceId| false_hits.take_place(&peer).now_or_never();
        let held: Vec<_> = (0..PLACES).map(|_| take(one).flatten().expect("it is free")).collect();
        assert!(take(one).is_none(), "it waits");
        assert!(take(other).flatten().is_some());
        drop(held);
        assert!(take(one).flatten().is_some(), "all were quick");
    }

    #[test]
    fn repeated_answer_about_a_path_counts_once_per_peer() {
        let false_hits = FalseHits::default();
        let peers = [SourceId::random(), SourceId::random()];
        let parts = [HashPart([1; 20]), HashPart([2; 20])];
        for peer in peers {
            for part in parts {
                assert!(false_hits.note_if_new(peer, part));
                assert!(!false_hits.note_if_new(peer, part));
            }
        }
    }
}
