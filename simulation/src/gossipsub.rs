//! gossipsub, modelled after rust-libp2p 0.50 with the daemon's parameters (`node/src/mesh/behaviour.rs`: the defaults,
//! except for the first heartbeat). There are no scores, because the daemon uses none.
//!
//! A publisher sends to all its connections (flood publish). A node that accepts a message hands it to its mesh of 5 to 12
//! neighbours. For three heartbeats it also names the message to others, who ask for it if they lack it.

use crate::message::{Message, Rpc, Transmission};
use crate::number::Number;
use crate::schedule::Happening;
use crate::traffic::Kind;
use crate::world::World;
use libp2p_identity::PeerId;
use narmesh_gossip::Input;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

const MESH_N: usize = 6;
const MESH_N_LOW: usize = 5;
const MESH_N_HIGH: usize = 12;
const GOSSIP_LAZY: usize = 6;
/// `gossip_factor` 0.25: a quarter of the peers outside the mesh, but at least `GOSSIP_LAZY`, is told of new messages.
const GOSSIP_SHARE: usize = 4;
const HISTORY_GOSSIP: usize = 3;
const HISTORY_LENGTH: usize = 5;
const RETRANSMISSIONS: u32 = 3;
pub(crate) const HEARTBEAT_US: u64 = 1_000_000;
pub(crate) const FIRST_HEARTBEAT_US: u64 = 500_000;
const DUPLICATE_CACHE_US: u64 = 60_000_000;
const PRUNE_BACKOFF_US: u64 = 60_000_000;
/// Bytes around an announcement: author, sequence number, topic, signature and their tags.
const MESSAGE_OVERHEAD: usize = 145;
/// Bytes of one message id in an IHAVE or IWANT.
const ID_BYTES: usize = 34;
/// Bytes of the topic and tags around the ids.
const CONTROL_OVERHEAD: usize = 30;

/// A message that was published.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) author: Number,
    pub(crate) bytes: Arc<[u8]>,
    at_us: u64,
}

/// One machine's gossipsub.
#[derive(Debug, Default)]
pub(crate) struct Subscriber {
    pub(crate) mesh: BTreeSet<Number>,
    backoff: BTreeMap<Number, u64>,
    seen: BTreeSet<u64>,
    seen_order: VecDeque<(u64, u64)>,
    /// Message ids by heartbeat, the newest first.
    windows: VecDeque<Vec<u64>>,
    sent_on_request: BTreeMap<(Number, u64), u32>,
    asked: BTreeSet<u64>,
}

impl Subscriber {
    fn see(&mut self, now_us: u64, id: u64) -> bool {
        let new = self.seen.insert(id);
        if new {
            self.seen_order.push_back((now_us, id));
        }
        new
    }

    fn keep(&mut self, id: u64) {
        if self.windows.is_empty() {
            self.windows.push_front(Vec::new());
        }
        if let Some(newest) = self.windows.front_mut() {
            newest.push(id);
        }
    }

    fn holds(&self, id: u64) -> bool {
        self.windows.iter().any(|window| window.contains(&id))
    }

    pub(crate) fn forget(&mut self, other: Number) {
        self.mesh.remove(&other);
    }
}

fn message_bytes(published: &Published) -> usize {
    published.bytes.len() + MESSAGE_OVERHEAD
}

impl World {
    /// Publishes a message to all connections. Returns its id.
    pub(crate) fn publish_message(&mut self, number: Number, bytes: Arc<[u8]>) -> u64 {
        let id = self.fleet.schedule.next_number();
        let now_us = self.fleet.now_us();
        self.published.insert(id, Published { author: number, bytes, at_us: now_us });
        self.figures.on_announced(now_us);
        let machine = self.fleet.machine_mut(number);
        machine.subscriber.see(now_us, id);
        machine.subscriber.keep(id);
        for to in self.network.connected_machines(number) {
            self.send_message(number, to, id);
        }
        id
    }

