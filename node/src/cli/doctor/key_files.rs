//! The files of keys: are they there, whose are they, and who else may read them?

use super::Facts;
use super::process::Process;
use super::report::Look;
use crate::account::look_up_user_name;
use crate::cli::findings::{Finding, Mender, quoted};
use crate::settings::{Settings, forbidden_bits};
use crate::state_files::{GATEWAY_KEY_FILE, MESH_KEY_FILE};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A file of a key, as the configuration names it.
struct KeyFile {
    key: &'static str,
    path: PathBuf,
    /// Whether the daemon does not start without it. The others it makes, or goes without.
    is_needed: bool,
}

pub(super) fn look(facts: &Facts, look: &mut Look) {
    let owner = wanted_owner(facts);
    for file in files(&facts.settings) {
        look_at_file(&file, owner, &facts.mender, look);
    }
}

fn files(settings: &Settings) -> Vec<KeyFile> {
    let state = |name: &str| settings.node.state_dir.join(name);
    let mut files = vec![
        KeyFile { key: "node.key_file", path: settings.node.key_file.clone(), is_needed: true },
        KeyFile { key: "mesh key", path: state(MESH_KEY_FILE), is_needed: false },
    ];
    if let Some(path) = &settings.builder_key_file {
        files.push(KeyFile { key: "trust.builder_key_file", path: path.clone(), is_needed: true });
    }
    if settings.needs_gateway_key() {
        files.push(KeyFile { key: "gateway key", path: state(GATEWAY_KEY_FILE), is_needed: false });
    }
    files
}

/// The user who has to own the files: the one that the daemon runs as, or, while it does not run, the owner of its
/// directory.
fn wanted_owner(facts: &Facts) -> Option<u32> {
    let running = facts.daemon.and_then(Process::user_id);
    running.or_else(|| fs::metadata(&facts.settings.node.state_dir).ok().map(|metadata| metadata.uid()))
}

fn look_at_file(file: &KeyFile, owner: Option<u32>, mender: &Mender, look: &mut Look) {
    let KeyFile { key, path, is_needed } = file;
    let named = || format!("{key} = \"{}\"", path.display());
    let shell = quoted(&path.display().to_string());
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Without the others the daemon starts, so they are not missed.
            if *is_needed {
                let missing = Finding::error(format!("{}: there is no such file: the daemon does not start", named()));
                look.found(missing.mended_by(mender.narmesh("init --keys")));
            }
            return;
        }
        Err(error) => return look.unseen(format!("{}: {error}", named())),
    };
    let mode = metadata.mode() & 0o7777;
    if mode & forbidden_bits(path) != 0 {
        look.found(
            Finding::error(format!(
                "{} has mode {mode:04o}: others may read it, and the daemon refuses it at its next start",
                named()
            ))
            .mended_by(mender.as_root(&format!("chmod 600 {shell}"))),
        );
    }
    // Root reads everything. Credentials are systemd's, with an access control list.
    if let Some(owner) = owner.filter(|owner| *owner != 0 && *owner != metadata.uid() && !is_credential(path)) {
        let (is, wanted) = (look_up_user_name(metadata.uid()), look_up_user_name(owner));
        look.found(
            Finding::error(format!(
                "{} belongs to {is}, and the daemon runs as {wanted}, who cannot read it at its next start",
                named()
            ))
            .mended_by(mender.as_root(&format!("chown {wanted} {shell}"))),
        );
    }
}

fn is_credential(path: &Path) -> bool {
    forbidden_bits(path) != 0o077
}
