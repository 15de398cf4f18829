//! What is asked of peers, and what they are answered: syncs, and pulls of bodies.
//!
//! [`sync`] stands above [`pull`]: it brings the announcements whose bodies are then pulled. Neither knows the state machine.

pub(crate) mod announcement;
pub(crate) mod connections;
pub(crate) mod pull;
pub(crate) mod requests;
pub(crate) mod sync;

use self::connections::Connections;
use self::pull::Pulls;
use self::requests::Requests;
use crate::io::Io;
use crate::peers::Peers;
use crate::peers::entry::Entry;
use crate::peers::misdeed::Misdeed;
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
        self.connections.contains(peer) && self.peers.get(peer).is_some_and(Entry::is_useful)
    }

    /// Blames a peer. One that is set aside for it is not asked for its body any more.
    pub(crate) fn penalize(&mut self, pulls: &mut Pulls, peer: PeerId, misdeed: Misdeed) {
        if self.peers.blame(&mut self.io, peer, misdeed) {
            pulls.end_pull(self, &peer);
        }
    }
}