    fn send_message(&mut self, from: Number, to: Number, id: u64) {
        let Some(published) = self.published.get(&id) else { return };
        let bytes = message_bytes(published);
        let message = Message::Rpc(Rpc::Publish { id });
        let sent = Transmission { from, to, kind: Kind::Announcements, payload: bytes, message };
        self.network.transmit(&mut self.fleet, sent);
    }

    fn send_control(&mut self, from: Number, to: Number, ids: usize, rpc: Rpc) {
        let payload = CONTROL_OVERHEAD + ID_BYTES * ids;
        let sent = Transmission { from, to, kind: Kind::Control, payload, message: Message::Rpc(rpc) };
        self.network.transmit(&mut self.fleet, sent);
    }

    /// The core accepted a message: it is handed to the mesh.
    pub(crate) fn on_gossip_accepted(&mut self, number: Number, from: Number, id: u64) {
        let Some(author) = self.published.get(&id).map(|published| published.author) else { return };
        let machine = self.fleet.machine_mut(number);
        machine.subscriber.keep(id);
        if machine.withholds() {
            return;
        }
        let to: Vec<_> =
            machine.subscriber.mesh.iter().copied().filter(|other| *other != from && *other != author).collect();
        for other in to {
            self.send_message(number, other, id);
        }
    }

    pub(crate) fn on_gossip_connected(&mut self, number: Number, other: Number) {
        // The other's subscription arrives: a mesh below the low mark takes it in at once.
        if self.fleet.machine_mut(number).subscriber.mesh.len() < MESH_N_LOW {
            self.graft(number, other);
        }
    }

    fn graft(&mut self, number: Number, other: Number) {
        let now_us = self.fleet.now_us();
        let subscriber = &mut self.fleet.machine_mut(number).subscriber;
        if subscriber.backoff.get(&other).is_some_and(|until| *until > now_us) || !subscriber.mesh.insert(other) {
            return;
        }
        self.send_control(number, other, 0, Rpc::Graft);
    }

    fn prune(&mut self, number: Number, other: Number) {
        let until_us = self.fleet.now_us() + PRUNE_BACKOFF_US;
        let subscriber = &mut self.fleet.machine_mut(number).subscriber;
        subscriber.mesh.remove(&other);
        subscriber.backoff.insert(other, until_us);
        self.send_control(number, other, 0, Rpc::Prune);
    }

    pub(crate) fn on_gossip_rpc(&mut self, from: Number, to: Number, rpc: Rpc) {
        let now_us = self.fleet.now_us();
        match rpc {
            Rpc::Publish { id } => {
                self.totals.gossip_copies += 1;
                let Some(published) = self.published.get(&id) else { return };
                let (author, bytes, at_us) = (published.author, Arc::clone(&published.bytes), published.at_us);
                let new = self.fleet.machine_mut(to).subscriber.see(now_us, id);
                self.figures.on_copy(at_us, now_us, new);
                if new {
                    self.hand_to_core(to, from, author, id, &bytes);
                }
            }
            Rpc::IHave { ids } => {
                let subscriber = &mut self.fleet.machine_mut(to).subscriber;
                let wanted: Vec<_> = ids
                    .into_iter()
                    .filter(|id| !subscriber.seen.contains(id) && subscriber.asked.insert(*id))
                    .collect();
                if !wanted.is_empty() {
                    self.send_control(to, from, wanted.len(), Rpc::IWant { ids: wanted });
                }
            }
            Rpc::IWant { ids } => {
                for id in ids {
                    let subscriber = &mut self.fleet.machine_mut(to).subscriber;
                    let sent = subscriber.sent_on_request.entry((from, id)).or_default();
                    *sent += 1;
                    if *sent <= RETRANSMISSIONS && subscriber.holds(id) {
                        self.send_message(to, from, id);
                    }
                }
            }
            Rpc::Graft => {
                let subscriber = &mut self.fleet.machine_mut(to).subscriber;
                if subscriber.mesh.contains(&from) {
                    return;
                }
                let backing_off = subscriber.backoff.get(&from).is_some_and(|until| *until > now_us);
                // A full mesh still takes a peer that this machine dialled, so that others cannot shut it out.
                if backing_off || (subscriber.mesh.len() >= MESH_N_HIGH && !self.network.has_dialled(to, from)) {
                    self.prune(to, from);
                } else {
                    self.fleet.machine_mut(to).subscriber.mesh.insert(from);
                }
            }
            Rpc::Prune => {
                let subscriber = &mut self.fleet.machine_mut(to).subscriber;
                subscriber.mesh.remove(&from);
                subscriber.backoff.insert(from, now_us + PRUNE_BACKOFF_US);
            }
        }
    }

