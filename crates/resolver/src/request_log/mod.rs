//! The NARs that Nix asked for: those on their way, the last ones that ended, and what each source gave in total.
//!
//! A local user can ask for ten thousand NARs a second, so nothing here is written to the disk, and everything has a
//! bound: [`ENDED_MAX`] requests and [`ENDED_BYTES_MAX`] bytes; the oldest is forgotten first. What is on its way is
//! bounded by the connections of the gateway.

mod followed;
mod origins;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use narmesh_protocol::{HashPart, NarUrl};
use parking_lot::Mutex;

use crate::lookup_log::unix_ms;
use crate::source::SourceId;

pub(crate) use self::followed::RunningRequest;
pub(crate) use self::origins::Origins;
pub use self::origins::{LeftSource, Share};

/// Requests that have ended and are remembered.
const ENDED_MAX: usize = 10_000;
/// Bytes that these take. An ordinary one takes some 450.
const ENDED_BYTES_MAX: usize = 8 << 20;
/// Sources whose totals are kept: four times as many as peers were ever tried with. Further ones are not counted.
const TOTALS_MAX: usize = 4_096;

/// How a request for a NAR ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NarOutcome {
    /// It is on its way.
    Running,
    /// Nix got all that it asked for.
    Delivered,
    /// Nix was told 404, and builds or asks elsewhere.
    NotFound,
    /// Nix was told to ask again: who holds it is there, and could not be asked.
    NotNow,
    /// The body ended short, because nobody could send the rest.
    CutShort,
    /// Nix hung up.
    ClientLeft,
}

/// One request for a NAR.
#[derive(Clone, Debug, PartialEq)]
pub struct NarRecord {
    /// Its number; later requests have larger ones.
    pub number: u64,
    /// [`RequestLog::changes`] when it began or ended.
    pub change: u64,
    /// The path.
    pub hash_part: HashPart,
    /// The path's name, if its narinfo was in memory.
    pub name: Option<String>,
    /// NarSize, bytes.
    pub nar_size: u64,
    /// The first byte that Nix asked for.
    pub first_byte: u64,
    /// When it began, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// How long it took, or has taken so far.
    pub took: Duration,
    /// How it ended.
    pub outcome: NarOutcome,
    /// Bytes that Nix got.
    pub given_bytes: u64,
    /// Whether it came from our own store.
    pub is_own: bool,
    /// What each source sent, in the order of their first bytes.
    pub shares: Vec<Share>,
    /// The first sources that were left on the way.
    pub left: Vec<LeftSource>,
    /// How many were left.
    pub left_count: u64,
}

/// What came from one source since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceTotal {
    /// NARs that Nix got whole, and of which this source sent a part.
    pub nars: u64,
    /// Its bytes of these, as Nix got them.
    pub bytes: u64,
    /// All bytes of NARs that it sent, also those that nobody could use.
    pub received_bytes: u64,
    /// How long our requests waited for these, summed over requests: two at once count twice.
    pub waited: Duration,
}

/// Which requests are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestQuery {
    /// Only of this path.
    pub hash_part: Option<HashPart>,
    /// Only those that began or ended after this [`RequestLog::changes`].
    pub after_change: u64,
    /// Only those that began at this time or later, milliseconds since 1970.
    pub since_unix_ms: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct RequestLog {
    log: Mutex<Log>,
    /// Raised whenever a request begins or ends.
    changes: AtomicU64,
}

#[derive(Debug, Default)]
struct Log {
    began: u64,
    running: BTreeMap<u64, Entry>,
    ended: VecDeque<NarRecord>,
    ended_bytes: usize,
    has_forgotten: bool,
    last_delivered: Option<NarRecord>,
    totals: BTreeMap<SourceId, SourceTotal>,
}

/// A request on its way.
#[derive(Debug)]
struct Entry {
    record: NarRecord,
    began: Instant,
    origins: Arc<Origins>,
    given_bytes: Arc<AtomicU64>,
}

impl Entry {
    /// How the request stands now.
    fn record(&self) -> NarRecord {
        let mut record = self.record.clone();
        let now = self.origins.now();
        record.is_own = now.is_own;
        (record.shares, record.left, record.left_count) = (now.shares, now.left, now.left_count);
        record.given_bytes = self.given_bytes.load(Ordering::Relaxed);
        record.took = self.began.elapsed();
        record
    }
}

