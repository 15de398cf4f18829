//! Passes bytes on between two sockets.

use super::socket::Socket;
use crate::byte_rate::RateShare;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bytes that are read at a time in each direction.
pub(super) const PIECE_BYTES: usize = 32 << 10;
/// A circuit over which nothing went for this long ends. An idle control connection is pinged every two minutes.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// A circuit that has carried this much ends after the next piece. The members open another one: a NAR goes on where it
/// was cut.
const BYTES_MAX: u64 = 16 << 30;

/// Passes bytes on until one side ends or breaks off, nothing moves for [`IDLE_MAX`], or [`BYTES_MAX`] went through. Each
/// direction waits for its share of a rate; `count` is told of each piece.
pub(super) async fn splice(
    [one, other]: [Socket; 2],
    [there, back]: [RateShare; 2],
    count: impl Fn(u64),
) -> io::Result<()> {
    let moved = AtomicU64::new(0);
    let count = |bytes: u64| {
        count(bytes);
        moved.fetch_add(bytes, Ordering::Relaxed) + bytes
    };
    let (from_one, to_one) = one.split();
    let (from_other, to_other) = other.split();
    // One watch for both directions: a download sends next to nothing back.
    let watch = async {
        let mut before = None;
        while before != Some(moved.load(Ordering::Relaxed)) {
            before = Some(moved.load(Ordering::Relaxed));
            tokio::time::sleep(IDLE_MAX).await;
        }
    };
    let both = futures::future::try_join(
        pass_on(from_one, to_other, &there, &count),
        pass_on(from_other, to_one, &back, &count),
    );
    tokio::select! {
        done = both => done.map(drop),
        () = watch => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn pass_on(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    share: &RateShare,
    count: &impl Fn(u64) -> u64,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = from.read(&mut piece).await?;
        // Only this direction has ended. The other one may still be sending.
        if read == 0 {
            return to.close().await;
        }
        let mut left = piece.get(..read).unwrap_or_default();
        // While it waits for its share nothing is read, so that the sender is held up and not our memory filled.
        while !left.is_empty() {
            let (now, later) = left.split_at(share.pay(left.len()).await.clamp(1, left.len()));
            to.write_all(now).await?;
            left = later;
        }
        // The other side may wait for exactly these bytes before it says more.
        to.flush().await?;
        if count(read as u64) > BYTES_MAX {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
    }
}
