//! gossipsub, modelled after rust-libp2p 0.50 with the daemon's parameters (`crates/mesh/src/behaviour.rs`: the defaults,
//! except for the first heartbeat). There are no scores, because the daemon uses none.
//!
//! A publisher sends to all its connections (flood publish). A node that accepts a message hands it to its mesh of 5 to 12
//! neighbours. For three heartbeats it also names the message to others, who ask for it if they lack it.

use crate::cores::gossip::Forward;
use crate::fleet::Fleet;
use crate::message::{Message, Rpc, Transmission};
use crate::network::Network;
use crate::number::Number;
use crate::schedule::Happening;
use crate::traffic::Kind;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::iter;
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
const HEARTBEAT_US: u64 = 1_000_000;
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
struct Published {
    author: Number,
    bytes: Arc<[u8]>,
    at_us: u64,
}

/// One machine's gossipsub.
#[derive(Debug, Default)]
struct Subscriber {
    mesh: BTreeSet<Number>,
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
}

/// What gossipsub is given: the machines, and the network that it sends over.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) fleet: &'a mut Fleet,
    pub(crate) network: &'a mut Network,
}

/// A copy of a message that arrived.
#[derive(Clone, Debug)]
pub(crate) struct MessageCopy {
    pub(crate) id: u64,
    pub(crate) author: Number,
    pub(crate) bytes: Arc<[u8]>,
    /// When the message was published, microseconds.
    pub(crate) published_us: u64,
    /// Whether it is the first one: then the core is to judge it.
    pub(crate) is_first: bool,
}

/// The gossipsub of all machines.
#[derive(Debug)]
pub(crate) struct Gossipsub {
    subscribers: Vec<Subscriber>,
    published: BTreeMap<u64, Published>,
    /// Messages that a core has yet to judge, and who sent them.
    judging: BTreeMap<(Number, u64), Number>,
}

impl Gossipsub {
    pub(crate) fn new(machines: usize) -> Self {
        let subscribers = iter::repeat_with(Subscriber::default).take(machines).collect();
        Self { subscribers, published: BTreeMap::new(), judging: BTreeMap::new() }
    }

    fn subscriber(&mut self, number: Number) -> &mut Subscriber {
        self.subscribers.get_mut(number).expect("one for each machine")
    }

    /// A machine starts, and knows nothing of before.
    pub(crate) fn on_started(&mut self, number: Number) {
        *self.subscriber(number) = Subscriber::default();
    }

    /// A machine's core is gone, and judges nothing any more.
    pub(crate) fn on_stopped(&mut self, number: Number) {
        self.judging.retain(|(machine, _), _| *machine != number);
    }

    /// Publishes a message to all connections.
    pub(crate) fn publish(&mut self, context: &mut Context<'_>, number: Number, bytes: Arc<[u8]>) {
        let id = context.fleet.schedule.next_number();
        let now_us = context.fleet.now_us();
        self.published.insert(id, Published { author: number, bytes, at_us: now_us });
        let subscriber = self.subscriber(number);
        subscriber.see(now_us, id);
        subscriber.keep(id);
        for to in context.network.connected_machines(number) {
            self.send_message(context, number, to, id);
        }
    }

    fn send_message(&mut self, context: &mut Context<'_>, from: Number, to: Number, id: u64) {
        let Some(published) = self.published.get(&id) else { return };
        let (payload, message) = (published.bytes.len() + MESSAGE_OVERHEAD, Message::Rpc(Rpc::Publish { id }));
        let sent = Transmission { from, to, kind: Kind::Announcements, payload, message };
        context.network.transmit(context.fleet, sent);
    }

    fn send_control(&mut self, context: &mut Context<'_>, from: Number, to: Number, ids: usize, rpc: Rpc) {
        let payload = CONTROL_OVERHEAD + ID_BYTES * ids;
        let sent = Transmission { from, to, kind: Kind::Control, payload, message: Message::Rpc(rpc) };
        context.network.transmit(context.fleet, sent);
    }

    /// A core has judged a message. If it accepted it, the message is handed to the mesh.
    pub(crate) fn on_judged(&mut self, context: &mut Context<'_>, number: Number, id: u64, verdict: Forward) {
        let Some(from) = self.judging.remove(&(number, id)).filter(|_| verdict == Forward::Accept) else { return };
        let Some(author) = self.published.get(&id).map(|published| published.author) else { return };
        let subscriber = self.subscriber(number);
        subscriber.keep(id);
        if context.fleet.machine(number).withholds() {
            return;
        }
        let to: Vec<_> = subscriber.mesh.iter().copied().filter(|other| *other != from && *other != author).collect();
        for other in to {
            self.send_message(context, number, other, id);
        }
    }

    pub(crate) fn on_connected(&mut self, context: &mut Context<'_>, number: Number, other: Number) {
        // The other's subscription arrives: a mesh below the low mark takes it in at once.
        if self.subscriber(number).mesh.len() < MESH_N_LOW {
            self.graft(context, number, other);
        }
    }

    pub(crate) fn on_disconnected(&mut self, number: Number, other: Number) {
        self.subscriber(number).mesh.remove(&other);
    }

