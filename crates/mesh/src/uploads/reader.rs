//! A NAR of ours, read and perhaps compressed piece by piece on blocking threads.

use narmesh_protocol::wire::NarRequest;
use narmesh_store::{NarProgress, NarStream, NarStreamError, Offer, PathInfo, StoreError};
use std::io;
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

/// One NAR being read.
pub(super) struct Reader {
    nar: NarStream,
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
}

impl ReadFailure {
    /// Whether it may pass by itself, as it says nothing about our copy.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Store(error) => error.may_pass(),
            Self::Compress(_) => true,
            Self::Nar(_) => false,
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
        let encoder = |permit| Ok::<_, io::Error>(Encoder { zstd: encoder(end - offset)?, _permit: permit });
        let encoder = permit.map(encoder).transpose()?;
        Ok(Some(Self { nar, progress: NarProgress::More, encoder, bytes: end - offset }))
    }

    /// Whether the next piece is to be compressed.
    pub(super) fn is_compressing(&self) -> bool {
        self.encoder.is_some()
    }

    /// Bytes of the NAR that are still to be read.
    fn left_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.nar.given_bytes())
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
            self.progress = self.nar.fill(&mut buffer, left.min(bytes_max))?;
            // The bytes wanted may end before the NAR does.
            buffer.truncate(left);
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
