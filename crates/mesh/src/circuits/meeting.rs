//! Two members behind NATs connect to each other at the same moment.
//!
//! Each takes a port that nothing else uses and learns from a relay which address that port has outside. They tell each
//! other, and then both connect from that port to the other's addresses, and listen on it. A router lets the other's
//! packets in because its own side has just sent some there. Where one of the two can be reached, its listening port is.
//! Of the connections that arise, the one that has the dialler's part chooses.

use super::socket::Socket;
use crate::transport::sockets::prepare_socket;
use futures::stream::FuturesUnordered;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use narmesh_protocol::wire::CircuitRequest;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// How long both try. The kernel repeats the first packet after a second, and again after two more.
const MEET_MAX: Duration = Duration::from_secs(4);
/// The pause after a refusal. A router may refuse what came before its own side had sent something.
const AGAIN: Duration = Duration::from_millis(100);
/// Who comes to the port and does not show the token within this is somebody else.
const TOKEN_MAX: Duration = Duration::from_secs(2);
/// Connections of others to the port that are looked at.
const STRANGERS_MAX: usize = 16;
/// Connections to the port that wait to be looked at.
const BACKLOG: u32 = 16;

/// Which part of the connection a side takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    /// It chooses the connection, and dials on it.
    Dialler,
    /// It waits for the choice.
    Listener,
}

/// The ports of one meeting, and the addresses that they have for others.
#[derive(Debug)]
pub(crate) struct Meeting {
    ports: Vec<Port>,
    addresses: Vec<SocketAddr>,
}

impl Meeting {
    /// Each port with its addresses.
    pub(super) fn new(taken: impl IntoIterator<Item = (Port, Vec<SocketAddr>)>) -> Self {
        let (ports, addresses): (Vec<_>, Vec<_>) = taken.into_iter().unzip();
        let mut addresses = addresses.concat();
        let mut seen = BTreeSet::new();
        addresses.retain(|address| seen.insert(*address));
        addresses.truncate(CircuitRequest::ADDRESSES_MAX);
        Self { ports, addresses }
    }

    /// Where the other side connects to.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Meets the other side at `theirs`.
    pub(crate) async fn meet(self, theirs: &[SocketAddr], token: [u8; 16], part: Part) -> io::Result<Socket> {
        let choice = Choice { token, part, is_made: AtomicBool::new(false) };
        // From all ports at once: a NAT may let through one family and not the other.
        let trials = self.ports.into_iter().map(|port| Box::pin(port.meet(theirs, &choice)));
        let trials: Vec<_> = trials.collect();
        if trials.is_empty() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let (socket, _) = futures::future::select_ok(trials).await?;
        Ok(socket)
    }
}

/// A port of one address family, taken for one meeting.
#[derive(Debug)]
pub(super) struct Port {
    listener: TcpListener,
    local: SocketAddr,
}

impl Port {
    /// Takes a port of the family of `like`.
    pub(super) fn take(like: IpAddr) -> io::Result<Self> {
        let socket = shared(SocketAddr::new(any_of(like), 0))?;
        let local = socket.local_addr()?;
        Ok(Self { listener: socket.listen(BACKLOG)?, local })
    }

