//! Attestations out of a text file, verified on all cores.

use super::db::{LedgerDbError, StoredStatement, on_disk_bytes};
use super::live::LiveLedger;
use super::now;
use narmesh_protocol::{Attestation, NixPublicKey, StoreDir, attestation_file};
use narmesh_quorum::{Policy, VerifiedStatement};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, Read as _};
use std::num::NonZeroUsize;
use std::thread;

/// Lines verified at a time, and written in one transaction.
const BATCH_LINES: usize = 8_192;
/// Bytes of them at which a batch is full: the longest lines are 2 MiB each.
const BATCH_BYTES: usize = 16 << 20;
/// A thread for fewer costs more than it brings.
const ITEMS_PER_THREAD_MIN: usize = 16;
/// Errors that are shown; the others are counted.
const ERRORS_SHOWN_MAX: usize = 10;

/// What became of a file.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Imported {
    /// Attestations in it, comments not counted.
    pub lines: usize,
    /// New here.
    pub new: usize,
    /// By keys that are no builder's here; nothing of them is kept.
    pub strangers: usize,
    /// Both signatures verify.
    pub verified: usize,
    /// Lines that are malformed, or whose signatures do not verify.
    pub bad: usize,
    /// The first of them, in words, with their numbers.
    pub errors: Vec<String>,
}

/// Why a file is not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Its first line.
    #[error("line 1: {0}")]
    Header(#[from] attestation_file::LineError),
    /// It is about another store directory.
    #[error("line 1: attestations of {found}, the store directory here is {ours}")]
    StoreDir {
        /// Its.
        found: String,
        /// Ours.
        ours: String,
    },
    /// Storing failed.
    #[error(transparent)]
    Db(#[from] LedgerDbError),
}

/// Reads a file batch by batch; each is verified on all cores and handed on in order.
///
/// With a `policy` only its builders' lines are verified and handed on. `progress` hears the number of lines so far, and
/// ends it with an error.
pub fn read_file(
    mut reader: impl BufRead,
    store_dir: Option<&StoreDir>,
    policy: Option<&Policy>,
    mut progress: impl FnMut(usize) -> io::Result<()>,
    mut take: impl FnMut(&[(StoredStatement, VerifiedStatement)]) -> Result<usize, LedgerDbError>,
) -> Result<Imported, ImportError> {
    let mut line = Vec::new();
    read_line(&mut reader, &mut line)?;
    let header = str::from_utf8(&line).map_err(|_| attestation_file::LineError::Header)?;
    let found = attestation_file::parse_header(header.trim_end_matches('\n'))?;
    if let Some(ours) = store_dir.filter(|ours| **ours != found) {
        return Err(ImportError::StoreDir { found: found.as_str().to_owned(), ours: ours.as_str().to_owned() });
    }
    let mut result = Imported::default();
    let mut number = 1;
    loop {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH_LINES && bytes < BATCH_BYTES && read_line(&mut reader, &mut line)? {
            number += 1;
            bytes += line.len();
            batch.push((number, std::mem::take(&mut line)));
        }
        if batch.is_empty() {
            return Ok(result);
        }
        let judged = on_all_cores(&batch, |(number, line)| judge(&found, policy, *number, line));
        let mut verified = Vec::with_capacity(judged.iter().filter(|it| matches!(it, Judged::Verified(_))).count());
        for judged in judged {
            match judged {
                Judged::Nothing => continue,
                Judged::Stranger => result.strangers += 1,
                Judged::Verified(verdict) => verified.push(*verdict),
                Judged::Bad(number, why) => {
                    result.bad += 1;
                    if result.errors.len() < ERRORS_SHOWN_MAX {
                        result.errors.push(format!("line {number}: {why}"));
                    }
                }
            }
            result.lines += 1;
        }
        result.verified += verified.len();
        result.new += take(&verified)?;
        progress(number)?;
    }
}

/// Imports what the builders of the ledger's policy attest.
pub fn import(
    reader: impl BufRead,
    ledger: &LiveLedger,
    progress: impl FnMut(usize) -> io::Result<()>,
) -> Result<Imported, ImportError> {
    let (at, policy) = (now(), ledger.policy());
    let take = |verified: &[_]| Ok(ledger.take(verified, at)?.new);
    read_file(reader, Some(ledger.store_dir()), Some(&policy), progress, take)
}

enum Judged {
    Nothing,
    Stranger,
    Verified(Box<(StoredStatement, VerifiedStatement)>),
    Bad(usize, String),
}

/// Those of which `key` made both signatures, in their order.
pub fn verify(
    store_dir: &StoreDir,
    attestations: Vec<(NixPublicKey, Attestation)>,
) -> Vec<(StoredStatement, VerifiedStatement)> {
    let evidence = on_all_cores(&attestations, |(key, attestation)| evidence(store_dir, key, attestation));
    let verified = attestations.into_iter().zip(evidence);
    verified
        .filter_map(|((key, attestation), evidence)| Some((StoredStatement { key, attestation }, evidence?)))
        .collect()
}

/// In the order of the items.
fn on_all_cores<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let chunk = items.len().div_ceil(threads).max(ITEMS_PER_THREAD_MIN);
    let (work, mut chunks) = (&work, items.chunks(chunk));
    let first = chunks.next().unwrap_or_default();
    thread::scope(|scope| {
        let others: Vec<_> =
            chunks.map(|items| scope.spawn(move || items.iter().map(work).collect::<Vec<_>>())).collect();
        let mut done: Vec<R> = first.iter().map(work).collect();
        done.extend(others.into_iter().flat_map(|other| other.join().expect("verifying does not panic")));
        done
    })
}

fn evidence(store_dir: &StoreDir, key: &NixPublicKey, attestation: &Attestation) -> Option<VerifiedStatement> {
    let references_bytes: usize = attestation.statement.references.iter().map(|path| 34 + path.name().len()).sum();
    VerifiedStatement::attestation(store_dir, attestation, key, on_disk_bytes(references_bytes))
}

fn judge(store_dir: &StoreDir, policy: Option<&Policy>, number: usize, line: &[u8]) -> Judged {
    let Ok(line) = str::from_utf8(line) else {
        return Judged::Bad(number, "expected text in UTF-8".to_owned());
    };
    let (key, attestation) = match attestation_file::parse_line(store_dir, line.trim_end_matches('\n')) {
        Ok(None) => return Judged::Nothing,
        Ok(Some(parsed)) => parsed,
        Err(error) => return Judged::Bad(number, error.to_string()),
    };
    if policy.is_some_and(|policy| !policy.knows(&attestation.builder)) {
        return Judged::Stranger;
    }
    match evidence(store_dir, &key, &attestation) {
        Some(evidence) => Judged::Verified(Box::new((StoredStatement { key, attestation }, evidence))),
        None => Judged::Bad(
            number,
            format!("the signatures of {} over {} do not verify", key.name(), attestation.statement.path),
        ),
    }
}

/// Reads one line with its end, of bounded length; whether there was one.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let bytes = reader.take(attestation_file::LINE_BYTES_MAX as u64 + 2).read_until(b'\n', line)?;
    if bytes > attestation_file::LINE_BYTES_MAX + 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is longer than 2 MiB: no attestations"));
    }
    Ok(bytes > 0)
}
