//! Whence a request comes.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::listener::Route;

/// Whence a request comes; in its extensions, where somebody needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Client {
    /// From this address.
    Address(IpAddr),
    /// Through a Unix socket, from this user if the kernel knows.
    User(Option<u32>),
}

impl Client {
    pub(crate) fn of(route: Route) -> Self {
        match route {
            Route::Tcp { client, .. } => Self::Address(client.ip().to_canonical()),
            Route::Unix(user) => Self::User(user),
        }
    }

    /// The address under which it is counted: of IPv6 the prefix behind which one client can choose. `None` for a Unix socket.
    pub(crate) fn counted(self) -> Option<IpAddr> {
        match self {
            Self::Address(IpAddr::V6(address)) if !address.is_loopback() => {
                Some(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into())
            }
            Self::Address(address) => Some(address),
            Self::User(_) => None,
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::User(Some(user)) => write!(f, "user:{user}"),
            Self::User(None) => f.write_str("user:unknown"),
        }
    }
}
