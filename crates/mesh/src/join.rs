//! Joining a mesh: one request of a machine that is no member yet, on a connection of its own.
//!
//! The swarm never sees such a connection, so a stranger can speak none of its protocols. The handshake has shown to both
//! sides who the other is. Invariants: at most [`JOINS_MAX`] are answered at a time, each with one request of at most
//! [`JoinRequest::BYTES_MAX`] and within [`ANSWER_MAX`].

use super::framing::{read_frame, write_frame};
use super::names::Names;
use super::transport::{self, Arrival, Tls, TlsError};
use futures::future::BoxFuture;
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::core::Endpoint;
use libp2p::core::muxing::{StreamMuxer, StreamMuxerBox, SubstreamBox};
use libp2p::core::transport::{DialOpts, PortUse, Transport};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use narmesh_protocol::codec::CodecError;
use narmesh_protocol::wire::{JoinReply, JoinRequest};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};

/// Machines that are answered at a time; a further one is hung up on, and comes again. One address begins 20 handshakes a
/// second, and each has [`REQUEST_MAX`] for its request: so strangers there cannot take all places. Each takes some 50 KiB.
const JOINS_MAX: usize = 128;
/// How long a request may take to arrive.
const REQUEST_MAX: Duration = Duration::from_secs(3);
/// From the connection to the end of the answer: a roster of 1 MiB takes 8 s at 1 Mbit/s.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// How long one address is tried.
const DIAL_MAX: Duration = Duration::from_secs(5);
/// How long the joining machine waits for names to be resolved.
const NAMES_MAX: Duration = Duration::from_secs(5);

/// Answers machines that want to join: decides on a request of this peer.
pub type JoinHandler = Arc<dyn Fn(PeerId, JoinRequest) -> BoxFuture<'static, JoinReply> + Send + Sync>;

/// Why a mesh was not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Our own certificate could not be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The inviter was reached at none of its addresses.
    #[error("the inviting machine cannot be reached: {}", .0.join("; "))]
    Unreachable(Vec<String>),
    /// It was reached, and takes nobody now: it hung up.
    #[error("the inviting machine takes nobody now ({0}): no invitation is open there, or too many come at once")]
    HungUp(io::Error),
    /// What we ask cannot be sent, or what it answered is no answer.
    #[error("the messages of joining")]
    Codec(#[from] CodecError),
}

/// Answers those who come, until the swarm ends.
pub(super) async fn answer_joins(mut arrivals: mpsc::Receiver<Arrival>, handler: JoinHandler) {
    let places = Arc::new(Semaphore::new(JOINS_MAX));
    while let Some((peer, muxer)) = arrivals.recv().await {
        // Dropped, and not queued: whoever joins tries again, and a queue would be one that strangers fill.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let handler = Arc::clone(&handler);
        tokio::spawn(async move {
            match tokio::time::timeout(ANSWER_MAX, answer(peer, muxer, &handler)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%peer, %error, "a request to join was not answered"),
                Err(_) => tracing::debug!(%peer, after = ?ANSWER_MAX, "a request to join was not answered in time"),
            }
            drop(place);
        });
    }
}

async fn answer(peer: PeerId, mut muxer: StreamMuxerBox, handler: &JoinHandler) -> io::Result<()> {
    let stream = poll_fn(|context| Pin::new(&mut muxer).poll_inbound(context));
    let mut stream = tokio::time::timeout(REQUEST_MAX, stream).await??;
    drive(&mut muxer, async {
        let request = tokio::time::timeout(REQUEST_MAX, read_frame(&mut stream, JoinRequest::BYTES_MAX)).await??;
        let request = request.ok_or(io::ErrorKind::UnexpectedEof)?;
        let request = JoinRequest::decode(&request).map_err(io::Error::other)?;
        let reply = handler(peer, request).await.encode().map_err(io::Error::other)?;
        write_frame(&mut stream, &reply).await?;
        stream.close().await?;
        // The other side closes when it has read all.
        stream.read(&mut [0]).await.map(drop)
    })
    .await
}

/// Asks `inviter` to be admitted. Takes at most half a minute, and 5 s for each address beside it.
///
/// # Errors
/// When nothing can be said of the invitation; an answer that refuses is no error.
pub async fn join(
    keypair: &Keypair,
    inviter: PeerId,
    addresses: &[Multiaddr],
    request: &JoinRequest,
) -> Result<JoinReply, JoinError> {
    let request = request.encode()?;
    let mut transport = transport::join(Tls::new(keypair)?);
    let resolved = Names::of_the_system().resolve(addresses, NAMES_MAX).await;
    let mut failures = resolved.failures;
    for address in resolved.addresses {
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let dial = match transport.dial(address.clone(), options) {
            Ok(dial) => dial,
            Err(error) => {
                failures.push(format!("{address}: {error}"));
                continue;
            }
        };
        match tokio::time::timeout(DIAL_MAX, dial).await {
            Err(_) => failures.push(format!("{address}: no answer within {DIAL_MAX:?}")),
            Ok(Err(error)) => failures.push(format!("{address}: {}", innermost(&error))),
            // The secret is for the machine that the token names, and for nobody else.
            Ok(Ok((found, _))) if found != inviter => {
                failures.push(format!("{address}: another machine answers there, {found}"));
            }
            Ok(Ok((_, muxer))) => {
                let asked = tokio::time::timeout(ANSWER_MAX, ask(muxer, &request)).await;
                let reply = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(JoinError::HungUp)?;
                return Ok(JoinReply::decode(&reply)?);
            }
        }
    }
    if failures.is_empty() {
        failures.push("the token has no address".to_owned());
    }
    Err(JoinError::Unreachable(failures))
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    transport::causes(error).last().map(ToString::to_string).unwrap_or_default()
}

async fn ask(mut muxer: StreamMuxerBox, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream: SubstreamBox = poll_fn(|context| Pin::new(&mut muxer).poll_outbound(context)).await?;
    drive(&mut muxer, async {
        write_frame(&mut stream, request).await?;
        stream.flush().await?;
        let reply = read_frame(&mut stream, JoinReply::BYTES_MAX).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        // It has been read; how the connection ends says nothing.
        drop(stream.close().await);
        Ok(reply)
    })
    .await
}

/// Moves a connection on while `work` uses its one stream.
async fn drive<T>(muxer: &mut StreamMuxerBox, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let mut work = pin!(work);
    poll_fn(|context| {
        if let Poll::Ready(done) = work.as_mut().poll(context) {
            return Poll::Ready(done);
        }
        // A second stream is of no use, so it is dropped.
        while let Poll::Ready(moved) = Pin::new(&mut *muxer).poll_inbound(context) {
            if let Err(error) = moved {
                // The last bytes may be there already.
                return match work.as_mut().poll(context) {
                    Poll::Ready(done) => Poll::Ready(done),
                    Poll::Pending => Poll::Ready(Err(error)),
                };
            }
        }
        Poll::Pending
    })
    .await
}
