//! How many narinfos a cache is asked for at a time, and whose turn it is.
//!
//! Of a cache that says that it is asked too much (429), nothing is asked until the time that it names; then one question
//! at a time, and more as long as it answers, as TCP does it after a loss. Users take turns all the while, so that whoever
//! asks for much waits behind himself and behind nobody else.

use narmesh_resolver::{Turn, Turns, User};
use parking_lot::Mutex;

/// The most questions at a time: what HTTP/2 servers usually allow on one connection.
const AT_ONCE_MAX: usize = 128;
/// The most of them of one user. Below [`AT_ONCE_MAX`] at a time there is no such share: whoever is answered quickly would
/// get more turns than whoever is not.
const AT_ONCE_OF_ONE_USER_MAX: usize = 96;

/// The pace of one cache.
#[derive(Debug)]
pub(super) struct Pace {
    turns: Turns,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    at_once: usize,
    /// Up to this many, each answer allows one more at a time; beyond, as many answers as there are places.
    quick_until: usize,
    answers: usize,
}

impl Default for Pace {
    fn default() -> Self {
        let window = Window { at_once: AT_ONCE_MAX, quick_until: AT_ONCE_MAX, answers: 0 };
        Self { turns: Turns::new(AT_ONCE_MAX, AT_ONCE_OF_ONE_USER_MAX), window: Mutex::new(window) }
    }
}

impl Pace {
    /// Waits until this user may ask.
    pub(super) async fn take(&self, user: User) -> Turn {
        self.turns.take(user).await
    }

    /// Notes an answer.
    pub(super) fn on_answer(&self) {
        let mut window = self.window.lock();
        if window.at_once == AT_ONCE_MAX {
            return;
        }
        window.answers += 1;
        if window.at_once < window.quick_until || window.answers >= window.at_once {
            (window.at_once, window.answers) = (window.at_once + 1, 0);
            let is_full = window.at_once == AT_ONCE_MAX;
            self.turns.set_bounds(window.at_once, if is_full { AT_ONCE_OF_ONE_USER_MAX } else { window.at_once });
        }
    }

    /// Notes that the cache was asked too much.
    pub(super) fn on_limited(&self) {
        let mut window = self.window.lock();
        // What was under way together is told so together.
        if window.at_once == 1 && window.answers == 0 {
            return;
        }
        window.quick_until = (self.turns.taken() / 2).max(1);
        (window.at_once, window.answers) = (1, 0);
        self.turns.set_bounds(1, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    /// How many one user may ask at a time.
    fn places(pace: &Pace, user: u32) -> usize {
        let taken: Vec<_> = std::iter::from_fn(|| pace.take(Some(user)).now_or_never()).collect();
        taken.len()
    }

    #[tokio::test]
    async fn a_cache_that_is_asked_too_much_is_asked_less_and_then_more_again() {
        let pace = Pace::default();
        assert_eq!(places(&pace, 1), 96);
        let held: Vec<_> = (0..16).filter_map(|_| pace.take(Some(1)).now_or_never()).collect();
        pace.on_limited();
        drop(held);
        pace.on_limited();
        assert_eq!(places(&pace, 1), 1);
        (0..7).for_each(|_| pace.on_answer());
        assert_eq!(places(&pace, 1), 8, "half as many as then");
        (0..8).for_each(|_| pace.on_answer());
        assert_eq!(places(&pace, 1), 9, "slower from there");
        (0..100_000).for_each(|_| pace.on_answer());
        assert_eq!(places(&pace, 1), 96);
    }

    #[tokio::test]
    async fn users_take_turns_at_a_cache_that_is_asked_one_at_a_time() {
        let pace = Pace::default();
        pace.on_limited();
        let first = pace.take(Some(1)).now_or_never().unwrap();
        let mut flood: Vec<_> = (0..100).map(|_| Box::pin(pace.take(Some(1)))).collect();
        assert!(flood.iter_mut().all(|turn| turn.now_or_never().is_none()));
        let mut other = std::pin::pin!(pace.take(Some(2)));
        assert!(futures::poll!(&mut other).is_pending());
        drop(first);
        assert!(other.now_or_never().is_some(), "the next one is the other user's");
    }
}
