//! Where the mesh listens: at every address of the configuration whose family, IPv4 or IPv6, this machine has.
//!
//! libp2p sets IPV6_V6ONLY on what it binds, so `0.0.0.0` and `::` share a port.

use super::transport::causes;
use libp2p::core::transport::{ListenerId, TransportError};
use libp2p::{Multiaddr, Swarm};
use rustix::io::Errno;
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use tokio::sync::watch;

use super::addresses::socket_address;
use super::behaviour::MeshBehaviour;

/// Why a node cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// An address cannot be opened.
    #[error(
        "node.listen = {address:?} cannot be opened: {why}; accepted: an address of this machine, with a TCP port that is free"
    )]
    Refused {
        /// The address as it is configured.
        address: String,
        /// What the kernel said.
        why: io::Error,
    },
    /// The machine has no address of any family that was asked for.
    #[error(
        "node.listen = {addresses:?}: this machine has no {missing}; accepted: at least one address of a family that it has"
    )]
    NoFamily {
        /// The addresses as they are configured.
        addresses: Vec<String>,
        /// The families that the machine lacks.
        missing: String,
    },
}

/// The listeners that were opened at the start.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    /// Listeners of which no address is known yet.
    awaited: HashSet<ListenerId>,
    /// The addresses that are listened on.
    listened: watch::Sender<Vec<SocketAddr>>,
}

impl Listeners {
    /// Listens at each address whose family this machine has, and logs each family that it lacks, once. Everything else
    /// that goes wrong is an error: half a node that nobody notices is worse than none.
    pub(super) fn open(swarm: &mut Swarm<MeshBehaviour>, addresses: &[Multiaddr]) -> Result<Self, ListenError> {
        Self::open_with(addresses, |address| swarm.listen_on(address), Family::is_here)
    }

    fn open_with(
        addresses: &[Multiaddr],
        mut listen: impl FnMut(Multiaddr) -> Result<ListenerId, TransportError<io::Error>>,
        is_here: impl Fn(Family) -> bool,
    ) -> Result<Self, ListenError> {
        let mut listeners = Self::default();
        let mut missing = BTreeSet::new();
        let mut open = 0;
        for address in addresses {
            let ip = socket_address(address).map(|address| address.ip());
            let family = ip.map(Family::of);
            match listen(address.clone()) {
                Ok(id) => {
                    open += 1;
                    match family {
                        // It gets an address only when the machine does, which may be never: nobody should wait for it.
                        Some(family) if ip.is_some_and(|ip| ip.is_unspecified()) && !is_here(family) => {
                            missing.insert(family);
                        }
                        Some(_) | None => drop(listeners.awaited.insert(id)),
                    }
                }
                Err(error) => {
                    let errno = os_error(&error);
                    let lacks = |family: &Family| match errno {
                        Some(Errno::AFNOSUPPORT) => true,
                        // If the machine has the family, the address is wrong.
                        Some(Errno::ADDRNOTAVAIL) => !is_here(*family),
                        Some(_) | None => false,
                    };
                    // Anything else is a mistake of the operator, or of somebody who has the port.
                    let Some(family) = family.filter(lacks) else {
                        return Err(ListenError::Refused {
                            address: address.to_string(),
                            why: errno.map_or_else(|| io::Error::other(error), io::Error::from),
                        });
                    };
                    missing.insert(family);
                }
            }
        }
        let names: Vec<_> = missing.iter().map(|family| family.name()).collect();
        // A machine that lacks one family works with the other; if nothing is open, nobody can connect.
        if open == 0 {
            let addresses = addresses.iter().map(Multiaddr::to_string).collect();
            return Err(ListenError::NoFamily { addresses, missing: names.join(" and no ") });
        }
        for family in names {
            tracing::info!("this machine has no {family}: not listening there (node.listen)");
        }
        Ok(listeners)
    }

    /// Notes that an address of this listener is known.
    pub(super) fn on_address(&mut self, id: ListenerId) {
        self.awaited.remove(&id);
    }

