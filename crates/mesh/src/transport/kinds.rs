//! The two kinds of connection, told apart by the name under which their multiplexer is negotiated: control
//! connections, which belong to the swarm, and bulk connections, which carry NARs and which the swarm never sees.

use super::multiplexer::{Bounds, Muxer, PROTOCOL};
use futures::future::Ready;
use futures::{AsyncRead, AsyncWrite, future};
use libp2p::PeerId;
use libp2p::core::UpgradeInfo;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use narmesh_protocol::wire::BULK_PROTOCOL;
use std::error::Error;
use std::io;
use tokio::sync::mpsc;

/// Bulk connections that came in and that nobody has looked at yet; a further one is closed.
const ARRIVALS_MAX: usize = 64;

/// A bulk connection that came in, with the peer that proved to be at its other end.
pub type Arrival = (PeerId, StreamMuxerBox);

/// The channel on which bulk connections that come in are handed over.
pub fn arrivals() -> (mpsc::Sender<Arrival>, mpsc::Receiver<Arrival>) {
    mpsc::channel(ARRIVALS_MAX)
}

/// What the swarm is told instead of a bulk connection.
#[derive(Debug, thiserror::Error)]
#[error("a bulk connection, which is not the swarm's")]
struct HandedOver;

/// Whether this error only says that a bulk connection came in.
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

/// The multiplexing upgrade of one connection.
#[derive(Clone, Debug)]
pub enum Multiplexing {
    /// It is a control connection.
    Control,
    /// It is a bulk connection.
    Bulk,
    /// The connection came in, and the peer chooses its kind.
    Either {
        /// The peer that proved to be at the other end.
        peer: PeerId,
        /// Where a bulk connection goes.
        bulk: mpsc::Sender<Arrival>,
    },
}

impl UpgradeInfo for Multiplexing {
    type Info = &'static str;
    type InfoIter = Vec<&'static str>;

    fn protocol_info(&self) -> Vec<&'static str> {
        match self {
            Self::Control => vec![PROTOCOL],
            Self::Bulk => vec![BULK_PROTOCOL],
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
            Self::Either { peer, bulk } if name == BULK_PROTOCOL => {
                let muxer = Muxer::listener(socket, Bounds::BULK);
                // If nobody takes it, or too many wait, it is closed.
                drop(bulk.try_send((peer, StreamMuxerBox::new(muxer))));
                Err(io::Error::other(HandedOver))
            }
            Self::Either { .. } | Self::Control => Ok(Muxer::listener(socket, Bounds::CONTROL)),
            Self::Bulk => Ok(Muxer::listener(socket, Bounds::BULK)),
        })
    }
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
