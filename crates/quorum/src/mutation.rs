//! Cores with one rule left out, so that the simulation can prove that its checkers notice. This needs the feature
//! `mutants`, which only `narmesh-sim mutants` is built with: without it, [`mutant!`] is `false` and the names
//! below do not exist.

/// Whether this rule is left out.
#[cfg(feature = "mutants")]
macro_rules! mutant {
    ($name:ident) => {
        $crate::mutation::is($crate::mutation::Mutation::$name)
    };
}

/// Whether this rule is left out: never.
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

    /// Which rule is left out.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Mutation {
        /// `k` is a share of the groups that were heard, not of all groups.
        PercentageOfHeard,
        /// Each builder of a group counts.
        GroupCountedTwice,
        /// A group whose builders disagree counts for one of the results.
        DisagreeingGroupCounted,
        /// Of two statements of one builder, one counts.
        VoidCounted,
        /// Builders agree when their NarHashes are equal, whatever else differs.
        NarHashAlone,
        /// The date that a builder wrote is compared with its revocation.
        BackdatedAccepted,
        /// A bare Nix signature counts.
        BareSignatureCounted,
        /// Any builder has grace.
        GraceForAnyone,
        /// Dissent is no veto.
        VetoIgnored,
        /// Nobody is told of news, and no comparison begins on a new connection.
        NothingTold,
    }

    /// All mutations.
    pub const MUTATIONS: [Mutation; 10] = [
        Mutation::PercentageOfHeard,
        Mutation::GroupCountedTwice,
        Mutation::DisagreeingGroupCounted,
        Mutation::VoidCounted,
        Mutation::NarHashAlone,
        Mutation::BackdatedAccepted,
        Mutation::BareSignatureCounted,
        Mutation::GraceForAnyone,
        Mutation::VetoIgnored,
        Mutation::NothingTold,
    ];

    /// Leaves this rule out of all cores of this thread.
    pub fn mutate(mutation: Option<Mutation>) {
        PRESENT.set(mutation);
    }

    pub(crate) fn is(mutation: Mutation) -> bool {
        PRESENT.get() == Some(mutation)
    }
}
