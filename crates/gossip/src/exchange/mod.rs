//! What is asked of peers, and what they are answered: syncs, and pulls of bodies.
//!
//! [`sync`] stands above [`pull`]: it brings the announcements whose bodies are then pulled. Neither knows the state machine.

pub(crate) mod announcement;
pub(crate) mod connections;
pub(crate) mod pull;
pub(crate) mod requests;
pub(crate) mod sync;

use self::connections::Connections;
use self::requests::Requests;
use crate::io::Io;
use crate::peers::Peers;
use crate::publication::Publication;
use libp2p_identity::PeerId;

/// What the parts of the exchange work on together.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) io: Io,
    pub(crate) peers: Peers,
    pub(crate) connections: Connections,
    pub(crate) requests: Requests,
    /// What we say of ourselves.
    pub(crate) publication: Publication,
}

impl Context {
    /// Whether a peer can be asked for anything at present.
    pub(crate) fn may_ask(&self, peer: &PeerId) -> bool {
        let entry = self.peers.get(peer);
        self.connections.contains(peer)
            && entry.is_some_and(|entry| !entry.conduct.is_set_aside() && entry.store_dir_differs.is_none())
    }
}
