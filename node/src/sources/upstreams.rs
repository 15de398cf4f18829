//! The upstream caches as sources of the resolver: each may have any path, and says so only when it is asked.

use super::pace::Pace;
use futures::future::BoxFuture;
use moka::sync::Cache;
use narmesh_protocol::wire::{NarInfoReply, NarRequest};
use narmesh_protocol::{HashPart, NarHash, NarInfo, StoreDir, TrustedKeys};
use narmesh_resolver::{
    Candidate, Line, NarFeed, NoAnswer, Observation, Piece, SourceId, SourceTurn, Turn, UpstreamId, User,
};
use narmesh_upstream::{Failure, FailureKind, NarBody, NarLocation, Upstream, UpstreamSettings};
use parking_lot::{Mutex, RwLock};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
/// For how long: what is put into a cache meanwhile is found a little later, and Nix, which forgets misses at once as
/// `narmesh init` sets it up, does not ask the internet for each path of each build again.
const MISSES_FOR: Duration = Duration::from_secs(60);
/// The newest measurement counts one in this many in the usual rate of a cache.
const RATE_SHARE: u64 = 4;
/// A shorter transfer says more about latency than about the rate.
const RATED_BYTES_MIN: u64 = 64 << 10;
/// How often a NAR is requested of the only cache that is not down, if it fails: one 500 does not mean that the NAR is gone.
/// As many failures in a row take it down.
const TRIES_MAX: u32 = 3;
/// The pause before the second of these requests; it doubles.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// A cache that sent less than that in so long kept a NAR waiting: it is then that another source is tried beside it.
const KEPT_WAITING: Duration = Duration::from_secs(1);
/// For so long it is then asked for NARs after all others, or each NAR would wait for it.
const ASKED_LAST_FOR: Duration = Duration::from_secs(15);

/// A narinfo is waited for if its cache, which was asked too much, answers again within this: the usual
/// `narinfo_deadline_max_ms`.
const LIMITED_WAIT_MAX: Duration = Duration::from_secs(10);
/// A NAR is waited for if its cache answers again within this: for so long Nix can be kept waiting.
const LIMITED_NAR_WAIT_MAX: Duration = Duration::from_secs(100);

/// All configured caches.
#[derive(Debug)]
pub(crate) struct UpstreamSources {
    store_dir: StoreDir,
    configured: RwLock<Arc<[Arc<Source>]>>,
    /// The names of all caches since the start; the place of a name is its id.
    names: Mutex<Vec<String>>,
}

/// One cache, and what is known of the line to it.
#[derive(Debug)]
struct Source {
    id: UpstreamId,
    upstream: Arc<Upstream>,
    trusted: Arc<TrustedKeys>,
    locations: Cache<HashPart, (NarHash, NarLocation)>,
    /// Paths that it said lately it does not have.
    misses: Cache<HashPart, ()>,
    pace: Pace,
    in_flight: AtomicUsize,
    last_received: Mutex<Option<Instant>>,
    rate_bytes_s: Mutex<Option<u64>>,
    /// When it last kept a NAR waiting, if it has sent none since.
    kept_waiting: Mutex<Option<Instant>>,
}

impl UpstreamSources {
    pub(crate) fn new(store_dir: StoreDir) -> Self {
        Self { store_dir, configured: RwLock::new(Arc::new([])), names: Mutex::default() }
    }

    /// Makes the clients for these settings; a cache whose settings stay the same keeps its connections and its health.
    /// Nothing changes before [`PreparedUpstreams`] is put in force.
    pub(crate) fn prepare(&self, settings: Vec<UpstreamSettings>) -> Result<PreparedUpstreams, Failure> {
        let known = Arc::clone(&self.configured.read());
        let made = settings.into_iter().map(|settings| {
            if let Some(same) = known.iter().find(|source| *source.upstream.settings() == settings) {
                return Ok(Arc::clone(same));
            }
            let (id, trusted) = (self.id_of(&settings.name), Arc::new(settings.trusted.clone()));
            Ok(Arc::new(Source {
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
                pace: Pace::default(),
                in_flight: AtomicUsize::new(0),
                last_received: Mutex::default(),
                rate_bytes_s: Mutex::default(),
                kept_waiting: Mutex::default(),
            }))
        });
        made.collect::<Result<Arc<[_]>, _>>().map(PreparedUpstreams)
    }