impl RequestLog {
    /// Notes that Nix asks for a NAR; `name` is that of its path.
    pub(crate) fn begin(self: &Arc<Self>, url: &NarUrl, first_byte: u64, name: Option<String>) -> RunningRequest {
        let (origins, given_bytes) = (Arc::<Origins>::default(), Arc::<AtomicU64>::default());
        let mut log = self.log.lock();
        log.began += 1;
        let number = log.began;
        let record = NarRecord {
            number,
            change: self.change(),
            hash_part: url.hash_part,
            name,
            nar_size: url.nar_size,
            first_byte,
            started_unix_ms: unix_ms(),
            took: Duration::ZERO,
            outcome: NarOutcome::Running,
            given_bytes: 0,
            is_own: false,
            shares: Vec::new(),
            left: Vec::new(),
            left_count: 0,
        };
        let (kept_origins, kept_bytes) = (Arc::clone(&origins), Arc::clone(&given_bytes));
        let entry = Entry { record, began: Instant::now(), origins: kept_origins, given_bytes: kept_bytes };
        log.running.insert(number, entry);
        drop(log);
        let wanted_bytes = url.nar_size.saturating_sub(first_byte);
        RunningRequest::new(Arc::clone(self), number, origins, given_bytes, wanted_bytes)
    }

    /// Notes that a request ended. The second end of a request counts for nothing.
    fn end(&self, number: u64, outcome: NarOutcome) {
        let mut log = self.log.lock();
        let Some(entry) = log.running.remove(&number) else { return };
        let mut record = entry.record();
        (record.outcome, record.change) = (outcome, self.change());
        if outcome == NarOutcome::Delivered {
            for share in &record.shares {
                if let Some(total) = log.total(share.source) {
                    total.nars += 1;
                    total.bytes += share.bytes;
                }
            }
            log.last_delivered = Some(record.clone());
        }
        log.ended_bytes += weight(&record);
        log.ended.push_back(record);
        while (log.ended.len() > ENDED_MAX || log.ended_bytes > ENDED_BYTES_MAX)
            && let Some(oldest) = log.ended.pop_front()
        {
            log.ended_bytes -= weight(&oldest);
            log.has_forgotten = true;
        }
    }

    /// Notes what one question to a source brought, and how long it was waited for.
    pub(crate) fn add_received(&self, source: SourceId, bytes: u64, waited: Duration) {
        let mut log = self.log.lock();
        if let Some(total) = log.total(source) {
            total.received_bytes += bytes;
            total.waited += waited;
        }
    }

