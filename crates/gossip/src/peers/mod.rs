//! The peers of the allowlist: what we know of each, what we hold of it, and how it has behaved.

pub(crate) mod conduct;
pub(crate) mod directory;
pub(crate) mod kept;
pub(crate) mod misdeed;
pub(crate) mod view;
