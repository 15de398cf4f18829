//! `check-config --probe`: dials each configured peer once and asks it one harmless question.

use super::behaviour::MeshBehaviourEvent;
use super::names::{Names, Resolved};
use super::swarm;
use super::transport::TlsError;
use futures::{StreamExt, stream};
use libp2p::identity::Keypair;
use libp2p::swarm::SwarmEvent;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId, request_response};
use narmesh_protocol::HashPart;
use narmesh_protocol::wire::NarInfoRequest;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

/// The dials of a probe take at most this long in all.
const PROBE_TIMEOUT: Duration = Duration::from_secs(8);

/// What was found about one peer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum ProbeResult {
    /// It answered: each side has the other on its allowlist.
    AllowedBothWays,
    /// The handshake succeeded and then the peer hung up: it does not have our peer id on its allowlist.
    NotAllowedThere,
    /// No connection.
    Unreachable {
        /// Why, for each address that was tried.
        why: String,
    },
    /// The configuration has no address for it.
    NoAddress,
}

/// A narinfo that nobody has: the harmless question.
pub const PROBE_QUESTION: HashPart = HashPart([0; 20]);

/// Names are resolved for this many peers at a time, within [`NAMES_MAX`] for each.
const RESOLVED_AT_ONCE: usize = 8;
const NAMES_MAX: Duration = Duration::from_secs(3);

/// Puts IP addresses in place of names.
async fn resolve(peers: &BTreeMap<PeerId, Vec<Multiaddr>>) -> BTreeMap<PeerId, Resolved> {
    let names = Names::of_the_system();
    let each = peers.clone().into_iter().map(|(peer, addresses)| {
        let names = names.clone();
        async move { (peer, names.resolve(&addresses, NAMES_MAX).await) }
    });
    let mut each = pin!(stream::iter(each).buffer_unordered(RESOLVED_AT_ONCE));
    let not_in_time = |peer: &PeerId| {
        let failures = vec![format!("its names were not resolved within {PROBE_TIMEOUT:?}")];
        (*peer, Resolved { addresses: Vec::new(), failures })
    };
    // Filled in first, so that a name which hangs leaves a reason behind.
    let mut resolved: BTreeMap<_, _> = peers.keys().map(not_in_time).collect();
    let all = async {
        while let Some((peer, found)) = each.next().await {
            resolved.insert(peer, found);
        }
    };
    // Peers that were not reached in time keep the failure from above.
    drop(tokio::time::timeout(PROBE_TIMEOUT, all).await);
    resolved
}

/// Dials each of `peers` at its addresses, as the node itself, for at most 8 s in all, and as long again for host
/// names. A peer with which this node has a connection would take that one for dead: ask it over that one instead.
pub async fn probe(
    peers: &BTreeMap<PeerId, Vec<Multiaddr>>,
    keypair: &Keypair,
) -> Result<BTreeMap<PeerId, ProbeResult>, TlsError> {
    // Nobody asks for NARs here: bulk connections that come in are closed.
    let swarm::Built { mut swarm, .. } = swarm::build(keypair, peers.keys().copied(), 1_024)?;
    let mut results: BTreeMap<PeerId, ProbeResult> = BTreeMap::new();
    // A peer that still has an earlier connection of ours refuses the first one that comes after it.
    let mut tried_again = BTreeSet::new();
    let resolved = resolve(peers).await;
    let unresolved = |peer: &PeerId| resolved.get(peer).map_or_else(Vec::new, |found| found.failures.clone());
    let dial = |peer: PeerId| {
        let addresses = resolved.get(&peer).map_or_else(Vec::new, |found| found.addresses.clone());
        DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(addresses).build()
    };
    for (peer, addresses) in peers {
        if addresses.is_empty() {
            results.insert(*peer, ProbeResult::NoAddress);
        } else if resolved.get(peer).is_none_or(|found| found.addresses.is_empty()) {
            let why = unresolved(peer).join("; ");
            results.insert(*peer, ProbeResult::Unreachable { why });
        } else if let Err(error) = swarm.dial(dial(*peer)) {
            results.insert(*peer, ProbeResult::Unreachable { why: error.to_string() });
        }
    }
    let question = NarInfoRequest { hash_part: PROBE_QUESTION }.encode().expect("a hash part fits into a request");
    let until_all_known = async {
        while results.len() < peers.len() {
            match swarm.select_next_some().await {
                SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                    // An established connection says nothing: whoever does not allow us closes it after the handshake.
                    swarm.behaviour_mut().narinfo.send_request(&peer_id, question.clone());
                }
                SwarmEvent::Behaviour(MeshBehaviourEvent::Narinfo(request_response::Event::Message {
                    peer, ..
                })) => {
                    results.insert(peer, ProbeResult::AllowedBothWays);
                }
                SwarmEvent::ConnectionClosed { peer_id, .. } => {
                    let is_first = !results.contains_key(&peer_id) && tried_again.insert(peer_id);
                    if !is_first || swarm.dial(dial(peer_id)).is_err() {
                        results.entry(peer_id).or_insert(ProbeResult::NotAllowedThere);
                    }
                }
                SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => {
                    let dialled = super::addresses::describe_dial_error(&error);
                    let why = unresolved(&peer).into_iter().chain([dialled]).collect::<Vec<_>>().join("; ");
                    results.entry(peer).or_insert(ProbeResult::Unreachable { why });
                }
                // No other event says anything about reachability.
                _ => {}
            }
        }
    };
    // Those that did not answer in time are filled in below.
    drop(tokio::time::timeout(PROBE_TIMEOUT, until_all_known).await);
    for peer in peers.keys() {
        let why = format!("no answer within {PROBE_TIMEOUT:?}");
        results.entry(*peer).or_insert(ProbeResult::Unreachable { why });
    }
    Ok(results)
}
