//! The summaries of peers, kept beside the database: one file for each owner in `summaries/`, named after its PeerId.
//!
//! A file proves itself: it holds the signed announcement and the body, whose digest the announcement names. So only
//! sizes are checked here, and a torn or changed file is no worse than none. That is why summaries are not in
//! `state.sqlite`: all its pages are read and checked at each start, and its log would make each body be written twice.
//! Nothing is synced: what a power failure takes is pulled again.

use crate::database_file::make_directory;
use crate::regular_file::{Lies, clear, open, open_to_read, tell_moved};
use crate::state_files::SUMMARIES_DIR;
use libp2p::PeerId;
use narmesh_gossip::KeptSummary;
use narmesh_mesh::SummaryStore;
use narmesh_protocol::Summary;
use std::collections::BTreeMap;
use std::fs::{self, DirEntry, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// The most bytes that all files may have together: a thousand summaries of 100,000 paths. What is beyond it is not
/// kept.
const TOTAL_BYTES_MAX: u64 = 256 << 20;
/// The first bytes of each file. Another layout gets another number.
const MAGIC: &[u8; 8] = b"narmsum1";
/// Size of the head: magic, time of acceptance, length of the envelope, and the envelope of at most 1,000 bytes. The
/// body follows at this fixed place, so that the head can be replaced alone.
const HEAD_BYTES: usize = 1_024;
/// Where the envelope begins: the number of bytes before it.
const ENVELOPE_AT: usize = 18;
/// The suffix of a file that is being written.
const UNFINISHED: &str = ".new";

/// The directory of summaries of one daemon, which holds the lock of the state directory. Methods block.
#[derive(Debug)]
pub struct SummaryFiles {
    dir: PathBuf,
    /// The size of each owner's file, bytes.
    sizes: BTreeMap<PeerId, u64>,
    total_bytes_max: u64,
}

impl SummaryFiles {
    /// Opens `summaries/` in the state directory, which is made if missing. Removes files that were being written when
    /// a daemon died. What it cannot use there it leaves out, and logs how much.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        Self::open_bounded(state_dir, TOTAL_BYTES_MAX)
    }

    pub(super) fn open_bounded(state_dir: &Path, total_bytes_max: u64) -> io::Result<Self> {
        let dir = state_dir.join(SUMMARIES_DIR);
        match Lies::at(&dir)? {
            Lies::Nothing | Lies::Directory => {}
            // Whatever stands in the way is moved aside, because a missing gateway would fail builds.
            Lies::File => tell_moved(&dir, "a file")?,
            Lies::Other(what) => tell_moved(&dir, what)?,
        }
        make_directory(&dir)?;
        let mut sizes = BTreeMap::new();
        let (mut left_out, mut why) = (0_u64, None);
        for entry in fs::read_dir(&dir)? {
            match entry.and_then(|entry| look_at(&entry)) {
                Ok(found) => sizes.extend(found),
                // The summaries of all others are as good as before.
                Err(error) => (left_out, why) = (left_out + 1, Some(error)),
            }
        }
        if let Some(error) = why {
            tracing::warn!(left_out, %error, "some kept summaries cannot be used: {}", dir.display());
        }
        Ok(Self { dir, sizes, total_bytes_max })
    }

    fn file(&self, owner: &PeerId) -> PathBuf {
        self.dir.join(owner.to_string())
    }
}

impl SummaryStore for SummaryFiles {
    fn owners(&self) -> Vec<PeerId> {
        self.sizes.keys().copied().collect()
    }

    fn read(&self, owner: &PeerId) -> io::Result<KeptSummary> {
        let mut file = open_to_read(&self.file(owner))?;
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        // Before memory is taken for the body: somebody may have put a file of any size there.
        let body_bytes = length.checked_sub(HEAD_BYTES).filter(|bytes| *bytes <= Summary::BYTES_MAX);
        let body_bytes = body_bytes.ok_or_else(|| invalid("its size"))?;
        let mut head = [0; HEAD_BYTES];
        file.read_exact(&mut head)?;
        let (accepted_ms, envelope) = parse_head(&head).ok_or_else(|| invalid("its head"))?;
        let mut body = vec![0; body_bytes];
        file.read_exact(&mut body)?;
        Ok(KeptSummary { envelope, accepted_ms, body })
    }

