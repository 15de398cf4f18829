//! Finds out whether we were removed from the mesh: a member that hangs up at once is asked.

use super::context::Context;
use super::parts::MeshNews;
use crate::clock::moment;
use crate::names::Names;
use crate::transport::{self, Tls};
use libp2p::core::Endpoint;
use libp2p::core::transport::{DialOpts, PortUse, Transport as _};
use libp2p::{Multiaddr, PeerId};
use narmesh_gossip::Moment;
use narmesh_protocol::{Removal, node_key_of};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};

/// One member is asked at most once in this time, milliseconds: a daemon that crashes again and again hangs up, too.
const ASK_PAUSE_MS: u64 = 10_000;
/// How long one address is tried.
const DIAL_MAX: Duration = Duration::from_secs(5);
/// How long names are resolved.
const NAMES_MAX: Duration = Duration::from_secs(5);

pub(super) struct RemovalAsks {
    tls: Tls,
    /// Where a removal goes that holds.
    news: mpsc::Sender<MeshNews>,
    /// One member is asked at a time: all say the same.
    place: Arc<Semaphore>,
    asked: HashMap<PeerId, Moment>,
}

impl std::fmt::Debug for RemovalAsks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemovalAsks").field("asked", &self.asked).finish_non_exhaustive()
    }
}

impl RemovalAsks {
    pub(super) fn new(tls: Tls, news: mpsc::Sender<MeshNews>) -> Self {
        Self { tls, news, place: Arc::new(Semaphore::new(1)), asked: HashMap::new() }
    }

    /// Asks a member that has hung up, unless we know already, or it was asked lately.
    pub(super) fn ask(&mut self, context: &Context, member: PeerId, addresses: Vec<Multiaddr>) {
        let config = &context.config;
        let Some((key, roster)) = config.mesh.as_ref().and_then(|mesh| Some((&mesh.key, mesh.roster.as_ref()?))) else {
            return;
        };
        let is_member = node_key_of(&member).is_some_and(|node_key| roster.member(&node_key).is_some());
        if !is_member || addresses.is_empty() || config.refusing.contains(&member) {
            return;
        }
        let Some(own_key) = node_key_of(context.swarm.local_peer_id()) else { return };
        let now = moment();
        // Whoever was not asked for so long may be asked, and need not be remembered: so this is bounded by the members.
        self.asked.retain(|_, at| now.since(*at) < ASK_PAUSE_MS);
        if self.asked.contains_key(&member) {
            return;
        }
        let Ok(place) = Arc::clone(&self.place).try_acquire_owned() else { return };
        self.asked.insert(member, now);
        let (key, version) = (key.clone(), roster.roster().version);
        let (tls, news) = (self.tls.clone(), self.news.clone());
        tokio::spawn(async move {
            let told = ask_member(tls, member, addresses).await;
            drop(place);
            // An old one says nothing of a machine that has joined again since.
            let holds = |removal: &Removal| removal.version > version && removal.is_of(&key, &own_key);
            match told {
                Some(removal) if holds(&removal) => drop(news.try_send(MeshNews::Removed(removal))),
                Some(_) => tracing::debug!(peer = %member, "a removal that does not hold was ignored"),
                None => {}
            }
        });
    }
}

/// Asks `member` whether we were removed; `None` if it says nothing, or cannot be reached.
async fn ask_member(tls: Tls, member: PeerId, addresses: Vec<Multiaddr>) -> Option<Removal> {
    let mut transport = transport::removal(tls);
    let resolved = Names::of_the_system().resolve(&addresses, NAMES_MAX).await;
    for address in resolved.addresses {
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let Ok(dial) = transport.dial(address, options) else { continue };
        match tokio::time::timeout(DIAL_MAX, dial).await {
            // Whoever else is there: the signature counts, and only the mesh key can make it.
            Ok(Ok((peer, removal))) if peer == member => return Some(removal),
            Ok(Ok(_) | Err(_)) | Err(_) => {}
        }
    }
    None
}
