//! How long a transfer bears with a source that nobody can replace: not if the rest would take hours at its pace, nor
//! if it breaks off again and again after sending little.

use std::time::Duration;

use crate::source::SourceId;

/// A source that nobody can replace is waited for however slow it is, unless the rest would take longer than this at
/// its pace: building the path, or giving up, is quicker.
const HOPELESS: Duration = Duration::from_secs(6 * 3_600);
/// Its pace is judged only after this time, so that a line has time to recover.
const HOPELESS_AFTER: Duration = Duration::from_secs(20);
/// A source that breaks off more often than this in a row, each time after less than [`FRUIT_BYTES`], is not asked
/// again: it makes Nix wait for nothing.
const FRUITLESS_MAX: u32 = 8;
/// A source that sent this many bytes before it broke off was worth asking.
const FRUIT_BYTES: u64 = 1 << 20;

/// What one transfer has borne from its sources.
#[derive(Debug, Default)]
pub(super) struct Endurance {
    pace: Option<SourcePace>,
    /// How often in a row each source broke off without having sent much.
    fruitless: Vec<(SourceId, u32)>,
    /// Why each source could not be asked, as last seen.
    unreached: Vec<(SourceId, String)>,
}

/// The pace of one source over all its connections.
#[derive(Clone, Copy, Debug)]
struct SourcePace {
    source: SourceId,
    /// The offset at which this source began.
    from: u64,
    /// How long we waited for it while it was connected and our request was not in a queue: waiting for a turn says
    /// nothing about the pace.
    sending: Duration,
}

impl Endurance {
    /// Notes that we waited this long for `source` alone, which goes on from `offset`.
    pub(super) fn add_wait(&mut self, source: SourceId, offset: u64, wait: Duration) {
        let fresh = SourcePace { source, from: offset, sending: Duration::ZERO };
        let pace = self.pace.get_or_insert(fresh);
        if pace.source != source {
            *pace = fresh;
        }
        pace.sending += wait;
    }

    /// How long the rest would take at the pace of this source, if that is too long to wait for.
    pub(super) fn hopeless_wait(&self, source: SourceId, offset: u64, bytes_left: u64) -> Option<Duration> {
        let pace = self.pace.filter(|pace| pace.source == source && pace.sending >= HOPELESS_AFTER)?;
        let millis = u128::from(bytes_left) * pace.sending.as_millis();
        let millis = millis.checked_div(u128::from(offset.saturating_sub(pace.from)))?;
        let rest = Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
        (rest > HOPELESS).then_some(rest)
    }

    /// Notes that a source broke off after `bytes`. Returns whether it has done so too often in a row after sending
    /// little.
    pub(super) fn on_broke_off(&mut self, source: SourceId, bytes: u64) -> bool {
        let at = self.fruitless.iter().position(|(known, _)| *known == source);
        let at = at.unwrap_or_else(|| {
            self.fruitless.push((source, 0));
            self.fruitless.len() - 1
        });
        let Some((_, times)) = self.fruitless.get_mut(at) else { return false };
        // One that sends much before it breaks off brings the NAR on, however often it does so.
        *times = if bytes < FRUIT_BYTES { *times + 1 } else { 0 };
        *times > FRUITLESS_MAX
    }

    /// Notes why a source cannot be asked. Returns whether that is another reason than the last time.
    pub(super) fn note_unreached(&mut self, source: SourceId, why: &str) -> bool {
        match self.unreached.iter_mut().find(|(known, _)| *known == source) {
            Some((_, before)) if before == why => false,
            Some((_, before)) => {
                why.clone_into(before);
                true
            }
            None => {
                self.unreached.push((source, why.to_owned()));
                true
            }
        }
    }

    /// Forgets the pace, because the NAR is begun anew.
    pub(super) fn begin_anew(&mut self) {
        self.pace = None;
    }
}
