//! A gateway socket that outlives its daemon, as systemd keeps one.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::{Finished, GatedProxy, TestMesh, TestNode, finish, promised, wait_until};

/// Nix is back at the socket, and begins with a NAR, within this.
const SOON: Duration = Duration::from_secs(2);

/// Listens for whichever daemon runs.
#[derive(Debug)]
pub struct HandedSocket {
    listener: TcpListener,
}

impl HandedSocket {
    /// On a free loopback port.
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

    /// Starts a daemon that gets the socket; the address that its file names does not count.
    ///
    /// # Panics
    /// When the daemon does not start.
    pub fn start(&self, node: &mut TestNode) {
        node.start_with(Some(OwnedFd::from(self.listener.try_clone().expect("a descriptor"))));
    }

    /// How many connections wait to be accepted, as `ss` says.
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

    /// Builds `attribute` on `client`, which runs behind this socket and gets it from `holder` alone; the client's daemon is
    /// killed after `bytes` of the NAR came, and started again when Nix waits at the socket. Returns how the build ended.
    ///
    /// # Panics
    /// When the NAR is not larger than `bytes`, or a step takes much longer than promised.
    pub fn build_over_a_kill(
        &self,
        attribute: &str,
        bytes: u64,
        (holder, client): (&mut TestNode, &mut TestNode),
    ) -> Finished {
        let path = holder.store.build_one(attribute);
        for node in [&mut *holder, &mut *client] {
            // The gate stays the only way, and counts what is not compressed.
            node.config.advertise_loopback = false;
            node.config.compress = "never";
        }
        TestMesh::introduce(&mut [holder, client]);
        holder.start();
        let gate = GatedProxy::to(holder.p2p_socket());
        client.learn_address(&holder.name, &gate.multiaddr());
        self.start(client);
        holder.wait_all_advertised(&[client]);
        assert!(client.wait_narinfo(&path).nar_size > bytes, "the kill has to come in the middle");

        gate.hold_after(bytes);
        let (store, keys) = (client.store.clone(), client.config.trusted_public_keys.clone());
        thread::scope(|scope| {
            let build = scope.spawn(|| store.nix_build(attribute, self.address(), &keys));
            wait_until("the gate holds the NAR back", promised(SOON), || gate.is_holding());
            client.kill();
            wait_until("Nix is back at the socket", promised(SOON), || self.waiting() > 0);
            gate.release();
            self.start(client);
            build.join().expect("the thread of the build")
        })
    }
}