    /// Tells everybody who follows them the addresses that are listened on.
    pub(super) fn tell<'a>(&self, addresses: impl Iterator<Item = &'a Multiaddr>) {
        let mut addresses: Vec<_> = addresses.filter_map(socket_address).collect();
        addresses.sort_unstable();
        self.listened.send_if_modified(|before| std::mem::replace(before, addresses.clone()) != addresses);
    }

    /// The addresses that are listened on, as they change.
    pub(super) fn follow(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.listened.subscribe()
    }

    /// Whether an address is known of each listener that can have one.
    pub(super) fn are_known(&self) -> bool {
        self.awaited.is_empty()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Whether this machine has addresses of this family: where it has any, it has loopback. This sends nothing.
    fn is_here(self) -> bool {
        let loopback = match self {
            Self::V4 => IpAddr::from(Ipv4Addr::LOCALHOST),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        match UdpSocket::bind((loopback, 0)) {
            Ok(_) => true,
            Err(error) => !matches!(Errno::from_io_error(&error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)),
        }
    }
}

/// The kernel's error, found under what the layers of the transport made of it.
fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<Errno> {
    causes(error).find_map(|cause| cause.downcast_ref::<io::Error>().and_then(Errno::from_io_error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [&str; 2] = ["/ip4/0.0.0.0/tcp/7280", "/ip6/::/tcp/7280"];

    /// Listens where the kernel says `of_v6` for IPv6 and reports no error for IPv4.
    fn open(addresses: &[&str], of_v6: Option<Errno>, has_v6: bool) -> Result<Listeners, ListenError> {
        let addresses: Vec<Multiaddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let listen = |address: Multiaddr| match of_v6 {
            // As the layers of a transport wrap it.
            Some(errno) if address.to_string().starts_with("/ip6/") => {
                Err(TransportError::Other(io::Error::other(io::Error::other(io::Error::from(errno)))))
            }
            Some(_) | None => Ok(ListenerId::next()),
        };
        Listeners::open_with(&addresses, listen, |family| family == Family::V4 || has_v6)
    }

    #[test]
    fn a_family_that_the_machine_lacks_is_left_out() {
        for (addresses, errno) in [
            (BOTH, Some(Errno::AFNOSUPPORT)),
            // `::` can be bound, and no address of the family ever comes.
            (BOTH, None),
            (["/ip4/0.0.0.0/tcp/7280", "/ip6/::1/tcp/7280"], Some(Errno::ADDRNOTAVAIL)),
        ] {
            assert_eq!(open(&addresses, errno, false).unwrap().awaited.len(), 1, "{addresses:?} {errno:?}");
        }
        assert_eq!(open(&BOTH, None, true).unwrap().awaited.len(), 2);
    }

    #[test]
    fn with_no_family_left_the_start_fails_and_says_why() {
        let message = open(&BOTH[1..], Some(Errno::AFNOSUPPORT), false).unwrap_err().to_string();
        assert!(message.starts_with("node.listen = [\"/ip6/::/tcp/7280\"]"), "{message}");
        assert!(message.contains("no IPv6") && message.contains("accepted: "), "{message}");
    }

    #[test]
    fn a_port_that_is_taken_and_a_foreign_address_are_errors() {
        for (address, errno) in [(BOTH[1], Errno::ADDRINUSE), ("/ip6/2001:db8::1/tcp/7280", Errno::ADDRNOTAVAIL)] {
            let message = open(&[BOTH[0], address], Some(errno), true).unwrap_err().to_string();
            assert!(message.starts_with(&format!("node.listen = {address:?}")), "{message}");
            assert!(message.contains("accepted: "), "{message}");
        }
    }

    #[tokio::test]
    async fn the_kernels_error_is_found_under_the_layers_of_our_transport() {
        let keypair = libp2p::identity::Keypair::generate_ed25519();
        let crate::swarm::Built { mut swarm, .. } = crate::swarm::build(&keypair, [], 1).unwrap();
        let error = swarm.listen_on("/ip4/192.0.2.1/tcp/0".parse().unwrap()).unwrap_err();
        assert_eq!(os_error(&error), Some(Errno::ADDRNOTAVAIL));
    }

    #[test]
    fn a_listener_is_awaited_until_it_has_an_address() {
        let mut listeners = open(&BOTH, None, true).unwrap();
        let ids: Vec<_> = listeners.awaited.iter().copied().collect();
        listeners.on_address(ids[0]);
        listeners.on_address(ids[0]);
        assert!(!listeners.are_known());
        listeners.on_address(ids[1]);
        assert!(listeners.are_known());
    }
}
