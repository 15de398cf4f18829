//! Links, connections and the model of gossipsub.

use crate::machine::Number;
use crate::world::{Happening, World};
use libp2p_identity::PeerId;
use narmesh_gossip::Input;
use std::sync::Arc;

/// A broken connection is noticed after at most this, milliseconds.
const NOTICE_MS: u64 = 5_000;
/// A missing connection is dialled again after at least and at most this, milliseconds.
const DIAL_MS: (u64, u64) = (100, 2_500);
/// Links that each machine wants. The daemon keeps up to 32; fewer make longer ways.
pub(crate) const LINKS: usize = 5;
/// Neighbours to whom gossipsub forwards at once: its mesh degree D.
const MESH_DEGREE: usize = 6;
/// A copy that was lost is asked for after gossipsub's next heartbeat, in so many of a thousand cases.
const RECOVERED_PERMILLE: u64 = 900;

/// What travels over a connection.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Gossip { id: u64, author: PeerId, bytes: Arc<[u8]> },
    Request { id: u64, bytes: Vec<u8> },
    Response { id: u64, bytes: Vec<u8> },
    Timeout { id: u64 },
}

/// Two machines that would like to be connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Link {
    /// The connection's number, when there is one.
    pub(crate) connection: Option<u64>,
    pub(crate) cut: bool,
    pub(crate) dialling: bool,
}

/// A copy of an announcement that a core has yet to judge.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    pub(crate) from: Number,
    pub(crate) author: PeerId,
    pub(crate) bytes: Arc<[u8]>,
}

/// A link has one name, whoever looks.
pub(crate) fn key(a: Number, b: Number) -> (Number, Number) {
    (a.min(b), a.max(b))
}

