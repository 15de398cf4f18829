//! Links, connections, and how long a message takes.
//!
//! A connection is TCP: messages arrive in order, lost packets arrive later, and what is sent while nothing gets through
//! arrives when the sender tries again. It ends when a process ends, or when TCP gives it up after the time that the daemon
//! asks for (`node/src/mesh/transport`). Redialling follows the daemon's plan (`node/src/mesh/dialer.rs`).

use crate::draw::Draw;
use crate::machine::State;
use crate::message::Message;
use crate::number::Number;
use crate::scenario::{Line, Scenario};
use crate::schedule::Happening;
use crate::traffic::{self, HANDSHAKE_BYTES, Kind, SEGMENT_BYTES};
use crate::world::World;
use narmesh_gossip::Input;
use std::collections::BTreeSet;

/// TCP gives a connection up when sent data stays unacknowledged for this long, microseconds.
const UNACKNOWLEDGED_US: u64 = 10_000_000;
/// TCP sends a keep-alive over a connection that was silent for this long, microseconds.
const KEEP_ALIVE_US: u64 = 60_000_000;
/// TCP's shortest retransmission timeout, microseconds; it doubles with each try.
const RETRANSMIT_US: u64 = 200_000;
/// TCP's longest pause between two tries while nothing gets through, microseconds.
const RETRANSMIT_US_MAX: u64 = 120_000_000;
/// The daemon's pauses between two dials of a configured peer, microseconds: the first and the longest (`REDIAL_US`), and
/// the pause after `GONE_FAILURES` failures (`REDIAL_GONE_US`).
const REDIAL_US: (u64, u64) = (250_000, 4_000_000);
const GONE_FAILURES: u32 = 150;
const REDIAL_GONE_US: u64 = 30_000_000;
/// A peer that returns after this many failed dials was cut off. All other peers that could not be reached are then dialled
/// at once, and for `RETURNS_US` with the shortest pause; at most once in `RETURNS_PAUSE_US`.
const FAILURES_CUT_MIN: u32 = 4;
const RETURNS_US: u64 = 4_000_000;
const RETURNS_PAUSE_US: u64 = 60_000_000;
/// A dial that nobody answers is given up after this, microseconds: the handshake's deadline.
const DIAL_TIMEOUT_US: u64 = 3_000_000;
/// Messages that may wait for a stalled connection; more would fill the socket's buffer.
const STALLED_MAX: usize = 256;

/// Two machines that would like to be connected.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link {
    pub(crate) ends: (Number, Number),
    /// The connection's number, if there is a connection.
    pub(crate) connection: Option<u64>,
    /// The end that dialled the connection.
    dialler: Number,
    pub(crate) cut: bool,
    failures: u32,
    /// The number of the planned dial; dials with older numbers are void.
    plan: u64,
    /// Since when nothing gets through the existing connection, microseconds.
    blocked_us: Option<u64>,
    /// Messages sent since then, which wait for TCP to try again.
    stalled: Vec<(Number, Kind, usize, Message)>,
    /// When the last message of each direction arrives, microseconds.
    last_us: [u64; 2],
}

impl Link {
    pub(crate) fn between(a: Number, b: Number) -> Self {
        Self { ends: (a, b), ..Self::default() }
    }
}

impl World {
    /// The network between two machines: `wan` between sites, and without message faults once the world is healed.
    fn line(&self, a: Number, b: Number) -> Line {
        match self.fleet.scenario.wan {
            Some(wan) if self.fleet.machine(a).site != self.fleet.machine(b).site && !self.fleet.healed => wan,
            Some(wan) if self.fleet.machine(a).site != self.fleet.machine(b).site => calm(wan),
            Some(_) | None if self.fleet.healed => calm(self.fleet.scenario.network),
            Some(_) | None => self.fleet.scenario.network,
        }
    }

    fn link_of(&self, a: Number, b: Number) -> Option<usize> {
        let neighbours = self.neighbours.get(a)?;
        let at = neighbours.binary_search_by_key(&b, |(other, _)| *other).ok()?;
        neighbours.get(at).map(|(_, link)| *link)
    }

    /// The machines that this one is connected with.
    pub(crate) fn connected_machines(&self, number: Number) -> Vec<Number> {
        let neighbours = self.neighbours.get(number).map(Vec::as_slice).unwrap_or_default();
        let open = |link: &usize| self.links.get(*link).is_some_and(|link| link.connection.is_some());
        neighbours.iter().filter(|(_, link)| open(link)).map(|(other, _)| *other).collect()
    }

