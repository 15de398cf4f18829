//! A gateway socket that outlives its daemon, as systemd keeps one.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::Command;

use crate::{TestNode, finish};

/// A listening socket that is handed to each daemon as it starts.
#[derive(Debug)]
pub struct HandedSocket {
    listener: TcpListener,
}

impl HandedSocket {
    /// Listens on a free loopback port.
    ///
    /// # Panics
    /// When no port can be had.
    #[must_use]
    pub fn bind() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").expect("a loopback port") }
    }

    /// The gateway's address.
    ///
    /// # Panics
    /// Never: the socket is bound.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("a bound socket has an address")
    }

    /// Starts a daemon that gets the socket; the gateway address in its configuration file is not used.
    ///
    /// # Panics
    /// When the daemon does not start.
    pub fn start(&self, node: &mut TestNode) {
        node.start_with(Some(OwnedFd::from(self.listener.try_clone().expect("a descriptor"))));
    }

    /// Hands the socket to each daemon of the node under this name, beside that of the gateway.
    ///
    /// # Panics
    /// When there is no descriptor left.
    pub fn hand_over(&self, name: &str, node: &mut TestNode) {
        node.hand_over(name, OwnedFd::from(self.listener.try_clone().expect("a descriptor")));
    }

    /// How many connections wait to be accepted, according to `ss`.
    ///
    /// # Panics
    /// When `ss` does not run.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        let mut command = Command::new("ss");
        command.args(["-Hltn", &format!("sport = :{}", self.address().port())]);
        let listed = finish(&mut command).expect_success("ss");
        listed.split_whitespace().nth(1).and_then(|count| count.parse().ok()).unwrap_or(0)
    }
}