    fn write(&mut self, owner: &PeerId, kept: &KeptSummary) -> io::Result<bool> {
        let size = (HEAD_BYTES + kept.body.len()) as u64;
        let others: u64 = self.sizes.iter().filter(|(other, _)| *other != owner).map(|(_, size)| size).sum();
        if others + size > self.total_bytes_max {
            self.remove(owner)?;
            return Ok(false);
        }
        let (file, unfinished) = (self.file(owner), self.dir.join(format!("{owner}{UNFINISHED}")));
        let mut bytes = head(&kept.envelope, kept.accepted_ms)?.to_vec();
        bytes.extend_from_slice(&kept.body);
        let replace = || {
            // Somebody may have deleted it under the running daemon.
            make_directory(&self.dir)?;
            let mut new = open(&unfinished, OpenOptions::new().write(true).create(true).truncate(true))?;
            new.write_all(&bytes)?;
            fs::rename(&unfinished, &file)
        };
        if let Err(error) = replace() {
            // The previous summary is no longer the one announced last, and `renew` must not take it for that.
            self.remove(owner)?;
            return Err(error);
        }
        self.sizes.insert(*owner, size);
        Ok(true)
    }

    fn renew(&mut self, owner: &PeerId, envelope: &[u8], accepted_ms: u64) -> io::Result<()> {
        if !self.sizes.contains_key(owner) {
            return Ok(());
        }
        match open(&self.file(owner), OpenOptions::new().write(true)) {
            Ok(file) => file.write_all_at(&head(envelope, accepted_ms)?, 0),
            // Somebody deleted it, which is allowed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn remove(&mut self, owner: &PeerId) -> io::Result<()> {
        if self.sizes.remove(owner).is_none() {
            return Ok(());
        }
        // Somebody may have deleted it, which is allowed.
        clear(&self.file(owner))
    }
}

/// The owner of the summary in a file, and its size. Removes a file that was being written.
fn look_at(entry: &DirEntry) -> io::Result<Option<(PeerId, u64)>> {
    let name = entry.file_name();
    let name = name.to_str().unwrap_or_default();
    // A process was killed while it wrote this.
    if name.ends_with(UNFINISHED) {
        return clear(&entry.path()).map(|()| None);
    }
    let Ok(owner) = name.parse() else { return Ok(None) };
    Ok(Some((owner, entry.metadata()?.len())))
}

fn head(envelope: &[u8], accepted_ms: u64) -> io::Result<[u8; HEAD_BYTES]> {
    let length = u16::try_from(envelope.len()).map_err(|_| invalid("its envelope"))?;
    let parts: [&[u8]; 4] = [MAGIC, &accepted_ms.to_le_bytes(), &length.to_le_bytes(), envelope];
    let mut head = [0; HEAD_BYTES];
    let mut free = head.as_mut_slice();
    for part in parts {
        let (place, rest) = free.split_at_mut_checked(part.len()).ok_or_else(|| invalid("its envelope"))?;
        place.copy_from_slice(part);
        free = rest;
    }
    Ok(head)
}

fn parse_head(head: &[u8; HEAD_BYTES]) -> Option<(u64, Vec<u8>)> {
    let (magic, rest) = head.split_first_chunk::<8>()?;
    let (accepted_ms, rest) = rest.split_first_chunk::<8>()?;
    let (length, _) = rest.split_first_chunk::<2>()?;
    let envelope = head.get(ENVELOPE_AT..ENVELOPE_AT + usize::from(u16::from_le_bytes(*length)))?;
    (magic == MAGIC).then(|| (u64::from_le_bytes(*accepted_ms), envelope.to_vec()))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is not that of a kept summary"))
}
