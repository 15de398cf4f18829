//! What the resolver knows about builders: the ledger of this process, and the peers that can be asked for more.

use super::bare_signatures::find_unheard_signatures;
use super::ledger::LiveLedger;
use super::now;
use futures::future::BoxFuture;
use narmesh_mesh::MeshHandle;
use narmesh_protocol::{HashPart, NarInfo, NixPublicKey, Statement};
use narmesh_quorum::{FingerprintDigest, Ledger, Policy, Served};
use narmesh_resolver::{Builders, KnownSignatures};
use std::sync::Arc;
use tokio::time::Instant;

/// Implements [`Builders`] for the daemon.
#[derive(Clone, Debug)]
pub(super) struct LedgerAndPeers {
    pub(super) ledger: Arc<LiveLedger>,
    pub(super) mesh: MeshHandle,
}

impl Builders for LedgerAndPeers {
    fn policy(&self) -> Arc<Policy> {
        self.ledger.policy()
    }

    fn revision(&self) -> u64 {
        self.ledger.revision()
    }

    fn read(&self, look: &mut dyn FnMut(&Ledger)) {
        self.ledger.read(look);
    }

    fn read_signatures(&self, of: FingerprintDigest) -> KnownSignatures {
        self.ledger.read_signatures(of).map_err(|error| error.to_string())
    }

    fn note_asked(&self, part: HashPart) {
        self.ledger.note_asked(part);
    }

    fn note_served(&self, served: Served) {
        self.ledger.note_served(served);
    }

    fn hear_signatures(&self, signers: &[NixPublicKey], info: &NarInfo, deadline: Instant) -> BoxFuture<'static, ()> {
        let ledger = Arc::clone(&self.ledger);
        let unheard = find_unheard_signatures(&ledger, signers, &Statement::of(info), &info.signatures);
        if unheard.is_empty() {
            return Box::pin(std::future::ready(()));
        }
        let path = info.path.clone();
        Box::pin(async move {
            // After the deadline the writing goes on, but the narinfo request waits for it no longer.
            let taken = tokio::task::spawn_blocking(move || ledger.take_bare(&unheard, now()));
            if let Ok(Ok(Err(error))) = tokio::time::timeout_at(deadline, taken).await {
                tracing::warn!(%error, store_path = %path, "a builder's signature cannot be stored");
            }
        })
    }

    fn ask<'a>(
        &'a self,
        part: HashPart,
        deadline: Instant,
        enough: Box<dyn Fn() -> bool + Send + Sync + 'a>,
    ) -> BoxFuture<'a, ()> {
        Box::pin(self.mesh.ask_builders(part, deadline.into_std(), enough))
    }
}
