//! What has come on a connection and nobody has read yet.
//!
//! yamux bounds the bytes of each stream that nobody reads, 256 KiB at least, and neither their sum nor what they cost: a frame of
//! one byte takes a hundred bytes of memory, so that one window full of them takes 25 MiB. Here the frames are counted as they
//! arrive, before yamux sees them, and a connection with more than its bounds allow ends. Frames with little in them, or nothing, are
//! read at a pace. No honest peer comes near:
//! its requests are short and are read at once, and what we asked for is read as it comes.

use super::rate_meter::{RateMeter, Wait};
use futures::{AsyncRead, AsyncWrite, ready};
use narmesh_machine::Bucket;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The memory that yamux takes for a frame beside its bytes, and ours: measured, rounded up.
const FRAME_BYTES: usize = 100;
/// A frame below this costs more than its bytes. Those of NARs have 16 KiB.
const SMALL_FRAME_BYTES: usize = 1_024;
/// Small frames that are read at once, and per second: some tenths of a microsecond each if they are empty, and a few if they are
/// not. What 5,000 questions and 10,000 small NARs a second need is less.
const SMALL_FRAMES: Bucket = Bucket { burst: 500_000, per_s: 100_000 };
/// A yamux header: version, type, flags, stream, length (<https://github.com/hashicorp/yamux/blob/master/spec.md>).
pub(super) const HEADER_BYTES: usize = 12;
const TYPE_DATA: u8 = 0;
const TYPE_WINDOW_UPDATE: u8 = 1;
const FLAG_SYN: u8 = 1;

/// How much may wait to be read, counted as it weighs in memory, bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnreadBounds {
    /// On the streams that the peer opened.
    pub(super) unasked_bytes_max: usize,
    /// On all streams.
    pub(super) bytes_max: usize,
}

/// What waits to be read on the streams of one connection; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Received(Arc<Mutex<Streams>>);

#[derive(Debug)]
struct Streams {
    bounds: UnreadBounds,
    /// The lowest bit of the numbers of the peer's streams: a dialler opens those with odd numbers.
    peers_bit: u32,
    unread: HashMap<u32, Unread>,
    unasked_bytes: usize,
    bytes: usize,
}

/// The frames of one stream that were not read to their ends.
#[derive(Debug, Default)]
struct Unread {
    frames: VecDeque<usize>,
    bytes: usize,
}

impl Unread {
    fn weight(&self) -> usize {
        self.bytes + self.frames.len() * FRAME_BYTES
    }

    fn read(&mut self, mut bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        while let Some(first) = self.frames.front_mut() {
            if *first > bytes {
                *first -= bytes;
                return;
            }
            bytes -= *first;
            self.frames.pop_front();
        }
    }
}

impl Streams {
    fn is_of_peer(&self, stream: u32) -> bool {
        stream & 1 == self.peers_bit
    }

    /// Changes what is unread of a stream, and the sums with it.
    fn change(&mut self, stream: u32, change: impl FnOnce(&mut Unread)) {
        let Some(unread) = self.unread.get_mut(&stream) else { return };
        let before = unread.weight();
        change(unread);
        let after = unread.weight();
        self.bytes = self.bytes + after - before;
        if self.is_of_peer(stream) {
            self.unasked_bytes = self.unasked_bytes + after - before;
        }
    }

    /// A frame begins.
    fn begin(&mut self, header: [u8; HEADER_BYTES]) -> io::Result<()> {
        let [_, kind, _, flags, rest @ ..] = header;
        let [a, b, c, d, ..] = rest;
        let stream = u32::from_be_bytes([a, b, c, d]);
        // A stream that the peer opens costs memory before it has sent a byte.
        if matches!(kind, TYPE_DATA | TYPE_WINDOW_UPDATE) && flags & FLAG_SYN != 0 && self.is_of_peer(stream) {
            self.unread.entry(stream).or_default();
        }
        let bytes = body_bytes(header);
        if bytes > 0 {
            self.change(stream, |unread| {
                unread.frames.push_back(bytes);
                unread.bytes += bytes;
            });
        }
        // Before the body of the frame is read: the length in its header is counted as if it were there.
        if self.unasked_bytes > self.bounds.unasked_bytes_max || self.bytes > self.bounds.bytes_max {
            tracing::debug!(self.unasked_bytes, self.bytes, "a peer sends more than is read: its connection ends");
            return Err(io::Error::other("the peer sent more than was read, above the bound of a connection"));
        }
        Ok(())
    }
}

/// The bytes that follow a header.
fn body_bytes([_, kind, _, _, _, _, _, _, a, b, c, d]: [u8; HEADER_BYTES]) -> usize {
    if kind == TYPE_DATA { u32::from_be_bytes([a, b, c, d]) as usize } else { 0 }
}

impl Received {
    /// Of a connection that we dialled, or that came in.
    pub(super) fn new(bounds: UnreadBounds, we_dialled: bool) -> Self {
        let peers_bit = u32::from(!we_dialled);
        Self(Arc::new(Mutex::new(Streams { bounds, peers_bit, unread: HashMap::new(), unasked_bytes: 0, bytes: 0 })))
    }

    /// Counts what comes on this stream until what is returned is dropped.
    pub(super) fn of_stream(&self, stream: u32) -> StreamReceived {
        self.0.lock().unread.entry(stream).or_default();
        StreamReceived { received: self.clone(), stream }
    }

    #[cfg(test)]
    pub(super) fn unread_bytes(&self) -> usize {
        self.0.lock().bytes
    }
}

/// What waits to be read on one stream.
#[derive(Debug)]
pub(super) struct StreamReceived {
    received: Received,
    stream: u32,
}

