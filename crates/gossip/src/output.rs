//! What a core wants done, and what it reports.

use crate::peers::misdeed::Misdeed;
use libp2p_identity::PeerId;
use narmesh_machine::Moment;
use narmesh_protocol::Generation;
use std::net::SocketAddr;

/// One thing to do. Perform them in order; an [`Output::Persist`] must be durable before the next one is performed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Write this record to disk.
    Persist(Record),
    /// Publish this envelope through gossipsub. It is no failure when nobody receives it.
    Publish(Vec<u8>),
    /// Decide what happens to a gossipsub message.
    Judge {
        /// The id of the [`crate::Input::Announcement`].
        id: u64,
        /// Whether it is handed on.
        verdict: Forward,
    },
    /// Ask a connected peer; `Response` or `RequestFailed` comes back. After 10 s without either, the core counts the
    /// request as failed.
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
    /// A peer did wrong. The core has counted it and drawn its own conclusions. The driver logs it, counts it for the
    /// metrics, and shuts out a peer that goes on.
    Penalize {
        /// The peer that is blamed.
        peer: PeerId,
        /// What the peer did wrong.
        misdeed: Misdeed,
    },
    /// Something happened: for the log, the status and the dialer.
    Event(Event),
}

/// What happens to a gossipsub message. There is no *Reject*: it would blame the forwarder for what the author wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forward {
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
        /// The peer that signed it.
        peer: PeerId,
        /// The envelope's bytes.
        envelope: Vec<u8>,
    },
    /// Delete what is kept of this peer.
    Forget(PeerId),
}

/// What happened, as the log and the status show it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// We published a summary.
    Published {
        /// The generation that it was published under.
        generation: Generation,
        /// The number of paths in it.
        paths: u64,
        /// The size of its body, bytes.
        body_bytes: u32,
    },
    /// A peer holds a newer announcement of ours than we do. So our state was lost, and we continue above it.
    Overtaken {
        /// The generation that the peer holds.
        generation: Generation,
    },
    /// A peer's announcement was accepted.
    Announced {
        /// The peer that signed the announcement.
        peer: PeerId,
        /// The generation announced.
        generation: Generation,
        /// The number of paths in it.
        path_count: u64,
    },
    /// A body is in the table: its owner is now a candidate for the paths that it claims.
    BodyPulled {
        /// The peer whose body it is; it signed the body's digest.
        owner: PeerId,
        /// The peer that handed it over: the owner or a relay. The owner also when the body that we held had not changed.
        from: PeerId,
        /// The body's generation.
        generation: Generation,
        /// Bytes received for it; 0 when the body that we held had not changed.
        bytes: usize,
        /// Whether those bytes were a delta.
        delta: bool,
    },
    /// Nobody who was asked had the announced body; the next announcement or sync tries again.
    PullGivenUp {
        /// The peer whose body was announced.
        owner: PeerId,
        /// The announced generation, whose body was not obtained.
        generation: Generation,
    },
    /// A peer's signed body names other addresses than before. They are as the peer wrote them: the caller
    /// has to filter them.
    AddressesLearned {
        /// The peer that signed the body.
        peer: PeerId,
        /// The peer's addresses, at most 8.
        addresses: Vec<SocketAddr>,
    },
    /// A peer's summary has reached the end of its lifetime.
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
        /// The peer's store directory, at most 255 bytes.
        store_dir: String,
    },
    /// A peer answered us for the first time on this connection, so we are on its allowlist.
    Greeted {
        /// The peer that answered.
        peer: PeerId,
        /// The name and version of its software, at most 64 bytes.
        software: String,
    },
    /// A peer sent an envelope of a version that we do not know yet.
    UnknownVersion {
        /// The author of the gossipsub message, or the peer that handed the envelope on in a sync.
        peer: PeerId,
        /// The unknown version.
        version: u8,
    },
    /// A peer's filter uses an index function that we do not know yet.
    UnknownHashId {
        /// The peer whose filter it is.
        peer: PeerId,
        /// The unknown hash id.
        hash_id: u32,
    },
    /// A peer's announcement was refused because its date, or its date and epoch, are more than a day off our clock.
    ClockDiffers {
        /// The peer that signed the announcement.
        peer: PeerId,
        /// The announcement's date, milliseconds since 1970.
        issued_at_ms: u64,
    },
    /// A peer is set aside after too many misdeeds: until then it is asked nothing and is no candidate.
    SetAside {
        /// The peer that is set aside.
        peer: PeerId,
        /// The moment from which it is asked again.
        until: Moment,
        /// Its last misdeed.
        misdeed: Misdeed,
    },
    /// A peer is demoted because its filter misled us too often: it is asked last until then, or until it proves useful.
    Demoted {
        /// The peer that is demoted.
        peer: PeerId,
        /// The moment from which it is asked like the others again, at the latest.
        until: Moment,
    },
}
