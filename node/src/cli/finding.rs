//! What `check-config` finds.

/// One thing that the check found, in words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Finding {
    /// Something that the user should fix.
    Warning(String),
    /// Something that may be as intended.
    Note(String),
}
