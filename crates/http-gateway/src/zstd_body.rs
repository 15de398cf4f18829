//! NARs compressed with zstd while they are sent, for clients behind a slow line.

use std::io::{self, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use crate::nar_body::{BodyAborted, NarBody};

/// How the URL of a compressed NAR ends after `.nar`.
pub(crate) const ZSTD_SUFFIX: &str = ".zst";
/// Level of the tool's default.
const LEVEL: i32 = 3;
/// The window as a power of two: 1 MiB. An encoder takes about twice as much.
const WINDOW_LOG: u32 = 20;
/// NARs that are compressed at a time on one listener; others wait. So they take no more than some 64 MiB.
const ENCODERS_MAX: usize = 32;
/// A piece of so few bytes is sent at once: it is there to keep the client waiting.
const GATHERED_BYTES_MIN: usize = 4 << 10;

type Encoder = zstd::stream::write::Encoder<'static, Vec<u8>>;

/// The encoders of one listener.
#[derive(Clone, Debug)]
pub(crate) struct Encoders(Arc<Semaphore>);

impl Encoders {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(ENCODERS_MAX)))
    }

    /// Whether all are taken: then clients that do not read are to be closed soon.
    pub(crate) fn are_taken(&self) -> bool {
        self.0.available_permits() == 0
    }

    /// Waits until one is free.
    pub(crate) async fn take(&self) -> Option<OwnedSemaphorePermit> {
        // It fails only for a semaphore that was closed, which this one never is.
        Arc::clone(&self.0).acquire_owned().await.ok()
    }
}

/// The narinfo with the URL of the compressed NAR. Nobody knows the hash or the size of a file that is made while it is sent, and
/// Nix needs neither: it verifies what it unpacks. `None` for a narinfo that names another file than a plain NAR.
pub(crate) fn with_zstd(narinfo: &str) -> Option<String> {
    if !narinfo.lines().any(|line| line == "Compression: none") {
        return None;
    }
    let mut text = String::with_capacity(narinfo.len());
    for line in narinfo.lines() {
        if line == "Compression: none" {
            text.push_str("Compression: zstd");
        } else if line.starts_with("FileHash: ") || line.starts_with("FileSize: ") {
            continue;
        } else {
            text.push_str(line);
            if line.starts_with("URL: ") {
                text.push_str(ZSTD_SUFFIX);
            }
        }
        text.push('\n');
    }
    Some(text)
}

/// The state of a body between two pieces.
struct Compressing {
    nar: NarBody,
    encoder: Option<Encoder>,
    _permit: OwnedSemaphorePermit,
}

/// The NAR of `nar_size` bytes, compressed on blocking threads. It is cut short where the NAR is.
pub(crate) fn compress(nar: NarBody, nar_size: u64, permit: OwnedSemaphorePermit) -> NarBody {
    let state = encoder(nar_size).map(|encoder| Compressing { nar, encoder: Some(encoder), _permit: permit });
    let state = state.inspect_err(|error| tracing::warn!(%error, "a NAR cannot be compressed")).ok();
    if state.is_none() {
        return stream::iter([Err(BodyAborted)]).boxed();
    }
    let pieces = stream::unfold(state, |state| async move {
        let mut state = state?;
        // After its end, or a failure, there is none.
        let mut encoder = state.encoder.take()?;
        loop {
            let piece = match state.nar.next().await {
                Some(Ok(piece)) => piece,
                Some(Err(BodyAborted)) => return Some((Err(BodyAborted), Some(state))),
                None => {
                    let rest = spawn_blocking(move || encoder.finish()).await;
                    return Some((rest.ok().and_then(Result::ok).map(Bytes::from).ok_or(BodyAborted), Some(state)));
                }
            };
            // On another thread, piece by piece, so that one large NAR keeps no request of this thread waiting.
            let compressed = spawn_blocking(move || write(encoder, &piece)).await;
            let Some((back, bytes)) = compressed.ok().and_then(Result::ok) else {
                return Some((Err(BodyAborted), Some(state)));
            };
            encoder = back;
            if !bytes.is_empty() {
                state.encoder = Some(encoder);
                return Some((Ok(bytes.into()), Some(state)));
            }
        }
    });
    pieces.boxed()
}

fn write(mut encoder: Encoder, piece: &[u8]) -> io::Result<(Encoder, Vec<u8>)> {
    encoder.write_all(piece)?;
    if piece.len() < GATHERED_BYTES_MIN {
        encoder.flush()?;
    }
    let bytes = std::mem::take(encoder.get_mut());
    Ok((encoder, bytes))
}

/// As it is told the size, it refuses to end a NAR that is shorter, and takes no more memory than needed.
fn encoder(nar_size: u64) -> io::Result<Encoder> {
    let mut encoder = Encoder::new(Vec::new(), LEVEL)?;
    encoder.window_log(WINDOW_LOG)?;
    encoder.set_pledged_src_size(Some(nar_size))?;
    Ok(encoder)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NARINFO: &str = "StorePath: /nix/store/x\nURL: nar/a.nar\nCompression: none\nFileHash: sha256:b\nFileSize: 1\n\
                           NarHash: sha256:b\nNarSize: 1\nReferences: \nSig: k:s\n";

    #[test]
    fn narinfo_names_the_compressed_file_and_keeps_what_is_signed() {
        let expected = "StorePath: /nix/store/x\nURL: nar/a.nar.zst\nCompression: zstd\nNarHash: sha256:b\nNarSize: 1\n\
                        References: \nSig: k:s\n";
        assert_eq!(with_zstd(NARINFO).as_deref(), Some(expected));
        assert_eq!(with_zstd(&NARINFO.replace("none", "xz")), None);
    }

    async fn compressed(pieces: Vec<Result<Bytes, BodyAborted>>, nar_size: u64) -> Result<Vec<u8>, BodyAborted> {
        let permit = Encoders::new().take().await.unwrap();
        let pieces: Vec<_> = compress(stream::iter(pieces).boxed(), nar_size, permit).collect().await;
        Ok(pieces.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
    }

    #[tokio::test]
    async fn compressed_nar_unpacks_to_itself_and_a_short_one_never_ends_cleanly() {
        let nar: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_le_bytes()[usize::from(at % 7 > 3)]).collect();
        for chunk in [1_000, 65_536] {
            let pieces = || nar.chunks(chunk).map(|piece| Ok(Bytes::copy_from_slice(piece)));
            let whole = compressed(pieces().collect(), nar.len() as u64).await.unwrap();
            assert!(whole.len() < nar.len() / 2, "{}", whole.len());
            assert_eq!(zstd::decode_all(&*whole).unwrap(), nar);
            let cut = pieces().take(20).chain([Err(BodyAborted)]).collect();
            assert_eq!(compressed(cut, nar.len() as u64).await, Err(BodyAborted));
            assert_eq!(
                compressed(pieces().take(20).collect(), nar.len() as u64).await,
                Err(BodyAborted),
                "it just ended"
            );
        }
    }
}
