//! Better ways to peers that are reached over a relay.
//!
//! Each side dials the other as soon as it hears its addresses over the circuit: where one of the two can be reached, that
//! is enough. A moment later the one that dialled the circuit also meets the other. A connection that goes a better way takes
//! over: the relayed one is closed when what is under way has had its time.

use super::context::Context;
use super::dials::Dials;
use super::ways::Ways;
use crate::circuits::{Way, meeting_place};
use crate::clock::moment;
use libp2p::swarm::DialError;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId};
use narmesh_gossip::Moment;
use std::collections::BTreeMap;

/// The first meeting comes this long after the circuit: dials at the addresses that were told have had their time.
const MEET_AFTER_MS: u64 = 600;
/// Addresses that a peer tells are dialled at once, but not more often than this.
const TOLD_PAUSE_MS: u64 = 10_000;
/// The pause after the first trial; each further one is [`PAUSE_GROWTH`] times as long, up to [`PAUSE_MAX_MS`]. In the
/// field 97.6 % of those that succeed do at the first trial (arXiv 2510.27500), but a busy machine may begin too late for it.
const PAUSE_MIN_MS: u64 = 3_000;
const PAUSE_GROWTH: u64 = 2;
const PAUSE_MAX_MS: u64 = 1_800_000;
/// A trial waits this long for a dial under way, whose addresses may all be silent.
const BUSY_PAUSE_MS: u64 = 500;
/// A relayed connection is closed this long after a better one came: a request takes at most 10 s.
const RETIRE_AFTER_MS: u64 = 12_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Upgrade {
    next: Moment,
    pause_ms: u64,
    /// When addresses that the peer told were last dialled at once.
    told: Option<Moment>,
}

/// What is to be tried, and what is to be closed.
#[derive(Debug, Default)]
pub(super) struct Upgrades {
    trials: BTreeMap<PeerId, Upgrade>,
    retired: BTreeMap<PeerId, Moment>,
}

impl Upgrades {
    /// Notes that the connections of a peer changed.
    pub(super) fn on_ways_changed(&mut self, ways: &Ways, peer: &PeerId) {
        match ways.best(peer) {
            Some(best) if best.way == Way::Relayed => {
                self.retired.remove(peer);
                let first = Upgrade { next: Moment(moment().0 + MEET_AFTER_MS), pause_ms: PAUSE_MIN_MS, told: None };
                // A second circuit with the same peer does not begin the pauses anew.
                self.trials.entry(*peer).or_insert(first);
            }
            Some(_) => {
                self.trials.remove(peer);
                if ways.relayed(peer).next().is_some() {
                    // Not at once: what is under way on the circuit may end there.
                    self.retired.entry(*peer).or_insert(Moment(moment().0 + RETIRE_AFTER_MS));
                } else {
                    self.retired.remove(peer);
                }
            }
            None => {
                self.trials.remove(peer);
                self.retired.remove(peer);
            }
        }
    }

    /// Notes that other addresses of a peer may be known, and dials them if they would be a better way.
    pub(super) fn on_addresses_learned(&mut self, context: &mut Context, dials: &Dials, peer: &PeerId) {
        let now = moment();
        let Some(trial) = self.trials.get_mut(peer) else { return };
        if trial.told.is_none_or(|told| now.since(told) >= TOLD_PAUSE_MS) {
            trial.told = Some(now);
            dial(context, *peer, dials.addresses(peer));
        }
    }

    /// When [`Self::run_due`] has something to do.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.trials.values().map(|trial| trial.next).chain(self.retired.values().copied()).min()
    }

    pub(super) fn run_due(&mut self, context: &mut Context, ways: &Ways, dials: &Dials) {
        let now = moment();
        for (peer, trial) in self.trials.iter_mut().filter(|(_, trial)| trial.next <= now) {
            let mut addresses = dials.addresses(peer);
            if ways.begins_meeting(context.swarm.local_peer_id(), peer) {
                addresses.push(meeting_place());
            }
            if dial(context, *peer, addresses) {
                trial.next = Moment(now.0 + trial.pause_ms);
                trial.pause_ms = (trial.pause_ms * PAUSE_GROWTH).min(PAUSE_MAX_MS);
            } else {
                trial.next = Moment(now.0 + BUSY_PAUSE_MS);
            }
        }
        let over: Vec<_> = self.retired.iter().filter(|(_, at)| **at <= now).map(|(peer, _)| *peer).collect();
        for peer in over {
            self.retired.remove(&peer);
            for id in ways.relayed(&peer) {
                context.swarm.close_connection(id);
            }
        }
    }
}

/// Dials although there is a connection, which is a worse one. `false` while another dial is under way.
fn dial(context: &mut Context, peer: PeerId, addresses: Vec<Multiaddr>) -> bool {
    if addresses.is_empty() {
        return true;
    }
    let options = DialOpts::peer_id(peer).condition(PeerCondition::NotDialing).addresses(addresses);
    let begun = context.swarm.dial(options.allocate_new_port().build());
    if let Err(error) = &begun {
        tracing::debug!(%peer, %error, "no better way is tried now");
    }
    !matches!(begun, Err(DialError::DialPeerConditionFalse(_)))
}
