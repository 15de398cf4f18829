//! What Nix will ask for next is got ready before it asks: narinfos of what a path refers to, then NARs in the order of a copy.
//!
//! Only what verified leads on, so no peer chooses what is fetched here.

mod copy_order;
mod narinfos;
mod nars;

pub(super) use narinfos::NarInfosAhead;
pub(super) use nars::NarsAhead;
