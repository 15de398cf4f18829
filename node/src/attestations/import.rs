//! Reads attestations from a text file, and verifies them on all cores.

use super::ledger::{LedgerDbError, LiveLedger, StoredStatement};
use super::now;
use super::verification::{on_all_cores, verify_attestation};
use narmesh_protocol::{StoreDir, attestation_file};
use narmesh_quorum::{Policy, VerifiedStatement};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, Read as _};

/// How many lines are verified at a time, and written in one transaction.
const BATCH_LINES: usize = 8_192;
/// A batch is also full when its lines have this many bytes together: the longest lines are 2 MiB each.
const BATCH_BYTES: usize = 16 << 20;
/// How many errors are shown; the others are only counted.
const ERRORS_SHOWN_MAX: usize = 10;

/// What became of the attestations in a file.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Imported {
    /// Attestations in the file; comments are not counted.
    pub lines: usize,
    /// Attestations that are new in the ledger.
    pub new: usize,
    /// Attestations by keys that belong to no builder configured here. They are not kept.
    pub strangers: usize,
    /// Attestations of which both signatures verify.
    pub verified: usize,
    /// Lines that are malformed, or whose signatures do not verify.
    pub bad: usize,
    /// The first bad lines: what is wrong with each, with its number.
    pub errors: Vec<String>,
}

/// Why a file was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be read, or `progress` returned an error.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The first line is not that of an attestation file.
    #[error("line 1: {0}")]
    Header(#[from] attestation_file::LineError),
    /// The file is about another store directory.
    #[error("line 1: these are attestations of {found}, but the store directory here is {ours}")]
    StoreDir {
        /// The store directory of the file.
        found: String,
        /// Our store directory.
        ours: String,
    },
    /// Storing failed.
    #[error(transparent)]
    Db(#[from] LedgerDbError),
}

/// Reads a file batch by batch. Each batch is verified on all cores and given to `take` in the order of the lines;
/// `take` returns how many were new.
///
/// With a `policy`, only attestations by its builders are verified and taken. `progress` is called with the number of
/// lines so far; its first error ends the reading.
pub fn read_file(
    mut reader: impl BufRead,
    store_dir: Option<&StoreDir>,
    policy: Option<&Policy>,
    mut progress: impl FnMut(usize) -> io::Result<()>,
    mut take: impl FnMut(&[(StoredStatement, VerifiedStatement)]) -> Result<usize, LedgerDbError>,
) -> Result<Imported, ImportError> {
    let mut line = Vec::new();
    // The first line names the store directory, without which no fingerprint can be computed.
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
        // Bounded in bytes as well: a line may have 2 MiB.
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
                    // A file of garbage must not become a report of as many lines.
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

/// Imports the attestations by builders of the ledger's policy.
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
    /// A comment or an empty line.
    Nothing,
    /// An attestation by a key that belongs to no builder of the policy.
    Stranger,
    /// An attestation of which both signatures verify.
    Verified(Box<(StoredStatement, VerifiedStatement)>),
    /// The number of the line, and what is wrong with it.
    Bad(usize, String),
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
    // Before the signatures are verified: a file may hold many attestations that do not count here.
    if policy.is_some_and(|policy| !policy.knows(&attestation.builder)) {
        return Judged::Stranger;
    }
    match verify_attestation(store_dir, &key, &attestation) {
        Some(verified) => Judged::Verified(Box::new((StoredStatement { key, attestation }, verified))),
        None => Judged::Bad(
            number,
            format!("the signatures of {} over {} do not verify", key.name(), attestation.statement.path),
        ),
    }
}

/// Reads one line, including the line feed, of bounded length. False at the end of the file.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let bytes = reader.take(attestation_file::LINE_BYTES_MAX as u64 + 2).read_until(b'\n', line)?;
    if bytes > attestation_file::LINE_BYTES_MAX + 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is longer than 2 MiB: not an attestation file"));
    }
    Ok(bytes > 0)
}
