//! Tests of the whole resolver, and what tests of its parts share.

mod lookups;

use std::sync::Arc;

use futures::future::BoxFuture;
use narmesh_protocol::{HashPart, NarInfo, NixPublicKey};
use narmesh_quorum::{FingerprintDigest, Ledger, Policy, PolicyRules, Served};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::answer_store::{AnswerChange, AnswerStore, RememberedAnswer};
use crate::builders::{Builders, KnownSignatures};

/// Nobody attests anything, and nothing is kept on disk.
#[derive(Debug)]
pub(crate) struct Nothing {
    policy: Arc<Policy>,
    /// Until when it might have heard the signatures of each narinfo.
    pub(crate) deadlines: Mutex<Vec<Instant>>,
}

impl Default for Nothing {
    fn default() -> Self {
        Self { policy: Arc::new(Policy::new(PolicyRules::default()).unwrap().0), deadlines: Mutex::default() }
    }
}

impl Builders for Nothing {
    fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy)
    }

    fn revision(&self) -> u64 {
        0
    }

    fn read(&self, look: &mut dyn FnMut(&Ledger)) {
        look(&Ledger::default());
    }

    fn read_signatures(&self, _: FingerprintDigest) -> KnownSignatures {
        Ok(Vec::new())
    }

    fn note_asked(&self, _: HashPart) {}

    fn note_served(&self, _: Served) {}

    fn hear_signatures(&self, _: &[NixPublicKey], _: &NarInfo, deadline: Instant) -> BoxFuture<'static, ()> {
        self.deadlines.lock().push(deadline);
        Box::pin(std::future::ready(()))
    }

    fn ask<'a>(&'a self, _: HashPart, _: Instant, _: Box<dyn Fn() -> bool + Send + Sync + 'a>) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl AnswerStore for Nothing {
    fn read_answer(&self, _: &HashPart) -> Result<Option<RememberedAnswer>, String> {
        Ok(None)
    }

    fn update(&self, _: &[AnswerChange]) -> Result<(), String> {
        Ok(())
    }
}
