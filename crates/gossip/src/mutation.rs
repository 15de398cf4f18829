//! Cores with one check left out, so that the simulation can prove that its checkers notice. This needs the feature
//! `mutants`, which only `narmesh-sim mutants` is built with: without it, [`mutant!`] is `false` and the names
//! below do not exist.

/// Whether this check is left out.
#[cfg(feature = "mutants")]
macro_rules! mutant {
    ($name:ident) => {
        $crate::mutation::is($crate::mutation::Mutation::$name)
    };
}

/// Whether this check is left out: never.
#[cfg(not(feature = "mutants"))]
macro_rules! mutant {
    ($name:ident) => {
        false
    };
}

pub(crate) use mutant;

#[cfg(feature = "mutants")]
pub use with_the_feature::*;

#[cfg(feature = "mutants")]
mod with_the_feature {
    use std::cell::Cell;

    thread_local! {
        static PRESENT: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Which check is left out.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Mutation {
        /// A lower generation is accepted after a higher one.
        StaleGeneration,
        /// The announcements on disk are not read back.
        FloorsForgotten,
        /// An epoch of next week is accepted.
        FutureEpoch,
        /// A body is installed although its digest is not the signed one.
        UnsignedBody,
        /// A delta is applied although the digest of its result is not the signed one.
        UnsignedDelta,
        /// A body whose audience leaves us out is installed.
        ForeignAudience,
        /// A body is handed to whoever asks.
        BodyForAnyone,
        /// Announcements are told to whoever asks.
        NewsForAnyone,
        /// A removed path stays in the filter.
        RemovalForgotten,
        /// A new epoch is published without being persisted.
        EpochNotPersisted,
        /// A delta is published under the `seq` of its base.
        SeqRepeated,
        /// Only half of a new filter is written.
        HalfColumn,
        /// The bits of a delta are not set.
        DeltaNotApplied,
        /// A summary is used for ever.
        LifetimeIgnored,
        /// A peer that left the allowlist stays.
        DistrustIgnored,
        /// A peer that forwards a stranger's announcement is blamed for it.
        ForwarderBlamed,
        /// False hits have no consequence.
        FalseHitsIgnored,
        /// No sync is ever started.
        NoComparison,
        /// Any number of bodies is pulled at once.
        PullsUnbounded,
        /// A peer that has restarted is blamed for what it announced before.
        UnclaimedBlamed,
    }

    /// All mutations.
    pub const MUTATIONS: [Mutation; 20] = [
        Mutation::StaleGeneration,
        Mutation::FloorsForgotten,
        Mutation::FutureEpoch,
        Mutation::UnsignedBody,
        Mutation::UnsignedDelta,
        Mutation::ForeignAudience,
        Mutation::BodyForAnyone,
        Mutation::NewsForAnyone,
        Mutation::RemovalForgotten,
        Mutation::EpochNotPersisted,
        Mutation::SeqRepeated,
        Mutation::HalfColumn,
        Mutation::DeltaNotApplied,
        Mutation::LifetimeIgnored,
        Mutation::DistrustIgnored,
        Mutation::ForwarderBlamed,
        Mutation::FalseHitsIgnored,
        Mutation::NoComparison,
        Mutation::PullsUnbounded,
        Mutation::UnclaimedBlamed,
    ];

    /// Leaves this check out of all cores of this thread.
    pub fn mutate(mutation: Option<Mutation>) {
        PRESENT.set(mutation);
    }

    pub(crate) fn is(mutation: Mutation) -> bool {
        PRESENT.get() == Some(mutation)
    }
}
