//! The open connections of a listener, and which of them is closed when there are too many.

use std::collections::BTreeMap;
use std::net::IpAddr;
#[cfg(test)]
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::client::Client;
use crate::connection::{ConnectionState, millis_between};
use crate::limits::GatewayLimits;
use crate::listener::Route;
use crate::metrics::{CloseReason, GatewayMetrics};
use crate::proxies::TrustedProxies;
use crate::socket_owner::SocketOwners;
use crate::substituter::{Caller, ClientUser};

/// The open connections of one listener, never more than its limits allow.
#[derive(Debug)]
pub(crate) struct ConnectionTable {
    clock: Instant,
    limits: GatewayLimits,
    metrics: Arc<GatewayMetrics>,
    owners: Owners,
    proxies: TrustedProxies,
    open: Mutex<Open>,
    emptied: Notify,
}

#[derive(Debug)]
enum Owners {
    Kernel(SocketOwners),
    #[cfg(test)]
    Fixed(fn(SocketAddr) -> Option<u32>),
}

impl Owners {
    fn of(&self, route: Route) -> Owner {
        let (client, server) = match route {
            Route::Unix(user) => return user.map_or(Owner::Nobody, Owner::User),
            // A user is known only on this machine; for other machines the address stands.
            Route::Tcp { client, .. } if !client.ip().to_canonical().is_loopback() => {
                return Client::of(route).counted().map_or(Owner::Nobody, Owner::Address);
            }
            Route::Tcp { client, server } => (client, server),
        };
        let user = match self {
            Self::Kernel(owners) => owners.find_owner(client, server),
            #[cfg(test)]
            Self::Fixed(owner) => owner(client),
        };
        user.map_or(Owner::Nobody, Owner::User)
    }
}

#[derive(Debug, Default)]
struct Open {
    next_id: u64,
    connections: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    state: Arc<ConnectionState>,
    route: Route,
    owner: Owner,
}

/// Whose a connection is. All connections whose owner the kernel does not know count as those of one user.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Owner {
    NotAsked,
    Nobody,
    User(u32),
    /// A client on the network.
    Address(IpAddr),
}

impl Open {
    /// Looks up the owners of all connections for which that was not done yet.
    fn ask(&mut self, owners: &Owners) {
        for connection in self.connections.values_mut().filter(|connection| connection.owner == Owner::NotAsked) {
            connection.owner = owners.of(connection.route);
        }
    }

    fn count(&self, owner: Owner) -> usize {
        self.connections.values().filter(|connection| connection.owner == owner).count()
    }

    /// The owner with the most connections.
    fn greediest(&self) -> Option<Owner> {
        let mut counts: BTreeMap<Owner, usize> = BTreeMap::new();
        for connection in self.connections.values() {
            *counts.entry(connection.owner).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(owner, _)| owner)
    }

    /// Removes the connection of `owner` that stood still longest.
    fn take_oldest_of(&mut self, owner: Owner) -> Option<Arc<ConnectionState>> {
        let theirs = self.connections.iter().filter(|(_, connection)| connection.owner == owner);
        let oldest = theirs.min_by_key(|(_, connection)| (connection.state.age_key(), connection.state.opened()));
        let id = *oldest?.0;
        self.connections.remove(&id).map(|connection| connection.state)
    }
}

impl ConnectionTable {
    pub(crate) fn new(limits: GatewayLimits, metrics: Arc<GatewayMetrics>, proxies: TrustedProxies) -> Arc<Self> {
        Self::with_owners(limits, metrics, proxies, Owners::Kernel(SocketOwners::new()))
    }

