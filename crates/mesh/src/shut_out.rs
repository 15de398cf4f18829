//! Which peers are disconnected for a while because of what they do: whoever floods us, and whoever misbehaves without
//! a pause.
//!
//! To refuse what such a peer sends is not enough. gossipsub checks the signature of each message before it asks
//! whether we want it, TLS decrypts and yamux sorts what nobody reads; only a closed connection costs nothing.

use super::connection_rule::ConnectionRule;
use libp2p::PeerId;
use libp2p::swarm::{CloseConnection, ConnectionDenied, ConnectionId};
use narmesh_gossip::Misdeed;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// A peer is shut out for this long. Its filters stay known meanwhile; what it holds comes from others, or waits.
pub(super) const SHUT_OUT: Duration = Duration::from_secs(60);
/// Misdeeds of any kind within [`WINDOW`] that shut a peer out. A guess: a peer is set aside after three, and an honest
/// one of another version, which we would misunderstand, says nothing that often.
const MISDEEDS_MAX: u32 = 100;
/// See [`MISDEEDS_MAX`].
const WINDOW: Duration = Duration::from_secs(60);

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer is shut out for {} s because of its misdeeds", SHUT_OUT.as_secs())]
pub(super) struct IsShutOut;

/// What a peer did lately.
#[derive(Clone, Copy, Debug)]
struct Conduct {
    /// Misdeeds since `since`.
    misdeeds: u32,
    since: Instant,
    /// No connection is taken or dialled before this.
    until: Option<Instant>,
}

/// All peers that misbehaved lately: at most one entry for each peer of the allowlist.
#[derive(Debug, Default)]
pub(super) struct ShutOut {
    peers: HashMap<PeerId, Conduct>,
    closing: VecDeque<PeerId>,
}

impl ShutOut {
    /// Counts a misdeed. Returns true when it shuts the peer out: the swarm then closes its connections.
    pub(super) fn count(&mut self, now: Instant, peer: PeerId, misdeed: Misdeed) -> bool {
        let fresh = Conduct { misdeeds: 0, since: now, until: None };
        let conduct = self.peers.entry(peer).or_insert(fresh);
        if now.saturating_duration_since(conduct.since) > WINDOW {
            (conduct.misdeeds, conduct.since) = (0, now);
        }
        conduct.misdeeds = conduct.misdeeds.saturating_add(1);
        // A flood costs us for each message, so it is not waited for the hundredth.
        let is_flood = matches!(misdeed, Misdeed::AnnouncementFlood | Misdeed::RequestFlood | Misdeed::ConnectionFlood);
        let is_out_already = conduct.until.is_some_and(|until| until > now);
        if is_out_already || !(is_flood || conduct.misdeeds >= MISDEEDS_MAX) {
            return false;
        }
        // Counting begins anew, or the next misdeed after its return would shut the peer out again.
        *conduct = Conduct { until: Some(now + SHUT_OUT), ..fresh };
        self.closing.push_back(peer);
        true
    }

    /// Forgets a peer that left the allowlist.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
    }

    fn admit(&self, now: Instant, peer: &PeerId) -> Result<(), IsShutOut> {
        let until = self.peers.get(peer).and_then(|conduct| conduct.until);
        if until.is_some_and(|until| until > now) { Err(IsShutOut) } else { Ok(()) }
    }
}

impl ConnectionRule for ShutOut {
    fn admit_inbound(&mut self, _: ConnectionId, peer: PeerId) -> Result<(), ConnectionDenied> {
        self.admit(Instant::now(), &peer).map_err(ConnectionDenied::new)
    }

    fn admit_outbound(&mut self, peer: PeerId) -> Result<(), ConnectionDenied> {
        self.admit(Instant::now(), &peer).map_err(ConnectionDenied::new)
    }

    fn next_to_close(&mut self) -> Option<(PeerId, CloseConnection)> {
        self.closing.pop_front().map(|peer| (peer, CloseConnection::All))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_shuts_a_peer_out_for_a_while() {
        let (mut shut_out, now, peer) = (ShutOut::default(), Instant::now(), PeerId::random());
        assert!(shut_out.count(now, peer, Misdeed::AnnouncementFlood));
        assert_eq!(shut_out.admit(now, &peer).err(), Some(IsShutOut));
        assert!(shut_out.admit(now, &PeerId::random()).is_ok(), "nobody else");
        assert!(!shut_out.count(now, peer, Misdeed::AnnouncementFlood), "it is out already");
        let later = now + SHUT_OUT;
        assert!(shut_out.admit(later, &peer).is_ok());
        assert!(shut_out.count(later, peer, Misdeed::RequestFlood), "and again");
        assert!(shut_out.count(later + SHUT_OUT, peer, Misdeed::ConnectionFlood));
        assert_eq!(shut_out.closing.len(), 3);
    }

    #[test]
    fn only_misdeeds_without_a_pause_shut_a_peer_out() {
        let (mut shut_out, start, peer) = (ShutOut::default(), Instant::now(), PeerId::random());
        let out = |shut_out: &mut ShutOut, pause: Duration| {
            let last = u32::try_from(1_000).unwrap();
            (1..=last).find(|number| shut_out.count(start + pause * *number, peer, Misdeed::MalformedRequest))
        };
        assert_eq!(out(&mut shut_out, WINDOW / 50), None, "fifty a minute");
        shut_out.forget(&peer);
        assert_eq!(out(&mut shut_out, Duration::ZERO), Some(MISDEEDS_MAX));
    }
}
