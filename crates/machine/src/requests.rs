//! Requests that have no answer yet.

use crate::Moment;
use std::collections::BTreeMap;

/// The requests to peers `P` that wait for an answer, each with the question `Q` that it was for. The caller bounds their
/// number.
#[derive(Debug)]
pub struct RequestTable<P, Q> {
    /// By id. Ids grow with time and all wait equally long, so the first one is overdue first.
    sent: BTreeMap<u64, Sent<P, Q>>,
    last_id: u64,
    timeout_ms: u64,
}

#[derive(Debug)]
struct Sent<P, Q> {
    to: P,
    question: Q,
    overdue: Moment,
}

impl<P: Copy + PartialEq, Q> RequestTable<P, Q> {
    /// A request without an answer counts as failed after `timeout_ms` milliseconds.
    pub fn new(timeout_ms: u64) -> Self {
        Self { sent: BTreeMap::new(), last_id: 0, timeout_ms }
    }

    /// An id that no request has; for something else that the caller tells apart from its requests by id.
    pub fn assign_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Notes a request that is sent now, and names it. `now` must not be earlier than for the request before.
    pub fn add(&mut self, now: Moment, to: P, question: Q) -> u64 {
        let id = self.assign_id();
        self.sent.insert(id, Sent { to, question, overdue: now + self.timeout_ms });
        id
    }

    /// Takes a request out; an answer that comes later is not recognized.
    pub fn take(&mut self, id: u64) -> Option<Q> {
        self.sent.remove(&id).map(|sent| sent.question)
    }

    /// Takes out a request that `from` has answered; `None` when it was not asked that.
    pub fn take_answered(&mut self, from: P, id: u64) -> Option<Q> {
        self.sent.get(&id).filter(|sent| sent.to == from)?;
        self.take(id)
    }

    /// The first request that has waited too long, and whom it was for.
    pub fn find_overdue(&self, now: Moment) -> Option<(u64, P)> {
        let (id, sent) = self.sent.first_key_value()?;
        (sent.overdue <= now).then_some((*id, sent.to))
    }

    /// When the first request will have waited too long.
    pub fn deadline(&self) -> Option<Moment> {
        self.sent.first_key_value().map(|(_, sent)| sent.overdue)
    }

    /// The requests to one peer, oldest first.
    pub fn ids_to(&self, peer: P) -> Vec<u64> {
        self.sent.iter().filter(|(_, sent)| sent.to == peer).map(|(id, _)| *id).collect()
    }

    /// What is asked at present.
    pub fn questions(&self) -> impl Iterator<Item = &Q> {
        self.sent.values().map(|sent| &sent.question)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whoever_was_asked_answers_and_only_once() {
        let mut requests = RequestTable::new(10);
        let id = requests.add(Moment(5), 'a', "what");
        assert_eq!(requests.take_answered('b', id), None);
        assert_eq!(requests.take_answered('a', id), Some("what"));
        assert_eq!(requests.take_answered('a', id), None);
    }

    #[test]
    fn the_oldest_is_overdue_first() {
        let mut requests = RequestTable::new(10);
        let ids = [(5, 'a'), (5, 'b'), (7, 'a')].map(|(at, to)| requests.add(Moment(at), to, ()));
        assert_eq!(requests.ids_to('a'), [ids[0], ids[2]]);
        assert_eq!((requests.deadline(), requests.find_overdue(Moment(14))), (Some(Moment(15)), None));
        assert_eq!(requests.find_overdue(Moment(15)), Some((ids[0], 'a')));
        requests.take(ids[0]);
        assert_eq!(requests.find_overdue(Moment(15)), Some((ids[1], 'b')));
        requests.take(ids[1]);
        assert_eq!(requests.deadline(), Some(Moment(17)));
    }
}
