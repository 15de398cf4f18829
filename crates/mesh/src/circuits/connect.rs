//! A member's side of circuits.

use super::arrived::Arrived;
use super::meeting::{Meeting, Part, Port};
use super::socket::Socket;
use crate::addresses::{find_outward_v4, find_outward_v6, may_be_told};
use crate::ask_error::AskError;
use crate::framing::{read_frame, write_frame};
use crate::transport::sockets::prepare_socket;
use futures::AsyncWriteExt;
use libp2p::PeerId;
use multistream_select::{Version, dialer_select_proto};
use narmesh_protocol::node_key_of;
use narmesh_protocol::wire::{CircuitReply, CircuitRequest, RELAY_PROTOCOL, RelayHello, RelayWelcome};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

/// Orders that wait for the driver.
const ORDERS_MAX: usize = 64;
/// How long one address of a relay is tried.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// From the request for a circuit to its first byte: the relay waits 5 s for the other member.
const OPEN_MAX: Duration = Duration::from_secs(8);

/// A request that the driver is to send, and who waits for the answer.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) peer: PeerId,
    pub(crate) request: CircuitRequest,
    pub(crate) reply: oneshot::Sender<Result<Vec<u8>, AskError>>,
}

/// Opens circuits; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Circuits(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    orders: mpsc::Sender<Order>,
    /// The relays that we are connected with, and where they are reached.
    relays: Mutex<BTreeMap<PeerId, Vec<SocketAddr>>>,
    /// Whether loopback addresses of peers are used: several nodes on one machine.
    is_loopback_told: AtomicBool,
}

