//! Host names that are resolved for dials, outside the driver's loop.

use crate::addresses::socket_address;
use crate::names::{Names, Resolved, is_named};
use libp2p::{Multiaddr, PeerId};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::task::JoinSet;

/// A dial waits no longer than this for its names: as long as for a handshake.
const NAMES_MAX: Duration = Duration::from_secs(3);
/// A dial waits no longer than this for its names if it has other addresses and the last dial did not fail: half of the
/// usual deadline of a narinfo. A guess.
const NAMES_BESIDE_MAX: Duration = Duration::from_millis(500);

/// Names that are resolved for dials: at most one entry for each peer of the allowlist.
#[derive(Debug)]
pub(super) struct DialNames {
    names: Names,
    under_way: JoinSet<(PeerId, Resolved)>,
    /// Why names of the dial under way led nowhere.
    unresolved: HashMap<PeerId, String>,
    /// The IP addresses of the last dial with names.
    led_to: HashMap<PeerId, Vec<IpAddr>>,
}

impl Default for DialNames {
    fn default() -> Self {
        Self {
            names: Names::of_the_system(),
            under_way: JoinSet::new(),
            unresolved: HashMap::new(),
            led_to: HashMap::new(),
        }
    }
}

impl DialNames {
    pub(super) fn start(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, has_failed: bool) {
        // If its other addresses did not lead to the peer, its names are worth waiting for.
        let can_go_on = !has_failed && !addresses.iter().all(is_named);
        let patience = if can_go_on { NAMES_BESIDE_MAX } else { NAMES_MAX };
        let names = self.names.clone();
        self.under_way.spawn(async move { (peer, names.resolve(&addresses, patience).await) });
    }

    /// The next dial whose names are resolved; `None` while none is under way. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<(PeerId, Resolved)> {
        // No task panics or is stopped while the driver runs.
        self.under_way.join_next().await?.ok()
    }

    /// Notes the result; says whether the names lead elsewhere than before.
    pub(super) fn on_resolved(&mut self, peer: PeerId, resolved: &Resolved) -> bool {
        if !resolved.failures.is_empty() {
            self.unresolved.insert(peer, resolved.failures.join("; "));
        }
        let ips: Vec<_> = resolved.addresses.iter().filter_map(socket_address).map(|address| address.ip()).collect();
        // A resolver that fails for a moment says nothing new about where the peer is.
        !ips.is_empty() && self.led_to.insert(peer, ips.clone()) != Some(ips)
    }

    pub(super) fn take_unresolved(&mut self, peer: &PeerId) -> Option<String> {
        self.unresolved.remove(peer)
    }

    pub(super) fn led_to(&self) -> impl Iterator<Item = IpAddr> {
        self.led_to.values().flatten().copied()
    }

    pub(super) fn on_connected(&mut self, peer: &PeerId) {
        self.unresolved.remove(peer);
    }

    /// Forgets a peer that left the allowlist.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.unresolved.remove(peer);
        self.led_to.remove(peer);
    }
}
