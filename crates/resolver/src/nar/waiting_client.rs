//! The connection to one client that waits for a NAR, and what keeps the client waiting.
//!
//! Every NAR begins with the same 56 bytes. Until something verified can be sent, they go out a few at a time: they
//! give nothing away, and a client that counts bytes per second (curl, for Nix's `stalled-download-timeout`) sees that
//! the transfer is alive.

use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::NoNar;

/// How every NAR begins: `nix-archive-1`, `(` and `type`, each with its length and padding.
pub(crate) const NAR_PREFIX: &[u8; 56] =
    b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0\x01\0\0\0\0\0\0\0(\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0type\0\0\0\0";
/// A client that has waited this long gets the head of the response and the first burst.
const HEAD_AFTER: Duration = Duration::from_secs(1);
/// Bytes of one burst. curl compares whole bytes per second, averaged over some five seconds, with its limit of 1, so
/// single bytes far apart count as nothing.
const BURST_BYTES: usize = 8;
/// The time between two bursts: half of the `stalled-download-timeout` that `narmesh init` prints, so that 56 bytes
/// last 105 s. Measured with that timeout of 30 s: Nix 2.8, 2.26 and 2.34 wait with bursts of 8 bytes every 10, 15 and
/// 25 s, and leave with single bytes every 15 s.
const BURST_PAUSE: Duration = Duration::from_secs(15);
/// The most chunks that may wait for the client.
pub(super) const CHUNKS_AHEAD: usize = 2;

/// The client hung up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HungUp;

/// A client that waits for a NAR; see the module.
#[derive(Debug)]
pub(super) struct WaitingClient {
    client: mpsc::Sender<Result<Bytes, NoNar>>,
    first_byte: u64,
    /// The next byte of the NAR that the client gets.
    next_byte: u64,
    burst_at: Instant,
}

impl WaitingClient {
    /// The client wants the NAR from `first_byte` on.
    pub(super) fn new(client: mpsc::Sender<Result<Bytes, NoNar>>, first_byte: u64) -> Self {
        let has_bursts = first_byte < NAR_PREFIX.len() as u64;
        let first = if has_bursts { HEAD_AFTER } else { BURST_PAUSE };
        Self { client, first_byte, next_byte: first_byte, burst_at: Instant::now() + first }
    }

    /// Whether the client has got the head of a response and at least one byte.
    pub(super) fn has_told_something(&self) -> bool {
        self.next_byte > self.first_byte
    }

    /// Whether bursts are left to keep the client waiting with.
    fn has_bursts(&self) -> bool {
        self.next_byte < NAR_PREFIX.len() as u64
    }

    /// Whether no bursts are left, and the pause after the last one is over.
    pub(super) fn is_at_its_end(&self) -> bool {
        !self.has_bursts() && Instant::now() >= self.burst_at
    }

    /// For how long the client can be kept waiting.
    pub(super) fn patience_left(&self) -> Duration {
        let bytes_left = (NAR_PREFIX.len() as u64).saturating_sub(self.next_byte);
        let bursts_left = u32::try_from(bytes_left.div_ceil(BURST_BYTES as u64)).unwrap_or(0);
        self.burst_at.saturating_duration_since(Instant::now()) + BURST_PAUSE * bursts_left
    }

    /// Keeps the client waiting until `done` is ready.
    pub(super) async fn keep<T>(&mut self, done: impl Future<Output = T>) -> Result<T, HungUp> {
        let mut done = pin!(done);
        let client = self.client.clone();
        let mut closed = pin!(client.closed());
        loop {
            let has_bursts = self.has_bursts();
            let burst = tokio::time::sleep_until(self.burst_at);
            tokio::select! {
                biased;
                done = &mut done => return Ok(done),
                () = &mut closed => return Err(HungUp),
                () = burst, if has_bursts => self.send_burst(),
            }
        }
    }

    fn send_burst(&mut self) {
        let from = usize::try_from(self.next_byte).unwrap_or(NAR_PREFIX.len());
        let bytes = NAR_PREFIX.get(from..NAR_PREFIX.len().min(from + BURST_BYTES)).unwrap_or_default();
        // There should be room, because so far only bursts were sent, far apart. If there is none, the client has bytes
        // to read.
        if self.client.try_send(Ok(Bytes::from_static(bytes))).is_ok() {
            self.next_byte += bytes.len() as u64;
        }
        self.burst_at = Instant::now() + BURST_PAUSE;
    }

    /// Sends bytes of the NAR that begin at `at`, except those that the client already has or did not ask for.
    pub(super) async fn send(&mut self, at: u64, mut bytes: Bytes) -> Result<(), HungUp> {
        let skipped = self.next_byte.saturating_sub(at).min(bytes.len() as u64);
        bytes.advance(usize::try_from(skipped).unwrap_or(usize::MAX));
        if bytes.is_empty() {
            return Ok(());
        }
        self.next_byte += bytes.len() as u64;
        self.client.send(Ok(bytes)).await.map_err(|_| HungUp)
    }

    /// Ends the body short, for this reason.
    pub(super) async fn abort(self, why: NoNar) {
        // This fails only if the client hung up first.
        drop(self.client.send(Err(why)).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_client_gets_the_common_beginning_in_bursts_and_then_the_rest() {
        let (sender, mut receiver) = mpsc::channel(CHUNKS_AHEAD);
        let reader = tokio::spawn(async move {
            let mut got = Vec::new();
            while let Some(Ok(bytes)) = receiver.recv().await {
                got.push(bytes);
            }
            got
        });
        let mut client = WaitingClient::new(sender, 0);
        assert_eq!(client.patience_left(), Duration::from_secs(1 + 7 * 15));
        client.keep(tokio::time::sleep(Duration::from_secs(300))).await.unwrap();
        assert!(client.has_told_something() && !client.has_bursts());
        assert_eq!(client.patience_left(), Duration::ZERO);
        let mut nar = NAR_PREFIX.to_vec();
        nar.extend_from_slice(b"the rest");
        client.send(0, Bytes::from(nar.clone())).await.unwrap();
        drop(client);
        let got = reader.await.unwrap();
        assert_eq!(got.len(), 8);
        assert_eq!(got.concat(), nar);
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_resumes_gets_nothing_before_its_first_byte() {
        let (sender, mut receiver) = mpsc::channel(CHUNKS_AHEAD);
        let mut client = WaitingClient::new(sender, 60);
        client.keep(tokio::time::sleep(Duration::from_secs(100))).await.unwrap();
        client.send(0, Bytes::from(vec![1; 64])).await.unwrap();
        client.send(64, Bytes::from(vec![2; 4])).await.unwrap();
        assert_eq!(receiver.recv().await, Some(Ok(Bytes::from(vec![1; 4]))));
        assert_eq!(receiver.recv().await, Some(Ok(Bytes::from(vec![2; 4]))));
        drop(receiver);
        assert_eq!(client.keep(std::future::pending::<()>()).await, Err(HungUp));
    }
}
