//! Bulk connections: NARs travel on a TCP connection of their own, outside the swarm, so that narinfos and gossip never
//! wait behind them in one of the queues that a connection has (yamux, TLS, the kernel).
//!
//! Walk: [`ControlWatch`] tells [`Bulk`] which control connections there are; [`Bulk::connect`] gives the bulk
//! connection with a peer, and has it dialled first if need be, by us or by the peer; `connection` is the task of one.
//! Invariants: no bulk connection is kept with a peer that is not on the allowlist, or with which no control connection
//! is open; at most [`PER_SIDE_MAX`] that each side dialled; one dial at a time per peer.

mod connection;
mod control;
mod pause;

pub(super) use connection::{BulkStream, Connection, InUse, Incoming};
pub(super) use control::ControlWatch;

use super::circuits::Way;
use super::clock::moment;
use super::connection_rates::ConnectionRates;
use super::statistics::PeerStatistics;
use super::transport::{Arrival, PeerTransport};
use libp2p::core::Endpoint;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{DialOpts, PortUse, Transport};
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use parking_lot::Mutex;
use pause::Failures;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Bulk connections that one peer may have dialled to us, or may have had us dial; a further one closes the oldest.
/// Two, so that a side that lost one need not wait until the other notices.
pub(super) const PER_SIDE_MAX: usize = 2;
/// A dial takes at most this long: three round trips, on a line whose queue takes a second (1 Mbit/s and 100 packets).
const DIAL_MAX: Duration = Duration::from_secs(5);
/// The same over a relay, or to a peer that we meet.
const LONG_DIAL_MAX: Duration = Duration::from_secs(12);
/// The dialler sees its control connection a moment before the listener does: a bulk connection waits this long for it.
const EARLY_MAX: Duration = Duration::from_secs(1);
/// How long a hint that NARs will be wanted counts while the control connection is not there yet.
const HINT_MAX: Duration = Duration::from_secs(5);

/// All bulk connections; cheap to clone.
#[derive(Clone)]
pub(super) struct Bulk(Arc<Shared>);

struct Shared {
    transport: Mutex<PeerTransport>,
    table: Mutex<Table>,
    surroundings: OnceLock<Surroundings>,
}

/// This peer dialled our control connection, and is to dial a bulk connection as well.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct AskToDial {
    pub(super) peer: PeerId,
    /// The number of that dial; a later one has a higher number.
    pub(super) number: u64,
}

/// What bulk connections need from the rest of the node.
pub(super) struct Surroundings {
    /// Who is on the allowlist.
    pub(super) statistics: Arc<PeerStatistics>,
    /// The driver, which asks peers to dial.
    pub(super) asks_to_dial: mpsc::Sender<AskToDial>,
    /// How often each peer connects.
    pub(super) connection_rates: ConnectionRates,
    /// Takes the streams that peers open.
    pub(super) incoming: Box<dyn Fn(Incoming) + Send + Sync>,
}

#[derive(Default)]
struct Table {
    peers: HashMap<PeerId, PeerBulk>,
    newest_id: u64,
}

/// The connections with one peer.
#[derive(Default)]
struct PeerBulk {
    /// Its control connections.
    control: BTreeMap<ConnectionId, Control>,
    /// Its bulk connections, oldest first.
    connections: Vec<Connection>,
    in_use: Arc<AtomicUsize>,
    /// A bulk connection that came in before its control connection.
    early: Option<StreamMuxerBox>,
    /// When somebody last said that a connection will be wanted.
    hinted: Option<Instant>,
    /// The number of the dial under way.
    dial: Option<u64>,
    failures: Failures,
    waiting: Vec<oneshot::Sender<Result<Connection, String>>>,
}

/// One control connection.
struct Control {
    way: Way,
    /// The address, if we dialled it.
    dialled: Option<Multiaddr>,
}

impl std::fmt::Debug for Bulk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bulk").field("peers", &self.0.table.lock().peers.len()).finish_non_exhaustive()
    }
}

impl Bulk {
    /// Nothing is dialled or taken before [`Self::run`] is called.
    pub(super) fn new(transport: PeerTransport) -> Self {
        Self(Arc::new(Shared {
            transport: Mutex::new(transport),
            table: Mutex::default(),
            surroundings: OnceLock::new(),
        }))
    }