impl StreamReceived {
    /// So many bytes were read.
    pub(super) fn read(&self, bytes: usize) {
        self.received.0.lock().change(self.stream, |unread| unread.read(bytes));
    }
}

impl Drop for StreamReceived {
    fn drop(&mut self) {
        let mut streams = self.received.0.lock();
        streams.change(self.stream, |unread| *unread = Unread::default());
        streams.unread.remove(&self.stream);
    }
}

/// The socket under yamux; counts the frames that are read from it.
#[derive(Debug)]
pub(super) struct Counted<C> {
    socket: C,
    received: Received,
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    body_left: usize,
    small_frames: RateMeter,
    wait: Wait,
}

impl<C> Counted<C> {
    pub(super) fn new(socket: C, received: Received) -> Self {
        Self {
            socket,
            received,
            header: [0; HEADER_BYTES],
            header_bytes: 0,
            body_left: 0,
            small_frames: RateMeter::new(SMALL_FRAMES),
            wait: Wait::default(),
        }
    }

    fn count(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let body = bytes.len().min(self.body_left);
            self.body_left -= body;
            bytes = bytes.get(body..).unwrap_or_default();
            let missing = self.header.get_mut(self.header_bytes..).unwrap_or_default();
            let here = missing.len().min(bytes.len());
            let (header, rest) = bytes.split_at(here);
            missing.iter_mut().zip(header).for_each(|(to, from)| *to = *from);
            bytes = rest;
            self.header_bytes += here;
            if self.header_bytes == HEADER_BYTES {
                self.header_bytes = 0;
                self.body_left = body_bytes(self.header);
                // Each frame costs work whatever its size, so small ones are counted apart.
                if self.body_left < SMALL_FRAME_BYTES {
                    self.small_frames.count(1);
                }
                self.received.0.lock().begin(self.header)?;
            }
        }
        Ok(())
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Counted<C> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.wait.poll(&this.small_frames, context));
        let bytes = ready!(Pin::new(&mut self.socket).poll_read(context, buffer))?;
        self.count(buffer.get(..bytes).unwrap_or_default())?;
        Poll::Ready(Ok(bytes))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Counted<C> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, buffers)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: UnreadBounds = UnreadBounds { unasked_bytes_max: 1_000, bytes_max: 3_000 };

    fn frame(stream: u32, flags: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap();
        [&[0, TYPE_DATA, 0, flags][..], &stream.to_be_bytes(), &length.to_be_bytes(), body].concat()
    }

    /// A connection that came in: the peer's streams have odd numbers.
    fn counted() -> (Counted<()>, Received) {
        let received = Received::new(BOUNDS, false);
        (Counted::new((), received.clone()), received)
    }

    #[test]
    fn what_arrives_counts_until_it_is_read_or_its_stream_ends_however_it_is_cut() {
        let sent = [frame(1, FLAG_SYN, &[7; 50]), frame(1, 0, &[7; 30]), frame(2, 0, &[7; 40])].concat();
        for step in 1..sent.len() {
            let (mut counted, received) = counted();
            let ours = received.of_stream(2);
            sent.chunks(step).for_each(|part| counted.count(part).unwrap());
            assert_eq!(received.unread_bytes(), 120 + 3 * FRAME_BYTES, "in steps of {step}");
            let theirs = received.of_stream(1);
            theirs.read(60);
            assert_eq!(received.unread_bytes(), 60 + 2 * FRAME_BYTES);
            drop(theirs);
            assert_eq!(received.unread_bytes(), 40 + FRAME_BYTES);
            drop(ours);
            assert_eq!(received.unread_bytes(), 0);
        }
    }

    #[test]
    fn what_the_peer_sends_unasked_has_a_bound_of_its_own() {
        let (mut unasked, _) = counted();
        unasked.count(&frame(1, FLAG_SYN, &[7; 890])).unwrap();
        assert!(unasked.count(&frame(3, FLAG_SYN, &[7; 20])).is_err());
        let (mut asked, received) = counted();
        let _ours = received.of_stream(2);
        asked.count(&frame(2, 0, &[7; 2_800])).unwrap();
        assert!(asked.count(&frame(2, 0, &[7; 200])).is_err());
    }

    #[test]
    fn small_frames_weigh_what_they_take() {
        let (mut counted, received) = counted();
        let ours = received.of_stream(2);
        let sent = (0..).take_while(|_| counted.count(&frame(2, 0, &[7])).is_ok()).count();
        assert_eq!(sent, 3_000 / (FRAME_BYTES + 1));
        ours.read(sent);
        assert_eq!(received.unread_bytes(), FRAME_BYTES + 1, "of the one too many");
    }

    #[tokio::test(start_paused = true)]
    async fn empty_frames_are_read_at_a_pace() {
        use futures::AsyncReadExt as _;
        let socket = futures::io::repeat(0);
        let mut counted = Counted::new(socket, Received::new(BOUNDS, false));
        let since = tokio::time::Instant::now();
        let mut frames = vec![0; 750_000 * HEADER_BYTES];
        for part in frames.chunks_mut(4_096) {
            counted.read_exact(part).await.unwrap();
        }
        assert!((2..4).contains(&since.elapsed().as_secs()), "{:?}", since.elapsed());
    }

    #[test]
    fn frames_of_streams_that_ended_or_never_began_count_nothing() {
        let (mut counted, received) = counted();
        for _ in 0..100 {
            counted.count(&frame(5, 0, &[7; 500])).unwrap();
        }
        assert_eq!(received.unread_bytes(), 0);
    }
}
