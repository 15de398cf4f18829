//! The promises, by what breaks them.

use crate::machine::{Number, Path};
use narmesh_gossip::Misdeed;
use narmesh_protocol::Generation;

/// A promise that was broken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// An owner used one generation for two announcements.
    #[error("machine {owner} published generation {generation:?} twice")]
    GenerationRepeated {
        /// Who published.
        owner: Number,
        /// The generation that two different envelopes have.
        generation: Generation,
    },
    /// An owner published below what it had published, although its disk was not lost.
    #[error("machine {owner} published below its last generation: {generation:?}")]
    EpochBack {
        /// Who published.
        owner: Number,
        /// The generation published, which is below the one before.
        generation: Generation,
    },
    /// What an honest machine published is no envelope, or too long.
    #[error("machine {owner} published bytes that are no envelope")]
    Malformed {
        /// Who published.
        owner: Number,
    },
    /// A body was accepted that its owner never published.
    #[error("machine {holder} accepted {generation:?} of {owner}, who never published it")]
    NeverPublished {
        /// Who accepted.
        holder: Number,
        /// The machine whose body it is said to be.
        owner: Number,
        /// The generation of the body, which the owner never published.
        generation: Generation,
    },
    /// A body was accepted by someone outside its audience, or of someone not trusted.
    #[error("machine {holder} holds {generation:?} of {owner} outside its audience or its own allowlist")]
    Audience {
        /// Who accepted.
        holder: Number,
        /// The machine whose body it is.
        owner: Number,
        /// The generation of the body accepted.
        generation: Generation,
    },
    /// A body or an announcement of a body was given to someone outside its audience.
    #[error("machine {machine} told {asker} of {generation:?} of {owner}, whose audience it is not in")]
    HandedOut {
        /// Who told.
        machine: Number,
        /// The machine that was told, outside the audience.
        asker: Number,
        /// The machine whose body or announcement it is.
        owner: Number,
        /// The generation of the body or announcement that was told.
        generation: Generation,
    },
    /// An epoch far in the future was accepted.
    #[error("machine {holder} accepted {generation:?} of {owner}, more than a day ahead of its clock")]
    Tomorrow {
        /// Who accepted.
        holder: Number,
        /// The machine that signed the announcement.
        owner: Number,
        /// The generation accepted, whose epoch is more than a day ahead of the holder's clock.
        generation: Generation,
    },
    /// An older generation was accepted after a newer one.
    #[error("machine {holder} went back to {generation:?} of {owner}")]
    WentBack {
        /// Who accepted.
        holder: Number,
        /// The machine whose announcement or body it is.
        owner: Number,
        /// The generation accepted, which is below the one before.
        generation: Generation,
    },
    /// A path of the accepted summary is not found.
    #[error("machine {holder} does not find path {path} of {owner}, which its summary covers")]
    FalseNegative {
        /// Who looked.
        holder: Number,
        /// Who has it.
        owner: Number,
        /// The path.
        path: Path,
    },
    /// A filter claims what nobody ever had.
    #[error("machine {holder} has a filter of {owner} at {generation:?} that claims paths that nobody has")]
    Overfull {
        /// Who looked.
        holder: Number,
        /// Whose filter.
        owner: Number,
        /// The generation of the body that the filter is from.
        generation: Generation,
    },
    /// A path that its owner removed is still claimed.
    #[error("machine {holder} still finds {claimed} of {removed} paths that {owner} removed")]
    NotRemoved {
        /// Who looked.
        holder: Number,
        /// Who had them.
        owner: Number,
        /// How many are claimed.
        claimed: usize,
        /// Of how many.
        removed: usize,
    },
    /// A summary is used after its lifetime.
    #[error("machine {holder} still uses {generation:?} of {owner}, whose lifetime is over")]
    Immortal {
        /// Who uses it.
        holder: Number,
        /// The machine whose summary it is.
        owner: Number,
        /// The generation whose lifetime is over.
        generation: Generation,
    },
    /// A peer that is not trusted is still in a table.
    #[error("machine {holder} still knows a peer that left its allowlist")]
    NotForgotten {
        /// The machine whose allowlist changed.
        holder: Number,
    },
    /// Something grew beyond its bound.
    #[error("machine {machine}: {what} {value}")]
    Bound {
        /// The machine that went over the bound.
        machine: Number,
        /// What was over its bound, such as "bytes of a reply".
        what: &'static str,
        /// How much.
        value: usize,
    },
    /// An honest peer was blamed.
    #[error("machine {accuser} blames {accused:?}, who is honest: {misdeed}")]
    Blamed {
        /// The machine that blames.
        accuser: Number,
        /// The honest machine that is blamed.
        accused: Option<Number>,
        /// For what.
        misdeed: Misdeed,
    },
    /// Long after the faults ended, a table is not what its owner is.
    #[error("machine {holder} holds {held:?} of {owner}, who is at {published:?}")]
    NotConverged {
        /// The machine whose table was compared.
        holder: Number,
        /// The machine whose published generation the table does not hold.
        owner: Number,
        /// What is held.
        held: Option<Generation>,
        /// What it should be.
        published: Option<Generation>,
    },
    /// Long after the faults ended, a table has other addresses of its owner than it has.
    #[error("machine {holder} would look for {owner} where it is not")]
    OldAddresses {
        /// The machine whose table was compared.
        holder: Number,
        /// The machine that has other addresses than the table says.
        owner: Number,
    },
    /// Long after the faults ended, an owner has not announced what it holds.
    #[error("machine {owner} holds {paths} paths and announced {announced}")]
    NotAnnounced {
        /// The machine that holds the paths.
        owner: Number,
        /// What it holds.
        paths: usize,
        /// What it announced.
        announced: u64,
    },
    /// Absent paths cost too many probes.
    #[error("{wasted} wasted probes for {lookups} absent paths")]
    Wasted {
        /// Probes of honest machines.
        wasted: u64,
        /// Lookups.
        lookups: u64,
    },
    /// A filter that lies was believed too long.
    #[error("machine {holder} was misled {false_hits} times by {owner} within 5 min")]
    NotDemoted {
        /// Who was misled.
        holder: Number,
        /// By whom.
        owner: Number,
        /// How often.
        false_hits: usize,
    },
}
