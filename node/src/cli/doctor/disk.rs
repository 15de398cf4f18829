//! The file systems of the state directory and of the store: room for what is written there.

use super::Facts;
use super::report::Look;
use crate::cli::findings::{Finding, Mender, quoted};
use crate::status::text::bytes;
use rustix::fs::statvfs;
use std::fs;
use std::io;
use std::path::Path;

/// What the state directory may take beside partial copies: `summaries/` has at most 256 MiB (`docs/operations.md`, "The
/// state directory"), a `quorum.sqlite` and a `state.sqlite` little beside that.
const STATE_BYTES: u64 = 256 << 20;
/// Room for Nix to substitute into: the largest 1 % of the paths of a real store are 151 MiB and more, up to 3 GiB. How many
/// of them a build takes nobody knows, so this is a guess.
const STORE_BYTES: u64 = 1 << 30;
/// Each peer has a file in `summaries/`, and the databases have a few.
const FILES_BESIDE_PEERS: u64 = 32;

pub(super) fn look(facts: &Facts, look: &mut Look) {
    look_at_moved_aside(&facts.settings.node.state_dir, &facts.mender, look);
    let settings = &facts.settings;
    let state_dir = &settings.node.state_dir;
    if let Some(room) = room(state_dir, look) {
        let where_it_is = state_dir.display();
        let largest = facts
            .mender
            .as_root(&format!("du -xh --max-depth=2 {} | sort -h | tail", quoted(&where_it_is.to_string())));
        if room.bytes < STATE_BYTES {
            look.found(
                Finding::warning(format!(
                    "{where_it_is} (node.state_dir) has {} left, and summaries of peers alone take up to {}: once it is full, \
                     the daemon goes on without what it cannot keep",
                    bytes(room.bytes),
                    bytes(STATE_BYTES)
                ))
                .mended_by(largest),
            );
        } else if room.bytes - STATE_BYTES < settings.limits.partial_copies_bytes {
            let half = (room.bytes - STATE_BYTES) / 2;
            look.found(
                Finding::note(format!(
                    "{where_it_is} (node.state_dir) has {} left, and limits.partial_copies_bytes lets NARs on their way take {}",
                    bytes(room.bytes),
                    bytes(settings.limits.partial_copies_bytes)
                ))
                .mended_by(facts.mender.edit(&format!("partial_copies_bytes = {half} below [limits] (needs a restart)"))),
            );
        }
        // A file system may have room and no inodes.
        let files_wanted = settings.peers.len() as u64 + FILES_BESIDE_PEERS;
        if room.files.is_some_and(|files| files < files_wanted) {
            look.found(Finding::warning(format!(
                "{where_it_is} (node.state_dir) has {} inodes left, and {files_wanted} may be needed: one for each peer's \
                 summary, and those of the databases",
                room.files.unwrap_or(0)
            )));
        }
    }
    if let Some(room) = room(&settings.store.real_dir, look).filter(|room| room.bytes < STORE_BYTES) {
        look.found(
            Finding::warning(format!(
                "the store {} has {} left: what Nix fetches may not fit",
                settings.store.real_dir.display(),
                bytes(room.bytes)
            ))
            .mended_by(facts.mender.as_root("nix-collect-garbage")),
        );
    }
}

/// What the daemon moved aside; of files it keeps three.
fn look_at_moved_aside(dir: &Path, mender: &Mender, look: &mut Look) {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return look.unseen(format!("{}: {error}", dir.display())),
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut aside: Vec<_> = names.filter(|name| name.contains(".corrupt-")).collect();
    aside.sort_unstable();
    if let Some(newest) = aside.last() {
        let moved = Finding::note(format!(
            "{} files in {} could not be used and were moved aside, such as {newest}: a disk that fails, or another version of \
             narmesh",
            aside.len(),
            dir.display()
        ));
        let remove = format!("rm -r {}/*.corrupt-*", quoted(&dir.display().to_string()));
        look.found(moved.mended_by(mender.as_root(&remove)));
    }
}

struct Room {
    bytes: u64,
    /// `None` if the file system makes inodes as it needs them.
    files: Option<u64>,
}

fn room(dir: &Path, look: &mut Look) -> Option<Room> {
    // What does not exist yet will be where its nearest ancestor is.
    let there = dir.ancestors().find(|ancestor| ancestor.exists())?;
    match statvfs(there) {
        Ok(found) => Some(Room {
            bytes: found.f_bavail.saturating_mul(found.f_frsize),
            files: (found.f_files > 0).then_some(found.f_favail),
        }),
        Err(error) => {
            look.unseen(format!("{}: {error}", there.display()));
            None
        }
    }
}
