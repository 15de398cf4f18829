//! The cores that run here: those of the daemon. With the feature `mutants` they are copies, which `build.rs` makes, with a
//! switch at each place where one of the mutants differs.

#[cfg(not(feature = "mutants"))]
pub(crate) use {narmesh_gossip as gossip, narmesh_quorum as quorum, narmesh_roster as roster};

#[cfg(feature = "mutants")]
#[expect(dead_code, unused_imports, unreachable_pub, reason = "a crate became a module, of which a part is used")]
#[expect(
    unused_parens,
    clippy::double_parens,
    clippy::module_inception,
    clippy::overly_complex_bool_expr,
    clippy::unused_unit,
    reason = "switches stand around what was there, and mutants are wrong on purpose"
)]
pub(crate) mod gossip {
    include!(concat!(env!("OUT_DIR"), "/gossip/lib.rs"));
}

#[cfg(feature = "mutants")]
#[expect(dead_code, unused_imports, unreachable_pub, reason = "a crate became a module, of which a part is used")]
#[expect(unused_parens, reason = "switches stand around what was there")]
pub(crate) mod quorum {
    include!(concat!(env!("OUT_DIR"), "/quorum/lib.rs"));
}

#[cfg(feature = "mutants")]
#[expect(dead_code, unused_imports, unreachable_pub, reason = "a crate became a module, of which a part is used")]
#[expect(unused_parens, reason = "switches stand around what was there")]
pub(crate) mod roster {
    include!(concat!(env!("OUT_DIR"), "/roster/lib.rs"));
}
