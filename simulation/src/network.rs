//! Links, connections, and how long a message takes.
//!
//! A connection is TCP: messages arrive in order, lost packets arrive later, and what is sent while nothing gets through
//! arrives when the sender tries again. It ends when a process ends, or when TCP gives it up after the time that the daemon
//! asks for (`crates/mesh/src/transport`). Redialling follows the daemon's plan (`crates/mesh/src/dialer/mod.rs`).

use crate::draw::Draw;
use crate::fleet::Fleet;
use crate::machine::State;
use crate::message::{Message, Transmission};
use crate::number::Number;
use crate::scenario::Line;
use crate::schedule::Happening;
use crate::traffic::{self, HANDSHAKE_BYTES, Kind, SEGMENT_BYTES};
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
struct Link {
    ends: (Number, Number),
    /// The connection's number, if there is a connection.
    connection: Option<u64>,
    /// The end that dialled the connection.
    dialler: Number,
    cut: bool,
    failures: u32,
    /// The number of the planned dial; dials with older numbers are void.
    plan: u64,
    /// Since when nothing gets through the existing connection, microseconds.
    blocked_us: Option<u64>,
    /// Messages sent since then, which wait for TCP to try again.
    stalled: Vec<Transmission>,
    /// When the last message of each direction arrives, microseconds.
    last_us: [u64; 2],
}

/// All links, and what is wrong with them.
#[derive(Debug)]
pub(crate) struct Network {
    /// The neighbours of each machine, and the links to them.
    neighbours: Vec<Vec<(Number, usize)>>,
    links: Vec<Link>,
    /// Which part of a partitioned network each machine is in.
    sides: Vec<u64>,
}

impl Network {
    /// Draws who has an address of whom: each machine wants a number of connections, to machines chosen at random.
    pub(crate) fn draw(fleet: &mut Fleet) -> Self {
        let (nodes, machines) = (fleet.scenario.nodes, fleet.machines.len());
        let wanted = fleet.scenario.connections.min(nodes - 1);
        let mut pairs = BTreeSet::new();
        let mut degrees = vec![0usize; nodes];
        for a in 0..nodes {
            let others: Vec<_> = (0..nodes).filter(|b| *b != a && !pairs.contains(&(a.min(*b), a.max(*b)))).collect();
            let mut others = fleet.draw.some(others, nodes);
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
            links.push(Link { ends: (a, b), ..Link::default() });
        }
        neighbours.iter_mut().for_each(|list| list.sort_unstable());
        Self { neighbours, links, sides: vec![0; machines] }
    }

    /// The number of links.
    pub(crate) fn size(&self) -> usize {
        self.links.len()
    }

    /// The machines that have an address of this one, or whose address it has, and the links to them.
    pub(crate) fn neighbours_of(&self, number: Number) -> &[(Number, usize)] {
        self.neighbours.get(number).map(Vec::as_slice).unwrap_or_default()
    }

    /// The links of a machine.
    pub(crate) fn links_of(&self, number: Number) -> Vec<usize> {
        self.neighbours_of(number).iter().map(|(_, link)| *link).collect()
    }

    fn link_of(&self, a: Number, b: Number) -> Option<usize> {
        let neighbours = self.neighbours_of(a);
        let at = neighbours.binary_search_by_key(&b, |(other, _)| *other).ok()?;
        neighbours.get(at).map(|(_, link)| *link)
    }

    /// The machines that this one is connected with.
    pub(crate) fn connected_machines(&self, number: Number) -> Vec<Number> {
        let open = |link: &usize| self.links.get(*link).is_some_and(|link| link.connection.is_some());
        self.neighbours_of(number).iter().filter(|(_, link)| open(link)).map(|(other, _)| *other).collect()
    }

    /// Whether this connection is still the one between the two machines.
    pub(crate) fn is_open(&self, from: Number, to: Number, connection: u64) -> bool {
        let link = self.link_of(from, to).and_then(|link| self.links.get(link));
        link.is_some_and(|link| link.connection == Some(connection))
    }

    /// Whether `a` was the one that dialled.
    pub(crate) fn has_dialled(&self, a: Number, b: Number) -> bool {
        self.link_of(a, b).and_then(|link| self.links.get(link)).is_some_and(|link| link.dialler == a)
    }

    fn side(&self, number: Number) -> u64 {
        self.sides.get(number).copied().unwrap_or(0)
    }

    /// Whether neither a cut nor a partition separates the ends of a link.
    pub(crate) fn is_whole(&self, at: usize) -> bool {
        self.links.get(at).is_some_and(|link| !link.cut && self.side(link.ends.0) == self.side(link.ends.1))
    }

