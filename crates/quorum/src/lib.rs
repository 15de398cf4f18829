//! Which builders say the same about a store path, and what follows from it: a core without a clock, a socket or a file.
//!
//! **Purpose.** A signature says who signed, not that the bytes are what the source builds to. This crate collects the
//! statements of several builders ([`Ledger`]), compares them under the operator's rules ([`Policy`]) and explains the
//! result ([`Report`]).
//!
//! **Contract.** All input has been verified ([`VerifiedStatement`] has no other constructor but the one for our own database), and
//! every result is a function of its arguments: time is passed in as [`WallMs`]. `docs/quorum.md` has the rules in words,
//! each with its test.
//!
//! **Walk.** [`VerifiedStatement`] -> [`Ledger::insert`] -> [`Policy::judge`] -> [`Verdict`] (one path) or [`closure`] (a path and
//! all that it needs) -> [`Policy::decide`] (may it be substituted?) and [`Report`]. Beside it, [`reconcile`] finds what
//! two ledgers do not share, at a cost that grows with the difference; [`exchange`] decides when and with whom, and
//! [`wire`] how.
//!
//! **Invariants.** No builder has a vote unless the ledger's owner named its key. No verdict depends on the order of
//! arrival, on who handed a statement over, or on the date that a builder wrote. Nothing grows without bound:
//! builders, statements per builder and path, attestations per builder in number and bytes, and remembered questions
//! all have a limit.

pub mod closure;
mod digests;
pub mod exchange;
mod explain;
mod hash_tree;
mod ledger;
mod policy;
pub mod reconcile;
mod report;
mod ruling;
mod statement;
mod verdict;
pub mod wire;

pub use ledger::{
    ASKED_MAX, BUILDERS_MAX, Evicted, Insertion, Ledger, LedgerLimits, PINNED_BYTES_EACH, Pin, SERVED_MAX,
    STATEMENTS_PER_PATH_MAX, Served, Tally, Vote,
};
pub use policy::{Builder, Mode, Override, Policy, PolicyError, PolicyRules, PolicyWarning, Require, Revocation};
pub use report::{
    FingerprintReport, Held, Link, NotCounted, PathReport, Report, ReportHead, ReportPart, ReportScope, Totals,
    TurnedReport, VoidVote, find_no_longer_agreed,
};
pub use ruling::{Grounds, Preference, Refusal, Ruling};
pub use statement::{Claim, FingerprintDigest, NameDigest, VerifiedStatement, WallMs};
pub use verdict::{Attested, Ballot, State, Uncounted, Verdict};
