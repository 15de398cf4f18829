//! Length-prefixed frames on NAR streams, as `narmesh_protocol::wire::NarFrame` describes them.

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use std::io;
use std::time::Duration;

/// Reads one frame of at most `bytes_max`; `None` when the stream ended before its first byte.
pub(super) async fn read_frame(io: &mut (impl AsyncRead + Unpin), bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    let Some((first, rest)) = length.split_first_mut() else { return Ok(None) };
    if io.read(std::slice::from_mut(first)).await? == 0 {
        return Ok(None);
    }
    io.read_exact(rest).await?;
    let bytes = u32::from_le_bytes(length) as usize;
    // Before memory is taken: the length is the peer's word.
    if bytes > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame over its limit"));
    }
    let mut frame = vec![0; bytes];
    io.read_exact(&mut frame).await?;
    Ok(Some(frame))
}

/// Writes one frame; the caller flushes.
pub(super) async fn write_frame(io: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut bytes = Vec::with_capacity(4 + frame.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(frame);
    io.write_all(&bytes).await
}

/// Writes all bytes. `goes_on` is told how many were taken, or 0 if none were taken for `check`; it says whether to go
/// on.
pub(super) async fn write_all_of(
    io: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    check: Duration,
    mut goes_on: impl FnMut(usize) -> bool,
) -> io::Result<()> {
    let mut left = bytes;
    while !left.is_empty() {
        // Nothing is lost here: yamux takes bytes or does not, and a write that is dropped has taken none.
        let written = match tokio::time::timeout(check, io.write(left)).await {
            Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written?,
            Err(_) => 0,
        };
        left = left.get(written..).unwrap_or_default();
        if !goes_on(written) {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}