    /// Whether packets get from one end to the other.
    fn passes(&self, fleet: &Fleet, at: usize) -> bool {
        let awake = |number: Number| fleet.machine(number).state != State::Asleep;
        self.is_whole(at) && self.links.get(at).is_some_and(|link| awake(link.ends.0) && awake(link.ends.1))
    }

    /// Whether the ends of a link could be connected now: they would let each other in, and packets get through.
    fn may_connect(&self, fleet: &Fleet, at: usize) -> bool {
        let ready = |a: Number, b: Number| fleet.machine(a).is_running() && fleet.machine(a).trusted.contains(&b);
        let willing = |link: &Link| ready(link.ends.0, link.ends.1) && ready(link.ends.1, link.ends.0);
        self.links.get(at).is_some_and(willing) && self.passes(fleet, at)
    }

    /// Cuts a link, or mends it.
    pub(crate) fn set_cut(&mut self, fleet: &mut Fleet, at: usize, cut: bool) {
        if let Some(link) = self.links.get_mut(at) {
            link.cut = cut;
        }
        self.look_at_link(fleet, at);
    }

    /// Puts those machines for which `choose` is true on a side of their own, and returns its number. The caller then
    /// looks at the links.
    pub(crate) fn separate(&mut self, fleet: &mut Fleet, mut choose: impl FnMut(&mut Fleet, Number) -> bool) -> u64 {
        let side = fleet.schedule.next_number();
        for (number, of) in self.sides.iter_mut().enumerate() {
            if choose(fleet, number) {
                *of = side;
            }
        }
        side
    }

    /// Ends a separation.
    pub(crate) fn reunite(&mut self, fleet: &mut Fleet, side: u64) {
        self.sides.iter_mut().filter(|of| **of == side).for_each(|of| *of = 0);
        self.look_at_all_links(fleet);
    }

    /// Sends a message over a connection, if there is one.
    pub(crate) fn transmit(&mut self, fleet: &mut Fleet, sent: Transmission) {
        let Some(at) = self.link_of(sent.from, sent.to) else { return };
        let Some(link) = self.links.get(at).filter(|link| link.connection.is_some()) else { return };
        if !link.stalled.is_empty() || !self.passes(fleet, at) {
            self.stall(fleet, at, sent);
            return;
        }
        self.fly(fleet, at, sent);
    }

    /// Keeps a message that cannot be sent now. The first one starts TCP's timeout, because it stays unacknowledged.
    fn stall(&mut self, fleet: &mut Fleet, at: usize, sent: Transmission) {
        let Some(link) = self.links.get_mut(at) else { return };
        let first = link.stalled.is_empty();
        if link.stalled.len() < STALLED_MAX {
            link.stalled.push(sent);
        }
        if let (true, Some(connection), Some(blocked_us)) = (first, link.connection, link.blocked_us) {
            fleet.schedule.after_us(UNACKNOWLEDGED_US, Happening::GivenUp { link: at, connection, blocked_us });
        }
    }

    fn fly(&mut self, fleet: &mut Fleet, at: usize, sent: Transmission) {
        let Some(link) = self.links.get_mut(at) else { return };
        let Some(connection) = link.connection else { return };
        let Transmission { from, to, kind, payload, .. } = sent;
        let line = line(fleet, from, to);
        let (bytes, acks) = (traffic::wire_bytes(payload), traffic::ack_bytes(payload));
        let now_us = fleet.now_us();
        let sender = fleet.machine_mut(from);
        sender.traffic.count_sent(kind, bytes);
        sender.traffic.count_received(kind, acks);
        sender.up_free_us = sender.up_free_us.max(now_us) + bytes as u64 * 8 / line.up_mbit;
        let left_us = sender.up_free_us;
        let draw = &mut fleet.draw;
        // A dropped message is gone, as if its stream had been reset.
        if draw.chance(line.drop_permille) {
            return;
        }
        let mut at_us = left_us + line.one_way_ms(from > to) * 1_000 + draw.below(line.jitter_ms * 1_000 + 1);
        at_us += draw_repair_us(draw, line, payload);
        let direction = usize::from(link.ends.0 == from);
        // A message arrives after all earlier ones of its connection, except when it is drawn to be overtaken.
        let overtaken = draw.chance(line.reorder_permille);
        if let Some(last_us) = link.last_us.get_mut(direction).filter(|_| !overtaken) {
            at_us = at_us.max(*last_us + 1);
            *last_us = at_us;
        }
        if draw.chance(line.duplicate_permille) {
            fleet.schedule.at_us(at_us + 30_000, Happening::Arrive { connection, sent: sent.clone() });
        }
        fleet.schedule.at_us(at_us, Happening::Arrive { connection, sent });
    }

