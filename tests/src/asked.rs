//! An HTTP client that fetches many paths in parallel and records what became of each.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use crate::TestNode;
use crate::pair::{get_from, nar_url, narinfo_url};

/// The result for one path.
#[derive(Debug)]
pub struct Fetched {
    /// When it was asked for.
    pub asked: Instant,
    /// When the answer was complete.
    pub ended: Instant,
    /// Whether narinfo and NAR came, the NAR with its whole length.
    pub arrived: bool,
}

/// Asks `node` for the narinfo and NAR of each of `paths`, `at_once` at a time; the results are in the order of the paths.
///
/// # Panics
/// When the gateway does not answer.
#[must_use]
pub fn fetch_all(node: &TestNode, paths: &[String], at_once: usize) -> Vec<Fetched> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut mine = Vec::new();
        while let Some((place, path)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, paths.get(at)?)))
        {
            let asked = Instant::now();
            let body = nar_url(&get_from(node, &narinfo_url(path))).map(|url| get_from(node, &url));
            let arrived = body.is_some_and(|body| body.status == 200 && body.complete);
            mine.push((place, Fetched { asked, ended: Instant::now(), arrived }));
        }
        mine
    };
    let mut all: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a thread that asks")).collect()
    });
    all.sort_by_key(|(place, _)| *place);
    all.into_iter().map(|(_, fetched)| fetched).collect()
}

/// How many did not arrive.
#[must_use]
pub fn missing(all: &[Fetched]) -> usize {
    all.iter().filter(|one| !one.arrived).count()
}
