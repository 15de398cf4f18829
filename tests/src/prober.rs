//! A second client of a gateway, which asks all the time and writes down every answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::http::get;
use crate::network::Namespace;

/// Pause between two rounds of requests.
const ROUND_INTERVAL: Duration = Duration::from_millis(50);

/// Asks a gateway for URL paths, one after the other, again and again, until it is stopped.
#[derive(Debug)]
pub struct Prober {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<ProbeReport>>,
}

/// What a [`Prober`] saw.
#[derive(Debug, Default, Clone)]
pub struct ProbeReport {
    /// How often each HTTP status came.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests that got no status at all: refused, reset, or never answered.
    pub errors: Vec<String>,
    /// The longest wait for a complete answer.
    pub slowest: Duration,
    /// The URL path of that request.
    pub slowest_path: String,
}

impl Prober {
    /// Starts to ask for `paths`, in the network of the machine `place` if one is given.
    #[must_use]
    pub fn start(address: SocketAddr, paths: Vec<String>, place: Option<Namespace>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            if let Some(place) = place {
                place.move_this_thread();
            }
            let mut report = ProbeReport::default();
            while !stopped.load(Ordering::Relaxed) {
                for path in &paths {
                    report.ask(address, path);
                }
                thread::park_timeout(ROUND_INTERVAL);
            }
            report
        });
        Self { stop, thread: Some(thread) }
    }

    /// Stops asking, and returns what was seen.
    ///
    /// # Panics
    /// When the asking thread did.
    #[must_use]
    pub fn finish(mut self) -> ProbeReport {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("taken only here");
        thread.join().expect("the prober does not panic")
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl ProbeReport {
    fn ask(&mut self, address: SocketAddr, path: &str) {
        let started = Instant::now();
        match get(address, path) {
            Ok(answer) => *self.statuses.entry(answer.status).or_default() += 1,
            Err(error) => self.errors.push(format!("{path}: {error}")),
        }
        let took = started.elapsed();
        if took > self.slowest {
            self.slowest = took;
            path.clone_into(&mut self.slowest_path);
        }
    }

    /// Asserts that every request was answered with 200 or 404 within `slowest_max`, and that there was at least one.
    ///
    /// # Panics
    /// When that does not hold.
    #[track_caller]
    pub fn assert_fit_for_nix(&self, slowest_max: Duration) {
        assert!(self.errors.is_empty(), "requests without an answer: {:?}", self.errors);
        assert!(self.statuses.keys().all(|status| matches!(status, 200 | 404)), "statuses: {:?}", self.statuses);
        assert!(self.statuses.values().sum::<u64>() > 0, "the prober never asked");
        assert!(self.slowest <= slowest_max, "{} took {:?}, bound {slowest_max:?}", self.slowest_path, self.slowest);
    }
}
