//! What came from each source on each of the last seven days, kept over restarts.
//!
//! The file is written at most once a minute, and only if something has changed; a daemon that is killed loses what came
//! since. Bounds: [`DAYS`] days, [`SOURCES_PER_DAY_MAX`] sources each (what further ones gave is counted as that of
//! *others*), [`FILE_BYTES_MAX`].

use crate::regular_file;
use crate::state_files::TOTALS_FILE;
use crate::status::given::{DayGiven, Given};
use narmesh_resolver::{SourceId, SourceTotal};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Days that are kept, today included.
const DAYS: u64 = 7;
/// Sources of one day that are told apart.
const SOURCES_PER_DAY_MAX: usize = 1_024;
/// A full file has some 1.2 MB.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Seconds of a day.
const DAY_S: u64 = 86_400;

/// A source as the file names it: it outlives the numbers of a run.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KeptSource {
    /// A peer, by its id.
    Peer(String),
    /// An upstream cache, by its name.
    Cache(String),
    /// Peers beyond the bound.
    OtherPeers,
    /// Upstream caches beyond the bound.
    OtherCaches,
}

impl KeptSource {
    pub(crate) fn is_peer(&self) -> bool {
        matches!(self, Self::Peer(_) | Self::OtherPeers)
    }

    fn others(&self) -> Self {
        if self.is_peer() { Self::OtherPeers } else { Self::OtherCaches }
    }
}

/// What came on the last days.
#[derive(Debug)]
pub(crate) struct GivenTotals {
    file: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    days: Days,
    /// What the resolver had counted when it was last asked.
    counted: BTreeMap<SourceId, SourceTotal>,
    has_changed: bool,
}

type Days = BTreeMap<u64, BTreeMap<KeptSource, Given>>;

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    days: Vec<KeptDay>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptDay {
    day: u64,
    sources: Vec<(KeptSource, Given)>,
}

impl GivenTotals {
    /// Reads the file. One that is missing or cannot be read counts as empty; the log says so.
    pub(crate) fn open(state_dir: &Path) -> Self {
        let file = state_dir.join(TOTALS_FILE);
        let days = match read(&file) {
            Ok(days) => days,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Days::new(),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "what came from each source this week cannot be read, and is counted anew");
                Days::new()
            }
        };
        Self { file, state: Mutex::new(State { days, ..State::default() }) }
    }

    /// Takes in what the resolver has counted until now, and returns it; `name` says what a source is called in the file.
    /// `read` is called with the state locked: of two callers the later one must not bring the older count.
    pub(crate) fn count(
        &self,
        unix_s: u64,
        read: impl FnOnce() -> BTreeMap<SourceId, SourceTotal>,
        name: impl Fn(&SourceId) -> KeptSource,
    ) -> BTreeMap<SourceId, SourceTotal> {
        let today = unix_s / DAY_S;
        let mut state = self.state.lock();
        let totals = read();
        let State { days, counted, has_changed } = &mut *state;
        // A clock that was set back leaves days of the future, which would never go.
        days.retain(|day, _| *day <= today && day + DAYS > today);
        for (source, total) in &totals {
            let before = counted.get(source).copied().unwrap_or_default();
            // The resolver counts from its own start; what it had counted before is in the days already.
            let more = difference(total, &before);
            if more == Given::default() {
                continue;
            }
            *has_changed = true;
            let sources = days.entry(today).or_default();
            let name = name(source);
            let is_full = sources.len() >= SOURCES_PER_DAY_MAX && !sources.contains_key(&name);
            let name = if is_full { name.others() } else { name };
            sources.entry(name).or_default().add(&more);
        }
        counted.clone_from(&totals);
        totals
    }

    /// What came from each source in the last week, and from all on each of its days.
    pub(crate) fn week(&self, unix_s: u64) -> (BTreeMap<KeptSource, Given>, Vec<DayGiven>) {
        let today = unix_s / DAY_S;
        let state = self.state.lock();
        let (mut all, mut days) = (BTreeMap::<KeptSource, Given>::new(), Vec::new());
        for day in today.saturating_sub(DAYS - 1)..=today {
            let mut given = DayGiven { day, ..DayGiven::default() };
            for (source, more) in state.days.get(&day).into_iter().flatten() {
                let bytes = if source.is_peer() { &mut given.from_peers } else { &mut given.from_caches };
                *bytes = bytes.saturating_add(more.bytes);
                all.entry(source.clone()).or_default().add(more);
            }
            days.push(given);
        }
        (all, days)
    }

    /// Writes the file if anything has changed. Blocks.
    pub(crate) fn keep(&self) -> io::Result<()> {
        let text = {
            let mut state = self.state.lock();
            if !std::mem::take(&mut state.has_changed) {
                return Ok(());
            }
            let kept_day = |(day, sources): (&u64, &BTreeMap<KeptSource, Given>)| KeptDay {
                day: *day,
                sources: sources.iter().map(|(source, given)| (source.clone(), *given)).collect(),
            };
            serde_json::to_vec(&Kept { days: state.days.iter().map(kept_day).collect() })?
        };
        regular_file::replace(&self.file, &text, |_| Ok(())).inspect_err(|_| self.state.lock().has_changed = true)
    }
}

