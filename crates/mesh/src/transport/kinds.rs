//! The kinds of connection, told apart by the name under which their multiplexer is negotiated: control connections, which
//! belong to the swarm; bulk connections, which carry NARs; and those of machines that want to join. The swarm never sees
//! the last two.

use super::super::circuits::Relay;
use super::super::removals::Removals;
use super::multiplexer::{Bounds, Muxer, PROTOCOL};
use futures::future::Ready;
use futures::{AsyncRead, AsyncWrite, future};
use libp2p::PeerId;
use libp2p::core::UpgradeInfo;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use narmesh_protocol::wire::{BULK_PROTOCOL, JOIN_PROTOCOL};
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::mpsc;

/// Connections of one kind that came in and that nobody has looked at yet; a further one is closed.
const ARRIVALS_MAX: usize = 64;

/// A connection that came in and is not the swarm's, with the peer that proved to be at its other end.
pub type Arrival = (PeerId, StreamMuxerBox);

/// A channel on which connections that come in are handed over.
pub fn arrivals() -> (mpsc::Sender<Arrival>, mpsc::Receiver<Arrival>) {
    mpsc::channel(ARRIVALS_MAX)
}

/// What the swarm is told instead of such a connection.
#[derive(Debug, thiserror::Error)]
#[error("a connection of another kind, which is not the swarm's")]
pub(super) struct HandedOver;

/// Whether this error only says that a connection came in that is not the swarm's.
pub fn is_handed_over(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| cause.is::<HandedOver>())
}

/// The error and its causes, the outermost first.
pub fn causes<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| {
        let error: &'e (dyn Error + 'static) = *error;
        // The source of an I/O error is the source of the error that it wraps: the wrapped error itself would be
        // skipped.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        }
    })
}

/// Where connections go that come in and are not the swarm's.
#[derive(Clone, Debug)]
pub struct Elsewhere {
    /// Bulk connections.
    pub bulk: mpsc::Sender<Arrival>,
    /// Connections of machines that want to join.
    pub joins: mpsc::Sender<Arrival>,
    /// Whether any may. While none may, nobody is told that there is such a protocol.
    pub is_open: Arc<AtomicBool>,
    /// Tells machines that were removed. Nobody else is told that there is such a protocol.
    pub(crate) removals: Removals,
    /// Takes what it is to pass on. While it is off, nobody is told that there is such a protocol.
    pub(crate) relay: Relay,
}

/// The multiplexing upgrade of one connection.
#[derive(Clone, Debug)]
pub enum Multiplexing {
    /// It is a control connection.
    Control,
    /// It is a bulk connection.
    Bulk,
    /// It is that of a machine that wants to join.
    Join,
    /// The connection came in, and the peer chooses its kind.
    Either {
        /// The peer that proved to be at the other end.
        peer: PeerId,
        /// Where the other kinds go.
        elsewhere: Elsewhere,
    },
}

impl UpgradeInfo for Multiplexing {
    type Info = &'static str;
    type InfoIter = Vec<&'static str>;

    fn protocol_info(&self) -> Vec<&'static str> {
        match self {
            Self::Control => vec![PROTOCOL],
            Self::Bulk => vec![BULK_PROTOCOL],
            Self::Join => vec![JOIN_PROTOCOL],
            Self::Either { elsewhere, .. } if elsewhere.is_open.load(Relaxed) => {
                vec![PROTOCOL, BULK_PROTOCOL, JOIN_PROTOCOL]
            }
            Self::Either { .. } => vec![PROTOCOL, BULK_PROTOCOL],
        }
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> InboundConnectionUpgrade<C> for Multiplexing {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = Ready<io::Result<Muxer<C>>>;

    fn upgrade_inbound(self, socket: C, name: &'static str) -> Self::Future {
        future::ready(match self {
            Self::Either { peer, elsewhere } if name == BULK_PROTOCOL => {
                hand_over(peer, Muxer::listener(socket, Bounds::BULK), &elsewhere.bulk)
            }
            Self::Either { peer, elsewhere } if name == JOIN_PROTOCOL => {
                hand_over(peer, Muxer::listener(socket, Bounds::CONTROL), &elsewhere.joins)
            }
            Self::Either { .. } | Self::Control | Self::Join => Ok(Muxer::listener(socket, Bounds::CONTROL)),
            Self::Bulk => Ok(Muxer::listener(socket, Bounds::BULK)),
        })
    }
}

/// Gives a connection to whoever is waiting for its kind. If nobody takes it, or too many wait, it is closed.
fn hand_over<C: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    peer: PeerId,
    muxer: Muxer<C>,
    to: &mpsc::Sender<Arrival>,
) -> io::Result<Muxer<C>> {
    drop(to.try_send((peer, StreamMuxerBox::new(muxer))));
    Err(io::Error::other(HandedOver))
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Multiplexing {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = Ready<io::Result<Muxer<C>>>;

    fn upgrade_outbound(self, socket: C, name: &'static str) -> Self::Future {
        let bounds = if name == BULK_PROTOCOL { Bounds::BULK } else { Bounds::CONTROL };
        future::ready(Ok(Muxer::dialler(socket, bounds)))
    }
}
