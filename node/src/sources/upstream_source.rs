//! One upstream cache: what it is asked, and what is known of the paths that it has and of the line to it.

use super::pace::Pace;
use moka::sync::Cache;
use narmesh_protocol::wire::NarRequest;
use narmesh_protocol::{HashPart, NarHash, NarInfo, RealisationId, StoreDir, TrustedKeys};
use narmesh_resolver::{Turn, UpstreamId, User};
use narmesh_upstream::{Chains, Failure, FailureKind, Memory, NarBody, NarLocation, Upstream, UpstreamSettings};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;
use tokio::time::Instant;

/// Memory for where the NARs of paths are, bytes for each cache.
const LOCATIONS_BYTES_MAX: u64 = 4 << 20;
/// Memory of one such entry beside its URL, bytes. A guess, not measured.
const LOCATION_BYTES: usize = 250;
/// For how long; a narinfo that is older is asked for again.
const LOCATIONS_FOR: Duration = Duration::from_secs(3_600);
/// For how many paths it is remembered that a cache does not have them.
const MISSES_MAX: u64 = 65_536;
/// The same for outputs of derivations; each takes up to 400 bytes.
const REALISATION_MISSES_MAX: u64 = 16_384;
/// For how long: what is put into a cache meanwhile is found a little later, and Nix, which forgets misses at once as
/// `narmesh init` sets it up, does not ask the internet for each path of each build again.
const MISSES_FOR: Duration = Duration::from_secs(60);
/// Of earlier transfers, so many bytes count beside the newest one in the usual rate of a cache. What took long counts for
/// more than what did not: that a small file came at once says little about a larger one.
const RATED_BYTES_MAX: u64 = 1 << 20;
/// A rate that was not measured for so long is forgotten: a cache that was slow is tried again.
const RATE_FOR: Duration = Duration::from_secs(60);
/// A shorter transfer says more about latency than about the rate.
const RATED_BYTES_MIN: u64 = 64 << 10;
/// A cache that sent less than that in so long kept a NAR waiting: it is then that another source is tried beside it.
const KEPT_WAITING: Duration = Duration::from_secs(1);
/// For so long it is then asked for NARs after all others, or each NAR would wait for it.
const ASKED_LAST_FOR: Duration = Duration::from_secs(15);
/// A narinfo is waited for if its cache, which was asked too much, answers again within this: the usual
/// `narinfo_deadline_max_ms`.
pub(super) const LIMITED_WAIT_MAX: Duration = Duration::from_secs(10);

/// One cache, and what is known of the line to it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) id: UpstreamId,
    pub(super) upstream: Arc<Upstream>,
    pub(super) trusted: Arc<TrustedKeys>,
    locations: Cache<HashPart, (NarHash, NarLocation)>,
    /// Paths that it said lately it does not have.
    pub(super) misses: Cache<HashPart, ()>,
    /// Outputs that it said lately it does not know, or of which nobody that counts signed what it knows.
    pub(super) realisation_misses: Cache<RealisationId, ()>,
    pub(super) pace: Pace,
    pub(super) in_flight: AtomicUsize,
    pub(super) last_received: Mutex<Option<Instant>>,
    rate: Mutex<Option<Rate>>,
    /// When it last kept a NAR waiting, if it has sent none since.
    kept_waiting: Mutex<Option<Instant>>,
}

impl Source {
    pub(super) fn new(id: UpstreamId, settings: UpstreamSettings, chains: Chains) -> Result<Self, Failure> {
        let trusted = Arc::new(settings.trusted.clone());
        Ok(Self {
            id,
            upstream: Upstream::in_chains(settings, chains)?,
            trusted,
            locations: Cache::builder()
                .max_capacity(LOCATIONS_BYTES_MAX)
                .weigher(|_, (_, location): &(NarHash, NarLocation)| {
                    u32::try_from(LOCATION_BYTES + location.url.len()).unwrap_or(u32::MAX)
                })
                .time_to_live(LOCATIONS_FOR)
                .build(),
            misses: Cache::builder().max_capacity(MISSES_MAX).time_to_live(MISSES_FOR).build(),
            realisation_misses: Cache::builder().max_capacity(REALISATION_MISSES_MAX).time_to_live(MISSES_FOR).build(),
            pace: Pace::default(),
            in_flight: AtomicUsize::new(0),
            last_received: Mutex::default(),
            rate: Mutex::default(),
            kept_waiting: Mutex::default(),
        })
    }

    /// Waits until the cache may be asked, and this user has his turn; `None` if the cache wants to be left alone for
    /// longer than `wait_max`.
    pub(super) async fn take_turn(&self, user: User, wait_max: Duration) -> Option<Turn> {
        loop {
            // Whoever waits for that takes nobody's turn.
            while let Some(pause) = self.upstream.limited_for() {
                if pause > wait_max {
                    return None;
                }
                tokio::time::sleep(pause).await;
            }
            let turn = self.pace.take(user).await;
            if self.upstream.limited_for().is_none() {
                return Some(turn);
            }
        }
    }

    /// Asks, and notes whether that was too much.
    pub(super) async fn at_its_pace<T>(&self, asked: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let since = Instant::now();
        let answer = asked.await;
        match &answer {
            Ok(_) => self.pace.on_answer(),
            Err(failure) if failure.kind == FailureKind::RateLimited => self.pace.on_limited(since),
            Err(_) => {}
        }
        answer
    }