    /// Puts in force what was prepared.
    pub(crate) fn put_in_force(&self, prepared: PreparedUpstreams) {
        // Who reloads may have put something into a cache just now.
        prepared.0.iter().for_each(|source| source.misses.invalidate_all());
        *self.configured.write() = prepared.0;
    }

    fn id_of(&self, name: &str) -> UpstreamId {
        let mut names = self.names.lock();
        let index = names.iter().position(|known| known == name).unwrap_or_else(|| {
            names.push(name.to_owned());
            names.len() - 1
        });
        // After 65,535 reloads that each name another cache, the last ones share an id, which `why` alone shows.
        UpstreamId(u16::try_from(index).unwrap_or(u16::MAX))
    }

    /// The configured caches, in the order of the configuration.
    pub(crate) fn all(&self) -> Vec<(UpstreamId, Arc<Upstream>)> {
        self.configured.read().iter().map(|source| (source.id, Arc::clone(&source.upstream))).collect()
    }

    fn find(&self, id: UpstreamId) -> Option<Arc<Source>> {
        self.configured.read().iter().find(|source| source.id == id).cloned()
    }

    pub(super) fn is_configured(&self, id: UpstreamId) -> bool {
        self.configured.read().iter().any(|source| source.id == id)
    }

    /// Whether any may have the path, as far as is known without asking.
    pub(super) fn may_any_have(&self, part: &HashPart) -> bool {
        self.configured.read().iter().any(|source| source.may_have(part) || source.is_put_off(part))
    }

    /// The caches that are not down and did not deny the path lately: silent ones last, before them lower tiers first, and in a tier the quickest first.
    pub(super) fn candidates(&self, part: &HashPart) -> Vec<Candidate> {
        let configured = Arc::clone(&self.configured.read());
        let mut usable: Vec<_> = configured.iter().filter(|source| source.may_have(part)).collect();
        usable.sort_by_key(|source| {
            let latency = source.upstream.latency().map_or(Duration::ZERO, |latency| latency.mean());
            (source.upstream.is_silent(), source.upstream.settings().tier, latency)
        });
        usable.iter().map(|source| Candidate { source: SourceId::Upstream(source.id), summary_epoch: 0 }).collect()
    }

    /// The caches that may have the path and want to be left alone for longer than a lookup lasts: whether they have it
    /// is not known.
    pub(super) fn paused(&self, part: &HashPart) -> Vec<Candidate> {
        let configured = self.configured.read();
        let put_off = configured.iter().filter(|source| source.is_put_off(part));
        put_off.map(|source| Candidate { source: SourceId::Upstream(source.id), summary_epoch: 0 }).collect()
    }

