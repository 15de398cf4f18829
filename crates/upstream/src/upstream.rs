//! One cache: what it is asked, and what its answers say about its health.

use crate::chain::Chains;
use crate::decode::{Compression, Unpacked};
use crate::directory::Directory;
use crate::failure::{Failure, FailureKind};
use crate::health::{Health, HealthReport};
use crate::http::{Http, Purpose, Refusal, refusal_of};
use crate::latency::Latency;
use crate::location::NarLocation;
use crate::memory::Memory;
use crate::received::Received;
use crate::settings::{Place, UpstreamSettings};
use crate::window::{decoder_bytes, window_max, window_of};
use bytes::{BufMut as _, Bytes};
use futures::{Stream, StreamExt as _};
use narmesh_protocol::{HashPart, NarInfo, Realisation, RealisationId};
use parking_lot::Mutex;
use reqwest::StatusCode;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::Notify;
use tokio_util::io::StreamReader;

/// Longest `nix-cache-info` that is read, bytes.
const CACHE_INFO_BYTES_MAX: usize = 64 << 10;
/// How long the end of a file is awaited behind the last byte of the NAR, to see whether the file is the right one. The
/// NAR waits with it, and is judged by its own hash in any case.
const FILE_END_MAX: Duration = Duration::from_millis(100);
/// While it is waited until a cache is tried again, it is looked this often whether it is still configured.
const TRY_LOOK: Duration = Duration::from_secs(5);
/// Bytes that are unpacked at a time.
const UNPACKED_BYTES: usize = 64 << 10;

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
        let (text, daemon) = match &self.transport {
            Transport::Directory(directory) => (directory.read("nix-cache-info", CACHE_INFO_BYTES_MAX).await?, None),
            Transport::Http(http) => {
                let response = http.get("nix-cache-info", None, 0, Purpose::Text).await?;
                let id = response.headers().get(Chains::ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
                (text_of(response, "nix-cache-info", CACHE_INFO_BYTES_MAX).await?, id)
            }
        };
        let Some(text) = text else { return Ok(None) };
        let text = String::from_utf8_lossy(&text);
        let store_dir = text.lines().find_map(|line| line.strip_prefix("StoreDir: ")).map(str::to_owned);
        Ok(Some(CacheInfo { store_dir, took: since.elapsed(), daemon }))
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
                let counted = Arc::clone(&wire);
                let file = BufReader::with_capacity(UNPACKED_BYTES, CountedFile { file, counted });
                (Box::pin(file), wanted_from)
            }
            Transport::Http(http) => {
                let response = http.get(&location.url, Some(part), wanted_from, Purpose::Body).await?;
                let from = match response.status() {
                    StatusCode::PARTIAL_CONTENT if range_begins_at(&response, wanted_from) => wanted_from,
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
                match response.content_length() {
                    Some(bytes) => expect_size(file_size, from + bytes)?,
                    None => is_end_known = false,
                }
                (Box::pin(body_of(response.bytes_stream(), Arc::clone(&wire))), from)
            }
        };
        Ok(Some(NarBody {
            upstream: Arc::clone(self),
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

/// The bytes of a body, counted as they come.
fn body_of(
    body: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static,
    wire: Arc<Received>,
) -> impl AsyncBufRead + Send + 'static {
    let counted = body.map(move |bytes| match bytes {
        Ok(bytes) => {
            wire.take(&bytes);
            Ok(bytes)
        }
        Err(error) => Err(io::Error::other(Failure::of_error(&error.without_url()))),
    });
    StreamReader::new(Box::pin(counted))
}

/// A file whose bytes are counted as they are read.
struct CountedFile {
    file: tokio::fs::File,
    counted: Arc<Received>,
}

impl tokio::io::AsyncRead for CountedFile {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.file).poll_read(context, buffer);
        this.counted.take(buffer.filled().get(before..).unwrap_or_default());
        read
    }
}

/// A NAR on its way from a cache. Dropping it ends the request.
pub struct NarBody {
    upstream: Arc<Upstream>,
    contents: Contents,
    compression: Compression,
    nar_size: u64,
    /// What the decoder takes of the memory of all decoders.
    memory: Memory,
    /// Bytes of the NAR that come first and were not asked for.
    skip: u64,
    /// Bytes of the NAR that are still to come.
    left: u64,
    wire: Arc<Received>,
    /// What the end of the file has yet to show; `None` once that was looked at, or if it need not be.
    end: Option<FileEnd>,
}

/// A stream of packed bytes.
type Packed = Pin<Box<dyn AsyncBufRead + Send>>;

enum Contents {
    /// Nothing was read yet.
    Packed(Packed),
    Unpacked(Unpacked),
    /// The file needs more memory than any may.
    Refused,
}

/// What the narinfo says of the whole file.
#[derive(Clone, Copy, Debug)]
struct FileEnd {
    file_size: Option<u64>,
    file_hash: Option<[u8; 32]>,
}

impl std::fmt::Debug for NarBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NarBody").field("skip", &self.skip).field("left", &self.left).finish_non_exhaustive()
    }
}

