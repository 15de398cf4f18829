//! One line in the log for each request, where a listener wants it, at a bounded rate.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};

use crate::client::Client;
use crate::error::shown;
use crate::rate::{Rate, RateBound};

/// The target of the lines: a filter of the log can name it, and their bound is the one here.
pub const ACCESS_TARGET: &str = "narmesh::access";

/// Lines of one client. A Nix that looks at a closure of 500 paths needs a thousand.
const OF_ONE_CLIENT: RateBound = RateBound { at_once: 1_000.0, per_s: 5.0 };
/// Lines of all clients. A line has at most some 500 bytes, so a listener fills less than 1 GB a day.
const OF_ALL: RateBound = RateBound { at_once: 10_000.0, per_s: 20.0 };
/// Clients whose lines are counted apart. When there are more, the one that asked longest ago is forgotten.
const CLIENTS_MAX: usize = 1_024;
/// Time between two lines that say what was left out.
const TELL_PAUSE: Duration = Duration::from_secs(60);

/// The access log of one listener.
#[derive(Debug)]
pub(crate) struct AccessLog {
    listener: String,
    lines: Mutex<Lines>,
}

#[derive(Debug)]
struct Lines {
    of_all: Rate,
    of_clients: BTreeMap<Client, Rate>,
    left_out: u64,
    /// The client of the last line that was left out.
    last_left_out: Option<Client>,
    told: Instant,
}

impl Lines {
    fn new(now: Instant) -> Self {
        let of_all = Rate::unused(OF_ALL, now);
        Self { of_all, of_clients: BTreeMap::new(), left_out: 0, last_left_out: None, told: now }
    }

    /// Whether a line of this client may be written now. If so it is counted.
    fn admit(&mut self, client: Client, now: Instant) -> bool {
        // All addresses of one prefix are one client, or else it could go on from the next.
        let client = client.counted().map_or(client, Client::Address);
        let mut of_one = self.of_clients.get(&client).copied().unwrap_or_else(|| Rate::unused(OF_ONE_CLIENT, now));
        // Both are asked before either is counted: a line that is left out uses up nothing.
        if !self.of_all.permits(OF_ALL, now) || !of_one.permits(OF_ONE_CLIENT, now) {
            self.left_out = self.left_out.saturating_add(1);
            self.last_left_out = Some(client);
            return false;
        }
        self.of_all.count(OF_ALL, now);
        of_one.count(OF_ONE_CLIENT, now);
        // The one that was counted longest ago has the most of its rate left, so little is lost with it.
        if self.of_clients.len() >= CLIENTS_MAX && !self.of_clients.contains_key(&client) {
            let oldest = self.of_clients.iter().min_by_key(|(_, rate)| rate.at()).map(|(client, _)| *client);
            if let Some(oldest) = oldest {
                self.of_clients.remove(&oldest);
            }
        }
        self.of_clients.insert(client, of_one);
        true
    }

    /// How many lines were left out since this was last told, and one of their clients; if it is time to tell.
    fn take_left_out(&mut self, now: Instant, at_once: bool) -> Option<(u64, Client)> {
        if !at_once && now.saturating_duration_since(self.told) < TELL_PAUSE {
            return None;
        }
        self.told = now;
        self.last_left_out.take().map(|client| (std::mem::take(&mut self.left_out), client))
    }
}

impl AccessLog {
    /// The log of the listener that lines call `listener`.
    pub(crate) fn new(listener: String) -> Self {
        Self { listener, lines: Mutex::new(Lines::new(Instant::now())) }
    }

    /// Begins the line of a request. It is written when the line is dropped.
    pub(crate) fn begin(self: &Arc<Self>, client: Client, method: &Method, path: &str) -> AccessLine {
        AccessLine {
            log: Arc::clone(self),
            client,
            method: method.clone(),
            path: shown(path),
            started: Instant::now(),
            status: None,
            body_bytes: 0,
            is_whole: false,
        }
    }

