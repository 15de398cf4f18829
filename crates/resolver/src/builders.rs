//! What builders say of paths, as far as the resolver needs it: the ledger of attestations and its policy.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use narmesh_protocol::{BuilderKey, HashPart, NarInfo, NixPublicKey, NixSignature};
use narmesh_quorum::{FingerprintDigest, Ledger, Policy, Served};
use tokio::time::Instant;

/// The signatures of builders over one fingerprint, or why they cannot be read.
pub type KnownSignatures = Result<Vec<(BuilderKey, NixSignature)>, String>;

/// The ledger, and a way to ask peers for more attestations.
pub trait Builders: Send + Sync + 'static {
    /// The policy in force.
    fn policy(&self) -> Arc<Policy>;

    /// A number that grows with each change of the ledger or of the policy.
    fn revision(&self) -> u64;

    /// Calls `look` with the ledger; it must not wait.
    fn read(&self, look: &mut dyn FnMut(&Ledger));

    /// The signatures of builders over this fingerprint. Reads the disk.
    fn read_signatures(&self, of: FingerprintDigest) -> KnownSignatures;

    /// Notes that our Nix asks for this path, so that attestations of it are kept.
    fn note_asked(&self, part: HashPart);

    /// Notes that our Nix gets this on the word of builders.
    fn note_served(&self, served: Served);

    /// Takes the signatures of `signers` in this narinfo as their statements. Waits for the disk until `deadline` at
    /// most.
    fn hear_signatures(&self, signers: &[NixPublicKey], info: &NarInfo, deadline: Instant) -> BoxFuture<'static, ()>;

    /// Asks peers what builders attest of a path, until `enough` returns true, all have answered or `deadline` has
    /// come.
    fn ask<'a>(
        &'a self,
        part: HashPart,
        deadline: Instant,
        enough: Box<dyn Fn() -> bool + Send + Sync + 'a>,
    ) -> BoxFuture<'a, ()>;
}

impl fmt::Debug for dyn Builders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Builders")
    }
}