    fn graft(&mut self, context: &mut Context<'_>, number: Number, other: Number) {
        let now_us = context.fleet.now_us();
        let subscriber = self.subscriber(number);
        if subscriber.backoff.get(&other).is_some_and(|until| *until > now_us) || !subscriber.mesh.insert(other) {
            return;
        }
        self.send_control(context, number, other, 0, Rpc::Graft);
    }

    fn prune(&mut self, context: &mut Context<'_>, number: Number, other: Number) {
        let until_us = context.fleet.now_us() + PRUNE_BACKOFF_US;
        let subscriber = self.subscriber(number);
        subscriber.mesh.remove(&other);
        subscriber.backoff.insert(other, until_us);
        self.send_control(context, number, other, 0, Rpc::Prune);
    }

    /// Takes what arrived. A copy of a message is returned.
    pub(crate) fn receive(
        &mut self,
        context: &mut Context<'_>,
        from: Number,
        to: Number,
        rpc: Rpc,
    ) -> Option<MessageCopy> {
        let now_us = context.fleet.now_us();
        match rpc {
            Rpc::Publish { id } => {
                let Published { author, bytes, at_us } = self.published.get(&id).cloned()?;
                let is_first = self.subscriber(to).see(now_us, id);
                if is_first {
                    self.judging.insert((to, id), from);
                }
                return Some(MessageCopy { id, author, bytes, published_us: at_us, is_first });
            }
            Rpc::IHave { ids } => {
                let subscriber = self.subscriber(to);
                let wanted: Vec<_> = ids
                    .into_iter()
                    .filter(|id| !subscriber.seen.contains(id) && subscriber.asked.insert(*id))
                    .collect();
                if !wanted.is_empty() {
                    self.send_control(context, to, from, wanted.len(), Rpc::IWant { ids: wanted });
                }
            }
            Rpc::IWant { ids } => {
                for id in ids {
                    let subscriber = self.subscriber(to);
                    let sent = subscriber.sent_on_request.entry((from, id)).or_default();
                    *sent += 1;
                    if *sent <= RETRANSMISSIONS && subscriber.holds(id) {
                        self.send_message(context, to, from, id);
                    }
                }
            }
            Rpc::Graft => {
                let subscriber = self.subscriber(to);
                if subscriber.mesh.contains(&from) {
                    return None;
                }
                let backing_off = subscriber.backoff.get(&from).is_some_and(|until| *until > now_us);
                // A full mesh still takes a peer that this machine dialled, so that others cannot shut it out.
                if backing_off || (subscriber.mesh.len() >= MESH_N_HIGH && !context.network.has_dialled(to, from)) {
                    self.prune(context, to, from);
                } else {
                    self.subscriber(to).mesh.insert(from);
                }
            }
            Rpc::Prune => {
                let subscriber = self.subscriber(to);
                subscriber.mesh.remove(&from);
                subscriber.backoff.insert(from, now_us + PRUNE_BACKOFF_US);
            }
        }
        None
    }

    /// The heartbeat, once a second.
    pub(crate) fn on_heartbeat(&mut self, context: &mut Context<'_>, number: Number, run: u64) {
        if !context.fleet.machine(number).is_running() || context.fleet.machine(number).run != run {
            return;
        }
        let now_us = context.fleet.now_us();
        context.fleet.schedule.after_us(HEARTBEAT_US, Happening::Heartbeat(number, run));
        let connected = context.network.connected_machines(number);
        context.fleet.machine_mut(number).traffic.count_pings(connected.len());
        let subscriber = self.subscriber(number);
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
            context
                .fleet
                .draw
                .some(free, MESH_N - size)
                .into_iter()
                .for_each(|other| self.graft(context, number, other));
        } else if size >= MESH_N_HIGH {
            let mesh: Vec<_> = subscriber.mesh.iter().copied().collect();
            context
                .fleet
                .draw
                .some(mesh, size - MESH_N)
                .into_iter()
                .for_each(|other| self.prune(context, number, other));
        }
        self.emit_gossip(context, number, &connected);
    }

    fn emit_gossip(&mut self, context: &mut Context<'_>, number: Number, connected: &[Number]) {
        let subscriber = self.subscriber(number);
        let ids: Vec<u64> = subscriber.windows.iter().take(HISTORY_GOSSIP).flatten().copied().collect();
        let any = subscriber.windows.iter().any(|window| !window.is_empty());
        subscriber.windows.push_front(Vec::new());
        subscriber.windows.truncate(HISTORY_LENGTH);
        if !any {
            subscriber.sent_on_request.clear();
        }
        if ids.is_empty() || context.fleet.machine(number).withholds() {
            return;
        }
        let mesh = &self.subscriber(number).mesh;
        let others: Vec<_> = connected.iter().copied().filter(|other| !mesh.contains(other)).collect();
        let count = GOSSIP_LAZY.max(others.len() / GOSSIP_SHARE);
        for other in context.fleet.draw.some(others, count) {
            self.send_control(context, number, other, ids.len(), Rpc::IHave { ids: ids.clone() });
        }
    }

    /// Drops messages that nobody can ask for any more.
    pub(crate) fn forget_published(&mut self, now_us: u64) {
        self.published.retain(|_, published| published.at_us + 2 * DUPLICATE_CACHE_US > now_us);
    }
}
