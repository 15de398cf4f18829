//! The promises that are checked, each as the violation that breaks it.

use crate::cores::gossip::Misdeed;
use crate::number::{Number, Path};
use narmesh_protocol::Generation;

/// A promise that was broken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// An owner used one generation for two announcements.
    #[error("machine {owner} published generation {generation:?} twice")]
    GenerationRepeated {
        /// The machine that published.
        owner: Number,
        /// The generation that two different envelopes have.
        generation: Generation,
    },
    /// An owner published a generation below an earlier one, although its disk was not lost.
    #[error("machine {owner} published below its last generation: {generation:?}")]
    EpochBack {
        /// The machine that published.
        owner: Number,
        /// The generation published, which is below the one before it.
        generation: Generation,
    },
    /// What an honest machine published is no envelope, or too long.
    #[error("machine {owner} published bytes that are no envelope")]
    Malformed {
        /// The machine that published.
        owner: Number,
    },
    /// A body was accepted that its owner never published.
    #[error("machine {holder} accepted {generation:?} of {owner}, who never published it")]
    NeverPublished {
        /// The machine that accepted the body.
        holder: Number,
        /// The machine whose body it is said to be.
        owner: Number,
        /// The generation of the body, which the owner never published.
        generation: Generation,
    },
    /// A body was accepted by a machine outside its audience, or from an owner that the machine does not trust.
    #[error("machine {holder} holds {generation:?} of {owner} outside its audience or its own allowlist")]
    Audience {
        /// The machine that accepted the body.
        holder: Number,
        /// The machine whose body it is.
        owner: Number,
        /// The generation of the body accepted.
        generation: Generation,
    },
    /// A body or an announcement of a body was given to someone outside its audience.
    #[error("machine {machine} told {asker} of {generation:?} of {owner}, whose audience it is not in")]
    HandedOut {
        /// The machine that told.
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
        /// The machine that accepted the announcement.
        holder: Number,
        /// The machine that signed the announcement.
        owner: Number,
        /// The generation accepted, whose epoch is more than a day ahead of the holder's clock.
        generation: Generation,
    },
    /// An older generation was accepted after a newer one.
    #[error("machine {holder} went back to {generation:?} of {owner}")]
    WentBack {
        /// The machine that accepted the announcement or body.
        holder: Number,
        /// The machine whose announcement or body it is.
        owner: Number,
        /// The generation accepted, which is below the one before it.
        generation: Generation,
    },
    /// A path of an accepted summary is not found.
    #[error("machine {holder} does not find path {path} of {owner}, which its summary covers")]
    FalseNegative {
        /// The machine that looked for the path.
        holder: Number,
        /// The machine that has the path.
        owner: Number,
        /// The path's number.
        path: Path,
    },
    /// A filter claims what nobody ever had.
    #[error("machine {holder} has a filter of {owner} at {generation:?} that claims paths that nobody has")]
    Overfull {
        /// The machine that holds the filter.
        holder: Number,
        /// The machine whose filter it is said to be.
        owner: Number,
        /// The generation of the body that the filter is from.
        generation: Generation,
    },
    /// A path that its owner removed is still claimed.
    #[error("machine {holder} still finds {claimed} of {removed} paths that {owner} removed")]
    NotRemoved {
        /// The machine whose table was looked at.
        holder: Number,
        /// The machine that removed the paths.
        owner: Number,
        /// How many of the removed paths the table still claims.
        claimed: usize,
        /// How many removed paths were looked up.
        removed: usize,
    },
    /// A summary is used after its lifetime.
    #[error("machine {holder} still uses {generation:?} of {owner}, whose lifetime is over")]
    Immortal {
        /// The machine that uses the summary.
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
        /// The value that is over the bound.
        value: usize,
    },
    /// An honest peer was blamed.
    #[error("machine {accuser} blames {accused:?}, who is honest: {misdeed}")]
    Blamed {
        /// The machine that blames.
        accuser: Number,
        /// The honest machine that is blamed.
        accused: Option<Number>,
        /// What it is blamed for.
        misdeed: Misdeed,
    },
    /// Long after the faults ended, a table does not hold its owner's present generation.
    #[error("machine {holder} holds {held:?} of {owner}, who is at {published:?}")]
    NotConverged {
        /// The machine whose table was compared.
        holder: Number,
        /// The machine whose published generation the table does not hold.
        owner: Number,
        /// The generation in the table; `None` for no body.
        held: Option<Generation>,
        /// The generation that the owner published last.
        published: Option<Generation>,
    },
    /// Long after the faults ended, a table has addresses of an owner that are not its present ones.
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
        /// How many paths it holds.
        paths: usize,
        /// How many paths it announced.
        announced: u64,
    },
    /// Absent paths cost too many probes.
    #[error("{wasted} wasted probes for {lookups} absent paths")]
    Wasted {
        /// Probes of honest machines that did not have the path.
        wasted: u64,
        /// Lookups of absent paths.
        lookups: u64,
    },
    /// A filter that lies was believed too long.
    #[error("machine {holder} was misled {false_hits} times by {owner} within 5 min")]
    NotDemoted {
        /// The machine that was misled.
        holder: Number,
        /// The machine that misled it.
        owner: Number,
        /// How often it was misled.
        false_hits: usize,
    },
}
