//! Chains of narmesh daemons that are each other's caches: one that leads back to its beginning would ask itself for what
//! nobody has, until a deadline ends that.
//!
//! Each process has a random id. A request to a cache names it, behind the ids of those for whom it is made, and a daemon
//! that finds its own id in a request, and is waiting for a cache to answer for that path, asks nobody for it. The answer names the
//! daemon, so that one that is its own cache learns that at once.
//!
//! Nobody signs a chain: whoever asks may make one up, for a path that others ask for as well. So none has its maker's way by
//! itself: one of unknown ids has no effect, and our own id counts only while we wait for an answer.

use narmesh_protocol::HashPart;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest chain of daemons that is told; of a longer one the first are left out.
const IDS_MAX: usize = 8;
/// Who asked for a path counts for this long: longer than a lookup takes.
const ASKING_FOR: Duration = Duration::from_secs(15);
/// Paths for which it is known who asked; beyond, a chain is found by the next daemon in it.
const PATHS_MAX: usize = 4_096;

/// The id of a process among daemons that ask each other.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct ProcessId(u64);

/// Who asks whom.
#[derive(Clone, Debug)]
pub struct Chains(Arc<State>);

struct State {
    own: ProcessId,
    asking: Mutex<HashMap<HashPart, (Vec<ProcessId>, Instant)>>,
    /// The paths of our requests that no cache has answered yet, each with their number.
    asked: Mutex<HashMap<HashPart, usize>>,
}

/// A request of ours to a cache, until it is answered.
pub(crate) struct Asking {
    /// Its [`VIA`](narmesh_protocol::circle::VIA).
    pub(crate) via: String,
    chains: Chains,
    part: Option<HashPart>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        let Some(part) = &self.part else { return };
        let mut asked = self.chains.0.asked.lock();
        if let Some(requests) = asked.get_mut(part) {
            *requests -= 1;
            if *requests == 0 {
                asked.remove(part);
            }
        }
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("asking", &self.asking.lock().len()).finish_non_exhaustive()
    }
}

impl std::fmt::Display for ProcessId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl ProcessId {
    fn parse(text: &str) -> Option<Self> {
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u64::from_str_radix(text, 16).ok().filter(|_| is_hex).map(Self)
    }
}

impl Default for Chains {
    fn default() -> Self {
        Self(Arc::new(State { own: ProcessId(rand::random()), asking: Mutex::default(), asked: Mutex::default() }))
    }
}

impl Chains {
    /// The id of this process, in hexadecimal.
    pub fn own_id(&self) -> String {
        self.0.own.to_string()
    }

    /// Whether this is the id of this process.
    pub(crate) fn is_own(&self, id: &str) -> bool {
        ProcessId::parse(id) == Some(self.0.own)
    }

    /// Notes that a request for this path came with that [`VIA`](narmesh_protocol::circle::VIA), so that what is asked of caches for it names them,
    /// too. Returns whether nobody is to be asked for it, because this process stands in that chain and waits for an answer itself.
    /// What is no list of ids is ignored.
    pub fn is_circle(&self, part: &HashPart, via: &str) -> bool {
        let mut ids: Vec<_> = via.rsplit(',').take(IDS_MAX).filter_map(|id| ProcessId::parse(id.trim())).collect();
        if ids.contains(&self.0.own) && self.0.asked.lock().contains_key(part) {
            return true;
        }
        // There is room for our own.
        ids.truncate(IDS_MAX - 1);
        ids.reverse();
        ids.retain(|id| *id != self.0.own);
        if !ids.is_empty() {
            let (mut asking, now) = (self.0.asking.lock(), Instant::now());
            // Old entries go only when the table is full, which it mostly never is.
            if asking.len() >= PATHS_MAX {
                asking.retain(|_, (_, at)| now.saturating_duration_since(*at) < ASKING_FOR);
            }
            if asking.len() < PATHS_MAX || asking.contains_key(part) {
                asking.insert(*part, (ids, now));
            }
        }
        false
    }

