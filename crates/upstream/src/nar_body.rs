//! A NAR on its way from a cache: unpacked as it comes, and compared with what its narinfo says of its file.

use crate::decode::{Compression, Unpacked};
use crate::failure::{Failure, FailureKind};
use crate::memory::Memory;
use crate::received::Received;
use crate::window::{decoder_bytes, window_max, window_of};
use bytes::{BufMut as _, Bytes};
use futures::{Stream, StreamExt as _};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio_util::io::StreamReader;

/// How long the end of a file is awaited behind the last byte of the NAR, to see whether the file is the right one. The
/// NAR waits with it, and is judged by its own hash in any case.
const FILE_END_MAX: Duration = Duration::from_millis(100);
/// Bytes that are unpacked at a time.
const UNPACKED_BYTES: usize = 64 << 10;

/// The bytes of a body, counted as they come.
pub(crate) fn body_of(
    body: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static,
    wire: Arc<Received>,
) -> impl AsyncBufRead + Send + 'static {
    let counted = body.map(move |bytes| match bytes {
        Ok(bytes) => {
            wire.take(&bytes);
            Ok(bytes)
        }
        // The URL may hold a token, and failures are logged.
        Err(error) => Err(io::Error::other(Failure::of_error(&error.without_url()))),
    });
    StreamReader::new(Box::pin(counted))
}

/// The bytes of a file, counted as they are read.
pub(crate) fn file_of(file: tokio::fs::File, counted: Arc<Received>) -> impl AsyncBufRead + Send + 'static {
    BufReader::with_capacity(UNPACKED_BYTES, CountedFile { file, counted })
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

/// Who is told what comes, and what is wrong with it.
pub(crate) trait BodyObserver: Send + Sync {
    /// So many bytes came.
    fn note_received(&self, bytes: u64);
    /// The cache failed.
    fn note_failure(&self, failure: Failure);
}

/// A NAR on its way from a cache. Dropping it ends the request.
pub struct NarBody {
    pub(crate) cache: Box<dyn BodyObserver>,
    pub(crate) contents: Contents,
    pub(crate) compression: Compression,
    pub(crate) nar_size: u64,
    /// What the decoder takes of the memory of all decoders.
    pub(crate) memory: Memory,
    /// Bytes of the NAR that come first and were not asked for.
    pub(crate) skip: u64,
    /// Bytes of the NAR that are still to come.
    pub(crate) left: u64,
    pub(crate) wire: Arc<Received>,
    /// What the end of the file has yet to show; `None` once that was looked at, or if it need not be.
    pub(crate) end: Option<FileEnd>,
}

/// A stream of packed bytes.
pub(crate) type Packed = Pin<Box<dyn AsyncBufRead + Send>>;

pub(crate) enum Contents {
    /// Nothing was read yet.
    Packed(Packed),
    Unpacked(Unpacked),
    /// The file needs more memory than any may.
    Refused,
}

/// What the narinfo says of the whole file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileEnd {
    pub(crate) file_size: Option<u64>,
    pub(crate) file_hash: Option<[u8; 32]>,
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
        self.cache.note_received(self.wire_bytes() - since);
        let failure = match read {
            Ok(0) => {
                Failure::new(FailureKind::Truncated, format!("its file ended {} bytes early", self.left + self.skip))
            }
            Ok(bytes) => {
                self.left -= bytes as u64;
                // The NAR is whole. What is wrong with its file from here on is only counted against the cache.
                if self.left == 0 {
                    self.check_end().await;
                }
                return Ok(bytes);
            }
            Err(error) => self.failure_of(&error),
        };
        self.cache.note_failure(failure.clone());
        Err(failure)
    }

    /// The decoder. Made when the beginning of the file has come, which says how much of the memory is needed.
    async fn unpacked(&mut self) -> io::Result<&mut Unpacked> {
        if let Contents::Packed(packed) = &mut self.contents {
            // The window decides how much memory unpacking takes, and the file chooses it.
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
        // A compressed file has no beginning in its middle, so what comes before is unpacked and dropped.
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
            self.cache.note_failure(failure);
        }
    }

    async fn find_wrong_end(&mut self, FileEnd { file_size, file_hash }: FileEnd) -> Option<Failure> {
        let wrong_length = |detail: String| Some(Failure::new(FailureKind::WrongLength, detail));
        let more = match self.unpacked().await {
            // One byte more is enough to see that it goes on.
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