    /// Waits until the cache may be asked, and this user has his turn there.
    pub(super) fn take_turn(&self, id: UpstreamId, user: User) -> BoxFuture<'static, Option<SourceTurn>> {
        let source = self.find(id);
        Box::pin(async move {
            let turn = source?.take_turn(user, LIMITED_WAIT_MAX).await?;
            Some(Box::new(turn) as SourceTurn)
        })
    }

    pub(super) fn trusted_keys(&self, id: UpstreamId) -> Arc<TrustedKeys> {
        self.find(id).map(|source| Arc::clone(&source.trusted)).unwrap_or_default()
    }

    pub(super) fn ask(&self, id: UpstreamId, part: HashPart) -> BoxFuture<'static, Result<NarInfoReply, NoAnswer>> {
        let (source, store_dir) = (self.find(id), self.store_dir.clone());
        Box::pin(async move {
            let source = source.ok_or_else(|| NoAnswer::Failed("no longer configured".to_owned()))?;
            match source.ask(&part, &store_dir).await {
                Ok(Some(text)) => Ok(NarInfoReply::Found(text)),
                Ok(None) => Ok(NarInfoReply::Absent),
                Err(failure) if failure.kind == FailureKind::RateLimited => Err(NoAnswer::NotYet(failure.to_string())),
                // What is wrong with one path is so the next time, too.
                Err(failure) if failure.kind.is_of_cache() && source.upstream.may_be_asked() => {
                    Err(NoAnswer::FailedForNow(failure.to_string()))
                }
                Err(failure) => Err(NoAnswer::Failed(failure.to_string())),
            }
        })
    }

    pub(super) fn request(
        &self,
        id: UpstreamId,
        request: NarRequest,
    ) -> BoxFuture<'static, io::Result<Box<dyn NarFeed>>> {
        let (source, store_dir) = (self.find(id), self.store_dir.clone());
        let configured = Arc::clone(&self.configured.read());
        Box::pin(async move {
            let source = source.ok_or_else(|| io::Error::other("no longer configured"))?;
            let under_way = UnderWay::begin(source);
            let mut failures = 0;
            let feed = loop {
                match under_way.0.request(&request, &store_dir).await {
                    Ok(body) => break Feed::of(body),
                    Err(failure) if failure.kind == FailureKind::RateLimited => {
                        break Feed::PutOff { request, store_dir, since: Instant::now() };
                    }
                    Err(failure) => {
                        failures += 1;
                        // Where another cache may have it, that one is asked at once.
                        let usable = configured.iter().filter(|source| source.upstream.may_be_asked());
                        let is_only = under_way.0.upstream.may_be_asked() && usable.count() == 1;
                        if !(is_only && failure.kind.is_of_cache() && failures < TRIES_MAX) {
                            return Err(io::Error::other(failure));
                        }
                        tokio::time::sleep(RETRY_PAUSE * 2_u32.pow(failures - 1)).await;
                    }
                }
            };
            Ok(Box::new(UpstreamFeed { feed, under_way }) as Box<dyn NarFeed>)
        })
    }

    pub(super) fn line(&self, id: UpstreamId) -> Line {
        let Some(source) = self.find(id) else { return Line::default() };
        Line {
            received_bytes: source.upstream.received_bytes(),
            last_received: *source.last_received.lock(),
            in_flight: source.in_flight.load(Ordering::Relaxed),
            rate_bytes_s: *source.rate_bytes_s.lock(),
            latency: source.upstream.latency().map(|latency| latency.mean()),
            is_awaited: true,
            is_reserve: false,
            is_paused: source.upstream.is_silent() || source.keeps_nars_waiting(),
            tier: source.upstream.settings().tier,
        }
    }

    pub(super) fn observe(&self, id: UpstreamId, observation: Observation) {
        let Some(source) = self.find(id) else { return };
        let fail = |kind, detail: &str| source.upstream.note_failure(Failure::new(kind, detail));
        match observation {
            Observation::FalseNarInfo => fail(FailureKind::BadNarInfo, "its narinfo breaks a rule"),
            Observation::UntrustedNarInfo => fail(FailureKind::Untrusted, "none of its keys signed its narinfo"),
            Observation::FalseNar => fail(FailureKind::BadNar, "its NAR is not the one that its narinfo promises"),
            Observation::TimedOut => fail(FailureKind::Timeout, "no answer before the deadline of the lookup"),
            Observation::Received { bytes, elapsed, .. } => source.on_received(bytes, elapsed),
            // A frozen cache is thereby asked after those that answer. It would never count as down: whoever answers first
            // ends its question.
            Observation::Overtaken(waited) => source.upstream.note_overtaken(waited),
            // The request itself has counted its failure, if it was one.
            Observation::Unfinished => {}
            Observation::Asked | Observation::Held | Observation::FalseHit => {}
        }
    }
}

/// Caches that a reload is about to put in force.
#[derive(Debug)]
pub(crate) struct PreparedUpstreams(Arc<[Arc<Source>]>);