    /// Begins a request to a cache for a file of this path, or of none.
    pub(crate) fn ask(&self, part: Option<&HashPart>) -> Asking {
        if let Some(part) = part {
            *self.0.asked.lock().entry(*part).or_default() += 1;
        }
        Asking { via: self.via(part), chains: self.clone(), part: part.copied() }
    }

    fn via(&self, part: Option<&HashPart>) -> String {
        let asking = self.0.asking.lock();
        let known = part.and_then(|part| asking.get(part)).filter(|(_, at)| at.elapsed() < ASKING_FOR);
        let ids = known.into_iter().flat_map(|(ids, _)| ids).chain([&self.0.own]);
        ids.map(ProcessId::to_string).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_comes_back_is_a_circle_for_each_daemon_in_it() {
        let (path, other) = (HashPart([1; 20]), HashPart([2; 20]));
        let [a, b, c] = [(); 3].map(|()| Chains::default());
        assert!(a.is_own(&a.own_id()) && !a.is_own(&b.own_id()));
        let by_a = a.ask(Some(&path));
        assert!(a.is_circle(&path, &by_a.via), "it is its own cache");
        assert!(!b.is_circle(&path, &by_a.via));
        let by_b = b.ask(Some(&path));
        assert!(!c.is_circle(&path, &by_b.via));
        let by_c = c.ask(Some(&path));
        assert!(a.is_circle(&path, &by_c.via) && b.is_circle(&path, &by_c.via));
        assert!(!a.is_circle(&other, &by_c.via), "a asked nobody for that");
        let again = a.ask(Some(&path));
        drop(by_a);
        assert!(a.is_circle(&path, &by_c.via), "one is unanswered");
        drop(again);
        assert!(!a.is_circle(&path, &by_c.via) && a.0.asked.lock().is_empty(), "it waits for nobody");
    }

    #[test]
    fn a_made_up_chain_keeps_nobody_from_asking() {
        let (path, [a, b]) = (HashPart([1; 20]), [(); 2].map(|()| Chains::default()));
        // Somebody says to our gateway that the cache itself, or many, had asked for the path.
        for false_chain in [b.own_id(), (0..9).map(|id| ProcessId(id).to_string()).collect::<Vec<_>>().join(",")] {
            assert!(!a.is_circle(&path, &false_chain));
            assert!(!b.is_circle(&path, &a.ask(Some(&path)).via), "{false_chain}: what others want is asked for");
            drop(b.ask(Some(&path)));
            assert!(!b.is_circle(&path, &a.ask(Some(&path)).via), "also once it has asked for it");
        }
    }

    #[test]
    fn chains_are_bounded_and_what_is_no_list_is_ignored() {
        let (chains, path) = (Chains::default(), HashPart([1; 20]));
        for nothing in ["", ",", "x", "+123456789abcdef", "0123456789abcdef0", &"0".repeat(1 << 16)] {
            assert!(!chains.is_circle(&path, nothing), "{nothing:.20}");
            assert_eq!(chains.via(Some(&path)), chains.own_id());
        }
        let ids = |count: u64| (0..count).map(|id| ProcessId(id).to_string()).collect::<Vec<_>>().join(", ");
        assert!(!chains.is_circle(&path, &ids(7)));
        assert_eq!(chains.via(Some(&path)).split(',').count(), IDS_MAX);
        for many in [8, 9_000] {
            assert!(!chains.is_circle(&path, &ids(many)));
            let via = chains.via(Some(&path));
            assert_eq!(via.split(',').count(), IDS_MAX);
            assert!(via.contains(&ProcessId(many - 1).to_string()) && !via.contains(&ProcessId(0).to_string()));
        }
        for number in 0..2 * PATHS_MAX as u64 {
            let mut part = [0; 20];
            part[..8].copy_from_slice(&number.to_le_bytes());
            chains.is_circle(&HashPart(part), &ids(1));
        }
        assert_eq!(chains.0.asking.lock().len(), PATHS_MAX);
    }
}
