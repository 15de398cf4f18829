//! A transport whose connections are circuits and meetings.

use super::arrived::Arrived;
use super::connect::Circuits;
use super::socket::Socket;
use super::way::{Way, destination, meeting_place, relay_of};
use futures::future::{BoxFuture, Ready, ready};
use libp2p::Multiaddr;
use libp2p::core::transport::{DialOpts, ListenerId, Transport, TransportError, TransportEvent};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// The address by which the swarm takes what arrives.
pub(crate) fn listen_address() -> Multiaddr {
    meeting_place()
}

/// The transport. That of the swarm takes what arrives as well.
pub(crate) struct CircuitTransport {
    circuits: Circuits,
    arrived: Option<mpsc::Receiver<Arrived>>,
    listener: Option<ListenerId>,
}

impl CircuitTransport {
    /// One that only dials, or also takes `arrived`.
    pub(crate) fn new(circuits: Circuits, arrived: Option<mpsc::Receiver<Arrived>>) -> Self {
        Self { circuits, arrived, listener: None }
    }
}

impl Transport for CircuitTransport {
    type Output = Socket;
    type Error = io::Error;
    type ListenerUpgrade = Ready<io::Result<Socket>>;
    type Dial = BoxFuture<'static, io::Result<Socket>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        if address != listen_address() {
            return Err(TransportError::MultiaddrNotSupported(address));
        }
        self.listener = Some(id);
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.listener.take_if(|listener| *listener == id).is_some()
    }

    fn dial(&mut self, address: Multiaddr, _: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        let circuits = self.circuits.clone();
        match (Way::of(&address), destination(&address)) {
            (Way::Relayed, Some(to)) => {
                let relay = relay_of(&address).ok_or(TransportError::MultiaddrNotSupported(address))?;
                Ok(Box::pin(async move { circuits.open(relay, to).await }))
            }
            (Way::Met, Some(to)) => Ok(Box::pin(async move { circuits.meet(to).await })),
            (Way::Direct | Way::Relayed | Way::Met, _) => Err(TransportError::MultiaddrNotSupported(address)),
        }
    }

    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        let Some(listener_id) = self.listener else { return Poll::Pending };
        let Some(arrived) = &mut self.arrived else { return Poll::Pending };
        match arrived.poll_recv(context) {
            Poll::Ready(Some(Arrived { socket, from })) => Poll::Ready(TransportEvent::Incoming {
                listener_id,
                upgrade: ready(Ok(socket)),
                local_addr: listen_address(),
                send_back_addr: from,
            }),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}