    /// Takes the connections that come in, until the swarm ends.
    pub(super) async fn run(self, surroundings: Surroundings, mut arrivals: mpsc::Receiver<Arrival>) {
        drop(self.0.surroundings.set(surroundings));
        while let Some((peer, muxer)) = arrivals.recv().await {
            self.on_arrival(peer, muxer);
        }
    }

    /// The connection to ask `peer` over: the newest, dialled first if there is none. Takes a bounded time.
    pub(super) async fn connect(&self, peer: PeerId) -> Result<Connection, String> {
        // The lock must not be held while the dial is waited for.
        let waiting = {
            let mut table = self.0.table.lock();
            // A bulk connection lives by its control connection, which ends when the peer is no longer allowed.
            let known = table.peers.get_mut(&peer).filter(|known| !known.control.is_empty());
            let known = known.ok_or_else(|| "there is no control connection".to_owned())?;
            if let Some(open) = known.newest() {
                return Ok(open.clone());
            }
            let (sender, waiting) = oneshot::channel();
            // Who has given up makes room: lookups that come and go would pile up here.
            known.waiting.retain(|waiting| !waiting.is_closed());
            known.waiting.push(sender);
            self.dial_unless_under_way(&mut table, peer);
            waiting
        };
        waiting.await.unwrap_or_else(|_| Err("the bulk connection is no longer wanted".to_owned()))
    }

    /// Has the connection dialled if there is none: it will be wanted soon.
    pub(super) fn prepare(&self, peer: PeerId) {
        let mut table = self.0.table.lock();
        let is_ready = |known: &PeerBulk| known.dial.is_some() || known.newest().is_some();
        if table.peers.get(&peer).is_some_and(is_ready) || !self.is_allowed(&peer) {
            return;
        }
        let known = table.peers.entry(peer).or_default();
        // Noted also before there is a control connection: the dial begins as soon as there is one.
        known.hinted = Some(Instant::now());
        if !known.control.is_empty() {
            self.dial_unless_under_way(&mut table, peer);
        }
    }

    /// Whether a connection is open now.
    #[cfg(test)]
    pub(super) fn is_connected(&self, peer: &PeerId) -> bool {
        self.0.table.lock().peers.get(peer).is_some_and(|known| known.newest().is_some())
    }

    /// Dials because the peer asks for it; says whether that can be done.
    pub(super) fn dial_for(&self, peer: PeerId) -> bool {
        let mut table = self.0.table.lock();
        let Some(known) = table.peers.get(&peer) else { return false };
        if known.address().is_none() {
            return false;
        }
        // Even if there is a connection: the peer that asks has none, and may know better.
        self.dial_unless_under_way(&mut table, peer);
        true
    }

    /// Notes that the peer, asked to dial for the dial of this number, will not.
    pub(super) fn on_dial_refused(&self, peer: PeerId, number: u64, why: &str) {
        self.0.table.lock().on_dial_failed(peer, number, why);
    }

    /// Closes everything with a peer that left the allowlist.
    pub(super) fn forget(&self, peer: &PeerId) {
        if let Some(known) = self.0.table.lock().peers.get_mut(peer) {
            known.end("the peer left the allowlist");
        }
    }

    fn in_use(&self, peer: PeerId) -> Arc<AtomicUsize> {
        Arc::clone(&self.0.table.lock().peers.entry(peer).or_default().in_use)
    }

    fn is_allowed(&self, peer: &PeerId) -> bool {
        self.0.surroundings.get().is_some_and(|around| around.statistics.stats(peer).is_some())
    }

    /// Notes an open control connection that goes this way; `dialled` is the address, if we dialled it.
    fn on_control_opened(&self, peer: PeerId, id: ConnectionId, way: Way, dialled: Option<Multiaddr>) {
        let mut table = self.0.table.lock();
        let known = table.peers.entry(peer).or_default();
        if known.control.values().all(|control| control.way < way) {
            // Each bulk connection goes the way of a control connection. What is under way on it goes on there.
            known.connections.iter().for_each(Connection::retire);
        }
        known.control.insert(id, Control { way, dialled });
        // The peer can be reached now, so earlier failures say nothing.
        known.failures = Failures::default();
        let early = known.early.take();
        let is_hinted = known.hinted.take().is_some_and(|since| since.elapsed() < HINT_MAX);
        if let Some(muxer) = early {
            self.adopt(&mut table, peer, muxer, true);
        } else if is_hinted {
            self.dial_unless_under_way(&mut table, peer);
        }
    }

