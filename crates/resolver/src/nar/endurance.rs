//! How long a source is borne that nobody can replace: not when the rest would take hours at its pace, nor when it breaks off again
//! and again with little to show for it.

use std::time::Duration;

use crate::source::SourceId;

/// A source that nobody can replace is waited for however slow it is, but not when the rest would take longer than this at its pace:
/// whoever builds the path, or gives up, is done sooner.
const HOPELESS: Duration = Duration::from_secs(6 * 3_600);
/// Its pace is judged after this, so that a line that recovers is given time.
const HOPELESS_AFTER: Duration = Duration::from_secs(20);
/// A source that breaks off so often in a row, having sent less than this each time, is not asked again: it makes Nix wait for nothing.
const FRUITLESS_MAX: u32 = 8;
/// See [`FRUITLESS_MAX`].
const FRUIT_BYTES: u64 = 1 << 20;

/// What one transfer bore of its sources.
#[derive(Debug, Default)]
pub(super) struct Endurance {
    pace: Option<Pace>,
    /// How often each broke off in a row without having sent much.
    fruitless: Vec<(SourceId, u32)>,
}

/// Of one source over all its connections.
#[derive(Clone, Copy, Debug)]
struct Pace {
    source: SourceId,
    /// The first byte of it.
    from: u64,
    /// For how long it was waited for, connected and not in a queue: what a request waits for its turn is no pace.
    sending: Duration,
}

impl Endurance {
    /// So long was waited for this source alone, which goes on from `offset`.
    pub(super) fn waited(&mut self, source: SourceId, offset: u64, wait: Duration) {
        let fresh = Pace { source, from: offset, sending: Duration::ZERO };
        let pace = self.pace.get_or_insert(fresh);
        if pace.source != source {
            *pace = fresh;
        }
        pace.sending += wait;
    }

    /// How long the rest would take at the pace of this source, if that is too long.
    pub(super) fn hopeless(&self, source: SourceId, offset: u64, bytes_left: u64) -> Option<Duration> {
        let pace = self.pace.filter(|pace| pace.source == source && pace.sending >= HOPELESS_AFTER)?;
        let millis = u128::from(bytes_left) * pace.sending.as_millis();
        let millis = millis.checked_div(u128::from(offset.saturating_sub(pace.from)))?;
        let rest = Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
        (rest > HOPELESS).then_some(rest)
    }

    /// A source broke off after so many bytes; whether it did so too often in a row with little to show for it.
    pub(super) fn broke_off(&mut self, source: SourceId, bytes: u64) -> bool {
        let at = self.fruitless.iter().position(|(known, _)| *known == source);
        let at = at.unwrap_or_else(|| {
            self.fruitless.push((source, 0));
            self.fruitless.len() - 1
        });
        let Some((_, times)) = self.fruitless.get_mut(at) else { return false };
        *times = if bytes < FRUIT_BYTES { *times + 1 } else { 0 };
        *times > FRUITLESS_MAX
    }

    /// The NAR is begun anew.
    pub(super) fn begin_anew(&mut self) {
        self.pace = None;
    }
}