    /// Whether `a` was the one that dialled.
    pub(crate) fn has_dialled(&self, a: Number, b: Number) -> bool {
        self.link_of(a, b).and_then(|link| self.links.get(link)).is_some_and(|link| link.dialler == a)
    }

    /// Whether packets get from one to the other.
    fn passes(&self, link: &Link) -> bool {
        let (a, b) = link.ends;
        let awake = |number: Number| self.fleet.machine(number).state != State::Asleep;
        !link.cut && self.side(a) == self.side(b) && awake(a) && awake(b)
    }

    /// Whether two machines would let each other in.
    pub(crate) fn are_willing(&self, a: Number, b: Number) -> bool {
        let ready =
            |a: Number, b: Number| self.fleet.machine(a).is_running() && self.fleet.machine(a).trusted.contains(&b);
        ready(a, b) && ready(b, a)
    }

    /// Whether two machines could be connected now.
    pub(crate) fn may_connect(&self, link: &Link) -> bool {
        self.are_willing(link.ends.0, link.ends.1) && self.passes(link)
    }

    /// Sends a message over a connection, if there is one.
    pub(crate) fn transmit(&mut self, from: Number, to: Number, kind: Kind, payload: usize, message: Message) {
        let Some(at) = self.link_of(from, to) else { return };
        let Some(link) = self.links.get(at).filter(|link| link.connection.is_some()) else { return };
        if !link.stalled.is_empty() || !self.passes(link) {
            self.stall(at, from, kind, payload, message);
            return;
        }
        self.fly(at, from, kind, payload, message);
    }

    /// Keeps a message that cannot be sent now. The first one starts TCP's timeout, because it stays unacknowledged.
    fn stall(&mut self, at: usize, from: Number, kind: Kind, payload: usize, message: Message) {
        let Some(link) = self.links.get_mut(at) else { return };
        let first = link.stalled.is_empty();
        if link.stalled.len() < STALLED_MAX {
            link.stalled.push((from, kind, payload, message));
        }
        if let (true, Some(connection), Some(blocked_us)) = (first, link.connection, link.blocked_us) {
            self.fleet.schedule.after_us(UNACKNOWLEDGED_US, Happening::GivenUp { link: at, connection, blocked_us });
        }
    }

    fn fly(&mut self, at: usize, from: Number, kind: Kind, payload: usize, message: Message) {
        let Some(link) = self.links.get(at) else { return };
        let (connection, to) = (link.connection, if link.ends.0 == from { link.ends.1 } else { link.ends.0 });
        let Some(connection) = connection else { return };
        let line = self.line(from, to);
        let (bytes, acks) = (traffic::wire_bytes(payload), traffic::ack_bytes(payload));
        let now_us = self.fleet.now_us();
        let sender = self.fleet.machine_mut(from);
        sender.traffic.count_sent(kind, bytes);
        sender.traffic.count_received(kind, acks);
        sender.up_free_us = sender.up_free_us.max(now_us) + bytes as u64 * 8 / line.up_mbit;
        let left_us = sender.up_free_us;
        // A dropped message is gone, as if its stream had been reset.
        if self.fleet.draw.chance(line.drop_permille) {
            return;
        }
        let mut at_us =
            left_us + line.one_way_ms(from > to) * 1_000 + self.fleet.draw.below(line.jitter_ms * 1_000 + 1);
        at_us += self.draw_repair_us(line, payload);
        let direction = usize::from(self.links.get(at).is_some_and(|link| link.ends.0 == from));
        // A message arrives after all earlier ones of its connection, except when it is drawn to be overtaken.
        let overtaken = self.fleet.draw.chance(line.reorder_permille);
        let last_us = self.links.get_mut(at).and_then(|link| link.last_us.get_mut(direction));
        if let Some(last_us) = last_us.filter(|_| !overtaken) {
            at_us = at_us.max(*last_us + 1);
            *last_us = at_us;
        }
        if self.fleet.draw.chance(line.duplicate_permille) {
            let message = message.clone();
            self.fleet
                .schedule
                .at_us(at_us + 30_000, Happening::Arrive { from, to, connection, kind, payload, message });
        }
        self.fleet.schedule.at_us(at_us, Happening::Arrive { from, to, connection, kind, payload, message });
    }

