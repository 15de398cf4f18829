//! The walk of a narinfo: memory, our own store, what is remembered, else the candidates, asked under one deadline.
//!
//! [`ask`] asks; [`trust`] and the policy at the [`gate`] decide what Nix may see; [`answers`] remembers it; [`ahead`] asks for
//! what a path refers to.

mod ahead;
mod answer_writer;
mod answers;
mod ask;
mod gate;
mod misses;
mod own;
mod trust;

pub(crate) use ahead::NarInfosAhead;
pub(crate) use answers::{Answer, Answers};
pub(crate) use ask::{Asking, NoNarInfo};
pub(crate) use gate::{Gate, leads_to};
pub use gate::{Reason, Refused};
pub(crate) use misses::Misses;
pub(crate) use own::OwnAnswers;