impl NarBody {
    /// Waits for more of the NAR and appends it to `out`, at most `bytes_max` bytes; returns how many. Zero only when all
    /// bytes were given, which says nothing about whether they are the right ones.
    ///
    /// # Errors
    /// The failure, which is counted already.
    pub async fn read(&mut self, out: &mut Vec<u8>, bytes_max: u64) -> Result<usize, Failure> {
        if self.left == 0 {
            return Ok(0);
        }
        let since = self.wire_bytes();
        let read = self.read_unpacked(out, bytes_max).await;
        self.upstream.received_bytes.fetch_add(self.wire_bytes() - since, Ordering::Relaxed);
        let failure = match read {
            Ok(0) => {
                Failure::new(FailureKind::Truncated, format!("its file ended {} bytes early", self.left + self.skip))
            }
            Ok(bytes) => {
                self.left -= bytes as u64;
                if self.left == 0 {
                    self.check_end().await;
                }
                return Ok(bytes);
            }
            Err(error) => self.failure_of(&error),
        };
        self.upstream.note_failure(failure.clone());
        Err(failure)
    }

    /// The decoder. Made when the beginning of the file has come, which says how much of the memory is needed.
    async fn unpacked(&mut self) -> io::Result<&mut Unpacked> {
        if let Contents::Packed(packed) = &mut self.contents {
            let most = window_max(self.compression);
            let window = window_of(self.compression, packed.fill_buf().await?).unwrap_or(most);
            let contents = std::mem::replace(&mut self.contents, Contents::Refused);
            if let (Contents::Packed(packed), true) = (contents, window <= most) {
                self.memory.shrink_to(decoder_bytes(self.compression, window, self.nar_size));
                self.contents = Contents::Unpacked(self.compression.unpack(packed, window));
            }
        }
        match &mut self.contents {
            Contents::Unpacked(unpacked) => Ok(unpacked),
            Contents::Packed(_) | Contents::Refused => Err(io::Error::other("its window is too large to be unpacked")),
        }
    }

    async fn read_unpacked(&mut self, out: &mut Vec<u8>, bytes_max: u64) -> io::Result<usize> {
        while self.skip > 0 {
            let mut dropped = Vec::with_capacity(UNPACKED_BYTES);
            let limit = usize::try_from(self.skip).unwrap_or(UNPACKED_BYTES).min(UNPACKED_BYTES);
            let bytes = self.unpacked().await?.read_buf(&mut (&mut dropped).limit(limit)).await?;
            if bytes == 0 {
                return Ok(0);
            }
            self.skip -= bytes as u64;
        }
        let limit = usize::try_from(bytes_max.min(self.left)).unwrap_or(UNPACKED_BYTES).min(UNPACKED_BYTES);
        out.reserve(limit);
        self.unpacked().await?.read_buf(&mut out.limit(limit)).await
    }

    /// Looks whether the file ends where the NAR ends, and whether it is the one that the narinfo names. What is wrong is
    /// noted, and no more: its own hash says whether the NAR is the promised one.
    async fn check_end(&mut self) {
        let Some(end) = self.end.take() else { return };
        let checked = tokio::time::timeout(FILE_END_MAX, self.find_wrong_end(end)).await;
        if let Ok(Some(failure)) = checked {
            self.upstream.note_failure(failure);
        }
    }

    async fn find_wrong_end(&mut self, FileEnd { file_size, file_hash }: FileEnd) -> Option<Failure> {
        let wrong_length = |detail: String| Some(Failure::new(FailureKind::WrongLength, detail));
        let more = match self.unpacked().await {
            Ok(unpacked) => unpacked.read_buf(&mut Vec::with_capacity(1)).await,
            Err(error) => Err(error),
        };
        match more {
            Ok(0) => {}
            Ok(_) => return wrong_length("its file goes on behind the end of the NAR".to_owned()),
            Err(error) => return Some(self.failure_of(&error)),
        }
        let bytes = self.wire_bytes();
        if let Some(expected) = file_size.filter(|expected| *expected != bytes) {
            return wrong_length(format!("its file has {bytes} bytes, and its narinfo says {expected}"));
        }
        let is_wrong = file_hash.is_some() && self.wire.sha256() != file_hash;
        is_wrong.then(|| Failure::new(FailureKind::WrongFileHash, "its file has another hash than its narinfo says"))
    }

    fn failure_of(&self, error: &io::Error) -> Failure {
        match Failure::of_error(error) {
            // Not from the line: the decoder says that the file is damaged.
            Failure { kind: FailureKind::Interrupted, detail, .. }
                if self.compression != Compression::None
                    && error.get_ref().is_none_or(|inner| !inner.is::<Failure>()) =>
            {
                let is_cut = error.kind() == io::ErrorKind::UnexpectedEof;
                Failure::new(if is_cut { FailureKind::Truncated } else { FailureKind::BadNar }, detail)
            }
            failure => failure,
        }
    }

    /// Bytes received over the wire for it so far.
    pub fn wire_bytes(&self) -> u64 {
        self.wire.bytes()
    }
}