    /// The delay that lost packets cause, microseconds: one round trip when later packets reveal the loss, otherwise TCP's
    /// timeout.
    fn draw_repair_us(&mut self, line: Line, payload: usize) -> u64 {
        if line.loss_permille == 0 {
            return 0;
        }
        let round_us = line.round_ms() * 1_000;
        let packets = payload.div_ceil(SEGMENT_BYTES).clamp(1, 64);
        let mut cost_us = 0;
        for packet in 0..packets {
            let mut timeout_us = RETRANSMIT_US + round_us;
            let mut repair_us = 0;
            while self.fleet.draw.chance(line.loss_permille) && repair_us < 30_000_000 {
                if packet + 3 < packets && repair_us == 0 {
                    repair_us += round_us;
                } else {
                    repair_us += timeout_us;
                    timeout_us *= 2;
                }
            }
            cost_us = cost_us.max(repair_us);
        }
        cost_us
    }

    /// A message reaches the receiver's end of the link.
    pub(crate) fn on_arrival(
        &mut self,
        from: Number,
        to: Number,
        connection: u64,
        kind: Kind,
        size: usize,
        message: Message,
    ) {
        let Some(at) = self.link_of(from, to) else { return };
        let Some(link) = self.links.get(at) else { return };
        if link.connection != Some(connection) {
            return;
        }
        if !self.passes(link) {
            // The link was cut while the message was on its way: TCP sends it again.
            self.stall(at, from, kind, size, message);
            return;
        }
        let (bytes, acks) = (traffic::wire_bytes(size), traffic::ack_bytes(size));
        let (line, now_us) = (self.line(from, to), self.fleet.now_us());
        let receiver = self.fleet.machine_mut(to);
        receiver.traffic.count_received(kind, bytes);
        receiver.traffic.count_sent(kind, acks);
        receiver.down_free_us = receiver.down_free_us.max(now_us) + bytes as u64 * 8 / line.down_mbit;
        let due_us = receiver.down_free_us;
        if due_us > now_us + 1_000 {
            self.fleet.schedule.at_us(due_us, Happening::Deliver { from, to, connection, message });
        } else {
            self.deliver(from, to, connection, message);
        }
    }

    /// Hands a message to the receiver.
    pub(crate) fn deliver(&mut self, from: Number, to: Number, connection: u64, message: Message) {
        let open = self.link_of(from, to).and_then(|link| self.links.get(link));
        if open.is_none_or(|link| link.connection != Some(connection)) || !self.fleet.machine(to).is_running() {
            return;
        }
        let sender = self.fleet.machine(from).peer;
        match message {
            Message::Rpc(rpc) => self.on_gossip_rpc(from, to, rpc),
            Message::Request { id, bytes } => self.on_request(from, to, id, bytes),
            Message::Response { id, bytes } => {
                self.checker.on_answered(to, id);
                if let Some(malice) = &mut self.fleet.machine_mut(to).malice {
                    malice.receive(&bytes);
                }
                self.feed(to, Input::Response { from: sender, id, bytes });
            }
        }
    }

    /// Reacts when packets stop or start to get through a link.
    pub(crate) fn look_at_link(&mut self, at: usize) {
        let Some(link) = self.links.get(at) else { return };
        let (passes, connection, blocked) = (self.passes(link), link.connection, link.blocked_us);
        let Some(connection) = connection else { return };
        let (now_us, notice_us) = (self.fleet.now_us(), self.fleet.draw.below(KEEP_ALIVE_US) + UNACKNOWLEDGED_US);
        match (passes, blocked) {
            (false, None) => {
                if let Some(link) = self.links.get_mut(at) {
                    link.blocked_us = Some(now_us);
                }
                self.fleet
                    .schedule
                    .after_us(notice_us, Happening::GivenUp { link: at, connection, blocked_us: now_us });
            }
            (true, Some(since_us)) => {
                if let Some(link) = self.links.get_mut(at) {
                    link.blocked_us = None;
                }
                // TCP tries at 0.2 s, 0.6 s, 1.4 s and so on after the first packet that was not acknowledged.
                let mut pause_us = RETRANSMIT_US;
                let mut next_us = since_us + pause_us;
                while next_us < now_us {
                    pause_us = (pause_us * 2).min(RETRANSMIT_US_MAX);
                    next_us += pause_us;
                }
                self.fleet.schedule.at_us(next_us, Happening::Resume { link: at, connection });
            }
            (true, None) | (false, Some(_)) => {}
        }
    }

