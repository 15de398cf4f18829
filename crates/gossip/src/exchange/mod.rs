//! What is asked of peers, and what they are answered: syncs, and pulls of bodies.

pub(crate) mod pull;
pub(crate) mod sync;