fn read(file: &Path) -> io::Result<Days> {
    let too_long = || io::Error::other(format!("more than {FILE_BYTES_MAX} bytes"));
    let text = regular_file::read_text(file, FILE_BYTES_MAX)?.ok_or_else(too_long)?;
    let kept: Kept = serde_json::from_str(&text)?;
    let day = |KeptDay { day, sources }| {
        let bounded = sources.into_iter().take(SOURCES_PER_DAY_MAX + 2);
        (day, bounded.collect())
    };
    Ok(kept.days.into_iter().map(day).collect())
}

/// What was counted since `before`.
fn difference(now: &SourceTotal, before: &SourceTotal) -> Given {
    let waited = now.waited.saturating_sub(before.waited);
    Given {
        nars: now.nars.saturating_sub(before.nars),
        bytes: now.bytes.saturating_sub(before.bytes),
        received_bytes: now.received_bytes.saturating_sub(before.received_bytes),
        waited_us: u64::try_from(waited.as_micros()).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::PeerId;
    use narmesh_resolver::UpstreamId;
    use std::time::Duration;

    fn name(source: &SourceId) -> KeptSource {
        match source {
            SourceId::Peer(peer) => KeptSource::Peer(peer.to_string()),
            SourceId::Upstream(id) => KeptSource::Cache(format!("cache{}", id.0)),
        }
    }

    fn total(bytes: u64) -> SourceTotal {
        SourceTotal { nars: 1, bytes, received_bytes: 2 * bytes, waited: Duration::from_micros(bytes) }
    }

    #[test]
    fn week_is_kept_over_a_restart_and_what_is_older_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (peer, cache) = (SourceId::Peer(PeerId::random()), SourceId::Upstream(UpstreamId(0)));
        let totals = GivenTotals::open(dir.path());
        totals.count(10 * DAY_S, || BTreeMap::from([(peer, total(5)), (cache, total(3))]), name);
        totals.count(10 * DAY_S, || BTreeMap::from([(peer, total(7)), (cache, total(3))]), name);
        totals.keep().unwrap();
        let again = GivenTotals::open(dir.path());
        again.count(12 * DAY_S, || BTreeMap::from([(peer, total(100))]), name);
        let (sources, days) = again.week(12 * DAY_S);
        assert_eq!(sources[&name(&peer)].bytes, 107);
        assert_eq!(sources[&name(&cache)], Given { nars: 1, bytes: 3, received_bytes: 6, waited_us: 3 });
        let shown: Vec<_> = days.iter().map(|day| (day.day, day.from_peers, day.from_caches)).collect();
        assert_eq!(shown, [(6, 0, 0), (7, 0, 0), (8, 0, 0), (9, 0, 0), (10, 7, 3), (11, 0, 0), (12, 100, 0)]);
        again.count(17 * DAY_S, BTreeMap::new, name);
        assert_eq!(again.state.lock().days.keys().collect::<Vec<_>>(), [&12]);
        again.count(3 * DAY_S, BTreeMap::new, name);
        assert!(again.state.lock().days.is_empty(), "days of the future are wrong");
    }

    #[test]
    fn torn_file_counts_as_none_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(TOTALS_FILE);
        for torn in ["", "{\"days\":[{\"day\":1,\"sou", "[]", "{\"days\":[],\"more\":1}"] {
            std::fs::write(&file, torn).unwrap();
            let totals = GivenTotals::open(dir.path());
            assert!(totals.week(DAY_S).0.is_empty());
            totals.count(DAY_S, || BTreeMap::from([(SourceId::Peer(PeerId::random()), total(5))]), name);
            totals.keep().unwrap();
            assert_eq!(GivenTotals::open(dir.path()).week(DAY_S).0.len(), 1);
        }
    }

    #[test]
    fn sources_of_a_day_are_bounded_and_all_bytes_counted() {
        let dir = tempfile::tempdir().unwrap();
        let totals = GivenTotals::open(dir.path());
        let sources = (0..3_000).map(|_| (SourceId::Peer(PeerId::random()), total(1))).collect();
        totals.count(DAY_S, || sources, name);
        let (sources, days) = totals.week(DAY_S);
        assert_eq!((sources.len(), days.last().unwrap().from_peers), (SOURCES_PER_DAY_MAX + 1, 3_000));
        totals.keep().unwrap();
        assert!(std::fs::metadata(dir.path().join(TOTALS_FILE)).unwrap().len() < FILE_BYTES_MAX / 4);
        assert_eq!(GivenTotals::open(dir.path()).week(DAY_S).0.len(), SOURCES_PER_DAY_MAX + 1);
    }
}