    pub(crate) fn look_at_links_of(&mut self, number: Number) {
        let links: Vec<_> = self.neighbours.get(number).into_iter().flatten().map(|(_, link)| *link).collect();
        links.into_iter().for_each(|link| self.look_at_link(link));
    }

    pub(crate) fn look_at_all_links(&mut self) {
        (0..self.links.len()).for_each(|link| self.look_at_link(link));
    }

    pub(crate) fn resume(&mut self, at: usize, connection: u64) {
        let Some(link) = self.links.get(at).filter(|link| link.connection == Some(connection)) else { return };
        if !self.passes(link) {
            return;
        }
        let stalled = self.links.get_mut(at).map(|link| std::mem::take(&mut link.stalled)).unwrap_or_default();
        for (from, kind, payload, message) in stalled {
            self.fly(at, from, kind, payload, message);
        }
    }

    pub(crate) fn on_given_up(&mut self, at: usize, connection: u64, blocked_us: u64) {
        let dead = |link: &Link| link.connection == Some(connection) && link.blocked_us == Some(blocked_us);
        if self.links.get(at).is_some_and(dead) {
            self.close(at);
        }
    }

    /// Ends a connection, for both ends; they redial.
    pub(crate) fn close(&mut self, at: usize) {
        let Some(link) = self.links.get_mut(at) else { return };
        if link.connection.take().is_none() {
            return;
        }
        link.blocked_us = None;
        link.stalled.clear();
        link.failures = 0;
        let (a, b) = link.ends;
        for (number, other) in [(a, b), (b, a)] {
            self.fleet.machine_mut(number).subscriber.forget(other);
            self.checker.on_disconnected(number, other);
            let peer = self.fleet.machine(other).peer;
            if self.fleet.machine(number).state == State::Asleep {
                self.fleet.machine_mut(number).lost_asleep.insert(other);
            } else {
                self.feed(number, Input::Disconnected(peer));
            }
        }
        self.plan_dial(at, 20_000, REDIAL_US.0);
    }

    /// Plans the next dial after a random wait between the two bounds, microseconds.
    pub(crate) fn plan_dial(&mut self, at: usize, least_us: u64, most_us: u64) {
        let wait_us = self.fleet.draw.between(least_us, most_us);
        let plan = self.fleet.schedule.next_number();
        if let Some(link) = self.links.get_mut(at) {
            link.plan = plan;
            self.fleet.schedule.after_us(wait_us, Happening::Dial { link: at, plan });
        }
    }

    /// Dials every peer that a machine is not connected with, after its start or a change of its allowlist.
    pub(crate) fn dial_all_of(&mut self, number: Number) {
        let links: Vec<_> = self.neighbours.get(number).into_iter().flatten().map(|(_, link)| *link).collect();
        for at in links {
            let Some(link) = self.links.get_mut(at).filter(|link| link.connection.is_none()) else { continue };
            link.failures = 0;
            self.plan_dial(at, 1_000, 100_000);
        }
    }

    pub(crate) fn dial(&mut self, at: usize, plan: u64) {
        let Some(link) = self.links.get(at).filter(|link| link.plan == plan && link.connection.is_none()) else {
            return;
        };
        let (a, b) = link.ends;
        if self.may_connect(link) {
            let round_us = self.line(a, b).round_ms() * 1_000;
            let dialler = if self.fleet.draw.chance(500) { a } else { b };
            for number in [a, b] {
                let traffic = &mut self.fleet.machine_mut(number).traffic;
                traffic.count_sent(Kind::Connections, HANDSHAKE_BYTES);
                traffic.count_received(Kind::Connections, HANDSHAKE_BYTES);
            }
            // TCP, multistream and TLS, multistream and yamux: three round trips.
            self.fleet.schedule.after_us(3 * round_us + 1_000, Happening::Connected { link: at, plan, dialler });
            return;
        }
        // Nobody answers over a cut link, so the handshake's deadline has to pass first. A refusal comes at once.
        let silent = !self.passes(link);
        let timeout_us = if silent { DIAL_TIMEOUT_US } else { 0 };
        let since_us = [a, b].into_iter().filter_map(|end| self.fleet.machine(end).returned_us).max();
        let are_returning = since_us.is_some_and(|since_us| self.fleet.now_us() < since_us + RETURNS_US);
        let Some(link) = self.links.get_mut(at) else { return };
        let longest_us = if link.failures < GONE_FAILURES { REDIAL_US.1 } else { REDIAL_GONE_US };
        let growth = if are_returning { 0 } else { link.failures.min(16) };
        let pause_us = (REDIAL_US.0 << growth).min(longest_us);
        link.failures = link.failures.saturating_add(1);
        self.plan_dial(at, timeout_us + pause_us * 3 / 4, timeout_us + pause_us * 5 / 4 + 1);
    }

