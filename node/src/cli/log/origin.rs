//! Where an event comes from, as far as limits are concerned: its kind, and the peer that it names.

use super::limits::{Description, Origin};
use std::collections::hash_map::RandomState;
use std::fmt::{self, Write as _};
use std::hash::{BuildHasher as _, Hash as _, Hasher as _};
use tracing::Event;
use tracing::field::{Field, Visit};

/// The fields that name a peer, in this program and in libp2p, or an upstream cache. Of several in an event, the first counts.
const PEER_FIELDS: [&str; 3] = ["peer", "peer_id", "upstream"];

/// A field with few possible values. Each value makes an event a kind of its own.
const CAUSE_FIELD: &str = "misdeed";

/// How much of a name or a text is kept, bytes.
const TEXT_BYTES_MAX: usize = 120;

/// Gives each origin its number. A peer chooses part of what is hashed, but does not know the hash's random key, so it
/// cannot make two origins collide.
#[derive(Debug, Default)]
pub(super) struct Origins(RandomState);

impl Origins {
    pub(super) fn of(&self, event: &Event<'_>) -> Origin {
        let mut named = Named::default();
        event.record(&mut named);
        let mut kind = self.0.build_hasher();
        event.metadata().callsite().hash(&mut kind);
        // All records of the `log` crate share one callsite per level; fields say where each comes from.
        named.log_target.hash(&mut kind);
        named.log_line.hash(&mut kind);
        named.cause.hash(&mut kind);
        let peer = named.peer.map(|peer| self.0.hash_one(peer));
        Origin { kind: kind.finish(), peer, level: *event.metadata().level() }
    }
}

/// The message of an event, and the name of its peer.
pub(super) fn describe(event: &Event<'_>) -> Description {
    let mut message = Message::default();
    event.record(&mut message);
    let mut named = Named::default();
    event.record(&mut named);
    Description { text: message.0.0, peer: named.peer.unwrap_or_default() }
}

/// The fields that decide where an event belongs. No other field is formatted.
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
            // If a value fails to format, the part written so far is used.
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

/// Keeps only the beginning of what is written into it.
#[derive(Default)]
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = text.floor_char_boundary(TEXT_BYTES_MAX - self.0.len());
        self.0.push_str(text.get(..end).unwrap_or_default());
        Ok(())
    }
}