impl Source {
    /// Waits until the cache may be asked, and this user has his turn; `None` if the cache wants to be left alone for
    /// longer than `wait_max`.
    async fn take_turn(&self, user: User, wait_max: Duration) -> Option<Turn> {
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
    async fn at_its_pace<T>(&self, asked: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let answer = asked.await;
        match &answer {
            Ok(_) => self.pace.on_answer(),
            Err(failure) if failure.kind == FailureKind::RateLimited => self.pace.on_limited(),
            Err(_) => {}
        }
        answer
    }

    /// Asks for a narinfo, and remembers where its NAR is.
    async fn ask(&self, part: &HashPart, store_dir: &StoreDir) -> Result<Option<Vec<u8>>, Failure> {
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

    /// Requests a NAR; `None` if the cache has no such NAR for the path.
    async fn request(&self, request: &NarRequest, store_dir: &StoreDir) -> Result<Option<NarBody>, Failure> {
        let NarRequest { hash_part, nar_hash, nar_size, offset, .. } = *request;
        if !self.locations.contains_key(&hash_part) {
            // Perhaps its narinfo came from a peer.
            self.ask(&hash_part, store_dir).await?;
        }
        match self.locations.get(&hash_part) {
            Some((known, location)) if known == nar_hash => {
                self.at_its_pace(self.upstream.nar(&location, offset, nar_size)).await
            }
            Some(_) | None => Ok(None),
        }
    }

    fn may_have(&self, part: &HashPart) -> bool {
        let may_be_asked = match self.upstream.limited_for() {
            Some(pause) => pause <= LIMITED_WAIT_MAX,
            None => self.upstream.may_be_asked(),
        };
        may_be_asked && !self.misses.contains_key(part)
    }

    /// Whether it may have the path and does not say now.
    fn is_put_off(&self, part: &HashPart) -> bool {
        self.upstream.limited_for().is_some_and(|pause| pause > LIMITED_WAIT_MAX) && !self.misses.contains_key(part)
    }

    fn keeps_nars_waiting(&self) -> bool {
        self.kept_waiting.lock().is_some_and(|at| at.elapsed() < ASKED_LAST_FOR)
    }

    fn on_received(&self, bytes: u64, elapsed: Duration) {
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

/// One request under way at a cache.
#[derive(Debug)]
struct UnderWay(Arc<Source>);

impl UnderWay {
    fn begin(source: Arc<Source>) -> Self {
        source.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(source)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A NAR from a cache.
#[derive(Debug)]
struct UpstreamFeed {
    feed: Feed,
    under_way: UnderWay,
}

#[derive(Debug)]
enum Feed {
    /// The cache does not have it.
    Absent,
    Body(NarBody),
    /// The cache wants to be asked later.
    PutOff {
        request: NarRequest,
        store_dir: StoreDir,
        since: Instant,
    },
}

impl Feed {
    fn of(body: Option<NarBody>) -> Self {
        body.map_or(Self::Absent, Self::Body)
    }
}

impl UpstreamFeed {
    /// Asks the cache again when it may be asked. Returns how many seconds are left until then, at least once a second.
    async fn wait_or_ask_again(&mut self) -> io::Result<Option<u32>> {
        const LOOK_AGAIN: Duration = Duration::from_secs(1);
        let Feed::PutOff { request, store_dir, since } = &mut self.feed else { return Ok(None) };
        let source = &self.under_way.0;
        let pause = source.upstream.limited_for().unwrap_or_default();
        if since.elapsed() + pause > LIMITED_NAR_WAIT_MAX {
            return Err(io::Error::other(format!("is to be asked in {} s", pause.as_secs())));
        }
        tokio::time::sleep(pause.min(LOOK_AGAIN)).await;
        let turn = match source.upstream.limited_for() {
            None => tokio::time::timeout(LOOK_AGAIN, source.pace.take(None)).await.ok(),
            Some(_) => None,
        };
        let pause = source.upstream.limited_for();
        let (Some(turn), None) = (turn, pause) else {
            let seconds = pause.unwrap_or_default().as_secs().saturating_add(1);
            return Ok(Some(u32::try_from(seconds).unwrap_or(u32::MAX)));
        };
        let asked = source.request(request, store_dir).await;
        drop(turn);
        match asked {
            Ok(body) => self.feed = Feed::of(body),
            Err(failure) if failure.kind == FailureKind::RateLimited => return Ok(Some(1)),
            Err(failure) => return Err(io::Error::other(failure)),
        }
        Ok(None)
    }
}

impl NarFeed for UpstreamFeed {
    fn next<'a>(&'a mut self, out: &'a mut Vec<u8>, bytes_max: u64) -> BoxFuture<'a, io::Result<Piece>> {
        Box::pin(async move {
            if let Some(place) = self.wait_or_ask_again().await? {
                return Ok(Piece::NotNow { place });
            }
            let Feed::Body(body) = &mut self.feed else { return Ok(Piece::Absent) };
            match body.read(out, bytes_max).await {
                Ok(0) => Ok(Piece::Complete),
                Ok(_) => {
                    *self.under_way.0.last_received.lock() = Some(Instant::now());
                    Ok(Piece::Data)
                }
                // Charged already, and asking again would bring the same file.
                Err(failure) if failure.kind == FailureKind::BadNar => {
                    Err(io::Error::new(io::ErrorKind::InvalidInput, failure))
                }
                Err(failure) => Err(io::Error::other(failure)),
            }
        })
    }

    fn wire_bytes(&self) -> u64 {
        match &self.feed {
            Feed::Body(body) => body.wire_bytes(),
            Feed::Absent | Feed::PutOff { .. } => 0,
        }
    }
}
