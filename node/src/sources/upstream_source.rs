//! One upstream cache: what it is asked, and what is known of the paths that it has and of the line to it.

use super::pace::Pace;
use moka::sync::Cache;
use narmesh_protocol::wire::NarRequest;
use narmesh_protocol::{HashPart, NarHash, NarInfo, RealisationId, StoreDir, TrustedKeys};
use narmesh_resolver::{Turn, UpstreamId, User};
use narmesh_upstream::{Failure, FailureKind, Memory, NarBody, NarLocation, Upstream, UpstreamSettings};
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
/// The newest measurement counts one in this many in the usual rate of a cache.
const RATE_SHARE: u64 = 4;
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
    pub(super) rate_bytes_s: Mutex<Option<u64>>,
    /// When it last kept a NAR waiting, if it has sent none since.
    kept_waiting: Mutex<Option<Instant>>,
}

impl Source {
    pub(super) fn new(id: UpstreamId, settings: UpstreamSettings) -> Result<Self, Failure> {
        let trusted = Arc::new(settings.trusted.clone());
        Ok(Self {
            id,
            upstream: Arc::new(Upstream::new(settings)?),
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
            rate_bytes_s: Mutex::default(),
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
        let answer = asked.await;
        match &answer {
            Ok(_) => self.pace.on_answer(),
            Err(failure) if failure.kind == FailureKind::RateLimited => self.pace.on_limited(),
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
        self.at_its_pace(self.upstream.nar(location, request.offset, request.nar_size, memory)).await
    }

    pub(super) fn may_have(&self, part: &HashPart) -> bool {
        self.may_be_asked_soon() && !self.misses.contains_key(part)
    }

    /// Whether it is asked within the time that an answer may take.
    pub(super) fn may_be_asked_soon(&self) -> bool {
        match self.upstream.limited_for() {
            Some(pause) => pause <= LIMITED_WAIT_MAX,
            None => self.upstream.may_be_asked(),
        }
    }

    /// Whether it may have the path and does not say now.
    pub(super) fn is_put_off(&self, part: &HashPart) -> bool {
        self.upstream.limited_for().is_some_and(|pause| pause > LIMITED_WAIT_MAX) && !self.misses.contains_key(part)
    }

    pub(super) fn keeps_nars_waiting(&self) -> bool {
        self.kept_waiting.lock().is_some_and(|at| at.elapsed() < ASKED_LAST_FOR)
    }

    pub(super) fn on_received(&self, bytes: u64, elapsed: Duration) {
        if bytes < RATED_BYTES_MIN {
            if elapsed >= KEPT_WAITING {
                *self.kept_waiting.lock() = Some(Instant::now());
            }
            return;
        }
        *self.kept_waiting.lock() = None;
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1);
        let measured = bytes.saturating_mul(1_000_000) / micros;
        let mut rate = self.rate_bytes_s.lock();
        *rate = Some(rate.map_or(measured, |usual| usual - usual / RATE_SHARE + measured / RATE_SHARE));
    }
}
