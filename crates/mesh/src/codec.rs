//! The codec of every request-and-reply protocol.

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::request_response;
use std::io;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// The first bytes of a reply, which are read without waiting for room. Nearly every narinfo is shorter.
pub(super) const SMALL_BYTES: usize = 64 << 10;
/// Room for the longer replies of one protocol that are being read, each counted at the largest size: two of 8 MiB, or
/// eight summaries.
pub(super) const LARGE_BYTES_MAX: usize = 17 << 20;

/// At most so many bytes are read at once; yamux has no longer frames.
const PIECE_BYTES: usize = 16 << 10;

/// Whole messages as bytes, each bounded. A stream carries one request, so the end of the stream is the end of the
/// message. What is read of long replies is bounded, however many peers send them at once: the others wait for their
/// turn, or until their deadline.
#[derive(Clone, Debug)]
pub(super) struct BytesCodec {
    request_bytes_max: usize,
    reply_bytes_max: usize,
    room: Arc<Semaphore>,
}

impl BytesCodec {
    pub(super) fn new(request_bytes_max: usize, reply_bytes_max: usize) -> Self {
        let at_once = (LARGE_BYTES_MAX / reply_bytes_max.max(1)).max(1);
        Self { request_bytes_max, reply_bytes_max, room: Arc::new(Semaphore::new(at_once.min(Semaphore::MAX_PERMITS))) }
    }

    /// Reads at most one byte over the limit, as [`read_bounded`] does.
    async fn read_reply<T: AsyncRead + Unpin + Send>(&self, io: &mut T) -> io::Result<Vec<u8>> {
        let small = SMALL_BYTES.min(self.reply_bytes_max + 1);
        let mut bytes = Vec::new();
        (&mut *io).take(small as u64).read_to_end(&mut bytes).await?;
        // Most replies are small and wait for nobody; long ones share the memory that all of them may take.
        if bytes.len() == small && small <= self.reply_bytes_max {
            let _room = self.room.acquire().await.map_err(|_| io::Error::from(io::ErrorKind::Interrupted))?;
            read_rest(io, &mut bytes, self.reply_bytes_max + 1).await?;
        }
        Ok(bytes)
    }
}

impl request_response::Codec for BytesCodec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read_bounded(io, self.request_bytes_max).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        let reply = self.read_reply(io).await?;
        // No reply is empty: the other side dropped the stream, as libp2p does with one stream too many.
        if reply.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(reply) }
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, request: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&request).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, reply: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&reply).await
    }
}

/// Reads at most one byte over the limit, so that the decoder refuses the message. An error here would say neither what
/// was wrong nor, for a request, who sent it.
async fn read_bounded<T: AsyncRead + Unpin + Send>(io: &mut T, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io.take(bytes_max as u64 + 1).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// Reads on, up to `bytes_max` in all. The room for that is taken at once, and costs memory only as it is filled: a buffer that grows
/// takes three times its size for a moment, and leaves holes behind.
async fn read_rest<T: AsyncRead + Unpin + Send>(io: &mut T, bytes: &mut Vec<u8>, bytes_max: usize) -> io::Result<()> {
    bytes.reserve_exact(bytes_max.saturating_sub(bytes.len()));
    let mut piece = vec![0; PIECE_BYTES];
    while bytes.len() < bytes_max {
        let wanted = piece.len().min(bytes_max - bytes.len());
        let read = io.read(piece.get_mut(..wanted).unwrap_or_default()).await?;
        if read == 0 {
            break;
        }
        bytes.extend_from_slice(piece.get(..read).unwrap_or_default());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use libp2p::request_response::Codec as _;

    const PROTOCOL: StreamProtocol = StreamProtocol::new("/test/1");

    #[tokio::test]
    async fn reply_is_read_whole_and_one_too_long_up_to_a_byte_over_the_limit() {
        let mut codec = BytesCodec::new(8, 1 << 20);
        for length in [1, SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, 1 << 20] {
            let sent = vec![7; length];
            assert_eq!(codec.read_response(&PROTOCOL, &mut sent.as_slice()).await.unwrap(), sent, "{length}");
        }
        let long = vec![7; 2 << 20];
        assert_eq!(codec.read_response(&PROTOCOL, &mut long.as_slice()).await.unwrap().len(), (1 << 20) + 1);
        assert!(codec.read_response(&PROTOCOL, &mut [].as_slice()).await.is_err());
        assert_eq!(codec.room.available_permits(), 17, "all is given back");
        let mut tiny = BytesCodec::new(8, 10);
        assert_eq!(tiny.read_response(&PROTOCOL, &mut [1; 50].as_slice()).await.unwrap().len(), 11);
    }

    #[tokio::test]
    async fn long_replies_wait_for_each_other_and_short_ones_do_not_wait() {
        let (mut codec, mut other) = (BytesCodec::new(8, 8 << 20), BytesCodec::new(8, 8 << 20));
        other.room = Arc::clone(&codec.room);
        assert_eq!(codec.room.available_permits(), 2);
        let room = Arc::clone(&codec.room).acquire_many_owned(2).await.unwrap();
        let (long, short) = (vec![7; 1 << 20], vec![7; SMALL_BYTES - 1]);
        let (mut io, protocol) = (long.as_slice(), PROTOCOL);
        let mut waits = std::pin::pin!(codec.read_response(&protocol, &mut io));
        assert!(waits.as_mut().now_or_never().is_none());
        assert_eq!(other.read_response(&protocol, &mut short.as_slice()).await.unwrap(), short);
        drop(room);
        assert_eq!(waits.await.unwrap(), long);
    }
}
