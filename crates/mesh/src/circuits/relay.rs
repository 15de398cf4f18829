//! A relay's side of circuits: who may have one, and the two connections of each.

use super::socket::Socket;
use super::splice::splice;
use crate::byte_rate::{ByteRate, Ticket};
use crate::framing::{read_frame, write_frame};
use futures::AsyncWriteExt;
use libp2p::PeerId;
use narmesh_protocol::wire::{RelayHello, RelayWelcome};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Circuits of one member, as either end: three with each of sixteen others, of which one carries NARs in each direction.
pub(super) const PER_MEMBER_MAX: usize = 48;
/// Circuits in all. Each holds two sockets and some 128 KiB.
const CIRCUITS_MAX: usize = 512;
/// The lowest limit of a relay, bytes per second. A member's TCP ends a connection on which nothing could be sent for 10 s, and a
/// holder is left when nothing comes for 5 s: with some twenty circuits under way, each has 6 KiB a second.
pub const RELAY_BYTES_PER_S_MIN: u32 = 128 << 10;
/// How long the first of two members waits for the other.
const JOIN_MAX: Duration = Duration::from_secs(5);

/// The circuits of this node as a relay; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Relay(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    is_on: AtomicBool,
    bytes: AtomicU64,
    /// What goes over all circuits together.
    rate: ByteRate,
    /// Directions of circuits that asked for a share of the rate so far.
    directions: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// The circuits of each member, open ones and those that are awaited.
    circuits: HashMap<PeerId, usize>,
    count: usize,
    /// Tickets that nobody has shown yet.
    tickets: HashMap<[u8; 16], Arc<Pair>>,
}

/// The two members of a circuit that is being opened.
struct Pair {
    tickets: [[u8; 16]; 2],
    /// Until both are there, or one does not come.
    awaited: Mutex<Option<Awaited>>,
}

struct Awaited {
    place: Place,
    /// The member that is there already.
    first: Option<Socket>,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").finish_non_exhaustive()
    }
}

/// What a member that comes finds.
enum Arrival {
    /// It waits for the other one.
    First,
    /// The other one waits.
    Second([Socket; 2], Place),
    /// The circuit was given up.
    Late(Socket),
}

impl Pair {
    fn arrive(&self, socket: Socket) -> Arrival {
        // Under one lock, so that of two that come at once one is the first and the other the second.
        let mut awaited = self.awaited.lock();
        match awaited.take() {
            None => Arrival::Late(socket),
            Some(Awaited { place, first: Some(first) }) => Arrival::Second([first, socket], place),
            Some(Awaited { place, first: None }) => {
                *awaited = Some(Awaited { place, first: Some(socket) });
                Arrival::First
            }
        }
    }
}

/// One circuit among those of its members, until it is dropped.
#[derive(Debug)]
struct Place {
    relay: Relay,
    members: [PeerId; 2],
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.relay.0.table.lock();
        table.count -= 1;
        for member in &self.members {
            if let Some(circuits) = table.circuits.get_mut(member) {
                *circuits -= 1;
                // Members come and go, and the table keeps those that have circuits.
                if *circuits == 0 {
                    table.circuits.remove(member);
                }
            }
        }
    }
}

/// What `status` shows of a relay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RelayView {
    /// Whether this node is a relay.
    pub is_on: bool,
    /// Circuits that are open or being opened.
    pub circuits: usize,
    /// Bytes passed on since the start, both directions together.
    pub bytes: u64,
}

impl Relay {
    /// Sets whether this node is a relay. Open circuits stay.
    pub(crate) fn set_on(&self, is_on: bool) {
        self.0.is_on.store(is_on, Ordering::Relaxed);
    }

    /// Allows at most this many bytes per second over all circuits together, in both directions; `None` for no limit. Open
    /// circuits go by it at once.
    pub(crate) fn set_rate(&self, bytes_per_s: Option<NonZeroU32>) {
        self.0.rate.set_rate(bytes_per_s);
    }

    /// Whether this node is a relay.
    pub(crate) fn is_on(&self) -> bool {
        self.0.is_on.load(Ordering::Relaxed)
    }

    pub(crate) fn view(&self) -> RelayView {
        let (circuits, bytes) = (self.0.table.lock().count, self.0.bytes.load(Ordering::Relaxed));
        RelayView { is_on: self.is_on(), circuits, bytes }
    }

