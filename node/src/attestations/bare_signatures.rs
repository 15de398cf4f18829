//! Bare Nix signatures of builders that, as the operator says, sign nothing but their own builds
//! (`signs_only_own_builds`).
//!
//! They need no protocol of their own: whoever has a path has its signatures, and every narinfo carries them. So they
//! are taken from the narinfos of peers, whoever sends them, and from our own store, where a substitution from the
//! builder's cache left them. Each is verified strictly by itself; signatures of other keys are not looked at.

use super::ledger::{BareSignature, LedgerDbError, LiveLedger};
use super::members::{read_rows, statement_of};
use super::now;
use super::verification::verify_bare;
use narmesh_protocol::{BuilderKey, HashPart, NixPublicKey, NixSignature, Statement};
use narmesh_quorum::{FingerprintDigest, VerifiedStatement};
use narmesh_store::{NixStore, StoreError};

/// How many signatures are stored in one transaction.
const BATCH: usize = 1_000;

/// Takes such signatures from our own store.
#[derive(Debug)]
pub struct StoreSignatures<'a> {
    /// The store.
    pub store: &'a NixStore,
    /// The ledger that takes the signatures.
    pub ledger: &'a LiveLedger,
    /// The keys of builders that sign only their own builds.
    pub signers: &'a [NixPublicKey],
}

/// What became of the signatures.
#[derive(Debug, Default)]
pub struct TakenSignatures {
    /// How many are new in the ledger.
    pub new: usize,
    /// Paths whose rows cannot be read, and why. The signatures of the others are taken all the same.
    pub unread: Vec<(HashPart, StoreError)>,
}

impl StoreSignatures<'_> {
    /// Takes those signatures of `hash_parts` that are not in the ledger yet. Blocks on the disk.
    pub fn take(&self, hash_parts: impl IntoIterator<Item = HashPart>) -> Result<TakenSignatures, LedgerDbError> {
        let (mut taken, mut batch, mut unread) = (TakenSignatures::default(), Vec::new(), Vec::new());
        for info in read_rows(self.store, hash_parts, &mut unread) {
            // A content-addressed path needs no builder's word. A row of a very old Nix has no NarSize, so no
            // fingerprint.
            if !info.is_certified_by_content(self.store.store_dir()) && info.nar_size > 0 {
                batch.extend(find_unheard_signatures(
                    self.ledger,
                    self.signers,
                    &statement_of(&info),
                    &info.signatures,
                ));
            }
            if batch.len() >= BATCH {
                taken.new += self.ledger.take_bare(&batch, now())?.new;
                batch.clear();
            }
        }
        taken.new += self.ledger.take_bare(&batch, now())?.new;
        taken.unread = unread;
        Ok(taken)
    }
}

/// Those of `signatures` that one of `signers` made over `statement` and that are not in the ledger yet, at most one of
/// each signer. Works from memory; signatures that are already known are not verified again.
pub fn find_unheard_signatures(
    ledger: &LiveLedger,
    signers: &[NixPublicKey],
    statement: &Statement,
    signatures: &[NixSignature],
) -> Vec<(BareSignature, VerifiedStatement)> {
    // By name first, which costs nothing: most paths are signed by none of these keys.
    let named = |key: &&NixPublicKey| signatures.iter().any(|signature| signature.key_name == key.name());
    let mut named = signers.iter().filter(named).peekable();
    if named.peek().is_none() {
        return Vec::new();
    }
    let fingerprint = FingerprintDigest::of(ledger.store_dir(), statement);
    let is_known = |key: &NixPublicKey| {
        let builder = BuilderKey(key.bytes());
        let said = |ledger: &narmesh_quorum::Ledger| {
            ledger
                .votes(&statement.path.hash_part())
                .any(|vote| vote.builder == builder && vote.claim.fingerprint == fingerprint)
        };
        ledger.read(said)
    };
    let verified = |key: &NixPublicKey| {
        signatures.iter().find_map(|signature| verify_bare(ledger.store_dir(), key, statement, signature))
    };
    // A signature that is in the ledger was verified when it came.
    named.filter(|key| !is_known(key)).filter_map(verified).collect()
}