impl World {
    /// gossipsub, modelled: a few neighbours at once; what is lost is mostly asked for after the next heartbeat.
    pub(crate) fn forward(&mut self, number: Number, from: Option<Number>, id: u64, author: PeerId, bytes: &Arc<[u8]>) {
        let mut neighbours: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| link.connection.is_some())
            .filter_map(|((a, b), _)| {
                let other = if *a == number { *b } else { *a };
                ((*a == number || *b == number) && Some(other) != from).then_some(other)
            })
            .collect();
        while neighbours.len() > MESH_DEGREE {
            let index = self.draw.index(neighbours.len());
            neighbours.swap_remove(index);
        }
        for to in neighbours {
            let message = Message::Gossip { id, author, bytes: Arc::clone(bytes) };
            if !self.draw.chance(self.faults.loss_permille) {
                self.fly(number, to, 0, message);
            } else if self.draw.chance(RECOVERED_PERMILLE) {
                let heartbeat_ms = self.draw.between(500, 2_000);
                self.fly(number, to, heartbeat_ms, message);
            }
        }
    }

    pub(crate) fn send(&mut self, from: Number, to: Number, message: Message) {
        if self.draw.chance(self.faults.loss_permille) {
            return;
        }
        if self.draw.chance(self.faults.duplicate_permille) {
            self.fly(from, to, 30, message.clone());
        }
        self.fly(from, to, 0, message);
    }

    pub(crate) fn fly(&mut self, from: Number, to: Number, more_ms: u64, message: Message) {
        let connection = self.links.get(&key(from, to)).and_then(|link| link.connection);
        let (least, most) = self.faults.delay_ms;
        let delay_ms = self.draw.between(least, most) + more_ms;
        if let Some(connection) = connection {
            self.after(delay_ms, Happening::Arrive { from, to, connection, message });
        }
    }

    pub(crate) fn arrive(&mut self, from: Number, to: Number, connection: u64, message: Message) {
        let Some(sender) = self.machines.get(from).map(|machine| machine.peer) else { return };
        if let Message::Timeout { id } = message {
            return self.input(to, Input::RequestFailed { to: sender, id });
        }
        let open = self.links.get(&key(from, to)).is_some_and(|link| link.connection == Some(connection));
        let Some(machine) = self.machines.get_mut(to).filter(|machine| open && machine.is_running()) else { return };
        match message {
            Message::Gossip { id, author, bytes } => {
                self.totals.gossip_copies += 1;
                // gossipsub drops copies; now and then one comes through, since its memory of ids ends.
                if machine.seen.insert(id) || self.draw.chance(self.faults.duplicate_permille) {
                    self.judging.insert((to, id), Copy { from, author, bytes: Arc::clone(&bytes) });
                    self.input(to, Input::Announcement { id, author, from: sender, bytes: bytes.to_vec() });
                }
            }
            Message::Request { id, bytes } => {
                self.totals.control_bytes += bytes.len() as u64;
                self.input(to, Input::Request { from: sender, id, bytes });
            }
            Message::Response { id, bytes } => {
                self.totals.control_bytes += bytes.len() as u64;
                self.input(to, Input::Response { from: sender, id, bytes });
            }
            Message::Timeout { .. } => {}
        }
    }

    pub(crate) fn may_connect(&self, a: Number, b: Number) -> bool {
        let side = |number: Number| self.sides.get(number).copied();
        let ready = |a: Number, b: Number| {
            self.machines.get(a).is_some_and(|machine| machine.is_running() && machine.trusted.contains(&b))
        };
        ready(a, b) && ready(b, a) && side(a) == side(b) && self.links.get(&key(a, b)).is_some_and(|link| !link.cut)
    }

    /// Breaks connections that cannot be any more, and dials those that can.
    pub(crate) fn dial_missing(&mut self) {
        let pairs: Vec<_> = self.links.keys().copied().collect();
        for (a, b) in pairs {
            let may = self.may_connect(a, b);
            let Some(link) = self.links.get_mut(&(a, b)) else { continue };
            if let Some(connection) = link.connection.filter(|_| !may) {
                link.connection = None;
                link.dialling = true;
                let notice_ms = self.draw.between(1, NOTICE_MS);
                self.after(notice_ms, Happening::Lost(a, b, connection));
            } else if link.connection.is_none() && may && !link.dialling {
                link.dialling = true;
                let dial_ms = self.draw.between(DIAL_MS.0, DIAL_MS.1);
                self.after(dial_ms, Happening::Dial(a, b));
            }
        }
    }

    /// Both ends have noticed that a connection is gone.
    pub(crate) fn lost(&mut self, a: Number, b: Number, _connection: u64) {
        if let Some(link) = self.links.get_mut(&key(a, b)) {
            link.dialling = false;
        }
        self.disconnected(a, b);
        self.dial_missing();
    }

    pub(crate) fn disconnected(&mut self, a: Number, b: Number) {
        for (number, other) in [(a, b), (b, a)] {
            if let Some(peer) = self.machines.get(other).map(|machine| machine.peer) {
                self.input(number, Input::Disconnected(peer));
            }
        }
    }

    pub(crate) fn dial(&mut self, a: Number, b: Number) {
        let may = self.may_connect(a, b);
        self.counter += 1;
        let connection = self.counter;
        let Some(link) = self.links.get_mut(&key(a, b)) else { return };
        link.dialling = false;
        if !may || link.connection.is_some() {
            return;
        }
        link.connection = Some(connection);
        for (number, other) in [(a, b), (b, a)] {
            if let Some(peer) = self.machines.get(other).map(|machine| machine.peer) {
                self.input(number, Input::Connected(peer));
            }
        }
    }

    /// A machine that wakes up finds all its connections gone.
    pub(crate) fn reset_links(&mut self, number: Number) {
        let others: Vec<_> = self
            .links
            .iter()
            .filter(|((a, b), link)| (*a == number || *b == number) && link.connection.is_none())
            .map(|(pair, _)| *pair)
            .collect();
        for (a, b) in others {
            let other = if a == number { b } else { a };
            if let Some(peer) = self.machines.get(other).map(|machine| machine.peer) {
                self.input(number, Input::Disconnected(peer));
            }
        }
        self.set_alarm(number);
        self.dial_missing();
    }
}
