//! Members of a mesh find each other on the local network by multicast DNS, without an address in any file.
//!
//! **Purpose.** Say on each local network at which addresses this machine is reached, and hear it of other members.
//! **Contract.** [`discover`] runs until it is dropped. It is given the addresses that are listened on, as they change, and
//! hands over each [`Presence`] that it hears. It knows neither who is a member nor libp2p: whoever is handed a presence
//! decides what it is worth.
//! **Walk.** `seal` encrypts what a member says of itself under a key of its mesh, `message` puts that into DNS, `interfaces`
//! says where, `sockets` carries it, and `pace` says when.
//! **Invariants.** Nothing is kept of what is heard. Nothing is sent where there is no address that others can use. Who does
//! not know the mesh key learns that some member is there, and makes us do no more than answer once a second and open
//! [`PACKETS_READ`] packets a second.

mod interfaces;
mod message;
mod pace;
mod seal;
mod sockets;

pub use message::{Heard, answer, question, read};
pub use seal::{ADDRESSES_MAX, LanKey, Presence, Salt};

use interfaces::Interface;
use message::PACKET_BYTES_MAX;
use narmesh_machine::{Bucket, Moment, Tokens};
use pace::{Due, Pace};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sockets::Sockets;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::watch;

/// Packets that are read at once, as many as a mesh can have members, and in each second: at ten microseconds each, two
/// hundredths of a core. The kernel drops the others.
pub const PACKETS_READ: Bucket = Bucket { burst: 2_048, per_s: 2_000 };
/// When all of that is used up, or the system refuses, nothing is read for this long.
const REST: Duration = Duration::from_millis(100);

/// Announces this machine and hears others, until it is dropped or nobody tells it addresses any more. `clock` runs on in
/// suspend. Addresses that `listened` names and other machines cannot use are not announced, and while there is no other
/// one, no socket is opened.
pub async fn discover(
    node_key: [u8; 32],
    key: LanKey,
    mut listened: watch::Receiver<Vec<SocketAddr>>,
    clock: impl Fn() -> Moment,
    mut found: impl FnMut(Presence),
) {
    let mut rng = StdRng::from_rng(&mut rand::rng());
    let mut air = Air::default();
    let mut pace = Pace::new(clock());
    let mut tokens = Tokens::default();
    // One byte more than a packet may have shows that it had more.
    let mut buffer = [0; PACKET_BYTES_MAX + 1];
    let mut is_told = true;
    loop {
        if is_told {
            let addresses = listened.borrow_and_update().clone();
            air.follow(&addresses);
            pace.restart(clock());
        }
        if let Some(due) = pace.take_due(clock(), &mut rng) {
            // An interface may have come or gone since the addresses were told.
            if due.asks {
                air.follow(&listened.borrow());
            }
            air.say(due, &node_key, &key, &mut rng);
        }
        let wait = Duration::from_millis(pace.wait_ms(clock()));
        is_told = false;
        tokio::select! {
            changed = listened.changed() => match changed {
                Ok(()) => is_told = true,
                Err(_) => return,
            },
            received = air.sockets.receive(&mut buffer) => {
                // Not reading lets the system drop what comes too fast, which costs us nothing.
                if !tokens.try_take(PACKETS_READ, clock()) {
                    tokio::time::sleep(REST).await;
                }
                // A socket that fails again and again must not make this a busy loop.
                let Ok(length) = received else {
                    tokio::time::sleep(REST).await;
                    continue;
                };
                match read(&key, buffer.get(..length).unwrap_or_default()) {
                    Heard::Question => pace.on_question(clock(), &mut rng),
                    // Multicast comes back to its sender.
                    Heard::Presence(presence) if presence.node_key != node_key => found(presence),
                    Heard::Presence(_) | Heard::Foreign => {}
                }
            },
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// The interfaces that are in use, with their sockets.
#[derive(Debug, Default)]
struct Air {
    interfaces: Vec<Interface>,
    sockets: Sockets,
    /// Why it does not work, as it was logged.
    failure: Option<String>,
}

impl Air {
    fn follow(&mut self, listened: &[SocketAddr]) {
        let interfaces = match interfaces::find(listened) {
            Ok(interfaces) => interfaces,
            Err(error) => return self.note(Some(&error)),
        };
        if interfaces == self.interfaces && self.failure.is_none() {
            return;
        }
        // Closed first: the new ones have the same port.
        self.sockets = Sockets::default();
        let (sockets, failure) = Sockets::open(&interfaces);
        (self.interfaces, self.sockets) = (interfaces, sockets);
        self.note(failure.as_ref());
    }

    /// Says on each interface at which of its addresses we are.
    fn say(&mut self, due: Due, node_key: &[u8; 32], key: &LanKey, rng: &mut StdRng) {
        let mut failure = None;
        for interface in &self.interfaces {
            let presence = Presence { node_key: *node_key, addresses: interface.addresses.clone() };
            let answer = answer(key, &presence, rng.random());
            let packets = due.asks.then(question).into_iter().chain([answer]);
            for packet in packets.flatten() {
                failure = self.sockets.send(interface, &packet).err().or(failure);
            }
        }
        if failure.is_some() {
            self.note(failure.as_ref());
        }
    }

    /// Logs what does not work, once.
    fn note(&mut self, failure: Option<&io::Error>) {
        let failure = failure.map(ToString::to_string);
        if let Some(why) = failure.as_ref().filter(|_| failure != self.failure) {
            tracing::warn!(why, "other members cannot be found on the local network by multicast");
        }
        self.failure = failure;
    }
}
