//! The filters of all peers.

pub(crate) mod latest;
pub(crate) mod matrix;
pub(crate) mod reader;
pub(crate) mod sliced;
pub(crate) mod writer;
