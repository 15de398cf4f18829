//! Turns at something scarce, which go round the users who wait: whoever asks a hundred times gets no more turns than
//! whoever asks once.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Whoever asks; `None` for all who are not known together.
pub type User = Option<Caller>;

/// One of those who take turns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Caller {
    /// A user of this machine.
    User(u32),
    /// A client on the network, by its address or the prefix that is its own.
    Address(IpAddr),
}

/// Finds out who asks, if that can be known. Called only when the user matters: when memory is short, or when
/// sources are asked.
pub type FindUser = Arc<dyn Fn() -> User + Send + Sync>;

/// Some turns at a time, and fewer of them of one user; cheap to clone. By default there is one.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    at_once: usize,
    of_one_user_max: usize,
    /// The number of turns that each user has. None is zero.
    taken: BTreeMap<User, usize>,
    /// The user whose turn it was last.
    last: User,
    /// Those who wait, by user, and for each user in the order in which they came. No queue is empty.
    waiting: BTreeMap<User, VecDeque<oneshot::Sender<Turn>>>,
}

/// A turn; the next one begins when it is dropped.
#[derive(Debug)]
pub struct Turn(Option<(Turns, User)>);

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some((turns, user)) = self.0.take() {
            turns.0.lock().give_back(user);
            turns.pass_on();
        }
    }
}

impl Default for Turns {
    fn default() -> Self {
        Self::new(1, 1)
    }
}

impl Turns {
    /// So many turns at a time, and so many of one user.
    pub fn new(at_once: usize, of_one_user_max: usize) -> Self {
        let (taken, waiting) = (BTreeMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(State { at_once, of_one_user_max, taken, last: None, waiting })))
    }

    /// From now on so many. Turns that are taken stay so.
    pub fn set_bounds(&self, at_once: usize, of_one_user_max: usize) {
        {
            let mut state = self.0.lock();
            (state.at_once, state.of_one_user_max) = (at_once, of_one_user_max);
        }
        self.pass_on();
    }

    /// The number of turns that are taken.
    pub fn taken(&self) -> usize {
        self.0.lock().all_taken()
    }

    /// Takes a turn, for a user who is not known, if one is free.
    pub(crate) fn try_take(&self) -> Option<Turn> {
        self.0.lock().take_if_free(None).then(|| Turn(Some((self.clone(), None))))
    }

    /// Takes a turn; waits for it behind other users' first ones, and behind all earlier ones of this user.
    pub async fn take(&self, user: User) -> Turn {
        let turn = {
            let mut state = self.0.lock();
            if state.take_if_free(user) {
                return Turn(Some((self.clone(), user)));
            }
            let (sender, turn) = oneshot::channel();
            state.waiting.entry(user).or_default().push_back(sender);
            turn
        };
        turn.await.expect("nobody who waits is forgotten")
    }

    /// Gives out what is free.
    fn pass_on(&self) {
        loop {
            let Some((user, next)) = self.0.lock().take_next() else { return };
            if let Err(mut given_up) = next.send(Turn(Some((self.clone(), user)))) {
                // It must not pass itself on, because this loop does.
                given_up.0 = None;
                self.0.lock().give_back(user);
            }
        }
    }
}

impl State {
    fn all_taken(&self) -> usize {
        self.taken.values().sum()
    }

    fn may_have_another(&self, user: User) -> bool {
        self.taken.get(&user).is_none_or(|taken| *taken < self.of_one_user_max)
    }

    /// Whoever may have a turn that is free does not wait, so nobody is passed over.
    fn take_if_free(&mut self, user: User) -> bool {
        let is_free = self.all_taken() < self.at_once && self.may_have_another(user);
        if is_free {
            *self.taken.entry(user).or_default() += 1;
            self.last = user;
        }
        is_free
    }

    fn give_back(&mut self, user: User) {
        if let Entry::Occupied(mut taken) = self.taken.entry(user) {
            *taken.get_mut() -= 1;
            if *taken.get() == 0 {
                taken.remove();
            }
        }
    }

    /// Takes a free turn for the first of the user who comes after the last one and may have another.
    fn take_next(&mut self) -> Option<(User, oneshot::Sender<Turn>)> {
        // From the user after the last one on, in a circle, so that nobody is passed over twice.
        let after = self.waiting.range((Bound::Excluded(self.last), Bound::Unbounded)).map(|(user, _)| *user);
        let user = after.chain(self.waiting.keys().copied()).find(|user| self.may_have_another(*user))?;
        if !self.take_if_free(user) {
            return None;
        }
        let queue = self.waiting.get_mut(&user)?;
        let next = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&user);
        }
        Some((user, next))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::FutureExt;

    use super::*;

    fn user(id: u32) -> User {
        Some(Caller::User(id))
    }

    #[tokio::test]
    async fn users_take_turns_however_often_each_asks() {
        let turns = Turns::default();
        let first = turns.try_take().unwrap();
        assert!(turns.try_take().is_none());
        let order = Arc::new(Mutex::new(Vec::new()));
        let users = [user(7), user(7), user(7), user(7), user(7), user(3), None, user(3)];
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
        let [none, three, seven] = [None, user(3), user(7)];
        assert_eq!(*order.lock(), [three, seven, none, three, seven, seven, seven, seven]);
        assert!(turns.try_take().is_some());
    }

    #[tokio::test]
    async fn turn_of_who_gives_up_goes_to_the_next() {
        let turns = Turns::default();
        let first = turns.try_take().unwrap();
        let mut gives_up = Box::pin(turns.take(user(1)));
        let mut gives_up_later = Box::pin(turns.take(user(1)));
        let mut waits = pin!(turns.take(user(1)));
        assert!(futures::poll!(&mut gives_up).is_pending());
        assert!(futures::poll!(&mut gives_up_later).is_pending());
        assert!(futures::poll!(&mut waits).is_pending());
        drop(gives_up);
        drop(first);
        // It was given the turn and has not seen it.
        drop(gives_up_later);
        assert!(waits.now_or_never().is_some());
    }

    #[tokio::test]
    async fn one_user_leaves_turns_to_others_and_waits_without_keeping_them_waiting() {
        let turns = Turns::new(4, 3);
        let mut greedy: Vec<_> = (0..6).map(|_| Box::pin(turns.take(user(1)))).collect();
        let mut held: Vec<_> = greedy.drain(..3).map(|turn| turn.now_or_never().expect("it is free")).collect();
        assert!(greedy.iter_mut().all(|turn| turn.now_or_never().is_none()));
        let other = turns.take(user(2)).now_or_never().expect("the last one is never the greedy user's");
        let mut third = pin!(turns.take(user(3)));
        assert!(futures::poll!(&mut third).is_pending());
        held.pop();
        assert!(third.now_or_never().is_some(), "though the greedy user has waited for longer");
        drop(other);
        assert_eq!(turns.taken(), 3);
        turns.set_bounds(5, 5);
        assert!(greedy.into_iter().all(|turn| turn.now_or_never().is_some()));
    }
}
