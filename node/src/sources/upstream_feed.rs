//! One NAR on its way from an upstream cache, which may have to wait: until its cache may be asked again, or for memory to
//! unpack it.

use super::upstream_source::Source;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use narmesh_protocol::StoreDir;
use narmesh_protocol::wire::NarRequest;
use narmesh_resolver::{NarFeed, Piece, Turn};
use narmesh_upstream::{DecoderMemory, Failure, FailureKind, Memory, NarBody, NarLocation};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// A NAR is waited for if its cache answers again within this: for so long Nix can be kept waiting.
const LIMITED_WAIT_MAX: Duration = Duration::from_secs(100);
/// Whoever waits says so this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What is asked for, and what it takes.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) request: NarRequest,
    pub(super) store_dir: StoreDir,
    pub(super) decoders: DecoderMemory,
}

/// A NAR from a cache.
#[derive(Debug)]
pub(super) struct UpstreamFeed {
    under_way: UnderWay,
    wanted: Wanted,
    state: State,
}

enum State {
    /// Nothing was asked yet, or the cache wants to be asked later: at this turn, `None` if it wants to be left alone for
    /// too long.
    ToAsk(BoxFuture<'static, Option<Turn>>),
    /// All decoders together have as much memory as they may.
    NoMemory(NarLocation, BoxFuture<'static, Memory>),
    /// The cache does not have it.
    Absent,
    Body(NarBody),
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ToAsk(_) => "ToAsk",
            Self::NoMemory(..) => "NoMemory",
            Self::Absent => "Absent",
            Self::Body(_) => "Body",
        })
    }
}

/// One request under way at a cache.
#[derive(Debug)]
struct UnderWay {
    source: Arc<Source>,
    since: Instant,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.source.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl UpstreamFeed {
    pub(super) fn new(source: Arc<Source>, wanted: Wanted) -> Self {
        source.in_flight.fetch_add(1, Ordering::Relaxed);
        let state = later(&source);
        Self { under_way: UnderWay { source, since: Instant::now() }, wanted, state }
    }

    pub(super) fn source(&self) -> &Arc<Source> {
        &self.under_way.source
    }

    /// Requests the NAR, unless that has to wait: for memory, or because the cache limits how often it is asked.
    pub(super) async fn begin(&mut self) -> Result<(), Failure> {
        if self.source().pace.is_limited() { Ok(()) } else { self.ask_now().await }
    }

    async fn ask_now(&mut self) -> Result<(), Failure> {
        match self.ask().await {
            Err(failure) if failure.kind == FailureKind::RateLimited => {
                self.state = later(self.source());
                Ok(())
            }
            asked => asked,
        }
    }

    async fn ask(&mut self) -> Result<(), Failure> {
        let Some(location) = self.source().locate(&self.wanted.request, &self.wanted.store_dir).await? else {
            self.state = State::Absent;
            return Ok(());
        };
        let mut memory =
            self.wanted.decoders.clone().take(location.decoder_bytes(self.wanted.request.nar_size)).boxed();
        // Mostly there is memory, and the cache is asked without another round.
        match (&mut memory).now_or_never() {
            Some(memory) => self.open(&location, memory).await,
            None => {
                self.state = State::NoMemory(location, memory);
                Ok(())
            }
        }
    }

    async fn open(&mut self, location: &NarLocation, memory: Memory) -> Result<(), Failure> {
        let body = self.source().open(location, &self.wanted.request, memory).await?;
        self.state = body.map_or(State::Absent, State::Body);
        Ok(())
    }

    /// Asks the cache when it is our turn; waits for that at most a second. Returns how many seconds may be left until then.
    async fn ask_later(&mut self) -> io::Result<Option<u32>> {
        let State::ToAsk(turn) = &mut self.state else { return Ok(None) };
        let turn = tokio::time::timeout(LOOK_AGAIN, turn).await;
        let pause = self.source().upstream.limited_for().unwrap_or_default();
        // Beyond this the NAR counts as one that this cache does not give, and another source may.
        let is_too_long = self.under_way.since.elapsed() + pause > LIMITED_WAIT_MAX;
        match turn {
            Ok(Some(turn)) => {
                self.ask_now().await.map_err(io::Error::other)?;
                drop(turn);
                Ok(matches!(self.state, State::ToAsk(_)).then_some(1))
            }
            Err(_) if !is_too_long => Ok(Some(u32::try_from(pause.as_secs().saturating_add(1)).unwrap_or(u32::MAX))),
            Ok(None) | Err(_) => Err(io::Error::other(format!("is to be asked in {} s", pause.as_secs()))),
        }
    }

    /// Waits until a decoder may be made, and asks the cache; at most for a second. Returns whether that was so.
    async fn take_memory(&mut self) -> io::Result<bool> {
        let State::NoMemory(location, memory) = &mut self.state else { return Ok(true) };
        let Ok(memory) = tokio::time::timeout(LOOK_AGAIN, memory).await else { return Ok(false) };
        let location = location.clone();
        match self.open(&location, memory).await {
            Err(failure) if failure.kind == FailureKind::RateLimited => {
                (self.state, self.under_way.since) = (later(self.source()), Instant::now());
            }
            opened => opened.map_err(io::Error::other)?,
        }
        Ok(true)
    }
}

/// The turn at which the cache is asked. Whoever asks it for NARs is no user of his own: they all take turns with the users
/// who ask for narinfos.
fn later(source: &Arc<Source>) -> State {
    let source = Arc::clone(source);
    State::ToAsk(async move { source.take_turn(None, LIMITED_WAIT_MAX).await }.boxed())
}

impl NarFeed for UpstreamFeed {
    fn next<'a>(&'a mut self, out: &'a mut Vec<u8>, bytes_max: u64) -> BoxFuture<'a, io::Result<Piece>> {
        Box::pin(async move {
            loop {
                let body = match &mut self.state {
                    State::ToAsk(_) => match self.ask_later().await? {
                        Some(place) => return Ok(Piece::NotNow { place }),
                        None => continue,
                    },
                    State::NoMemory(..) => match self.take_memory().await? {
                        false => return Ok(Piece::NoMemory),
                        true => continue,
                    },
                    State::Absent => return Ok(Piece::Absent),
                    State::Body(body) => body,
                };
                return match body.read(out, bytes_max).await {
                    Ok(0) => Ok(Piece::Complete),
                    Ok(_) => {
                        // The transfer looks at this to tell a slow cache from a silent one.
                        *self.under_way.source.last_received.lock() = Some(Instant::now());
                        Ok(Piece::Data)
                    }
                    // Charged already, and asking again would bring the same file.
                    Err(failure) if failure.kind == FailureKind::BadNar => {
                        Err(io::Error::new(io::ErrorKind::InvalidInput, failure))
                    }
                    Err(failure) => Err(io::Error::other(failure)),
                };
            }
        })
    }

    fn wire_bytes(&self) -> u64 {
        match &self.state {
            State::Body(body) => body.wire_bytes(),
            State::ToAsk(_) | State::NoMemory(..) | State::Absent => 0,
        }
    }
}
