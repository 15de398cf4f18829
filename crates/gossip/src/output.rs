//! What a core wants done, and what it tells.

use crate::misdeed::Misdeed;
use crate::time::Moment;
use libp2p_identity::PeerId;
use narmesh_protocol::Generation;
use std::net::SocketAddr;

/// One thing to do. Perform them in order; a [`Output::Persist`] is durable before the next one is performed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Write this down.
    Persist(Record),
    /// Publish this envelope through gossipsub. That it reaches nobody is no failure.
    Publish(Vec<u8>),
    /// What to do with a gossipsub message.
    Judge {
        /// The id of the [`crate::Input::Announcement`].
        id: u64,
        /// Hand it on or not.
        verdict: Verdict,
    },
    /// Ask a connected peer; `Response` or `RequestFailed` comes back. After 10 s the core takes it for failed by itself.
    Request {
        /// The connected peer that is to be asked.
        to: PeerId,
        /// The core's name for the request.
        id: u64,
        /// An encoded `GossipRequest`.
        bytes: Vec<u8>,
    },
    /// Answer a request.
    Respond {
        /// The peer that asked.
        to: PeerId,
        /// The id of the [`crate::Input::Request`].
        id: u64,
        /// An encoded `GossipReply`.
        bytes: Vec<u8>,
    },
    /// A peer did wrong; it is already counted here. For the log and the metrics.
    Penalize {
        /// The peer that is blamed.
        peer: PeerId,
        /// What the peer did wrong.
        misdeed: Misdeed,
    },
    /// For the log, the status and the dialer.
    Event(Event),
}

/// What to do with a gossipsub message. There is no *Reject*: it would blame the forwarder for what the author wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Hand it on.
    Accept,
    /// Drop it quietly.
    Ignore,
}

/// What must survive a restart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// The epoch that we are about to publish under.
    OwnEpoch(u64),
    /// The newest envelope of a peer; replaces the one before.
    Newest {
        /// Who signed it.
        peer: PeerId,
        /// The envelope's bytes.
        envelope: Vec<u8>,
    },
    /// Nothing of this peer is to be kept.
    Forget(PeerId),
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// We published a summary.
    Published {
        /// Under this generation.
        generation: Generation,
        /// Paths in it.
        paths: u64,
        /// Bytes of its body.
        body_bytes: u32,
    },
    /// Peers hold a newer announcement of ours than we do: our state was lost, and we go on above it.
    Overtaken {
        /// What they hold.
        generation: Generation,
    },
    /// A peer's announcement was accepted.
    Announced {
        /// The peer that signed the announcement.
        peer: PeerId,
        /// The generation announced.
        generation: Generation,
        /// Paths in it.
        path_count: u64,
    },
    /// A body is in the table: its owner is a candidate for what it claims.
    BodyPulled {
        /// The peer whose body it is, and which signed the body's digest.
        owner: PeerId,
        /// Who handed it over; the owner, a relay, or the owner again when the body held had not changed.
        from: PeerId,
        /// The generation of the body.
        generation: Generation,
        /// Bytes received for it; 0 when the body held had not changed.
        bytes: usize,
        /// Whether they were a delta.
        delta: bool,
    },
    /// Nobody who was asked had the announced body; the next announcement or sync tries again.
    PullGivenUp {
        /// The peer whose body was announced.
        owner: PeerId,
        /// The announced generation, whose body was not obtained.
        generation: Generation,
    },
    /// A peer's signed body names other addresses than before. As the peer wrote them: the caller filters.
    AddressesLearned {
        /// The peer that signed the body.
        peer: PeerId,
        /// At most 8.
        addresses: Vec<SocketAddr>,
    },
    /// A peer's summary outlived its lifetime.
    Expired {
        /// The peer whose summary it was.
        peer: PeerId,
    },
    /// A peer said goodbye.
    Departed {
        /// The peer that signed the goodbye.
        peer: PeerId,
    },
    /// A peer serves another store directory; nothing can be shared with it.
    StoreDirDiffers {
        /// The peer that serves the other store directory.
        peer: PeerId,
        /// Its store directory, at most 255 bytes.
        store_dir: String,
    },
    /// A peer answered us for the first time on this connection: we are allowed there.
    Greeted {
        /// The peer that answered.
        peer: PeerId,
        /// Its software, at most 64 bytes.
        software: String,
    },
    /// A peer speaks an envelope version of tomorrow.
    UnknownVersion {
        /// The author of the gossipsub message, or the peer that handed the envelope on in a sync.
        peer: PeerId,
        /// The version.
        version: u8,
    },
    /// A peer's filter has an index function of tomorrow.
    UnknownHashId {
        /// The peer whose filter it is.
        peer: PeerId,
        /// The hash id.
        hash_id: u32,
    },
    /// A peer's announcement was refused because its date, or its date and epoch, are more than a day off our clock.
    ClockDiffers {
        /// The peer that signed the announcement.
        peer: PeerId,
        /// Its date, milliseconds since 1970.
        issued_at_ms: u64,
    },
    /// A peer is not asked and no candidate until then.
    SetAside {
        /// The peer that is set aside.
        peer: PeerId,
        /// Until when.
        until: Moment,
        /// Its last misdeed.
        misdeed: Misdeed,
    },
    /// A peer whose filter misled us too often is no candidate until then, or until its next epoch.
    Demoted {
        /// The peer that is demoted.
        peer: PeerId,
        /// Until when.
        until: Moment,
    },
}