    pub(crate) fn connect(&mut self, at: usize, plan: u64, dialler: Number) {
        let Some(link) = self.links.get(at).filter(|link| link.plan == plan && link.connection.is_none()) else {
            return;
        };
        let (a, b) = link.ends;
        if !self.may_connect(link) {
            return self.plan_dial(at, REDIAL_US.0, 2 * REDIAL_US.0);
        }
        let connection = self.fleet.schedule.next_number();
        let mut was_cut_off = false;
        if let Some(link) = self.links.get_mut(at) {
            was_cut_off = link.failures >= FAILURES_CUT_MIN;
            link.connection = Some(connection);
            (link.failures, link.dialler) = (0, dialler);
        }
        if was_cut_off {
            [a, b].into_iter().for_each(|end| self.on_one_returned(end));
        }
        for (number, other) in [(a, b), (b, a)] {
            let peer = self.fleet.machine(other).peer;
            self.feed(number, Input::Connected(peer));
            self.on_gossip_connected(number, other);
        }
    }
}

impl World {
    /// A peer that was cut off from this machine is back, so others may be back, too: dials them at once.
    fn on_one_returned(&mut self, number: Number) {
        let now_us = self.fleet.now_us();
        let machine = self.fleet.machine_mut(number);
        if machine.returned_us.is_some_and(|before_us| now_us < before_us + RETURNS_PAUSE_US) {
            return;
        }
        machine.returned_us = Some(now_us);
        let failed = |link: &Link| link.connection.is_none() && link.failures > 0;
        let links: Vec<_> = self.neighbours.get(number).into_iter().flatten().map(|(_, link)| *link).collect();
        for at in links {
            if self.links.get(at).is_some_and(failed) {
                self.plan_dial(at, 0, 1);
            }
        }
    }
}

/// The same line without message faults: nothing is dropped, duplicated or reordered. Packets still get lost.
fn calm(line: Line) -> Line {
    Line { drop_permille: 0, duplicate_permille: 0, reorder_permille: 0, ..line }
}

/// Who has an address of whom: each machine wants a number of connections, to machines chosen at random.
pub(crate) fn draw_topology(
    draw: &mut Draw,
    scenario: &Scenario,
    machines: usize,
) -> (Vec<Vec<(Number, usize)>>, Vec<Link>) {
    let nodes = scenario.nodes;
    let wanted = scenario.connections.min(nodes - 1);
    let mut pairs = BTreeSet::new();
    let mut degrees = vec![0usize; nodes];
    for a in 0..nodes {
        let others: Vec<_> = (0..nodes).filter(|b| *b != a && !pairs.contains(&(a.min(*b), a.max(*b)))).collect();
        let mut others = draw.some(others, nodes);
        // Machines that have room come first.
        others.sort_by_key(|b| degrees.get(*b).copied().unwrap_or(0) >= wanted);
        for b in others {
            if degrees.get(a).copied().unwrap_or(0) >= wanted {
                break;
            }
            pairs.insert((a.min(b), a.max(b)));
            [a, b].iter().filter_map(|end| degrees.get_mut(*end).map(|degree| *degree += 1)).for_each(drop);
        }
    }
    let mut neighbours = vec![Vec::new(); machines];
    let mut links = Vec::new();
    for (a, b) in pairs {
        for (number, other) in [(a, b), (b, a)] {
            if let Some(list) = neighbours.get_mut(number) {
                list.push((other, links.len()));
            }
        }
        links.push(Link::between(a, b));
    }
    neighbours.iter_mut().for_each(|list| list.sort_unstable());
    (neighbours, links)
}