    fn on_control_closed(&self, peer: &PeerId, id: ConnectionId) {
        let mut table = self.0.table.lock();
        let Some(known) = table.peers.get_mut(peer) else { return };
        let closed = known.control.remove(&id).map(|control| control.way);
        if closed >= known.best_way() {
            // Another one has taken its place, mostly because this one was dead, and the bulk connections that went the same
            // way are dead, too. If they are not, what is under way on them goes on.
            known.connections.iter().for_each(Connection::retire);
        }
        if known.control.is_empty() {
            known.end("its control connection was closed");
        }
        table.tidy(peer);
    }

    /// Takes a bulk connection that a peer dialled.
    fn on_arrival(&self, peer: PeerId, muxer: StreamMuxerBox) {
        if !self.is_allowed(&peer) {
            tracing::debug!(%peer, "refused a bulk connection: not on the allowlist");
            return;
        }
        if !self.0.surroundings.get().is_some_and(|around| around.connection_rates.try_count(moment(), peer)) {
            tracing::debug!(%peer, "refused a bulk connection: the peer connects too often");
            return;
        }
        let mut table = self.0.table.lock();
        let known = table.peers.entry(peer).or_default();
        if !known.control.is_empty() {
            return self.adopt(&mut table, peer, muxer, true);
        }
        known.early = Some(muxer);
        let this = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(EARLY_MAX).await;
            let mut table = this.0.table.lock();
            // A second early connection takes the place of the first, and gets only what is left of its time: no honest
            // peer has two without a control connection.
            if table.peers.get_mut(&peer).is_some_and(|known| known.early.take().is_some()) {
                tracing::debug!(%peer, "refused a bulk connection: there is no control connection");
            }
            table.tidy(&peer);
        });
    }

    /// Puts a connection to use, in both directions.
    fn adopt(&self, table: &mut Table, peer: PeerId, muxer: StreamMuxerBox, came_in: bool) {
        table.newest_id += 1;
        let id = table.newest_id;
        let known = table.peers.entry(peer).or_default();
        let (incoming, ending) = (self.clone(), self.clone());
        let connection = Connection::start(
            (id, peer, came_in),
            muxer,
            Arc::clone(&known.in_use),
            move |stream| {
                if let Some(around) = incoming.0.surroundings.get() {
                    (around.incoming)(stream);
                }
            },
            move || ending.on_ended(&peer, id),
        );
        tracing::debug!(%peer, came_in, "bulk connection");
        // Each side counts for itself, so that a peer that dials without end closes only its own.
        let mut of_that_side = known.connections.iter().filter(|other| other.came_in == came_in && other.is_open());
        if of_that_side.clone().count() >= PER_SIDE_MAX
            && let Some(oldest) = of_that_side.next()
        {
            oldest.close();
        }
        known.connections.retain(Connection::is_open);
        known.connections.push(connection.clone());
        // The next dial begins without a pause: what failed before is over.
        (known.dial, known.failures, known.hinted) = (None, Failures::default(), None);
        for waiting in known.waiting.drain(..) {
            // Whoever waited may have left.
            drop(waiting.send(Ok(connection.clone())));
        }
    }

    fn on_ended(&self, peer: &PeerId, id: u64) {
        let mut table = self.0.table.lock();
        if let Some(known) = table.peers.get_mut(peer) {
            known.connections.retain(|connection| connection.id != id);
        }
        table.tidy(peer);
    }

    fn dial_unless_under_way(&self, table: &mut Table, peer: PeerId) {
        let Some(known) = table.peers.get_mut(&peer).filter(|known| known.dial.is_none()) else { return };
        table.newest_id += 1;
        let number = table.newest_id;
        known.dial = Some(number);
        let pause = known.failures.pause();
        tokio::spawn(self.clone().dial(peer, number, pause));
    }

    /// Dials after a pause, or has the peer dial, and tells whoever waits.
    async fn dial(self, peer: PeerId, number: u64, pause: Duration) {
        tokio::time::sleep(pause).await;
        let address = self.0.table.lock().peers.get(&peer).and_then(PeerBulk::address);
        // Who dialled the control connection dials this one, too; where the other side came from, nobody may listen.
        let Some(address) = address else { return self.ask_to_dial(peer, number).await };
        let longest = if Way::of(&address) == Way::Direct { DIAL_MAX } else { LONG_DIAL_MAX };
        let dialled = tokio::time::timeout(longest, self.dial_address(peer, address)).await;
        let dialled = dialled.unwrap_or_else(|_| Err(format!("no bulk connection within {longest:?}")));
        let mut table = self.0.table.lock();
        // If the control connection is gone meanwhile, the bulk connection is closed, too.
        if table.peers.get(&peer).is_none_or(|known| known.control.is_empty()) {
            return;
        }
        match dialled {
            Ok(muxer) => self.adopt(&mut table, peer, muxer, false),
            Err(why) => table.on_dial_failed(peer, number, &why),
        }
    }

    async fn dial_address(&self, peer: PeerId, address: Multiaddr) -> Result<StreamMuxerBox, String> {
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let dial = self.0.transport.lock().dial(address, options).map_err(|error| error.to_string())?;
        let (found, muxer) = dial.await.map_err(|error| error.to_string())?;
        if found == peer { Ok(muxer) } else { Err(format!("another peer answers there: {found}")) }
    }

    /// Asks the peer to dial. Only the side that dialled the control connection knows an address that surely leads to
    /// the other.
    async fn ask_to_dial(&self, peer: PeerId, number: u64) {
        if let Some(around) = self.0.surroundings.get() {
            drop(around.asks_to_dial.send(AskToDial { peer, number }).await);
        }
        let is_direct =
            || self.0.table.lock().peers.get(&peer).is_none_or(|known| known.best_way() == Some(Way::Direct));
        let longest = if is_direct() { DIAL_MAX } else { LONG_DIAL_MAX };
        tokio::time::sleep(longest).await;
        self.0.table.lock().on_dial_failed(peer, number, &format!("the peer did not dial within {longest:?}"));
    }
}

