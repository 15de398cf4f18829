//! `check-config --offline`: the file alone, for machines that build the configuration of another one.

use crate::cli::emit;
use crate::settings::Settings;
use narmesh_protocol::{NixPublicKey, NixSecretKey};
use std::path::Path;

/// Checks what the file says and opens no other file, no port, and nothing of Nix.
pub(super) fn check_offline(config: &Path) -> anyhow::Result<()> {
    let settings = Settings::load(config)?;
    // The builder key is on the other machine. For the rules it only matters that there is one.
    let own = settings.builder_key_file.as_ref().map(|_| stand_in()).transpose()?;
    let (_, warnings) = settings.quorum.policy(own.as_ref())?;
    emit(&format!(
        "{} is valid: {} peers, {} upstream caches; keys, ports and the files that it names were not looked at\n",
        config.display(),
        settings.peers.len(),
        settings.upstreams.len()
    ))?;
    for (index, listener) in settings.gateway.listeners.iter().enumerate() {
        if let Some(warning) = listener.warn_of_plain_tokens(index) {
            emit(&format!("warning: {warning}\n"))?;
        }
    }
    if settings.quorum.takes_roster() {
        emit("the builders of the roster, which is not looked at, count as well\n")?;
    }
    warnings.iter().try_for_each(|warning| emit(&format!("warning: {warning}\n")))?;
    Ok(())
}

fn stand_in() -> anyhow::Result<NixPublicKey> {
    Ok(NixSecretKey::from_seed("builder-of-another-machine", &[0; 32])?.public())
}