    /// Makes a ticket for each of two members; `None` if there are too many circuits.
    pub(crate) fn issue(&self, members: [PeerId; 2]) -> Option<[[u8; 16]; 2]> {
        // Both places are counted before a ticket is out, so that many requests at once cannot exceed the bounds.
        let mut table = self.0.table.lock();
        let is_full = |member: &PeerId| table.circuits.get(member).is_some_and(|circuits| *circuits >= PER_MEMBER_MAX);
        if table.count >= CIRCUITS_MAX || members.iter().any(is_full) {
            return None;
        }
        table.count += 1;
        for member in members {
            *table.circuits.entry(member).or_default() += 1;
        }
        let tickets: [[u8; 16]; 2] = [rand::random(), rand::random()];
        let place = Place { relay: self.clone(), members };
        let pair = Arc::new(Pair { tickets, awaited: Mutex::new(Some(Awaited { place, first: None })) });
        for ticket in tickets {
            table.tickets.insert(ticket, Arc::clone(&pair));
        }
        // Whoever never comes must not keep the places of both.
        let relay = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(JOIN_MAX).await;
            relay.abandon(&pair).await;
        });
        Some(tickets)
    }

    /// Gives up the circuit of this ticket, which nobody has shown yet.
    pub(crate) async fn give_up(&self, ticket: &[u8; 16]) {
        let pair = self.0.table.lock().tickets.get(ticket).cloned();
        if let Some(pair) = pair {
            self.abandon(&pair).await;
        }
    }

    /// Gives up a circuit if it is not open yet; who waits for it is told.
    async fn abandon(&self, pair: &Pair) {
        self.forget(pair);
        let awaited = pair.awaited.lock().take();
        if let Some(mut first) = awaited.and_then(|awaited| awaited.first) {
            say_farewell(&mut first).await;
        }
    }

    fn forget(&self, pair: &Pair) {
        let mut table = self.0.table.lock();
        for ticket in &pair.tickets {
            table.tickets.remove(ticket);
        }
    }

    /// Takes a connection on which a member said [`RELAY_PROTOCOL`](narmesh_protocol::wire::RELAY_PROTOCOL).
    pub(crate) async fn receive(&self, mut socket: Socket, from: Option<SocketAddr>) -> io::Result<()> {
        let hello = read_frame(&mut socket, RelayHello::BYTES_MAX).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        match RelayHello::decode(&hello).map_err(io::Error::other)? {
            RelayHello::Join(ticket) => self.join(socket, &ticket).await,
            RelayHello::Observe => {
                // A circuit has no address.
                let from = from.ok_or(io::ErrorKind::Unsupported)?;
                welcome(&mut socket, RelayWelcome::Observed(from)).await?;
            }
        }
        Ok(())
    }

    async fn join(&self, mut socket: Socket, ticket: &[u8; 16]) {
        // Removed at once: a ticket is good for one connection.
        let pair = self.0.table.lock().tickets.remove(ticket);
        let Some(pair) = pair else { return say_farewell(&mut socket).await };
        match pair.arrive(socket) {
            Arrival::First => {}
            Arrival::Second(sockets, place) => drop(tokio::spawn(self.clone().pass_on(sockets, place))),
            Arrival::Late(mut socket) => say_farewell(&mut socket).await,
        }
    }

    async fn pass_on(self, mut sockets: [Socket; 2], place: Place) {
        let ended = async {
            for socket in &mut sockets {
                welcome(socket, RelayWelcome::Joined).await?;
            }
            // Members share alike, however many circuits one of them has: each circuit counts for who asked for it.
            let [asker, _] = place.members;
            let share = || self.0.rate.join(asker, Ticket(self.0.directions.fetch_add(1, Ordering::Relaxed)));
            splice(sockets, [share(), share()], |bytes| {
                self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
            })
            .await
        }
        .await;
        if let Err(error) = ended {
            tracing::debug!(%error, "a circuit ended");
        }
        // Only now, because the place counts for as long as bytes can pass.
        drop(place);
    }
}

async fn welcome(socket: &mut Socket, welcome: RelayWelcome) -> io::Result<()> {
    write_frame(socket, &welcome.encode().map_err(io::Error::other)?).await?;
    socket.flush().await
}

async fn say_farewell(socket: &mut Socket) {
    // It may have left meanwhile.
    drop(welcome(socket, RelayWelcome::Refused).await);
    drop(socket.close().await);
}
