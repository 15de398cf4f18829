//! Which builders say the same of a store path, and what follows from it: a core without a clock, a socket or a file.
//!
//! **Purpose.** A signature says who signed, not that the bytes are what the source gives. Here the statements of several
//! builders are collected ([`Ledger`]), compared under the operator's rules ([`Policy`]) and explained ([`Report`]).
//!
//! **Contract.** Everything that comes in was verified ([`Evidence`] has no other constructor but the one for our own
//! database) and everything is a function of its arguments: time is handed in as [`WallMs`]. The rules, in words and each with
//! its test, are in `docs/quorum.md`.
//!
//! **Walk.** [`Evidence`] -> [`Ledger::insert`] -> [`Policy::verdict`] -> [`Verdict`] (one path) or [`closure`] (all it needs)
//! -> [`Policy::decide`] (may it be substituted?) and [`Report`]. Beside it [`reconcile`]: two ledgers find what they do not
//! share at a cost of the difference; [`exchange`] says when and with whom, [`wire`] how.
//!
//! **Invariants: what is never there.** No vote of a builder whose key the ledger's owner did not name. No verdict that depends
//! on the order of arrival, on who handed a statement over, or on the date that a builder wrote. No unbounded growth: builders,
//! statements per builder and path, attestations per builder in number and bytes, remembered questions, all have a limit.

pub mod closure;
mod decision;
mod digests;
mod evidence;
pub mod exchange;
mod explain;
mod ledger;
mod mutation;
mod policy;
pub mod reconcile;
mod report;
mod verdict;
pub mod wire;

pub use decision::{Decision, Grounds, Preference, Refusal};
pub use evidence::{Evidence, Facts, FingerprintDigest, NameDigest, WallMs};
pub use ledger::{
    ASKED_MAX, BUILDERS_MAX, Evicted, Insertion, Ledger, LedgerLimits, Pin, SERVED_MAX, STATEMENTS_PER_PATH_MAX,
    Served, Tally, Vote,
};
#[cfg(feature = "mutants")]
pub use mutation::{MUTATIONS, Mutation, mutate};
pub use policy::{Builder, Mode, Override, Policy, PolicyError, PolicyRules, PolicyWarning, Require, Revocation};
pub use report::{
    FingerprintReport, Held, Link, NotCounted, PathReport, Report, ReportHead, ReportPart, ReportScope, Totals,
    TurnedReport, VoidVote, no_longer_agreed,
};
pub use verdict::{Attested, Standing, State, Uncounted, Verdict};
