//! Buffers what came on a stream, and finds the frames in it. Nothing is lost when a read is dropped half way.

use super::lines::Line;
use crate::bulk::BulkStream;
use futures::AsyncRead;
use narmesh_protocol::wire::NarFrame;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Two frames of yamux: more at a time saves nothing.
const INBOX_BYTES: usize = 32 << 10;

/// A stream with a read buffer.
pub(super) struct Inbox {
    pub(super) stream: BulkStream,
    line: Arc<Line>,
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
}

/// What comes before the bytes of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// A chunk of that many bytes follows.
    Data(usize),
    /// The body ended with this status byte.
    End(u8),
}

impl Inbox {
    pub(super) fn new(stream: BulkStream, line: Arc<Line>) -> Self {
        Self { stream, line, bytes: vec![0; INBOX_BYTES].into(), from: 0, to: 0 }
    }

    /// The stream, if nothing is left that would be taken for the answer to the next request.
    pub(super) fn into_idle(self) -> Option<BulkStream> {
        (self.from == self.to).then_some(self.stream)
    }

    /// What came and was not taken yet.
    pub(super) fn waiting(&self) -> &[u8] {
        self.bytes.get(self.from..self.to).unwrap_or_default()
    }

    pub(super) fn take(&mut self, bytes: usize) {
        self.from = (self.from + bytes).min(self.to);
    }

    /// Reads more. The end of the stream is an error, because no answer ends with it.
    pub(super) fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
        } else if self.to == self.bytes.len() {
            self.bytes.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        let space = self.bytes.get_mut(self.to..).unwrap_or_default();
        match ready!(Pin::new(&mut self.stream).poll_read(context, space))? {
            0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            read => {
                self.to += read;
                self.line.count(read);
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Takes one frame of at most `bytes_max`, which fits into the buffer.
    pub(super) fn poll_frame(&mut self, context: &mut Context<'_>, bytes_max: usize) -> Poll<io::Result<Vec<u8>>> {
        loop {
            if let Some((length, rest)) = self.waiting().split_first_chunk() {
                let bytes = u32::from_le_bytes(*length) as usize;
                // It would never fit into the buffer, so this would wait for ever.
                if bytes > bytes_max {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "frame over its limit")));
                }
                if let Some(frame) = rest.get(..bytes).map(<[u8]>::to_vec) {
                    self.take(4 + bytes);
                    return Poll::Ready(Ok(frame));
                }
            }
            ready!(self.poll_fill(context))?;
        }
    }

    /// Takes what comes before the bytes of the next chunk.
    pub(super) fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Chunk>> {
        loop {
            if let Some((length, rest)) = self.waiting().split_first_chunk() {
                let bytes = u32::from_le_bytes(*length) as usize;
                match (bytes, rest.first().copied()) {
                    (0, Some(status)) => {
                        self.take(5);
                        return Poll::Ready(Ok(Chunk::End(status)));
                    }
                    (0, None) => {}
                    // Refused before anything of it is read: the length is the peer's word.
                    (NarFrame::CHUNK_BYTES_MAX.., _) if bytes > NarFrame::CHUNK_BYTES_MAX => {
                        return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "chunk over its limit")));
                    }
                    (_, _) => {
                        self.take(4);
                        return Poll::Ready(Ok(Chunk::Data(bytes)));
                    }
                }
            }
            ready!(self.poll_fill(context))?;
        }
    }
}
