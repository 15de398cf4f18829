//! A NAR of ours, or what is coming in of one, read and perhaps compressed piece by piece on blocking threads.

use narmesh_protocol::wire::NarRequest;
use narmesh_store::{NarProgress, NarStream, NarStreamError, Offer, PartialCopy, PathInfo, StoreError};
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// zstd level between peers: fast enough for 1 Gbit/s on one core.
const ZSTD_LEVEL: i32 = 1;

/// Its window, as a power of two: 256 KiB. Each of the 32 bodies that a peer may leave unread holds a window, and as
/// much again for what is being compressed.
const ZSTD_WINDOW_LOG: u32 = 18;

type Zstd = zstd::stream::write::Encoder<'static, Vec<u8>>;

/// The compressor of one body, and the permit of its peer for one.
struct Encoder {
    zstd: Zstd,
    _permit: OwnedSemaphorePermit,
}

/// The copy that is read: our own, or one that is still coming in.
enum Nar {
    Own(Box<NarStream>),
    /// The copy that is coming in, and the next byte to read of it.
    Partial(Arc<PartialCopy>, u64),
}

impl Nar {
    /// Appends bytes, about `bytes_max`, of the `left` that are wanted.
    fn fill(&mut self, buffer: &mut Vec<u8>, bytes_max: usize, left: usize) -> Result<NarProgress, ReadFailure> {
        match self {
            Self::Own(nar) => Ok(nar.fill(buffer, bytes_max)?),
            Self::Partial(copy, at) => {
                copy.read(*at, buffer, bytes_max).map_err(ReadFailure::Partial)?;
                *at += buffer.len() as u64;
                match buffer.len() {
                    // It was waited for, so none will come.
                    0 => Err(ReadFailure::NothingComes),
                    bytes if bytes == left => Ok(NarProgress::Complete),
                    _ => Ok(NarProgress::More),
                }
            }
        }
    }
}