    /// Asks for a narinfo, and remembers where its NAR is.
    pub(super) async fn ask(&self, part: &HashPart, store_dir: &StoreDir) -> Result<Option<Vec<u8>>, Failure> {
        let Some(text) = self.at_its_pace(self.upstream.narinfo(part)).await? else {
            self.misses.insert(*part, ());
            return Ok(None);
        };
        let judged = NarInfo::parse(store_dir, &text).map_err(|error| error.to_string());
        let judged = judged.and_then(|info| {
            let location = NarLocation::parse(&String::from_utf8_lossy(&text)).map_err(|error| error.to_string())?;
            Ok((info, location))
        });
        let (info, location) = match judged {
            Ok(judged) => judged,
            Err(why) => {
                let failure = Failure::new(FailureKind::BadNarInfo, why);
                self.upstream.note_failure(failure.clone());
                return Err(failure);
            }
        };
        // As if it were not there: the operator takes nothing of that name from this cache.
        if !self.upstream.settings().allows(info.path.name()) {
            self.misses.insert(*part, ());
            return Ok(None);
        }
        self.locations.insert(*part, (info.nar_hash, location));
        Ok(Some(text))
    }

    /// Where the NAR is; `None` if the cache has no such NAR for the path.
    pub(super) async fn locate(
        &self,
        request: &NarRequest,
        store_dir: &StoreDir,
    ) -> Result<Option<NarLocation>, Failure> {
        let NarRequest { hash_part, nar_hash, .. } = *request;
        if !self.locations.contains_key(&hash_part) {
            // Perhaps its narinfo came from a peer.
            self.ask(&hash_part, store_dir).await?;
        }
        let known = self.locations.get(&hash_part).filter(|(known, _)| *known == nar_hash);
        Ok(known.map(|(_, location)| location))
    }

    /// Requests the NAR that is there; `None` if the cache does not have it.
    pub(super) async fn open(
        &self,
        location: &NarLocation,
        request: &NarRequest,
        memory: Memory,
    ) -> Result<Option<NarBody>, Failure> {
        self.at_its_pace(self.upstream.nar((&request.hash_part, location), request.offset, request.nar_size, memory))
            .await
    }

    pub(super) fn may_have(&self, part: &HashPart) -> bool {
        self.may_be_asked_soon() && !self.misses.contains_key(part)
    }

    /// Whether it is asked within the time that an answer may take.
    pub(super) fn may_be_asked_soon(&self) -> bool {
        match self.upstream.limited_for() {
            Some(pause) => pause <= LIMITED_WAIT_MAX,
            None => self.upstream.may_be_asked() || self.is_back_soon(),
        }
    }

    /// Whether it is down and may be back within a moment. Has it tried again.
    fn is_back_soon(&self) -> bool {
        self.upstream.note_wanted();
        self.upstream.may_be_back_soon()
    }

    /// Whether the next request may be answered after this failure.
    pub(super) fn may_answer_soon(&self, failure: &Failure) -> bool {
        failure.kind.is_of_cache() && (self.upstream.may_be_asked() || self.upstream.may_be_back_soon())
    }

    /// Whether it may have the path and does not say now.
    pub(super) fn is_put_off(&self, part: &HashPart) -> bool {
        self.upstream.limited_for().is_some_and(|pause| pause > LIMITED_WAIT_MAX) && !self.misses.contains_key(part)
    }

    pub(super) fn keeps_nars_waiting(&self) -> bool {
        self.kept_waiting.lock().is_some_and(|at| at.elapsed() < ASKED_LAST_FOR)
    }

    pub(super) fn on_received(&self, bytes: u64, elapsed: Duration) {
        // Of a few bytes, the time is that of the request and not of the line.
        if bytes < RATED_BYTES_MIN {
            if elapsed >= KEPT_WAITING {
                *self.kept_waiting.lock() = Some(Instant::now());
            }
            return;
        }
        *self.kept_waiting.lock() = None;
        let mut rate = self.rate.lock();
        let earlier = rate.filter(Rate::is_fresh).unwrap_or_default();
        *rate = Some(earlier.after(bytes, elapsed));
    }

    /// The usual rate of one request, bytes per second, if it was measured lately.
    pub(super) fn rate_bytes_s(&self) -> Option<u64> {
        self.rate.lock().filter(Rate::is_fresh).map(|rate| rate.bytes_s())
    }
}

/// What the last transfers of a cache brought, and what time they took.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    bytes: u64,
    micros: u64,
    measured: Option<Instant>,
}

impl Rate {
    fn is_fresh(&self) -> bool {
        self.measured.is_some_and(|at| at.elapsed() < RATE_FOR)
    }

    /// With one more transfer.
    fn after(self, bytes: u64, elapsed: Duration) -> Self {
        // What is older than this counts ever less, so that the rate follows the line.
        let kept = self.bytes.min(RATED_BYTES_MAX);
        let micros = u128::from(self.micros) * u128::from(kept) / u128::from(self.bytes.max(1));
        let took = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        Self {
            bytes: kept.saturating_add(bytes),
            micros: u64::try_from(micros).unwrap_or(u64::MAX).saturating_add(took),
            measured: Some(Instant::now()),
        }
    }

    fn bytes_s(&self) -> u64 {
        u64::try_from(u128::from(self.bytes) * 1_000_000 / u128::from(self.micros.max(1))).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rate_follows_what_takes_long_and_is_forgotten_after_a_while() {
        let slow = Rate::default().after(1_000_000, Duration::from_secs(5));
        assert_eq!(slow.bytes_s(), 200_000);
        let burst = slow.after(100_000, Duration::from_millis(2));
        assert!((200_000..250_000).contains(&burst.bytes_s()), "{}", burst.bytes_s());
        let quick = (0..8).fold(slow, |rate, _| rate.after(4_000_000, Duration::from_millis(40)));
        assert!(quick.bytes_s() > 50_000_000, "{}", quick.bytes_s());
        assert!(quick.is_fresh());
        tokio::time::advance(RATE_FOR).await;
        assert!(!quick.is_fresh());
    }
}