impl Table {
    fn on_dial_failed(&mut self, peer: PeerId, number: u64, why: &str) {
        let Some(known) = self.peers.get_mut(&peer).filter(|known| known.dial == Some(number)) else { return };
        tracing::debug!(%peer, why, "no bulk connection");
        known.dial = None;
        known.failures.count();
        known.refuse(why);
    }

    /// Forgets a peer with which there is nothing.
    fn tidy(&mut self, peer: &PeerId) {
        let is_nothing = |known: &PeerBulk| {
            // Another holder of the counter is a control connection that we will hear of in a moment.
            let is_counted = Arc::strong_count(&known.in_use) > 1;
            let is_quiet = known.early.is_none() && known.waiting.is_empty();
            known.control.is_empty() && known.connections.is_empty() && is_quiet && !is_counted
        };
        if self.peers.get(peer).is_some_and(is_nothing) {
            self.peers.remove(peer);
        }
    }
}

impl PeerBulk {
    fn newest(&self) -> Option<&Connection> {
        self.connections.iter().rev().find(|connection| connection.takes_requests())
    }

    /// The address at which we dialled the peer, if its best control connection is one that we dialled: it is known to
    /// lead there.
    fn address(&self) -> Option<Multiaddr> {
        let best = self.best_way()?;
        let of_the_best = self.control.values().rev().filter(|control| control.way == best);
        of_the_best.into_iter().find_map(|control| control.dialled.clone())
    }

    fn best_way(&self) -> Option<Way> {
        self.control.values().map(|control| control.way).max()
    }

    fn end(&mut self, why: &str) {
        self.connections.drain(..).for_each(|connection| connection.close());
        (self.early, self.hinted, self.dial) = (None, None, None);
        self.refuse(why);
    }

    fn refuse(&mut self, why: &str) {
        for waiting in self.waiting.drain(..) {
            drop(waiting.send(Err(why.to_owned())));
        }
    }
}

#[cfg(test)]
mod tests;
