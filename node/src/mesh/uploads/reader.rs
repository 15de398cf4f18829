//! A NAR of ours, read and perhaps compressed piece by piece on blocking threads.

use narmesh_protocol::wire::NarRequest;
use narmesh_store::{NarProgress, NarStream, NarStreamError, NixStore, Offer, Store, StoreError};
use std::io;

/// zstd level between peers: fast enough for 1 Gbit/s on one core.
const ZSTD_LEVEL: i32 = 1;
/// Read and thrown away at a time, where a range begins later.
const SKIP_BYTES: u64 = 8 << 20;
/// Buffer for what is thrown away.
const SKIP_BUFFER_BYTES: usize = 256 << 10;

/// One NAR being read.
pub(super) struct Reader {
    nar: NarStream,
    progress: NarProgress,
    encoder: Option<zstd::stream::write::Encoder<'static, Vec<u8>>>,
    skip: u64,
    /// What was read beyond the last byte that is not sent.
    pending: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ReadFailure {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Nar(#[from] NarStreamError),
    #[error("compression")]
    Compress(#[from] io::Error),
}

impl Reader {
    /// The predicate asked again, and the NAR opened if it is still the one asked for.
    pub(super) fn open(store: &NixStore, offer: &Offer, request: &NarRequest, zstd: bool) -> Option<Self> {
        let offered = offer.offered(&request.hash_part)?;
        let same = offered.info.nar_hash == request.nar_hash && offered.info.nar_size == request.nar_size;
        if !same || request.offset >= request.nar_size {
            return None;
        }
        match Self::begin(store, &offered.info, request.offset, zstd) {
            Ok(reader) => Some(reader),
            Err(error) => {
                tracing::warn!(store_path = %offered.info.path, %error, "our own copy cannot be sent");
                None
            }
        }
    }

    /// The one place that knows how a range is come by: what stands before it is read and thrown away.
    fn begin(store: &NixStore, info: &narmesh_store::PathInfo, offset: u64, zstd: bool) -> Result<Self, ReadFailure> {
        let nar = store.open_nar(info)?;
        let encoder = if zstd { Some(zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?) } else { None };
        Ok(Self { nar, progress: NarProgress::More, encoder, skip: offset, pending: Vec::new() })
    }

    /// Whether [`Self::skip_some`] has something to do before the first byte.
    pub(super) fn has_to_skip(&self) -> bool {
        self.skip > 0
    }

    /// Reads a bounded part of what is not sent; says how much that was.
    pub(super) fn skip_some(&mut self) -> Result<u64, ReadFailure> {
        let mut skipped = 0;
        let mut buffer = Vec::with_capacity(SKIP_BUFFER_BYTES);
        while self.skip > 0 && skipped < SKIP_BYTES && self.progress == NarProgress::More {
            buffer.clear();
            self.progress = self.nar.fill(&mut buffer, SKIP_BUFFER_BYTES)?;
            let read = buffer.len() as u64;
            if let Some(wanted) = usize::try_from(self.skip).ok().and_then(|skip| buffer.get(skip..)) {
                self.pending = wanted.to_vec();
            }
            skipped += read.min(self.skip);
            self.skip = self.skip.saturating_sub(read);
        }
        Ok(skipped)
    }

    /// Bytes of the NAR that are still to be read.
    pub(super) fn left_bytes(&self) -> u64 {
        self.nar.nar_size().saturating_sub(self.nar.given_bytes()) + self.pending.len() as u64
    }

    /// Whether the last byte was read, and nothing of it is still in the compressor.
    pub(super) fn is_complete(&self) -> bool {
        self.progress == NarProgress::Complete && self.pending.is_empty() && self.encoder.is_none()
    }

    /// The next piece of the body, from about `bytes_max` bytes of the NAR; `None` at the end.
    pub(super) fn next(&mut self, bytes_max: usize) -> Result<Option<Vec<u8>>, ReadFailure> {
        loop {
            let buffer = if self.pending.is_empty() {
                match self.progress {
                    NarProgress::Complete => {
                        let tail = self.encoder.take().map(zstd::stream::write::Encoder::finish).transpose()?;
                        return Ok(tail.filter(|tail| !tail.is_empty()));
                    }
                    NarProgress::More => {}
                }
                let capacity = usize::try_from(self.left_bytes()).unwrap_or(usize::MAX).min(bytes_max);
                let mut buffer = Vec::with_capacity(capacity);
                self.progress = self.nar.fill(&mut buffer, bytes_max)?;
                buffer
            } else {
                std::mem::take(&mut self.pending)
            };
            let piece = match &mut self.encoder {
                None => buffer,
                Some(encoder) => {
                    io::Write::write_all(encoder, &buffer)?;
                    std::mem::take(encoder.get_mut())
                }
            };
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }
}
