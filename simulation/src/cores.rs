//! The cores that run here: those of the daemon. With the feature `mutants` they are copies, which `build.rs` makes, with a
//! switch at each place where one of the mutants differs.

#[cfg(not(feature = "mutants"))]
pub(crate) use {narmesh_gossip as gossip, narmesh_quorum as quorum};

#[cfg(feature = "mutants")]
#[allow(warnings, clippy::all, reason = "the simulation uses a part of a core, and mutants are wrong on purpose")]
pub mod gossip {
    include!(concat!(env!("OUT_DIR"), "/gossip/lib.rs"));
}

#[cfg(feature = "mutants")]
#[allow(warnings, clippy::all, reason = "the simulation uses a part of a core, and mutants are wrong on purpose")]
pub mod quorum {
    include!(concat!(env!("OUT_DIR"), "/quorum/lib.rs"));
}
