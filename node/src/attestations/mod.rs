//! Attestations on their way between this node and its peers.

pub(crate) mod exchange;