    fn with_owners(
        limits: GatewayLimits,
        metrics: Arc<GatewayMetrics>,
        proxies: TrustedProxies,
        owners: Owners,
    ) -> Arc<Self> {
        let (clock, open, emptied) = (Instant::now(), Mutex::default(), Notify::new());
        Arc::new(Self { clock, limits, metrics, owners, proxies, open, emptied })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        // Nothing panics in the middle of a change, so a poisoned map is still consistent.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a new connection. If its user is at the limit, that user's longest idle connection is closed for it; if the
    /// listener is at its limit, the longest idle one of the user with the most connections.
    pub(crate) fn enter(self: &Arc<Self>, route: Route) -> Entered {
        let state = Arc::new(ConnectionState::new(self.clock));
        let GatewayLimits { connections_max, connections_per_user_max, .. } = self.limits;
        // Held until the connection is entered, so that two new ones cannot take the same free place.
        let mut open = self.open();
        let mut owner = Owner::NotAsked;
        // Below both limits the owner does not matter.
        if open.connections.len() >= connections_max.min(connections_per_user_max).max(1) {
            owner = self.owners.of(route);
            open.ask(&self.owners);
            // For whom a proxy asks is known with the request.
            if !self.proxies.includes(Client::of(route)) {
                while open.count(owner) >= connections_per_user_max.max(1) {
                    self.close(open.take_oldest_of(owner));
                }
            }
            while open.connections.len() >= connections_max.max(1) {
                let greediest = open.greediest();
                self.close(greediest.and_then(|greediest| open.take_oldest_of(greediest)));
            }
        }
        let id = open.next_id;
        open.next_id = id.wrapping_add(1);
        open.connections.insert(id, Connection { state: Arc::clone(&state), route, owner });
        drop(open);
        self.metrics.on_connection_opened();
        Entered { id, state, table: Arc::clone(self) }
    }

    /// Closes the longest idle connection of the user with the most connections, to free its descriptor.
    pub(crate) fn close_oldest(&self) {
        let mut open = self.open();
        open.ask(&self.owners);
        let greediest = open.greediest();
        self.close(greediest.and_then(|greediest| open.take_oldest_of(greediest)));
    }

    fn close(&self, connection: Option<Arc<ConnectionState>>) {
        if let Some(state) = connection {
            self.metrics.on_connection_closed(CloseReason::Limit);
            state.close();
        }
    }

    /// From now on the connection of a proxy counts as one of the client for which it asks. If that client is at its limit, its
    /// longest idle one is closed.
    fn give_to(&self, id: u64, client: IpAddr) {
        let owner = Owner::Address(client);
        let mut open = self.open();
        match open.connections.get_mut(&id) {
            // Each request of a proxy may ask for another client, and mostly it is the same one.
            Some(connection) if connection.owner != owner => connection.owner = owner,
            Some(_) | None => return,
        }
        while open.count(owner) > self.limits.connections_per_user_max.max(1) {
            self.close(open.take_oldest_of(owner));
        }
    }

    /// Whose a connection is. The kernel is asked for it once.
    fn find_user(&self, id: u64) -> Option<Caller> {
        // Held while the kernel is asked, which takes one question at a time.
        let mut open = self.open();
        let connection = open.connections.get_mut(&id)?;
        if connection.owner == Owner::NotAsked {
            connection.owner = self.owners.of(connection.route);
        }
        match connection.owner {
            Owner::User(user) => Some(Caller::User(user)),
            Owner::Address(address) => Some(Caller::Address(address)),
            Owner::NotAsked | Owner::Nobody => None,
        }
    }

    /// Closes every connection that has exceeded a time limit.
    pub(crate) fn sweep(&self, is_memory_short: bool) {
        let now_ms = millis_between(self.clock, Instant::now());
        for Connection { state, .. } in self.open().connections.values() {
            if let Some(reason) = state.overdue(now_ms, &self.limits, is_memory_short) {
                tracing::debug!(?reason, age = ?state.opened().elapsed(), "closing a connection");
                self.metrics.on_connection_closed(reason);
                state.close();
            }
        }
    }

    /// How often to [`Self::sweep`]: a quarter of the shortest limit, between 10 ms and 1 s.
    pub(crate) fn sweep_interval(&self) -> Duration {
        let GatewayLimits { header_read_timeout, tls_handshake_timeout, .. } = self.limits;
        let GatewayLimits { idle_timeout, stall_timeout, short_stall_timeout, .. } = self.limits;
        let shortest = header_read_timeout.min(tls_handshake_timeout);
        let shortest = shortest.min(idle_timeout).min(stall_timeout).min(short_stall_timeout);
        (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }

    /// Lets responses under way finish for at most `grace`, then closes the remaining connections.
    pub(crate) async fn drain(&self, grace: Duration) {
        self.tell_all(ConnectionState::drain);
        if tokio::time::timeout(grace, self.wait_until_empty()).await.is_err() {
            tracing::info!(connections = self.open().connections.len(), "closing connections that did not finish");
            self.tell_all(ConnectionState::close);
            self.wait_until_empty().await;
        }
    }

    fn tell_all(&self, order: fn(&ConnectionState)) {
        for connection in self.open().connections.values() {
            order(&connection.state);
        }
    }

    async fn wait_until_empty(&self) {
        loop {
            // Made before the look: the last one may leave in between.
            let emptied = self.emptied.notified();
            if self.open().connections.is_empty() {
                return;
            }
            emptied.await;
        }
    }
}

/// A connection's place in the table. Dropping it removes the connection.
#[derive(Debug)]
pub(crate) struct Entered {
    id: u64,
    pub(crate) state: Arc<ConnectionState>,
    table: Arc<ConnectionTable>,
}

impl Entered {
    /// Tells the user of this connection.
    pub(crate) fn user(&self) -> ClientUser {
        let (table, id) = (Arc::clone(&self.table), self.id);
        ClientUser::new(move || table.find_user(id))
    }

    /// Gives the connections of a proxy to the clients for which it asks.
    pub(crate) fn place(&self) -> Place {
        Place { id: self.id, table: Arc::clone(&self.table) }
    }
}

/// Which connection it is in the table.
#[derive(Debug)]
pub(crate) struct Place {
    id: u64,
    table: Arc<ConnectionTable>,
}

impl Place {
    /// From now on the connection counts as one of the client at this address, as [`Client::counted`] gives it.
    pub(crate) fn give_to(&self, client: IpAddr) {
        self.table.give_to(self.id, client);
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut open = self.table.open();
        open.connections.remove(&self.id);
        if open.connections.is_empty() {
            // `notify_one` keeps its permit for a waiter that has checked the table but does not wait yet.
            self.table.emptied.notify_one();
        }
        drop(open);
        self.table.metrics.on_connection_ended();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxies::Network;

    /// The owner by the client's port, for tests: ports 1,000 to 1,999 belong to user 1, and so
    /// on; lower ones have no owner.
    fn by_port(client: SocketAddr) -> Option<u32> {
        (client.port() >= 1_000).then(|| u32::from(client.port() / 1_000))
    }

    fn table(connections_max: usize, connections_per_user_max: usize) -> Arc<ConnectionTable> {
        let limits = GatewayLimits { connections_max, connections_per_user_max, ..GatewayLimits::default() };
        ConnectionTable::with_owners(limits, Arc::default(), TrustedProxies::default(), Owners::Fixed(by_port))
    }

    fn enter(table: &Arc<ConnectionTable>, port: u16) -> Entered {
        let [client, server] = [port, 1].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        table.enter(Route::Tcp { client, server })
    }

    /// The client ports of the open connections, in the order in which they came.
    fn open(table: &ConnectionTable) -> Vec<u16> {
        let port = |route| match route {
            Route::Tcp { client, .. } => client.port(),
            Route::Unix(_) => panic!("no Unix socket here"),
        };
        table.open().connections.values().map(|connection| port(connection.route)).collect()
    }

    #[test]
    fn one_user_cannot_exceed_the_user_limit() {
        let table = table(8, 4);
        let _held: Vec<_> = [2_000, 1_000, 1_001, 1_002, 1_003, 1_004, 1_005].map(|port| enter(&table, port)).into();
        assert_eq!(open(&table), [2_000, 1_002, 1_003, 1_004, 1_005]);
        // Connections without a known owner share one user's limit.
        let _unknown: Vec<_> = (1..=6).map(|port| enter(&table, port)).collect();
        assert_eq!(open(&table)[0], 2_000);
        assert_eq!(open(&table).iter().filter(|port| **port < 1_000).count(), 4);
    }

    #[test]
    fn full_table_closes_a_connection_of_the_greediest_user() {
        let table = table(8, 4);
        let _nix = enter(&table, 9_000);
        let _held: Vec<_> = (0..40_u16).map(|count| enter(&table, 1_000 * (1 + count % 5) + count)).collect();
        assert_eq!(open(&table).len(), 8);
        assert!(open(&table).contains(&9_000), "five users together do not push out the one who has one");
        let _more: Vec<_> = [9_001, 9_002].map(|port| enter(&table, port)).into();
        assert!(open(&table).ends_with(&[9_001, 9_002]), "a new one always gets in");
    }

    #[test]
    fn user_of_a_connection_is_known_while_it_is_open() {
        let table = table(8, 4);
        let (known, unknown) = (enter(&table, 9_000), enter(&table, 1));
        let user = known.user();
        assert_eq!((user.find(), unknown.user().find()), (Some(Caller::User(9)), None));
        drop(known);
        assert_eq!(user.find(), None);
    }

    #[test]
    fn clients_on_the_network_count_by_address() {
        let table = table(8, 4);
        let from = |address: &str| {
            let [client, server] = [address, "[2001:db8::1]:7282"].map(|text| text.parse().unwrap());
            table.enter(Route::Tcp { client, server })
        };
        let _one = from("192.0.2.1:1");
        let _mapped: Vec<_> = (0..9).map(|port| from(&format!("[::ffff:192.0.2.2]:{port}"))).collect();
        let _prefix: Vec<_> = (1..10).map(|host| from(&format!("[2001:db8::{host}]:1"))).collect();
        let owners: Vec<_> = {
            let open = table.open();
            open.connections.values().map(|connection| table.owners.of(connection.route)).collect()
        };
        let count =
            |address: &str| owners.iter().filter(|owner| **owner == Owner::Address(address.parse().unwrap())).count();
        assert_eq!((count("192.0.2.1"), count("2001:db8::")), (1, 4), "{owners:?}");
        assert_eq!(table.owners.of(Route::Unix(Some(7))), Owner::User(7));
    }

    #[test]
    fn connections_of_a_proxy_count_for_the_clients_it_asks_for() {
        let proxies = TrustedProxies { networks: vec![Network::parse("192.0.2.1").unwrap()], unix: false };
        let limits = GatewayLimits { connections_max: 8, connections_per_user_max: 3, ..GatewayLimits::default() };
        let table = ConnectionTable::with_owners(limits, Arc::default(), proxies, Owners::Fixed(by_port));
        let [client, server] = ["192.0.2.1:1", "192.0.2.9:7282"].map(|text| text.parse().unwrap());
        let held: Vec<_> = (0..8).map(|_| table.enter(Route::Tcp { client, server })).collect();
        assert_eq!(table.open().connections.len(), 8, "the proxy itself is not bounded by what one client may have");
        let [one, other] = ["198.51.100.1", "198.51.100.2"].map(|text| text.parse::<IpAddr>().unwrap());
        for entered in &held[..6] {
            entered.place().give_to(one);
        }
        held[6].place().give_to(other);
        let count = |owner| table.open().count(owner);
        assert_eq!((count(Owner::Address(one)), count(Owner::Address(other))), (3, 1));
        assert_eq!(held[6].user().find(), Some(Caller::Address(other)));
        assert_eq!(table.open().connections.len(), 5, "the longest idle ones of the greedy client were closed");
    }

    #[test]
    fn below_the_limits_no_owner_is_looked_up() {
        fn nobody_asks(_: SocketAddr) -> Option<u32> {
            panic!("asked")
        }
        let limits = GatewayLimits { connections_max: 8, connections_per_user_max: 4, ..GatewayLimits::default() };
        let table =
            ConnectionTable::with_owners(limits, Arc::default(), TrustedProxies::default(), Owners::Fixed(nobody_asks));
        let _held: Vec<_> = (0..4).map(|port| enter(&table, port)).collect();
    }
}
