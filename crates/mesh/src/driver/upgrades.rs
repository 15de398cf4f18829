//! Better ways to peers that are reached over a relay.
//!
//! The side at whose end the circuit was dialled knows an address of nobody, so it dials the other one at the addresses that
//! this one tells: where one side can be reached, that is enough. The side that dialled the circuit lets it, and then meets
//! it. A connection that goes a better way takes over: the relayed one is closed when what is under way has had its time.

use super::context::Context;
use super::dials::Dials;
use super::ways::Ways;
use crate::circuits::{Way, meeting_place};
use crate::clock::moment;
use libp2p::PeerId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use narmesh_gossip::Moment;
use std::collections::BTreeMap;

/// The first dial of the side that was dialled comes this long after the circuit: the other one has told its addresses.
const DIAL_AFTER_MS: u64 = 150;
/// The first meeting comes this long after the circuit: a dial by the other side has had its time.
const MEET_AFTER_MS: u64 = 600;
/// The pause after the first trial; each further one is [`PAUSE_GROWTH`] times as long, up to [`PAUSE_MAX_MS`]. In the
/// field 97.6 % of those that succeed do at the first trial (arXiv 2510.27500).
const PAUSE_MIN_MS: u64 = 10_000;
const PAUSE_GROWTH: u64 = 6;
const PAUSE_MAX_MS: u64 = 1_800_000;
/// A relayed connection is closed this long after a better one came: a request takes at most 10 s.
const RETIRE_AFTER_MS: u64 = 12_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Upgrade {
    next: Moment,
    pause_ms: u64,
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
                let after = if best.is_dialled { MEET_AFTER_MS } else { DIAL_AFTER_MS };
                let first = Upgrade { next: Moment(moment().0 + after), pause_ms: PAUSE_MIN_MS };
                self.trials.entry(*peer).or_insert(first);
            }
            Some(_) => {
                self.trials.remove(peer);
                if ways.relayed(peer).next().is_some() {
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

    /// When [`Self::run_due`] has something to do.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.trials.values().map(|trial| trial.next).chain(self.retired.values().copied()).min()
    }

    pub(super) fn run_due(&mut self, context: &mut Context, ways: &Ways, dials: &Dials) {
        let now = moment();
        for (peer, trial) in self.trials.iter_mut().filter(|(_, trial)| trial.next <= now) {
            trial.next = Moment(now.0 + trial.pause_ms);
            trial.pause_ms = (trial.pause_ms * PAUSE_GROWTH).min(PAUSE_MAX_MS);
            let is_dialled = ways.best(peer).is_some_and(|best| best.is_dialled);
            let addresses = if is_dialled { vec![meeting_place()] } else { dials.addresses(peer) };
            if addresses.is_empty() {
                continue;
            }
            let options = DialOpts::peer_id(*peer).condition(PeerCondition::NotDialing).addresses(addresses);
            if let Err(error) = context.swarm.dial(options.allocate_new_port().build()) {
                tracing::debug!(%peer, %error, "no better way is tried now");
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