    /// A message reaches the receiver's end of the link. Returns it if it is received in full at once; on a slow line that
    /// comes later.
    pub(crate) fn on_arrival(&mut self, fleet: &mut Fleet, connection: u64, sent: Transmission) -> Option<Message> {
        let Transmission { from, to, kind, payload, .. } = sent;
        let at = self.link_of(from, to)?;
        if self.links.get(at)?.connection != Some(connection) {
            return None;
        }
        if !self.passes(fleet, at) {
            // The link was cut while the message was on its way: TCP sends it again.
            self.stall(fleet, at, sent);
            return None;
        }
        let (bytes, acks) = (traffic::wire_bytes(payload), traffic::ack_bytes(payload));
        let (line, now_us) = (line(fleet, from, to), fleet.now_us());
        let receiver = fleet.machine_mut(to);
        receiver.traffic.count_received(kind, bytes);
        receiver.traffic.count_sent(kind, acks);
        receiver.down_free_us = receiver.down_free_us.max(now_us) + bytes as u64 * 8 / line.down_mbit;
        let due_us = receiver.down_free_us;
        let message = sent.message;
        if due_us > now_us + 1_000 {
            fleet.schedule.at_us(due_us, Happening::Deliver { from, to, connection, message });
            return None;
        }
        Some(message)
    }

    /// Reacts when packets stop or start to get through a link.
    pub(crate) fn look_at_link(&mut self, fleet: &mut Fleet, at: usize) {
        let Some(link) = self.links.get(at) else { return };
        let (passes, connection, blocked) = (self.passes(fleet, at), link.connection, link.blocked_us);
        let Some(connection) = connection else { return };
        let (now_us, notice_us) = (fleet.now_us(), fleet.draw.below(KEEP_ALIVE_US) + UNACKNOWLEDGED_US);
        match (passes, blocked) {
            (false, None) => {
                if let Some(link) = self.links.get_mut(at) {
                    link.blocked_us = Some(now_us);
                }
                let given_up = Happening::GivenUp { link: at, connection, blocked_us: now_us };
                fleet.schedule.after_us(notice_us, given_up);
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
                fleet.schedule.at_us(next_us, Happening::Resume { link: at, connection });
            }
            (true, None) | (false, Some(_)) => {}
        }
    }

    pub(crate) fn look_at_links_of(&mut self, fleet: &mut Fleet, number: Number) {
        self.links_of(number).into_iter().for_each(|link| self.look_at_link(fleet, link));
    }

    pub(crate) fn look_at_all_links(&mut self, fleet: &mut Fleet) {
        (0..self.links.len()).for_each(|link| self.look_at_link(fleet, link));
    }

    /// Sends what waited, once packets get through again.
    pub(crate) fn resume(&mut self, fleet: &mut Fleet, at: usize, connection: u64) {
        let open = self.links.get(at).is_some_and(|link| link.connection == Some(connection));
        if !open || !self.passes(fleet, at) {
            return;
        }
        let stalled = self.links.get_mut(at).map(|link| std::mem::take(&mut link.stalled)).unwrap_or_default();
        for sent in stalled {
            self.fly(fleet, at, sent);
        }
    }

    /// Whether nothing has got through this connection since `blocked_us`.
    pub(crate) fn is_dead(&self, at: usize, connection: u64, blocked_us: u64) -> bool {
        let dead = |link: &Link| link.connection == Some(connection) && link.blocked_us == Some(blocked_us);
        self.links.get(at).is_some_and(dead)
    }

    /// Ends a connection and returns its ends. They redial once they are told so, with [`Self::plan_redial`].
    pub(crate) fn close(&mut self, at: usize) -> Option<(Number, Number)> {
        let link = self.links.get_mut(at)?;
        link.connection.take()?;
        link.blocked_us = None;
        link.stalled.clear();
        link.failures = 0;
        Some(link.ends)
    }

    /// Plans the first dial after the end of a connection.
    pub(crate) fn plan_redial(&mut self, fleet: &mut Fleet, at: usize) {
        self.plan_dial(fleet, at, 20_000, REDIAL_US.0);
    }

    /// Plans the next dial after a random wait between the two bounds, microseconds.
    fn plan_dial(&mut self, fleet: &mut Fleet, at: usize, least_us: u64, most_us: u64) {
        let wait_us = fleet.draw.between(least_us, most_us);
        let plan = fleet.schedule.next_number();
        if let Some(link) = self.links.get_mut(at) {
            link.plan = plan;
            fleet.schedule.after_us(wait_us, Happening::Dial { link: at, plan });
        }
    }

    /// Dials every peer that a machine is not connected with, after its start or a change of its allowlist.
    pub(crate) fn dial_all_of(&mut self, fleet: &mut Fleet, number: Number) {
        for at in self.links_of(number) {
            let Some(link) = self.links.get_mut(at).filter(|link| link.connection.is_none()) else { continue };
            link.failures = 0;
            self.plan_dial(fleet, at, 1_000, 100_000);
        }
    }