    /// Called with the log locked, so that whoever sees a number finds what it stands for.
    fn change(&self) -> u64 {
        self.changes.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A number that rises whenever a request begins or ends.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// The latest `most` requests that `query` and `is_wanted` let through, the newest first; those on their way come
    /// before those that have ended.
    pub fn find(&self, query: &RequestQuery, most: usize, is_wanted: impl Fn(&NarRecord) -> bool) -> Vec<NarRecord> {
        let fits = |record: &NarRecord| {
            query.hash_part.is_none_or(|part| part == record.hash_part)
                && record.change > query.after_change
                && record.started_unix_ms >= query.since_unix_ms
        };
        let log = self.log.lock();
        let running = log.running.values().rev().filter(|entry| fits(&entry.record)).map(Entry::record);
        let ended = log.ended.iter().rev().filter(|record| fits(record));
        let running = running.filter(|record| is_wanted(record));
        running.chain(ended.filter(|record| is_wanted(record)).cloned()).take(most).collect()
    }

    /// The last NAR that Nix got whole.
    pub fn last_delivered(&self) -> Option<NarRecord> {
        self.log.lock().last_delivered.clone()
    }

    /// What came from each source since the start.
    pub fn totals(&self) -> BTreeMap<SourceId, SourceTotal> {
        self.log.lock().totals.clone()
    }

    /// Whether a request that ended was forgotten.
    pub fn has_forgotten(&self) -> bool {
        self.log.lock().has_forgotten
    }
}

impl Log {
    /// The total of a source; none if there are too many already.
    fn total(&mut self, source: SourceId) -> Option<&mut SourceTotal> {
        match self.totals.len() >= TOTALS_MAX {
            true => self.totals.get_mut(&source),
            false => Some(self.totals.entry(source).or_default()),
        }
    }
}

/// Bytes that a request takes while it is remembered.
fn weight(record: &NarRecord) -> usize {
    let name = record.name.as_ref().map_or(0, String::capacity);
    let reasons = record.left.iter().map(|left| left.why.capacity()).sum::<usize>();
    size_of::<NarRecord>()
        + name
        + record.shares.capacity() * size_of::<Share>()
        + record.left.capacity() * size_of::<LeftSource>()
        + reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures::StreamExt;
    use narmesh_protocol::NarHash;

    use crate::nar::{BodyAborted, NarBody};

    fn url(number: u32) -> NarUrl {
        let mut part = [0; 20];
        part[..4].copy_from_slice(&number.to_le_bytes());
        NarUrl::new(HashPart(part), NarHash([1; 32]), 10)
    }

    fn all(log: &RequestLog) -> Vec<NarRecord> {
        log.find(&RequestQuery::default(), usize::MAX, |_| true)
    }

    fn body(chunks: Vec<Result<Bytes, BodyAborted>>) -> NarBody {
        Box::pin(futures::stream::iter(chunks))
    }

    #[tokio::test]
    async fn outcome_is_what_became_of_the_body() {
        let log = Arc::<RequestLog>::default();
        let five = || Ok(Bytes::from_static(b"12345"));
        let whole = log.begin(&url(1), 0, Some("x".to_owned())).follow(body(vec![five(), five()]));
        assert_eq!(whole.count().await, 2);
        let short = log.begin(&url(2), 0, None).follow(body(vec![five(), Err(BodyAborted)]));
        assert_eq!(short.count().await, 2);
        let mut left = log.begin(&url(3), 0, None).follow(body(vec![five(), five()]));
        assert!(left.next().await.is_some());
        drop(left);
        log.begin(&url(4), 0, None).end(NarOutcome::NotFound);
        drop(log.begin(&url(5), 0, None));
        let rest = log.begin(&url(6), 5, None).follow(body(vec![five()]));
        assert_eq!(rest.count().await, 1);
        let running = log.begin(&url(7), 0, None);
        let outcomes: Vec<_> = all(&log).into_iter().map(|record| (record.outcome, record.given_bytes)).collect();
        let expected = [
            (NarOutcome::Running, 0),
            (NarOutcome::Delivered, 5),
            (NarOutcome::ClientLeft, 0),
            (NarOutcome::NotFound, 0),
            (NarOutcome::ClientLeft, 5),
            (NarOutcome::CutShort, 5),
            (NarOutcome::Delivered, 10),
        ];
        assert_eq!(outcomes, expected);
        assert_eq!(log.last_delivered().map(|record| record.hash_part), Some(url(6).hash_part));
        drop(running);
    }

    #[test]
    fn requests_without_end_are_bounded_in_number_and_in_bytes() {
        let log = Arc::<RequestLog>::default();
        for number in 0..25_000 {
            log.begin(&url(number), 0, Some("n".repeat(211))).end(NarOutcome::NotFound);
        }
        assert_eq!(log.log.lock().ended.len(), ENDED_MAX);
        assert!(log.has_forgotten());
        let sources: Vec<_> = (0..5_000).map(|_| SourceId::random()).collect();
        let mut next = sources.iter().cycle();
        for number in 0..6_000 {
            let request = log.begin(&url(number), 0, Some("n".repeat(211)));
            for _ in 0..20 {
                let source = *next.next().unwrap();
                request.origins().add(source, 0, 1);
                request.origins().leave(source, 0, &"w".repeat(1_000));
            }
            request.end(NarOutcome::Delivered);
        }
        let log = log.log.lock();
        assert!(log.ended_bytes <= ENDED_BYTES_MAX && log.ended.len() < ENDED_MAX);
        assert!(log.totals.len() <= TOTALS_MAX);
        assert_eq!(log.ended_bytes, log.ended.iter().map(weight).sum::<usize>());
    }

    #[test]
    fn whoever_asks_for_what_has_changed_misses_nothing() {
        let log = Arc::<RequestLog>::default();
        let first = log.begin(&url(1), 0, None);
        let seen = log.changes();
        let later = |after_change| {
            let query = RequestQuery { after_change, ..RequestQuery::default() };
            log.find(&query, usize::MAX, |_| true).into_iter().map(|record| record.number).collect::<Vec<_>>()
        };
        assert_eq!((later(0), later(seen)), (vec![1], vec![]));
        let second = log.begin(&url(2), 0, None);
        first.end(NarOutcome::NotFound);
        assert_eq!(later(seen), [2, 1]);
        let one = RequestQuery { hash_part: Some(url(2).hash_part), ..RequestQuery::default() };
        assert_eq!(log.find(&one, usize::MAX, |_| true).len(), 1);
        assert_eq!(log.find(&RequestQuery::default(), 1, |_| true).len(), 1);
        drop(second);
    }

    #[test]
    fn only_what_nix_got_whole_counts_as_given() {
        let log = Arc::<RequestLog>::default();
        let source = SourceId::random();
        for outcome in [NarOutcome::Delivered, NarOutcome::CutShort, NarOutcome::ClientLeft] {
            let request = log.begin(&url(1), 0, None);
            request.origins().add(source, 0, 7);
            log.add_received(source, 9, Duration::from_secs(1));
            request.end(outcome);
        }
        let total = SourceTotal { nars: 1, bytes: 7, received_bytes: 27, waited: Duration::from_secs(3) };
        assert_eq!(log.totals(), BTreeMap::from([(source, total)]));
    }
}
