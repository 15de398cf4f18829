//! Who may have how many connections to the control socket: each user has places of their own, so that nobody in the
//! group keeps root out.

use super::{CONNECTIONS_MAX, CONNECTIONS_OF_OTHERS_MAX, WAITING_PER_PLACE_MAX};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places of all users. Bounded by the number of users who may use the socket.
#[derive(Debug)]
pub(super) struct Places {
    /// The user that the daemon runs as.
    own_uid: u32,
    users: Mutex<BTreeMap<u32, User>>,
}

#[derive(Clone, Debug)]
struct User {
    served: Arc<Semaphore>,
    /// Those served and those that wait for a place.
    known: Arc<Semaphore>,
    known_max: usize,
}

/// A connection that was taken in. Its user gets the place back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _known: OwnedSemaphorePermit,
    served: Arc<Semaphore>,
}

impl Places {
    pub(super) fn new(own_uid: u32) -> Self {
        Self { own_uid, users: Mutex::default() }
    }

    /// Takes a connection of this user in, unless too many of theirs wait already.
    pub(super) fn take_in(&self, uid: u32) -> Option<Place> {
        let mut users = self.users.lock();
        // Users who have no connection open are forgotten, or the table would keep everybody who once asked.
        users.retain(|known, user| *known == uid || user.known.available_permits() < user.known_max);
        let user = users.entry(uid).or_insert_with(|| {
            // The operator has to get in, whoever else asks.
            let at_once = if uid == 0 || uid == self.own_uid { CONNECTIONS_MAX } else { CONNECTIONS_OF_OTHERS_MAX };
            let known_max = at_once * WAITING_PER_PLACE_MAX;
            let semaphore = |permits| Arc::new(Semaphore::new(permits));
            User { served: semaphore(at_once), known: semaphore(known_max), known_max }
        });
        let known = Arc::clone(&user.known).try_acquire_owned().ok()?;
        Some(Place { _known: known, served: Arc::clone(&user.served) })
    }
}

impl Place {
    /// Waits until the connection may be served; it is, until the permit is dropped.
    pub(super) async fn wait(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.served).acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn users_of_the_group_wait_for_themselves_and_not_for_each_other() {
        let places = Places::new(500);
        let taken: Vec<_> = (0..1_000).map_while(|_| places.take_in(1_000)).collect();
        assert_eq!(taken.len(), CONNECTIONS_OF_OTHERS_MAX * WAITING_PER_PLACE_MAX);
        let served: Vec<_> = taken.iter().filter_map(|place| place.wait().now_or_never().flatten()).collect();
        assert_eq!(served.len(), CONNECTIONS_OF_OTHERS_MAX);
        for (uid, at_once) in [(0, CONNECTIONS_MAX), (500, CONNECTIONS_MAX), (1_001, CONNECTIONS_OF_OTHERS_MAX)] {
            let others: Vec<_> = (0..=at_once).filter_map(|_| places.take_in(uid)).collect();
            let served: Vec<_> = others.iter().filter_map(|place| place.wait().now_or_never().flatten()).collect();
            assert_eq!(served.len(), at_once, "user {uid}");
        }
        drop((served, taken));
        assert!(places.take_in(1_000).is_some_and(|place| place.wait().now_or_never().is_some()));
        assert!(places.users.lock().len() <= 2, "who has left is forgotten");
    }
}
