//! One builder: its keys, and what it has taken in.

use super::judge::Stored;
use crate::cores::quorum::exchange::{Exchange, Moment};
use crate::cores::quorum::{Ledger, LedgerLimits};
use crate::draw::Draw;
use libp2p_identity::{Keypair, PeerId};
use narmesh_protocol::{Attestation, BuilderKey, HashPart, NixPublicKey, NixSecretKey, StoreDir, StorePath};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

pub(super) type Number = usize;

pub(super) struct Machine {
    pub(super) peer: PeerId,
    pub(super) secret: NixSecretKey,
    pub(super) public: NixPublicKey,
    pub(super) ledger: Ledger,
    pub(super) exchange: Exchange,
    pub(super) kept: BTreeMap<(BuilderKey, HashPart), Vec<Attestation>>,
    pub(super) taken_in: BTreeMap<StorePath, Vec<Stored>>,
    /// Whether it is in the far half of a cut network.
    pub(super) far: bool,
    pub(super) tick_ms: Option<u64>,
}

impl Machine {
    pub(super) fn new(draw: &mut Draw) -> Self {
        let node = Keypair::ed25519_from_bytes(draw.seed()).expect("32 bytes are a key");
        let secret = NixSecretKey::from_seed("builder-1", &draw.seed()).expect("a name and 32 bytes are a key");
        Self {
            peer: node.public().to_peer_id(),
            public: secret.public(),
            secret,
            ledger: Ledger::new(LedgerLimits::default()),
            exchange: Exchange::new(Moment(0), draw.seed()),
            kept: BTreeMap::new(),
            taken_in: BTreeMap::new(),
            far: false,
            tick_ms: None,
        }
    }
}

pub(super) fn store_dir() -> StoreDir {
    StoreDir::parse("/nix/store").expect("a store directory")
}

/// The store path with this number. Its place in the tree that ledgers are compared by is random, as for real paths, but
/// the first `clustered` paths have hash parts that begin with the same 32 bits.
pub(super) fn path(number: u32, clustered: u32) -> StorePath {
    let digest: [u8; 32] = Sha256::digest(number.to_le_bytes()).into();
    let mut hash_part = *digest.first_chunk::<20>().expect("32 bytes hold 20");
    if number < clustered {
        // The text of a hash part begins with the last byte.
        hash_part.iter_mut().rev().take(4).for_each(|byte| *byte = 0);
    }
    StorePath::new(HashPart(hash_part), "built").expect("a name")
}
