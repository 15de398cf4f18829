//! Where an event comes from, as far as limits are concerned: which kind it is of, and whom it names.

use super::limits::{Description, Origin};
use std::collections::hash_map::RandomState;
use std::fmt::{self, Write as _};
use std::hash::{BuildHasher as _, Hash as _, Hasher as _};
use tracing::Event;
use tracing::field::{Field, Visit};

/// Fields that name a peer, in this program and in libp2p. The first that an event has counts.
const PEER_FIELDS: [&str; 2] = ["peer", "peer_id"];

/// A field whose values are few and each a cause of its own.
const CAUSE_FIELD: &str = "misdeed";

/// What is kept of a name or of a text.
const TEXT_BYTES_MAX: usize = 120;

/// Tells origins apart. What a peer can choose goes through a hash that it does not know: it cannot make two collide.
#[derive(Debug, Default)]
pub(super) struct Origins(RandomState);

impl Origins {
    pub(super) fn of(&self, event: &Event<'_>) -> Origin {
        let mut named = Named::default();
        event.record(&mut named);
        let mut kind = self.0.build_hasher();
        event.metadata().callsite().hash(&mut kind);
        // All records of the `log` crate share a callsite for each level, and say in fields where they come from.
        named.log_target.hash(&mut kind);
        named.log_line.hash(&mut kind);
        named.cause.hash(&mut kind);
        let peer = named.peer.map(|peer| self.0.hash_one(peer));
        Origin { kind: kind.finish(), peer, level: *event.metadata().level() }
    }
}

/// What an event says, and the name of its peer.
pub(super) fn described(event: &Event<'_>) -> Description {
    let mut message = Message::default();
    event.record(&mut message);
    let mut named = Named::default();
    event.record(&mut named);
    Description { text: message.0.0, peer: named.peer.unwrap_or_default() }
}

/// The fields that say where an event belongs. No other is formatted.
#[derive(Default)]
struct Named {
    peer: Option<String>,
    cause: Option<String>,
    log_target: Option<String>,
    log_line: Option<u64>,
}

impl Visit for Named {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let place = match field.name() {
            name if PEER_FIELDS.contains(&name) => &mut self.peer,
            CAUSE_FIELD => &mut self.cause,
            "log.target" => &mut self.log_target,
            _ => return,
        };
        if place.is_none() {
            let mut text = Bounded::default();
            // What could not be written says as much as its beginning does.
            write!(text, "{value:?}").unwrap_or_default();
            *place = Some(text.0);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "log.line" {
            self.log_line = Some(value);
        }
    }
}

#[derive(Default)]
struct Message(Bounded);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            write!(self.0, "{value:?}").unwrap_or_default();
        }
    }
}

/// The beginning of what is written.
#[derive(Default)]
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = text.floor_char_boundary(TEXT_BYTES_MAX - self.0.len());
        self.0.push_str(text.get(..end).unwrap_or_default());
        Ok(())
    }
}
