//! Whether a builder said what stands under its name: the signatures of attestations and of bare statements.

use super::ledger::{BareSignature, StoredStatement, on_disk_bytes};
use narmesh_protocol::{Attestation, NixPublicKey, NixSignature, Statement, StoreDir};
use narmesh_quorum::VerifiedStatement;
use std::num::NonZeroUsize;
use std::thread;

/// For fewer items another thread costs more than it saves.
const ITEMS_PER_THREAD_MIN: usize = 16;

/// The statement of an attestation, if both of its signatures are by `key`.
pub(super) fn verify_attestation(
    store_dir: &StoreDir,
    key: &NixPublicKey,
    attestation: &Attestation,
) -> Option<VerifiedStatement> {
    VerifiedStatement::attestation(store_dir, attestation, key, on_disk_bytes(&attestation.statement))
}

/// `statement` with its bare signature, if that is by `key`.
pub(super) fn verify_bare(
    store_dir: &StoreDir,
    key: &NixPublicKey,
    statement: &Statement,
    signature: &NixSignature,
) -> Option<(BareSignature, VerifiedStatement)> {
    let bytes = on_disk_bytes(statement);
    let verified = VerifiedStatement::bare_signature(store_dir, statement, signature, key, bytes)?;
    let bare = BareSignature { key: key.clone(), statement: statement.clone(), signature: signature.bytes };
    Some((bare, verified))
}

/// Those attestations of which both signatures are by `key`, in their order.
pub(super) fn verify_all(
    store_dir: &StoreDir,
    attestations: Vec<(NixPublicKey, Attestation)>,
) -> Vec<(StoredStatement, VerifiedStatement)> {
    let statements = on_all_cores(&attestations, |(key, attestation)| verify_attestation(store_dir, key, attestation));
    let judged = attestations.into_iter().zip(statements);
    judged
        .filter_map(|((key, attestation), verified)| Some((StoredStatement { key, attestation }, verified?)))
        .collect()
}

/// Does `work` for each item on all cores; the results are in the order of the items.
pub(super) fn on_all_cores<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let chunk = items.len().div_ceil(threads).max(ITEMS_PER_THREAD_MIN);
    let (work, mut chunks) = (&work, items.chunks(chunk));
    // This thread takes the first part itself, so that a small batch needs no other one.
    let first = chunks.next().unwrap_or_default();
    thread::scope(|scope| {
        let others: Vec<_> =
            chunks.map(|items| scope.spawn(move || items.iter().map(work).collect::<Vec<_>>())).collect();
        let mut done: Vec<R> = first.iter().map(work).collect();
        done.extend(others.into_iter().flat_map(|other| other.join().expect("verifying does not panic")));
        done
    })
}
