//! The filters of all peers: written by the core, read from any thread.
//!
//! Filters of one class share a matrix once there are [`writer::SLICED_MIN`] of them; fewer are kept one by one. A reader takes a
//! view and works on that. The writer fills a column that no view shows and then publishes a new view, so nobody ever sees
//! half a filter. A column that was given up is used again only when every view that showed it is gone. A delta sets bits
//! in place, so a reader may see some of its bits before the others.

pub(crate) mod matrix;
pub(crate) mod reader;
pub(crate) mod sliced;
pub(crate) mod view;
pub(crate) mod writer;
