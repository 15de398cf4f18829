//! A build whose daemon is killed and started again in the middle of a NAR.

use std::thread;
use std::time::Duration;

use crate::{Finished, GatedProxy, HandedSocket, TestMesh, TestNode, promised, wait_until};

/// Nix starts on a NAR, and comes back to the socket after the kill, within this.
const SOON: Duration = Duration::from_secs(2);
/// How long the daemon is away without a socket: an unhurried restart.
const AWAY: Duration = Duration::from_secs(1);

/// Builds `attribute` on `client`, which gets it from `holder` alone. The client's daemon is killed when `bytes` of the NAR
/// have come, and started again: with a socket, once Nix waits there again; without one, after a second in which
/// connections are refused. Returns how the build ended.
///
/// # Panics
/// When the NAR is not larger than `bytes`, or a step takes much longer than promised.
pub fn build_over_a_kill(
    socket: Option<&HandedSocket>,
    attribute: &str,
    bytes: u64,
    (holder, client): (&mut TestNode, &mut TestNode),
) -> Finished {
    let path = holder.store.build_one(attribute);
    for node in [&mut *holder, &mut *client] {
        // The gate stays the only way to the holder, and the bytes that it counts are those of the NAR.
        node.config.advertise_loopback = false;
        node.config.compress = "never";
    }
    TestMesh::introduce(&mut [holder, client]);
    holder.start();
    let gate = GatedProxy::to(holder.p2p_socket());
    client.learn_address(&holder.name, &gate.multiaddr());
    let start = |client: &mut TestNode| match socket {
        Some(socket) => socket.start(client),
        None => client.start(),
    };
    start(client);
    holder.wait_all_advertised(&[client]);
    assert!(client.wait_narinfo(&path).nar_size > bytes, "the kill has to come in the middle");

    gate.hold_after(bytes);
    let gateway = socket.map_or_else(|| client.gateway(), HandedSocket::address);
    let (store, keys) = (client.store.clone(), client.config.trusted_public_keys.clone());
    thread::scope(|scope| {
        let build = scope.spawn(|| store.nix_build(attribute, gateway, &keys));
        wait_until("the gate holds the NAR back", promised(SOON), || gate.is_holding());
        client.kill();
        match socket {
            Some(socket) => wait_until("Nix is back at the socket", promised(SOON), || socket.waiting() > 0),
            // A refused connection leaves no trace that could be waited for.
            None => thread::sleep(AWAY),
        }
        gate.release();
        start(client);
        build.join().expect("the thread of the build")
    })
}
