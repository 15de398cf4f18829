//! One cache: what it is asked, and what its answers say about its health.

use crate::chain::Chains;
use crate::decode::Compression;
use crate::directory::Directory;
use crate::failure::{Failure, FailureKind};
use crate::health::{Health, HealthReport};
use crate::http::{Http, Purpose, Refusal, refusal_of};
use crate::latency::Latency;
use crate::location::NarLocation;
use crate::memory::Memory;
use crate::nar_body::{BodyObserver, Contents, FileEnd, NarBody, Packed, body_of, file_of};
use crate::received::Received;
use crate::settings::{Place, UpstreamSettings};
use futures::StreamExt as _;
use narmesh_protocol::{HashPart, NarInfo, Realisation, RealisationId, circle};
use parking_lot::Mutex;
use reqwest::StatusCode;
use reqwest::header::{DATE, HeaderValue};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Longest `nix-cache-info` that is read, bytes.
const CACHE_INFO_BYTES_MAX: usize = 64 << 10;
/// While it is waited until a cache is tried again, it is looked this often whether it is still configured.
const TRY_LOOK: Duration = Duration::from_secs(5);

/// One HTTP cache or directory.
#[derive(Debug)]
pub struct Upstream {
    settings: UpstreamSettings,
    transport: Transport,
    health: Mutex<Health>,
    received_bytes: AtomicU64,
    trial: Trial,
    /// Whether the log says that it is part of a circle.
    is_circle_told: AtomicBool,
}

/// What is needed to try whether a cache that is down is back.
#[derive(Debug, Default)]
struct Trial {
    /// Whether a task does.
    is_under_way: AtomicBool,
    /// Told when somebody wants something of the cache.
    wanted: Notify,
    /// The file that was last asked for in vain: others of the same cache may be answered all the while.
    file: Mutex<Option<String>>,
}

#[derive(Debug)]
enum Transport {
    Http(Http),
    Directory(Directory),
}

/// The `nix-cache-info` of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheInfo {
    /// The store directory that its paths are of.
    pub store_dir: Option<String>,
    /// How long the answer took.
    pub took: Duration,
    /// The id of the process that answered, if it is a narmesh daemon.
    pub daemon: Option<String>,
    /// What time it is there, as the answer's `Date` says, unparsed.
    pub date: Option<String>,
}

impl Upstream {
    /// Makes the client of a cache; contacts nobody.
    ///
    /// # Errors
    /// A failure of kind [`FailureKind::Tls`] or [`FailureKind::Unauthorized`] if certificates or credentials cannot be
    /// used.
    pub fn new(settings: UpstreamSettings) -> Result<Arc<Self>, Failure> {
        Self::in_chains(settings, Chains::default())
    }

