//! `narmesh init --keys`: the keys of a configuration that was written elsewhere, such as by NixOS.

use super::{directory_of, new_builder_key};
use crate::cli::emit;
use crate::cli::id::host_name;
use crate::settings::{NodeKeyFile, Settings, create_builder_key, gateway_key_file};
use anyhow::Context as _;
use libp2p::identity::Keypair;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

/// Makes the key files that the configuration names and that do not exist; writes nothing else.
pub(super) fn make_missing_keys(config: &Path) -> anyhow::Result<()> {
    let settings = Settings::load(config)?;
    let mut text = make(&settings.node.key_file, |file| NodeKeyFile::create(file, &Keypair::generate_ed25519()))?;
    if let Some(file) = &settings.builder_key_file {
        let key = new_builder_key(settings.node.name.as_deref().unwrap_or(&host_name()))?;
        text += &make(file, |file| create_builder_key(file, &key))?;
    }
    let gateway = gateway_key_file(&settings.node.state_dir);
    let is_new = settings.needs_gateway_key() && !gateway.exists();
    settings.make_gateway_key()?;
    if is_new {
        text += &said("wrote", &gateway);
    }
    // What is there must be keys, or the daemon would not start with them.
    text += &format!("peer id: {}\n", settings.read_secrets()?.peer_id());
    Ok(emit(&text)?)
}

/// Creates the file, readable to its owner only, unless it exists. Returns what was done, in words.
fn make(file: &Path, create: impl FnOnce(&Path) -> io::Result<()>) -> anyhow::Result<String> {
    // The file of a credential need not be writable where it is, so one that exists is left alone before anything is tried.
    if file.exists() {
        return Ok(said("kept ", file));
    }
    let dir = directory_of(file);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir).and_then(|()| create(file));
    made.with_context(|| format!("cannot write {}", file.display()))?;
    Ok(said("wrote", file))
}

fn said(what: &str, file: &Path) -> String {
    format!("{what} {}\n", file.display())
}
