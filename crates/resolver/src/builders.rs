//! What builders say of paths, as the resolver needs to know it: the ledger of attestations with its policy.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use narmesh_protocol::{BuilderKey, HashPart, NarInfo, NixPublicKey, NixSignature};
use narmesh_quorum::{FingerprintDigest, Ledger, Policy, Served};
use tokio::time::Instant;

/// Signatures of builders over one fingerprint, or why they cannot be read.
pub type KnownSignatures = Result<Vec<(BuilderKey, NixSignature)>, String>;

/// The ledger, and the way to those who may know more.
pub trait Builders: Send + Sync + 'static {
    /// The policy in force.
    fn policy(&self) -> Arc<Policy>;

    /// Grows with each change of the ledger or of the policy.
    fn generation(&self) -> u64;

    /// Shows the ledger to `look`, which must not wait.
    fn read(&self, look: &mut dyn FnMut(&Ledger));

    /// What builders signed. Reads the disk.
    fn signatures(&self, of: FingerprintDigest) -> KnownSignatures;

    /// Our Nix asks for this path: what is attested of it is kept.
    fn note_asked(&self, part: HashPart);

    /// Our Nix gets this on the word of builders.
    fn note_served(&self, served: Served);

    /// Takes what `signers` say by the signatures of this narinfo, waiting for the disk until `deadline` at most.
    fn hear_signatures(&self, signers: &[NixPublicKey], info: &NarInfo, deadline: Instant) -> BoxFuture<'static, ()>;

    /// Asks others what builders attest of a path until `enough` is content, all have answered or `deadline` has come.
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