    /// Connects from this port.
    pub(super) async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        shared(self.local)?.connect(to).await
    }

    pub(super) fn number(&self) -> u16 {
        self.local.port()
    }

    /// Meets the other side at `theirs`.
    async fn meet(self, theirs: &[SocketAddr], choice: &Choice) -> io::Result<Socket> {
        let met = async {
            let mut trials = FuturesUnordered::new();
            for address in theirs.iter().take(CircuitRequest::ADDRESSES_MAX) {
                // A socket of one family cannot connect to the other.
                if address.is_ipv4() == self.local.is_ipv4() {
                    trials.push(futures::future::Either::Left(self.try_at(*address, choice)));
                }
            }
            // Anybody may connect to this port meanwhile, and each takes a socket until it shows the token.
            let mut strangers = 0;
            loop {
                tokio::select! {
                    Some(met) = trials.next() => {
                        if let Ok(met) = met {
                            return Ok(met);
                        }
                    }
                    come = self.listener.accept(), if strangers < STRANGERS_MAX => {
                        strangers += 1;
                        if let Ok((stream, _)) = come {
                            trials.push(futures::future::Either::Right(choice.agree(stream)));
                        }
                    }
                    else => return Err(io::ErrorKind::ConnectionRefused.into()),
                }
            }
        };
        tokio::time::timeout(MEET_MAX, met).await?
    }

    async fn try_at(&self, address: SocketAddr, choice: &Choice) -> io::Result<Socket> {
        loop {
            if let Ok(stream) = self.connect(address).await
                && let Ok(met) = choice.agree(stream).await
            {
                return Ok(met);
            }
            // The other side's NAT lets nothing in before its own first packet has gone out.
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Which of the connections that arise is kept.
struct Choice {
    token: [u8; 16],
    part: Part,
    is_made: AtomicBool,
}

impl Choice {
    /// The one with the dialler's part shows the token on each connection, and the other one answers on the first of them
    /// alone, with each bit of the token turned: a connection to oneself would answer with the token as it is.
    async fn agree(&self, stream: TcpStream) -> io::Result<Socket> {
        stream.set_nodelay(true)?;
        let mut socket = prepare_socket(libp2p::tcp::tokio::TcpStream(stream));
        let answer = self.token.map(|byte| !byte);
        let agreed = async {
            let mut heard = [0; 16];
            match self.part {
                Part::Dialler => {
                    socket.write_all(&self.token).await?;
                    socket.flush().await?;
                    socket.read_exact(&mut heard).await?;
                    if heard == answer { Ok(()) } else { Err(io::Error::from(io::ErrorKind::InvalidData)) }
                }
                Part::Listener => {
                    socket.read_exact(&mut heard).await?;
                    // One connection is enough, and both sides must agree on which: the first one answered.
                    if heard != self.token || self.is_made.swap(true, Ordering::Relaxed) {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    socket.write_all(&answer).await?;
                    socket.flush().await
                }
            }
        };
        tokio::time::timeout(TOKEN_MAX, agreed).await??;
        Ok(Box::new(socket))
    }
}

fn any_of(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// A socket on an address that others of ours may have as well.
fn shared(local: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if local.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(local)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: [u8; 16] = [7; 16];

    fn meeting() -> Meeting {
        let port = Port::take(Ipv4Addr::LOCALHOST.into()).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        Meeting::new([(port, vec![address, address])])
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_connection_is_chosen_and_no_stranger_takes_its_place() {
        let (dialler, listener) = (meeting(), meeting());
        let (there, here) = (listener.addresses().to_vec(), dialler.addresses().to_vec());
        assert_eq!(here.len(), 1, "each once");
        // A stranger comes first, and shows another token.
        let mut stranger = TcpStream::connect(there[0]).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stranger, &[8; 16]).await.unwrap();
        let (one, other) =
            tokio::join!(dialler.meet(&there, TOKEN, Part::Dialler), listener.meet(&here, TOKEN, Part::Listener));
        let (mut one, mut other) = (one.unwrap(), other.unwrap());
        one.write_all(b"there").await.unwrap();
        one.flush().await.unwrap();
        let mut heard = [0; 5];
        other.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"there");
        let mut nothing = [0; 1];
        let refused = tokio::io::AsyncReadExt::read(&mut stranger, &mut nothing).await;
        assert!(!matches!(refused, Ok(read) if read > 0), "the stranger is told nothing");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_meets_itself_or_who_does_not_come() {
        let alone = meeting();
        let own = alone.addresses().to_vec();
        assert!(alone.meet(&own, TOKEN, Part::Dialler).await.is_err());
    }
}
