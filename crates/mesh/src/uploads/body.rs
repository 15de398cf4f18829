//! Writes one body: in slices of its share, in pieces as large as the stream takes quickly. It is given up when nothing
//! moves.

use super::peer::PeerUploads;
use crate::byte_rate::RateShare;
use crate::framing::{write_all_of, write_frame};
use futures::{AsyncWrite, AsyncWriteExt};
use narmesh_protocol::wire::NarFrame;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes read from the file system at a time for a stream that takes them quickly; a NAR up to this size is one write.
pub(super) const PIECE_BYTES_MAX: usize = 256 << 10;
/// Bytes of the first piece of a larger NAR, before anything is known of its stream.
const PIECE_BYTES_FIRST: usize = 64 << 10;
/// Bytes read at a time for a stream that is slow.
const PIECE_BYTES_SLOW: usize = 16 << 10;
/// A stream that takes longer for one piece is slow: at this pace 256 KiB are 8 Mbit/s.
const SLOW_WRITE: Duration = Duration::from_millis(250);
/// A body of which no byte can be written for this long is given up if other streams of its peer move, or a request of
/// its peer waits for its place: its asker does not read it, and asks for the rest when it does.
const STALL_BESIDE_OTHERS: Duration = Duration::from_secs(30);
/// A body of which no byte can be written for this long is given up in any case.
const STALL_MAX: Duration = Duration::from_secs(60);
/// How often it is checked whether a body has stalled.
const STALL_CHECK: Duration = Duration::from_secs(5);

/// One body under way on its stream.
pub(super) struct BodyWriter<'a, S> {
    stream: &'a mut S,
    peer: &'a PeerUploads,
    share: &'a RateShare,
    piece_bytes: usize,
    /// When the stream last took a byte.
    moved: Instant,
    /// Bytes of the body that the stream took.
    pub(super) sent: u64,
}

impl<'a, S: AsyncWrite + Unpin> BodyWriter<'a, S> {
    pub(super) fn new(stream: &'a mut S, peer: &'a PeerUploads, share: &'a RateShare) -> Self {
        let piece_bytes = if peer.is_slow.load(Ordering::Relaxed) { PIECE_BYTES_SLOW } else { PIECE_BYTES_FIRST };
        Self { stream, peer, share, piece_bytes, moved: Instant::now(), sent: 0 }
    }

    /// How much to read for the next piece.
    pub(super) fn piece_bytes(&self) -> usize {
        self.piece_bytes
    }

    /// What to read first of a body of `left` bytes.
    pub(super) fn first_piece_bytes(peer: &PeerUploads, left: u64) -> usize {
        if peer.is_slow.load(Ordering::Relaxed) {
            PIECE_BYTES_SLOW
        } else if left <= PIECE_BYTES_MAX as u64 {
            PIECE_BYTES_MAX
        } else {
            PIECE_BYTES_FIRST
        }
    }

    /// Writes bytes, and does not count them as part of the body.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (peer, moved) = (self.peer, &mut self.moved);
        let has_stalled = |last: Instant| {
            let stood = last.elapsed();
            // A stream that stands still is in the way only where the peer reads others, or waits for a place.
            let is_in_the_way = || *peer.moved.lock() > last || peer.waiting.load(Ordering::Relaxed) > 0;
            stood >= STALL_MAX || (stood >= STALL_BESIDE_OTHERS && is_in_the_way())
        };
        write_all_of(self.stream, bytes, STALL_CHECK, |written| {
            if written == 0 {
                return !has_stalled(*moved);
            }
            *moved = Instant::now();
            *peer.moved.lock() = *moved;
            true
        })
        .await
    }

    /// Writes one piece of the body, as chunks.
    pub(super) async fn write_piece(&mut self, piece: &[u8]) -> io::Result<()> {
        let mut left = piece;
        let mut took = Duration::ZERO;
        // A body that waits for its share cannot move, and that is not the stream's fault: `moved` begins anew after
        // each wait.
        while !left.is_empty() {
            let granted = self.share.pay(left.len().min(NarFrame::CHUNK_BYTES_MAX)).await;
            let (chunk, rest) = left.split_at(granted.min(left.len()));
            left = rest;
            let since = Instant::now();
            self.moved = since;
            let length = u32::try_from(chunk.len()).map_err(io::Error::other)?;
            self.write(&length.to_le_bytes()).await?;
            self.write(chunk).await?;
            took += since.elapsed();
            self.sent += chunk.len() as u64;
        }
        self.choose_piece(took);
        Ok(())
    }

    fn choose_piece(&mut self, took: Duration) {
        let is_slow = took > SLOW_WRITE;
        self.piece_bytes = if is_slow { PIECE_BYTES_SLOW } else { (2 * self.piece_bytes).min(PIECE_BYTES_MAX) };
        self.peer.is_slow.store(is_slow, Ordering::Relaxed);
    }

    /// A NAR that is one piece is one write: head, body and end, so that the asker wakes once.
    pub(super) async fn write_at_once(&mut self, head: &[u8], nar: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(head.len() + nar.len() + 16);
        write_frame(&mut bytes, head).await?;
        for chunk in nar.chunks(NarFrame::CHUNK_BYTES_MAX) {
            write_frame(&mut bytes, chunk).await?;
        }
        bytes.extend_from_slice(&0_u32.to_le_bytes());
        bytes.push(NarFrame::END_COMPLETE);
        self.write(&bytes).await?;
        self.flush().await?;
        self.sent += nar.len() as u64;
        Ok(())
    }

    /// Ends the body.
    pub(super) async fn end(&mut self, status: u8) -> io::Result<()> {
        let [a, b, c, d] = 0_u32.to_le_bytes();
        self.write(&[a, b, c, d, status]).await?;
        self.flush().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        tokio::time::timeout(STALL_MAX, self.stream.flush()).await?
    }
}

#[cfg(test)]
mod tests {
    use super::super::peer::Waiting;
    use super::*;
    use crate::byte_rate::{ByteRate, Ticket};
    use libp2p::PeerId;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    /// The stream of an asker that reads nothing.
    struct Full;

    impl AsyncWrite for Full {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    /// How long a body stands still before it is given up.
    async fn patience(peer: &PeerUploads) -> Duration {
        let (share, mut stream, since) = (ByteRate::default().join(PeerId::random(), Ticket(0)), Full, Instant::now());
        let written = BodyWriter::new(&mut stream, peer, &share).write(b"body").await;
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        since.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn body_that_is_not_read_is_given_up_sooner_if_others_of_its_peer_want_to_move() {
        let around = |least: Duration| least..least + STALL_CHECK;
        let peer = PeerUploads::new(ByteRate::default());
        assert!(around(STALL_MAX).contains(&patience(&peer).await), "nobody else is there");
        let waiting = Waiting::of(&peer);
        assert!(around(STALL_BESIDE_OTHERS).contains(&patience(&peer).await), "a request waits for a place");
        drop(waiting);
        *peer.moved.lock() = Instant::now() + STALL_CHECK;
        assert!(around(STALL_BESIDE_OTHERS).contains(&patience(&peer).await), "another stream moves");
    }
}