    /// Hands a message to a core.
    pub(crate) fn hand_to_core(&mut self, to: Number, from: Number, author: Number, id: u64, bytes: &Arc<[u8]>) {
        self.judging.insert((to, id), from);
        if let Some(malice) = &mut self.fleet.machine_mut(to).malice {
            malice.overhear(bytes);
        }
        let (author, from): (PeerId, PeerId) = (self.fleet.machine(author).peer, self.fleet.machine(from).peer);
        self.feed(to, Input::Announcement { id, author, from, bytes: bytes.to_vec() });
    }

    /// The heartbeat, once a second.
    pub(crate) fn on_heartbeat(&mut self, number: Number, run: u64) {
        if !self.fleet.machine(number).is_running() || self.fleet.machine(number).run != run {
            return;
        }
        let now_us = self.fleet.now_us();
        self.fleet.schedule.after_us(HEARTBEAT_US, Happening::Heartbeat(number, run));
        let connected = self.network.connected_machines(number);
        let machine = self.fleet.machine_mut(number);
        machine.traffic.count_pings(connected.len());
        let subscriber = &mut machine.subscriber;
        subscriber.asked.clear();
        // Kept for a heartbeat longer (libp2p's `backoff_slack`), so that no graft comes too early.
        subscriber.backoff.retain(|_, until| *until + HEARTBEAT_US > now_us);
        while subscriber.seen_order.front().is_some_and(|(at, _)| at + DUPLICATE_CACHE_US < now_us) {
            if let Some((_, id)) = subscriber.seen_order.pop_front() {
                subscriber.seen.remove(&id);
            }
        }
        let size = subscriber.mesh.len();
        if size < MESH_N_LOW {
            let others: Vec<_> = connected.iter().copied().filter(|other| !subscriber.mesh.contains(other)).collect();
            let free: Vec<_> = others.into_iter().filter(|other| !subscriber.backoff.contains_key(other)).collect();
            self.fleet.draw.some(free, MESH_N - size).into_iter().for_each(|other| self.graft(number, other));
        } else if size >= MESH_N_HIGH {
            let mesh: Vec<_> = subscriber.mesh.iter().copied().collect();
            self.fleet.draw.some(mesh, size - MESH_N).into_iter().for_each(|other| self.prune(number, other));
        }
        self.emit_gossip(number, &connected);
    }

    fn emit_gossip(&mut self, number: Number, connected: &[Number]) {
        let subscriber = &mut self.fleet.machine_mut(number).subscriber;
        let ids: Vec<u64> = subscriber.windows.iter().take(HISTORY_GOSSIP).flatten().copied().collect();
        let any = subscriber.windows.iter().any(|window| !window.is_empty());
        subscriber.windows.push_front(Vec::new());
        subscriber.windows.truncate(HISTORY_LENGTH);
        if !any {
            subscriber.sent_on_request.clear();
        }
        if ids.is_empty() || self.fleet.machine(number).withholds() {
            return;
        }
        let mesh = &self.fleet.machine(number).subscriber.mesh;
        let others: Vec<_> = connected.iter().copied().filter(|other| !mesh.contains(other)).collect();
        let count = GOSSIP_LAZY.max(others.len() / GOSSIP_SHARE);
        for other in self.fleet.draw.some(others, count) {
            self.send_control(number, other, ids.len(), Rpc::IHave { ids: ids.clone() });
        }
    }

    /// Drops messages that nobody can ask for any more.
    pub(crate) fn forget_published(&mut self) {
        let now_us = self.fleet.now_us();
        self.published.retain(|_, published| published.at_us + 2 * DUPLICATE_CACHE_US > now_us);
    }
}