    /// The same, of a process that others may ask as well.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn in_chains(settings: UpstreamSettings, chains: Chains) -> Result<Arc<Self>, Failure> {
        let transport = match &settings.place {
            Place::Http(base) => Transport::Http(Http::new(base.clone(), &settings, chains)?),
            Place::Directory(path) => Transport::Directory(Directory::new(path.clone())),
        };
        Ok(Arc::new(Self {
            settings,
            transport,
            health: Mutex::default(),
            received_bytes: AtomicU64::new(0),
            trial: Trial::default(),
            is_circle_told: AtomicBool::new(false),
        }))
    }

    /// Its settings.
    pub fn settings(&self) -> &UpstreamSettings {
        &self.settings
    }

    /// Whether a request would go out now, rather than end at once because the cache is down.
    pub fn may_be_asked(&self) -> bool {
        self.health.lock().may_be_asked(Instant::now())
    }

    /// Whether it is down and may be back within a moment, so that a question is to wait for it.
    pub fn may_be_back_soon(&self) -> bool {
        self.health.lock().may_be_back_soon(Instant::now())
    }

    /// Notes that somebody wants something of it: if it is down, it is tried again soon.
    pub fn note_wanted(&self) {
        self.trial.wanted.notify_waiters();
    }

    /// How much longer it is asked nothing, because it said that it is asked too much. It is not down: it will answer.
    pub fn limited_for(&self) -> Option<Duration> {
        self.health.lock().limited_for(Instant::now())
    }

    /// What is known of its health.
    pub fn report_health(&self) -> HealthReport {
        self.health.lock().report(Instant::now())
    }

    /// How long it usually takes for a narinfo; `None` until it has given one.
    pub fn latency(&self) -> Option<Latency> {
        self.health.lock().latency()
    }

    /// Bytes of NARs that came from it, as they were on the wire.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// Whether it has answered nothing lately although it was asked; then it is asked after all others.
    pub fn is_silent(&self) -> bool {
        self.health.lock().is_silent(Instant::now())
    }

    /// Notes that another source answered after this cache had said nothing for `waited`.
    pub fn note_overtaken(&self, waited: Duration) {
        self.health.lock().on_overtaken(waited, Instant::now());
    }

    /// Notes what the caller found wrong with an answer.
    pub fn note_failure(self: &Arc<Self>, failure: Failure) {
        let (name, kind) = (&self.settings.name, failure.kind);
        let detail = failure.detail.clone();
        let pause = self.health.lock().on_failure(failure, Instant::now(), rand::random());
        match pause {
            Some(pause) => {
                let pause_s = pause.as_secs_f64();
                tracing::warn!(upstream = name, %kind, detail, pause_s, "upstream is down for a while");
                self.try_again();
            }
            None if kind == FailureKind::Circle && !self.is_circle_told.swap(true, Ordering::Relaxed) => {
                tracing::warn!(upstream = name, detail, "upstream leads back to this gateway for some paths");
            }
            None => tracing::debug!(upstream = name, %kind, detail, "upstream failed"),
        }
    }

    /// Has the cache, if it is down, tried again until it answers. Nobody waits for that.
    fn try_again(self: &Arc<Self>) {
        let is_down = self.health.lock().try_at(false).is_some();
        // Without a runtime, in a test of somebody else's, nobody can be asked.
        let Some(runtime) = tokio::runtime::Handle::try_current().ok().filter(|_| is_down) else { return };
        if !self.trial.is_under_way.swap(true, Ordering::AcqRel) {
            runtime.spawn(try_until_it_answers(Arc::downgrade(self)));
        }
    }

    /// Waits until it is time for the next try; at most for a moment, so that a cache that is configured no more is forgotten.
    /// `None` if it is not down, otherwise whether the time has come.
    async fn await_next_try(&self) -> Option<bool> {
        let at = self.health.lock().try_at(false)?;
        let wait = at.saturating_duration_since(Instant::now()).min(TRY_LOOK);
        if tokio::time::timeout(wait, self.trial.wanted.notified()).await.is_ok() {
            let at = self.health.lock().try_at(true)?;
            tokio::time::sleep(at.saturating_duration_since(Instant::now())).await;
            return Some(true);
        }
        Some(at <= Instant::now())
    }

    async fn try_once(&self) {
        // The file that failed last: a cache may serve its small files while all others fail.
        let file = self.trial.file.lock().clone();
        let answer = self.fetch_text(file.as_deref().unwrap_or("nix-cache-info"), None, CACHE_INFO_BYTES_MAX).await;
        let (now, mut health) = (Instant::now(), self.health.lock());
        match answer {
            Ok(_) => {
                tracing::info!(upstream = self.settings.name, "upstream answers again");
                health.on_answer(None, now);
            }
            Err(failure) => {
                tracing::debug!(upstream = self.settings.name, %failure, "upstream is still down");
                health.on_tried_in_vain(failure, now, rand::random());
            }
        }
    }

    /// Asks for a narinfo; `None` if the cache does not have it.
    ///
    /// # Errors
    /// The failure, which is counted already; also if the cache is down and was not asked.
    pub async fn narinfo(self: &Arc<Self>, part: &HashPart) -> Result<Option<Vec<u8>>, Failure> {
        self.ask(&format!("{part}.narinfo"), Some(part), NarInfo::BYTES_MAX).await
    }

    /// Asks which path an output of a derivation is; `None` if the cache does not know.
    ///
    /// # Errors
    /// As for [`Self::narinfo`].
    pub async fn realisation(self: &Arc<Self>, id: &RealisationId) -> Result<Option<Vec<u8>>, Failure> {
        self.ask(&id.file(), None, Realisation::BYTES_MAX).await
    }

    async fn ask(
        self: &Arc<Self>,
        name: &str,
        part: Option<&HashPart>,
        bytes_max: usize,
    ) -> Result<Option<Vec<u8>>, Failure> {
        self.admit()?;
        let since = Instant::now();
        let answer = self.fetch_text(name, part, bytes_max).await;
        match &answer {
            Ok(_) => self.health.lock().on_answer(Some(since.elapsed()), Instant::now()),
            Err(failure) => {
                *self.trial.file.lock() = Some(name.to_owned());
                self.note_failure(failure.clone());
            }
        }
        answer
    }

    /// Asks for `nix-cache-info`, whatever its health.
    ///
    /// # Errors
    /// The failure.
    pub async fn cache_info(&self) -> Result<Option<CacheInfo>, Failure> {
        let since = Instant::now();
        let (text, daemon, date) = match &self.transport {
            Transport::Directory(directory) => {
                (directory.read("nix-cache-info", CACHE_INFO_BYTES_MAX).await?, None, None)
            }
            Transport::Http(http) => {
                let response = http.get("nix-cache-info", None, 0, Purpose::Text).await?;
                let header =
                    |value: Option<&HeaderValue>| value.and_then(|value| value.to_str().ok()).map(str::to_owned);
                let (id, date) = (header(response.headers().get(circle::ID)), header(response.headers().get(DATE)));
                (text_of(response, "nix-cache-info", CACHE_INFO_BYTES_MAX).await?, id, date)
            }
        };
        let Some(text) = text else { return Ok(None) };
        let text = String::from_utf8_lossy(&text);
        let store_dir = text.lines().find_map(|line| line.strip_prefix("StoreDir: ")).map(str::to_owned);
        Ok(Some(CacheInfo { store_dir, took: since.elapsed(), daemon, date }))
    }

    async fn fetch_text(
        &self,
        name: &str,
        part: Option<&HashPart>,
        bytes_max: usize,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let http = match &self.transport {
            Transport::Directory(directory) => return directory.read(name, bytes_max).await,
            Transport::Http(http) => http,
        };
        text_of(http.get(name, part, 0, Purpose::Text).await?, name, bytes_max).await
    }

    fn admit(&self) -> Result<(), Failure> {
        let health = self.health.lock();
        if health.may_be_asked(Instant::now()) {
            return Ok(());
        }
        self.note_wanted();
        if let Some(pause) = health.limited_for(Instant::now()) {
            let detail = format!("not to be asked for {} s more", pause.as_secs());
            return Err(Failure::new(FailureKind::RateLimited, detail));
        }
        let report = health.report(Instant::now());
        let last =
            report.last_failure.map_or_else(|| "tried again just now".to_owned(), |(failure, _)| failure.to_string());
        Err(Failure::new(FailureKind::Connect, format!("down: {last}")))
    }

    /// Requests the NAR of the path `part` at `location`, of `nar_size` bytes when unpacked, from byte `offset` of the NAR on; `None` if the
    /// cache does not have it. A compressed NAR comes from its beginning, and what is before `offset` is dropped here. It
    /// is unpacked in `memory`, which has to be [what it takes](NarLocation::decoder_bytes).
    ///
    /// # Errors
    /// The failure, which is counted already; also if the cache is down and was not asked.
    pub async fn nar(
        self: &Arc<Self>,
        (part, location): (&HashPart, &NarLocation),
        offset: u64,
        nar_size: u64,
        memory: Memory,
    ) -> Result<Option<NarBody>, Failure> {
        self.admit()?;
        let opened = self.open_nar((part, location), offset, nar_size, memory).await;
        match &opened {
            Ok(_) => self.health.lock().on_answer(None, Instant::now()),
            Err(failure) => self.note_failure(failure.clone()),
        }
        opened
    }

    async fn open_nar(
        self: &Arc<Self>,
        (part, location): (&HashPart, &NarLocation),
        offset: u64,
        nar_size: u64,
        memory: Memory,
    ) -> Result<Option<NarBody>, Failure> {
        let is_plain = location.compression == Compression::None;
        // A range of a compressed file cannot be unpacked.
        let wanted_from = if is_plain { offset } else { 0 };
        let file_size = location.file_size.or(is_plain.then_some(nar_size));
        let file_hash = location.file_hash.filter(|_| !is_plain);
        let wire = Arc::new(Received::new(file_hash.is_some()));
        // A plain file whose size was compared has nothing more to show at its end.
        let mut is_end_known = is_plain && file_size.is_some();
        let (packed, from): (Packed, u64) = match &self.transport {
            Transport::Directory(directory) => {
                let Some((file, bytes)) = directory.open(&location.url, wanted_from).await? else { return Ok(None) };
                expect_size(file_size, bytes)?;
                (Box::pin(file_of(file, Arc::clone(&wire))), wanted_from)
            }
            Transport::Http(http) => {
                let response = http.get(&location.url, Some(part), wanted_from, Purpose::Body).await?;
                let from = match response.status() {
                    StatusCode::PARTIAL_CONTENT if range_begins_at(&response, wanted_from) => wanted_from,
                    // The cache ignored the range, so it comes from its beginning and what is too much is dropped.
                    StatusCode::OK => 0,
                    StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                        return Err(Failure::new(
                            FailureKind::WrongLength,
                            "its file has other bytes than the range asked for",
                        ));
                    }
                    _ => match refusal_of(&response) {
                        Refusal::Absent => return Ok(None),
                        Refusal::Failed(failure) => return Err(failure),
                    },
                };
                // A wrong size is seen before the body is read, and not after gigabytes.
                match response.content_length() {
                    Some(bytes) => expect_size(file_size, from + bytes)?,
                    None => is_end_known = false,
                }
                (Box::pin(body_of(response.bytes_stream(), Arc::clone(&wire))), from)
            }
        };
        Ok(Some(NarBody {
            cache: Box::new(Arc::clone(self)),
            contents: Contents::Packed(packed),
            compression: location.compression,
            nar_size,
            memory,
            skip: offset - from,
            left: nar_size - offset,
            wire,
            end: (!is_end_known).then_some(FileEnd { file_size: file_size.filter(|_| from == 0), file_hash }),
        }))
    }
}