/// One NAR being read.
pub(super) struct Reader {
    nar: Nar,
    /// Bytes that were given.
    given: u64,
    progress: NarProgress,
    encoder: Option<Encoder>,
    /// Bytes of the NAR that are sent.
    bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ReadFailure {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Nar(#[from] NarStreamError),
    #[error("compression")]
    Compress(#[from] io::Error),
    #[error("the copy that is coming in")]
    Partial(#[source] io::Error),
    #[error("no more of it is coming in")]
    NothingComes,
}

impl ReadFailure {
    /// Whether it may pass by itself, as it says nothing about our copy.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Store(error) => error.may_pass(),
            Self::Compress(_) => true,
            Self::Nar(_) | Self::Partial(_) | Self::NothingComes => false,
        }
    }

    /// Logs why a body could not be sent whole.
    pub(super) fn log(&self, request: &NarRequest) {
        let hash_part = request.hash_part;
        match self {
            Self::NothingComes => tracing::debug!(%hash_part, error = %self, "a partial copy could not be sent whole"),
            Self::Store(_) | Self::Nar(_) | Self::Compress(_) | Self::Partial(_) => {
                tracing::warn!(%hash_part, error = %self, "our own copy could not be sent whole");
            }
        }
    }
}

impl Reader {
    /// Asks the predicate again, and opens the NAR if it is still the one asked for. It is compressed if there is a permit
    /// for that.
    pub(super) fn open(
        offer: &Offer,
        request: &NarRequest,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Option<Self>, ReadFailure> {
        let NarRequest { hash_part, nar_hash, nar_size, offset, end, .. } = *request;
        let is_wanted =
            |info: &PathInfo| info.nar_hash == nar_hash && info.nar_size == nar_size && offset < end && end <= nar_size;
        let Some(nar) = offer.find_nar(&hash_part, |info| is_wanted(info).then_some(offset))? else { return Ok(None) };
        Self::begin(Nar::Own(Box::new(nar)), end - offset, permit).map(Some)
    }

    /// The same of a copy that is coming in.
    pub(super) fn open_partial(
        copy: Arc<PartialCopy>,
        request: &NarRequest,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Self, ReadFailure> {
        let NarRequest { nar_size, offset, end, .. } = *request;
        if offset >= end || end > nar_size {
            return Err(ReadFailure::NothingComes);
        }
        Self::begin(Nar::Partial(copy, offset), end - offset, permit)
    }

    fn begin(nar: Nar, bytes: u64, permit: Option<OwnedSemaphorePermit>) -> Result<Self, ReadFailure> {
        let encoder = |permit| Ok::<_, io::Error>(Encoder { zstd: encoder(bytes)?, _permit: permit });
        let encoder = permit.map(encoder).transpose()?;
        Ok(Self { nar, given: 0, progress: NarProgress::More, encoder, bytes })
    }

    /// Waits until there is something to read, or nothing more will come.
    pub(super) async fn wait_until_there(&self) {
        if let Nar::Partial(copy, at) = &self.nar
            && self.progress == NarProgress::More
        {
            poll_fn(|context| copy.poll_beyond(context, *at)).await;
        }
    }

    /// Whether the next piece is to be compressed.
    pub(super) fn is_compressing(&self) -> bool {
        self.encoder.is_some()
    }

    /// Bytes of the NAR that are still to be read.
    fn left_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.given)
    }

    /// Whether the last piece was given.
    pub(super) fn is_complete(&self) -> bool {
        self.progress == NarProgress::Complete
    }

    /// The next piece of the body, from about `bytes_max` bytes of the NAR; `None` at the end.
    pub(super) fn next(&mut self, bytes_max: usize) -> Result<Option<Vec<u8>>, ReadFailure> {
        while self.progress == NarProgress::More {
            let left = usize::try_from(self.left_bytes()).unwrap_or(usize::MAX);
            let mut buffer = Vec::with_capacity(left.min(bytes_max));
            self.progress = self.nar.fill(&mut buffer, left.min(bytes_max), left)?;
            // The bytes wanted may end before the NAR does.
            buffer.truncate(left);
            self.given += buffer.len() as u64;
            if self.left_bytes() == 0 {
                self.progress = NarProgress::Complete;
            }
            let piece = self.compress(buffer)?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// What goes out for these bytes of the NAR; nothing while the encoder still gathers. The encoder ends with the
    /// NAR: a body that waits for its asker to read the last piece holds none.
    fn compress(&mut self, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let Some(mut encoder) = self.encoder.take() else { return Ok(bytes) };
        io::Write::write_all(&mut encoder.zstd, &bytes)?;
        if self.progress == NarProgress::Complete {
            return encoder.zstd.finish();
        }
        if matches!(self.nar, Nar::Partial(..)) {
            // The asker passes it on in its turn, so it must not wait here for what comes next.
            io::Write::flush(&mut encoder.zstd)?;
        }
        let piece = std::mem::take(encoder.zstd.get_mut());
        self.encoder = Some(encoder);
        Ok(piece)
    }
}

/// An encoder for exactly `bytes`: as it knows the size, zstd takes no more memory than needed, but the frame does not
/// state it.
fn encoder(bytes: u64) -> io::Result<Zstd> {
    let mut encoder = Zstd::new(Vec::new(), ZSTD_LEVEL)?;
    encoder.window_log(ZSTD_WINDOW_LOG)?;
    encoder.include_contentsize(false)?;
    encoder.set_pledged_src_size(Some(bytes))?;
    Ok(encoder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_compressed_nar_of_any_size_decompresses_to_itself() {
        for bytes in [1, 100, 60_000, 256 << 10, 3_000_000] {
            let nar: Vec<u8> = (0..bytes).map(|at: u32| at.to_le_bytes()[usize::from(at % 7 > 3)]).collect();
            let mut encoder = encoder(nar.len() as u64).unwrap();
            nar.chunks(10_000).for_each(|piece| encoder.write_all(piece).unwrap());
            assert_eq!(zstd::decode_all(encoder.finish().unwrap().as_slice()).unwrap(), nar, "{bytes} bytes");
        }
    }
}
