//! Storage in which verified narinfos outlive the process.

use std::fmt;

use narmesh_protocol::HashPart;

use crate::source::Candidate;

/// A verified answer as it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RememberedAnswer {
    /// The text of the narinfo as it was rendered for Nix.
    pub narinfo: Vec<u8>,
    /// The sources that confirmed to hold it, newest first, with the epoch of their summaries at that time.
    pub holders: Vec<Candidate>,
    /// When it was remembered, seconds since 1970.
    pub at_unix_s: u64,
}

/// One change: an answer to remember, or `None` to forget the path.
pub type AnswerChange = (HashPart, Option<RememberedAnswer>);

/// A place on disk. Errors are texts because they are only logged; nothing depends on them.
pub trait AnswerStore: Send + Sync + 'static {
    /// What is remembered of a path.
    fn read_answer(&self, part: &HashPart) -> Result<Option<RememberedAnswer>, String>;

    /// Makes these changes in this order.
    fn update(&self, changes: &[AnswerChange]) -> Result<(), String>;
}

impl fmt::Debug for dyn AnswerStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnswerStore")
    }
}
