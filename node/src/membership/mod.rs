//! Meshes whose members are on a roster, which the mesh key signs: what this machine knows of its mesh, and who may join.
//!
//! Walk: [`files`] keeps roster, mesh key and invitations in the state directory; [`invitations`] says who may join;
//! [`token`] is what an inviting machine gives to another one; [`joins`] answers those who show one, [`request_file`]
//! is for those without a line to it; [`rekey`] puts
//! another mesh key in the place of one; [`removal`] keeps what says that this machine was removed; [`config_file`] writes the mesh key into the configuration.
//! Invariants: nothing counts that neither the mesh key of the configuration signed nor one that took its place; an older roster never replaces a newer
//! one; the secret of an invitation is on no disk.

pub(crate) mod config_file;
pub(crate) mod files;
pub(crate) mod invitations;
pub(crate) mod joins;
pub(crate) mod rekey;
mod removal;
pub(crate) mod request_file;
pub(crate) mod token;
