//! The commands.

pub(crate) mod compare;
pub(crate) mod docs;
pub(crate) mod hostile;
pub(crate) mod mutants;
pub(crate) mod run;
pub(crate) mod swarm;