    /// Says what was left out, at most once a minute; in any case if `at_once`.
    pub(crate) fn tell_left_out(&self, at_once: bool) {
        let told = self.lines.lock().unwrap_or_else(PoisonError::into_inner).take_left_out(Instant::now(), at_once);
        if let Some((count, client)) = told {
            let listener = &self.listener;
            tracing::info!(target: ACCESS_TARGET, %listener, last = %client, "{count} lines about requests were left out");
        }
    }
}

/// The line of one request.
#[derive(Debug)]
pub(crate) struct AccessLine {
    log: Arc<AccessLog>,
    client: Client,
    method: Method,
    /// Without the query, and without what stands before it in a target of absolute form, such as a password.
    path: String,
    started: Instant,
    status: Option<StatusCode>,
    body_bytes: u64,
    is_whole: bool,
}

impl AccessLine {
    pub(crate) fn note_status(&mut self, status: StatusCode) {
        self.status = Some(status);
        // An answer to a HEAD has no body that could be cut short.
        self.is_whole |= self.method == Method::HEAD;
    }

    /// Notes a piece of the body that hyper takes.
    pub(crate) fn note_piece(&mut self, bytes: usize) {
        self.body_bytes = self.body_bytes.saturating_add(bytes as u64);
    }

    /// Notes that hyper took all of the body.
    pub(crate) fn note_whole(&mut self) {
        self.is_whole = true;
    }
}

impl Drop for AccessLine {
    fn drop(&mut self) {
        let now = Instant::now();
        if !self.log.lines.lock().unwrap_or_else(PoisonError::into_inner).admit(self.client, now) {
            return;
        }
        let Self { log, client, method, path, body_bytes, is_whole, .. } = self;
        // A client that left before the answer got no status.
        let status = self.status.as_ref().map_or("none", StatusCode::as_str);
        let ms = now.saturating_duration_since(self.started).as_millis();
        let (listener, method) = (&log.listener, shown(method.as_str()));
        tracing::info!(
            target: ACCESS_TARGET,
            %listener, %client, %method, %path, %status, bytes = *body_bytes, ms, whole = *is_whole,
            "request"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn lines_of_one_client_are_bounded_and_those_of_others_go_on() {
        let start = Instant::now();
        let mut lines = Lines::new(start);
        let [one, other] = [1, 2].map(|last| Client::Address(Ipv4Addr::new(192, 0, 2, last).into()));
        let admitted = (0..3_000).filter(|_| lines.admit(one, start)).count();
        assert_eq!(admitted, 1_000);
        assert!(lines.admit(other, start));
        let later = start + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| lines.admit(one, later)).count(), 5);
        assert_eq!(lines.take_left_out(later, false), None, "it was told less than a minute ago");
        let minute = start + Duration::from_secs(60);
        assert_eq!(lines.take_left_out(minute, false), Some((2_095, one)));
        assert_eq!(lines.take_left_out(minute, true), None, "nothing since");
    }

    #[test]
    fn lines_of_many_addresses_are_bounded_together() {
        let start = Instant::now();
        let mut lines = Lines::new(start);
        let of_prefix = |prefix: u128, host: u128| Client::Address(Ipv6Addr::from_bits(prefix << 64 | host).into());
        let one_prefix = (0..3_000).filter(|host| lines.admit(of_prefix(1, *host), start)).count();
        assert_eq!(one_prefix, 1_000, "one client chooses its address within a prefix");
        let many = (2..50_000).filter(|prefix| lines.admit(of_prefix(*prefix, 1), start)).count();
        assert_eq!(many, 9_000);
        assert!(lines.of_clients.len() <= CLIENTS_MAX);
        let later = start + Duration::from_secs(10);
        assert_eq!((2..50_000).filter(|prefix| lines.admit(of_prefix(*prefix, 1), later)).count(), 200);
    }
}
