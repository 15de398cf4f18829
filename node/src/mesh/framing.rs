//! Length-prefixed frames on NAR streams, as `narmesh_protocol::wire::NarFrame` describes them.

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use narmesh_protocol::wire::NarFrame;
use std::io;
use std::task::Poll;

/// Reads one frame of at most `bytes_max`; `None` when the stream ended before its first byte.
pub(super) async fn read_frame(io: &mut (impl AsyncRead + Unpin), bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    let Some((first, rest)) = length.split_first_mut() else { return Ok(None) };
    if io.read(std::slice::from_mut(first)).await? == 0 {
        return Ok(None);
    }
    io.read_exact(rest).await?;
    let bytes = u32::from_le_bytes(length) as usize;
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

/// Writes one body chunk, header and bytes apart so that the bytes are not copied.
pub(super) async fn write_chunk(io: &mut (impl AsyncWrite + Unpin), chunk: &[u8]) -> io::Result<()> {
    for piece in chunk.chunks(NarFrame::CHUNK_BYTES_MAX) {
        let length = u32::try_from(piece.len()).expect("at most CHUNK_BYTES_MAX");
        io.write_all(&length.to_le_bytes()).await?;
        io.write_all(piece).await?;
    }
    Ok(())
}

/// Ends a body.
pub(super) async fn write_end(io: &mut (impl AsyncWrite + Unpin), status: u8) -> io::Result<()> {
    let [a, b, c, d] = 0_u32.to_le_bytes();
    io.write_all(&[a, b, c, d, status]).await?;
    io.flush().await
}

/// What [`read_chunk_head`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// A chunk of that many bytes follows.
    Data(usize),
    /// The body ended with this status byte.
    End(u8),
}

/// Reads what stands before a chunk's bytes.
pub(super) async fn read_chunk_head(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Chunk> {
    let mut length = [0; 4];
    io.read_exact(&mut length).await?;
    let bytes = u32::from_le_bytes(length) as usize;
    if bytes == 0 {
        let mut status = [0];
        io.read_exact(&mut status).await?;
        let [status] = status;
        return Ok(Chunk::End(status));
    }
    if bytes > NarFrame::CHUNK_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "chunk over its limit"));
    }
    Ok(Chunk::Data(bytes))
}

/// Appends at least one and at most `bytes_max` bytes: all that is there without waiting again, so that a slow link is seen to
/// move and a quick one costs few steps.
pub(super) async fn read_some(
    io: &mut (impl AsyncRead + Unpin),
    out: &mut Vec<u8>,
    bytes_max: usize,
) -> io::Result<usize> {
    let before = out.len();
    out.resize(before + bytes_max, 0);
    let mut filled = 0;
    let mut failure = None;
    while filled < bytes_max {
        let space = out.get_mut(before + filled..).unwrap_or_default();
        let read = if filled == 0 {
            io.read(space).await
        } else {
            match futures::poll!(io.read(space)) {
                Poll::Ready(read) => read,
                Poll::Pending => break,
            }
        };
        match read {
            Ok(0) => failure = Some(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => filled += bytes,
            Err(error) => failure = Some(error),
        }
        if failure.is_some() {
            break;
        }
    }
    out.truncate(before + filled);
    match failure {
        // What came before the failure is good; the next read finds the failure again.
        Some(error) if filled == 0 => Err(error),
        Some(_) | None => Ok(filled),
    }
}
