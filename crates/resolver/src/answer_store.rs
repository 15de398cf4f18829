//! Where verified narinfos outlive the process.

use std::fmt;

use narmesh_protocol::HashPart;

use crate::source::Candidate;

/// A verified answer, as it is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RememberedAnswer {
    /// Its text, as it was rendered for Nix.
    pub narinfo: Vec<u8>,
    /// Who confirmed to hold it, best first, and under which generation of its summary.
    pub holders: Vec<Candidate>,
    /// When, seconds since 1970.
    pub at_unix_s: u64,
}

/// One change: an answer to remember, or (without one) a path to forget.
pub type AnswerChange = (HashPart, Option<RememberedAnswer>);

/// A place on disk. Errors are texts: nothing is decided by them, they are logged.
pub trait AnswerStore: Send + Sync + 'static {
    /// What is remembered of a path.
    fn answer(&self, part: &HashPart) -> Result<Option<RememberedAnswer>, String>;

    /// Makes these changes, in this order.
    fn update(&self, changes: &[AnswerChange]) -> Result<(), String>;
}

impl fmt::Debug for dyn AnswerStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnswerStore")
    }
}