impl Circuits {
    /// The driver takes the orders.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Order>) {
        let (orders, taken) = mpsc::channel(ORDERS_MAX);
        (Self(Arc::new(Shared { orders, relays: Mutex::default(), is_loopback_told: AtomicBool::new(false) })), taken)
    }

    /// Sets whether loopback addresses of peers are used.
    pub(crate) fn set_loopback_told(&self, is_told: bool) {
        self.0.is_loopback_told.store(is_told, Ordering::Relaxed);
    }

    /// Sets the relays that we are connected with, and where they are reached.
    pub(crate) fn set_relays(&self, relays: BTreeMap<PeerId, Vec<SocketAddr>>) {
        *self.0.relays.lock() = relays;
    }

    /// A circuit to `to`, at whose end it expects us to dial.
    pub(super) async fn open(&self, relay: PeerId, to: PeerId) -> io::Result<Socket> {
        let opened = async {
            let key = node_key_of(&to).ok_or_else(|| io::Error::other("the peer has no Ed25519 key"))?;
            match self.ask(relay, CircuitRequest::Open(key)).await? {
                CircuitReply::Ticket(ticket) => self.show_ticket(relay, ticket).await,
                CircuitReply::Refused => Err(io::Error::other("the relay has no connection with the peer")),
                CircuitReply::Busy => Err(io::Error::other("the relay has too many circuits")),
                CircuitReply::Coming | CircuitReply::Meeting(_) => Err(io::ErrorKind::InvalidData.into()),
            }
        };
        tokio::time::timeout(OPEN_MAX, opened).await?
    }

    /// The other end of a circuit, for which the relay gave us this ticket.
    pub(crate) async fn join(&self, relay: PeerId, ticket: [u8; 16]) -> io::Result<Arrived> {
        let socket = tokio::time::timeout(OPEN_MAX, self.show_ticket(relay, ticket)).await??;
        Ok(Arrived::over_relay(relay, socket))
    }

    /// A connection with `to`, which we meet; we have the dialler's part on it.
    pub(super) async fn meet(&self, to: PeerId) -> io::Result<Socket> {
        let meeting = self.prepare_meeting().await;
        if meeting.addresses().is_empty() {
            return Err(io::Error::other("no address of ours is known that the peer could meet us at"));
        }
        // Both sides meet strangers at these ports, and know each other by this.
        let token = rand::random();
        let request = CircuitRequest::Meet { addresses: meeting.addresses().to_vec(), token };
        match self.ask(to, request).await? {
            CircuitReply::Meeting(theirs) => {
                let theirs = self.choose_met(theirs);
                let met = meeting.meet(&theirs, token, Part::Dialler).await;
                met.map_err(|_| io::Error::other(format!("it was not met at {theirs:?}")))
            }
            CircuitReply::Refused => Err(io::Error::other("the peer does not meet us")),
            CircuitReply::Busy => Err(io::Error::other("the peer was asked to meet us too often")),
            CircuitReply::Coming | CircuitReply::Ticket(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Of the addresses that a peer names, those that we connect to.
    pub(crate) fn choose_met(&self, named: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let is_loopback_told = self.0.is_loopback_told.load(Ordering::Relaxed);
        let usable = |address: &SocketAddr| address.port() != 0 && may_be_told(address.ip(), is_loopback_told);
        named.into_iter().filter(usable).take(CircuitRequest::ADDRESSES_MAX).collect()
    }

    /// Takes a port of each address family, and learns what it is outside.
    pub(crate) async fn prepare_meeting(&self) -> Meeting {
        let relays: Vec<SocketAddr> = self.0.relays.lock().values().flatten().copied().collect();
        let observe = |own: Option<IpAddr>, is_v4: bool| {
            let relay = relays.iter().find(|address| address.is_ipv4() == is_v4).copied();
            async move {
                let like = own.or(relay.map(|relay| relay.ip()))?;
                let port = Port::take(like).ok()?;
                let seen = match relay {
                    Some(relay) => tokio::time::timeout(CONNECT_MAX, observed(&port, relay)).await.ok(),
                    None => None,
                };
                let own = own.map(|ip| SocketAddr::new(ip, port.number()));
                let addresses: Vec<_> = seen.and_then(Result::ok).into_iter().chain(own).collect();
                Some((port, addresses))
            }
        };
        // Both families at once: nobody knows yet in which of them the other side can be met.
        let (v4, v6) = tokio::join!(observe(find_outward_v4(), true), observe(find_outward_v6(), false));
        Meeting::new(v4.into_iter().chain(v6))
    }

    async fn ask(&self, peer: PeerId, request: CircuitRequest) -> io::Result<CircuitReply> {
        let (reply, answered) = oneshot::channel();
        let stopping = |_| io::Error::other("the mesh is stopping");
        self.0.orders.send(Order { peer, request, reply }).await.map_err(stopping)?;
        let bytes = answered.await.map_err(|_| io::Error::other("no answer"))?.map_err(io::Error::other)?;
        CircuitReply::decode(&bytes).map_err(io::Error::other)
    }

    async fn show_ticket(&self, relay: PeerId, ticket: [u8; 16]) -> io::Result<Socket> {
        let (mut socket, welcome) = self.greet(relay, RelayHello::Join(ticket)).await?;
        match welcome {
            RelayWelcome::Joined => Ok(socket),
            RelayWelcome::Refused | RelayWelcome::Observed(_) => {
                // What ends it says nothing more.
                drop(socket.close().await);
                Err(io::Error::other("the peer did not come to the relay"))
            }
        }
    }

    /// Connects to a relay and says what for.
    async fn greet(&self, relay: PeerId, hello: RelayHello) -> io::Result<(Socket, RelayWelcome)> {
        let addresses = self.0.relays.lock().get(&relay).cloned().unwrap_or_default();
        // A relay may be known at several addresses, and the last failure is told.
        let mut why = io::Error::other("no connection with the relay");
        for address in addresses {
            match tokio::time::timeout(CONNECT_MAX, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return greet_on(stream, hello).await,
                Ok(Err(error)) => why = error,
                Err(late) => why = late.into(),
            }
        }
        Err(why)
    }
}

/// What the relay sees a connection from this port come from.
async fn observed(port: &Port, relay: SocketAddr) -> io::Result<SocketAddr> {
    match greet_on(port.connect(relay).await?, RelayHello::Observe).await? {
        (_, RelayWelcome::Observed(address)) => Ok(address),
        (_, RelayWelcome::Joined | RelayWelcome::Refused) => Err(io::ErrorKind::InvalidData.into()),
    }
}

async fn greet_on(stream: TcpStream, hello: RelayHello) -> io::Result<(Socket, RelayWelcome)> {
    stream.set_nodelay(true)?;
    let socket = prepare_socket(libp2p::tcp::tokio::TcpStream(stream));
    let negotiated = dialer_select_proto(socket, [RELAY_PROTOCOL], Version::V1Lazy).await;
    let (_, mut socket) = negotiated.map_err(io::Error::other)?;
    write_frame(&mut socket, &hello.encode().map_err(io::Error::other)?).await?;
    socket.flush().await?;
    let welcome = read_frame(&mut socket, RelayWelcome::BYTES_MAX).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let welcome = RelayWelcome::decode(&welcome).map_err(io::Error::other)?;
    Ok((Box::new(socket), welcome))
}