impl BodyObserver for Arc<Upstream> {
    fn note_received(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn note_failure(&self, failure: Failure) {
        Upstream::note_failure(self, failure);
    }
}

/// The whole of a small file; `None` if the cache does not have it.
async fn text_of(response: reqwest::Response, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, Failure> {
    if response.status() != StatusCode::OK {
        return match refusal_of(&response) {
            Refusal::Absent => Ok(None),
            Refusal::Failed(failure) => Err(failure),
        };
    }
    let (mut text, mut body) = (Vec::new(), response.bytes_stream());
    while let Some(bytes) = body.next().await {
        text.extend_from_slice(&bytes.map_err(|error| Failure::of_error(&error.without_url()))?);
        // The length that a head names need not be true, so what comes is counted.
        if text.len() > bytes_max {
            return Err(Failure::new(FailureKind::BadNarInfo, format!("{name}: more than {bytes_max} bytes")));
        }
    }
    Ok(Some(text))
}

/// Tries a cache that is down, again and again, until it answers or is configured no more.
async fn try_until_it_answers(cache: Weak<Upstream>) {
    while let Some(cache) = cache.upgrade() {
        match cache.await_next_try().await {
            None => {
                cache.trial.is_under_way.store(false, Ordering::Release);
                // It may have gone down again just now.
                return cache.try_again();
            }
            Some(true) => cache.try_once().await,
            Some(false) => {}
        }
    }
}

fn expect_size(expected: Option<u64>, found: u64) -> Result<(), Failure> {
    match expected {
        Some(expected) if expected != found => {
            let detail = format!("its file has {found} bytes, and its narinfo says {expected}");
            Err(Failure::new(FailureKind::WrongLength, detail))
        }
        Some(_) | None => Ok(()),
    }
}

fn range_begins_at(response: &reqwest::Response, offset: u64) -> bool {
    let range = response.headers().get(reqwest::header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-")))
}
