//! Turns at something scarce, which go round the users who wait: whoever asks a hundred times gets no more turns than
//! whoever asks once.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// A user of this machine; `None` for all who are not known together.
pub(super) type User = Option<u32>;

/// One turn at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    is_taken: bool,
    /// The user whose turn it was last.
    last: User,
    /// Those who wait, by user, and for each user in the order in which they came. No queue is empty.
    waiting: BTreeMap<User, VecDeque<oneshot::Sender<Turn>>>,
}

/// A turn; the next one begins when it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Option<Turns>);

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.pass_on();
        }
    }
}

impl Turns {
    /// Takes the turn if nobody has it.
    pub(super) fn try_take(&self) -> Option<Turn> {
        let mut state = self.0.lock();
        let is_free = !std::mem::replace(&mut state.is_taken, true);
        is_free.then(|| Turn(Some(self.clone())))
    }

    /// Takes the turn; waits for it behind other users' first ones, and behind all earlier ones of this user.
    pub(super) async fn take(&self, user: User) -> Turn {
        let turn = {
            let mut state = self.0.lock();
            if !std::mem::replace(&mut state.is_taken, true) {
                return Turn(Some(self.clone()));
            }
            let (sender, turn) = oneshot::channel();
            state.waiting.entry(user).or_default().push_back(sender);
            turn
        };
        turn.await.expect("nobody who waits is forgotten")
    }

    fn pass_on(&self) {
        loop {
            let Some(next) = self.0.lock().take_next() else { return };
            let Err(mut given_up) = next.send(Turn(Some(self.clone()))) else { return };
            // It must not pass itself on, because this loop does.
            given_up.0 = None;
        }
    }
}

impl State {
    /// The first of the user who comes after the last one; without any, the turn is free.
    fn take_next(&mut self) -> Option<oneshot::Sender<Turn>> {
        let after = self.waiting.range((Bound::Excluded(self.last), Bound::Unbounded)).next();
        let Some(user) = after.or_else(|| self.waiting.iter().next()).map(|(user, _)| *user) else {
            self.is_taken = false;
            return None;
        };
        self.last = user;
        let queue = self.waiting.get_mut(&user)?;
        let next = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&user);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn users_take_turns_however_often_each_asks() {
        let turns = Turns::default();
        let first = turns.try_take().unwrap();
        assert!(turns.try_take().is_none());
        let order = Arc::new(Mutex::new(Vec::new()));
        let users = [Some(7), Some(7), Some(7), Some(7), Some(7), Some(3), None, Some(3)];
        let waiting = users.map(|user| {
            let (turns, order) = (turns.clone(), Arc::clone(&order));
            Box::pin(async move {
                let turn = turns.take(user).await;
                order.lock().push(user);
                drop(turn);
            })
        });
        let mut all = pin!(futures::future::join_all(waiting));
        assert!(futures::poll!(&mut all).is_pending());
        drop(first);
        all.await;
        let [none, three, seven] = [None, Some(3), Some(7)];
        assert_eq!(*order.lock(), [three, seven, none, three, seven, seven, seven, seven]);
        assert!(turns.try_take().is_some());
    }

    #[tokio::test]
    async fn turn_of_who_gives_up_goes_to_the_next() {
        let turns = Turns::default();
        let first = turns.try_take().unwrap();
        let mut gives_up = Box::pin(turns.take(Some(1)));
        let mut gives_up_later = Box::pin(turns.take(Some(1)));
        let mut waits = pin!(turns.take(Some(1)));
        assert!(futures::poll!(&mut gives_up).is_pending());
        assert!(futures::poll!(&mut gives_up_later).is_pending());
        assert!(futures::poll!(&mut waits).is_pending());
        drop(gives_up);
        drop(first);
        // It was given the turn and has not seen it.
        drop(gives_up_later);
        assert!(waits.now_or_never().is_some());
    }
}