    pub(crate) fn dial(&mut self, fleet: &mut Fleet, at: usize, plan: u64) {
        let Some(link) = self.links.get(at).filter(|link| link.plan == plan && link.connection.is_none()) else {
            return;
        };
        let (a, b) = link.ends;
        if self.may_connect(fleet, at) {
            let round_us = line(fleet, a, b).round_ms() * 1_000;
            let dialler = if fleet.draw.chance(500) { a } else { b };
            for number in [a, b] {
                let traffic = &mut fleet.machine_mut(number).traffic;
                traffic.count_sent(Kind::Connections, HANDSHAKE_BYTES);
                traffic.count_received(Kind::Connections, HANDSHAKE_BYTES);
            }
            // TCP, multistream and TLS, multistream and yamux: three round trips.
            fleet.schedule.after_us(3 * round_us + 1_000, Happening::Connected { link: at, plan, dialler });
            return;
        }
        // Nobody answers over a cut link, so the handshake's deadline has to pass first. A refusal comes at once.
        let silent = !self.passes(fleet, at);
        let timeout_us = if silent { DIAL_TIMEOUT_US } else { 0 };
        let since_us = [a, b].into_iter().filter_map(|end| fleet.machine(end).returned_us).max();
        let are_returning = since_us.is_some_and(|since_us| fleet.now_us() < since_us + RETURNS_US);
        let Some(link) = self.links.get_mut(at) else { return };
        let longest_us = if link.failures < GONE_FAILURES { REDIAL_US.1 } else { REDIAL_GONE_US };
        let growth = if are_returning { 0 } else { link.failures.min(16) };
        let pause_us = (REDIAL_US.0 << growth).min(longest_us);
        link.failures = link.failures.saturating_add(1);
        self.plan_dial(fleet, at, timeout_us + pause_us * 3 / 4, timeout_us + pause_us * 5 / 4 + 1);
    }

    /// A handshake is over. If it led to a connection, returns its ends.
    pub(crate) fn connect(
        &mut self,
        fleet: &mut Fleet,
        at: usize,
        plan: u64,
        dialler: Number,
    ) -> Option<(Number, Number)> {
        self.links.get(at).filter(|link| link.plan == plan && link.connection.is_none())?;
        if !self.may_connect(fleet, at) {
            self.plan_dial(fleet, at, REDIAL_US.0, 2 * REDIAL_US.0);
            return None;
        }
        let link = self.links.get_mut(at)?;
        let was_cut_off = link.failures >= FAILURES_CUT_MIN;
        link.connection = Some(fleet.schedule.next_number());
        (link.failures, link.dialler) = (0, dialler);
        let (a, b) = link.ends;
        if was_cut_off {
            [a, b].into_iter().for_each(|end| self.on_one_returned(fleet, end));
        }
        Some((a, b))
    }

    /// A peer that was cut off from this machine is back, so others may be back, too: dials them at once.
    fn on_one_returned(&mut self, fleet: &mut Fleet, number: Number) {
        let now_us = fleet.now_us();
        let machine = fleet.machine_mut(number);
        if machine.returned_us.is_some_and(|before_us| now_us < before_us + RETURNS_PAUSE_US) {
            return;
        }
        machine.returned_us = Some(now_us);
        let failed = |link: &Link| link.connection.is_none() && link.failures > 0;
        for at in self.links_of(number) {
            if self.links.get(at).is_some_and(failed) {
                self.plan_dial(fleet, at, 0, 1);
            }
        }
    }
}

/// The network between two machines: `wan` between sites, and without message faults once the world is healed.
fn line(fleet: &Fleet, a: Number, b: Number) -> Line {
    let apart = fleet.machine(a).site != fleet.machine(b).site;
    let line = fleet.scenario.wan.filter(|_| apart).unwrap_or(fleet.scenario.network);
    if fleet.healed { calm(line) } else { line }
}

/// The same line without message faults: nothing is dropped, duplicated or reordered. Packets still get lost.
fn calm(line: Line) -> Line {
    Line { drop_permille: 0, duplicate_permille: 0, reorder_permille: 0, ..line }
}

/// The delay that lost packets cause, microseconds: one round trip when later packets reveal the loss, otherwise TCP's
/// timeout.
fn draw_repair_us(draw: &mut Draw, line: Line, payload: usize) -> u64 {
    if line.loss_permille == 0 {
        return 0;
    }
    let round_us = line.round_ms() * 1_000;
    let packets = payload.div_ceil(SEGMENT_BYTES).clamp(1, 64);
    let mut cost_us = 0;
    for packet in 0..packets {
        let mut timeout_us = RETRANSMIT_US + round_us;
        let mut repair_us = 0;
        while draw.chance(line.loss_permille) && repair_us < 30_000_000 {
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
