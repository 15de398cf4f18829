//! What the configuration shows by itself: peers, the roster, listeners, keys, the place of the store.

use super::{Finding, Mender, OwnKeys, quoted};
use crate::cli::nix_keys::warn_of_gateway_keys;
use crate::cli::startable::Startable;
use crate::settings::Settings;
use jiff::Timestamp;
use narmesh_protocol::MemberRole;
use narmesh_store::NixStore;
use std::fs;
use std::io::ErrorKind;

/// What prevents a start, and what only looks as if it did.
pub(in crate::cli) fn startable_findings(startable: Startable) -> Vec<Finding> {
    let problems = startable.problems.into_iter().map(Finding::error);
    problems.chain(startable.notes.into_iter().map(Finding::note)).collect()
}

/// Warns if the store's directory or its Nix database is missing.
pub(super) fn store_finding(settings: &Settings) -> Option<Finding> {
    // `startable` reports a store that cannot be opened at all.
    let gap = NixStore::open(settings.store.clone()).ok()?.gap()?.to_string();
    Some(Finding::warning(format!("[store]: {gap}: until that changes, this node finds and offers no path")))
}

pub(super) fn own_findings(settings: &Settings, keys: &OwnKeys, mender: &Mender) -> Vec<Finding> {
    let mut findings = Vec::new();
    if settings.peers.is_empty() && settings.mesh.key.is_none() {
        let alone = Finding::note("no [[peer]] is configured: this node shares with nobody yet");
        findings.push(alone.mended_by(format!("{} # prints what the other machine needs", mender.narmesh("id"))));
    }
    let state_dir = &settings.node.state_dir;
    let is_hidden = fs::read_dir(state_dir).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
    if let (Some(mesh), None) = (&settings.mesh.key, &settings.mesh.roster) {
        let lost = Finding::warning(format!(
            "there is no roster of the mesh {mesh} here that can be read and names this machine: its members are no \
             peers. `narmesh mesh export FILE` on a member and `narmesh mesh import FILE` here bring one"
        ));
        let unseen = || {
            let dir = state_dir.display();
            Finding::note(format!("whether there is a roster of the mesh {mesh} is not seen: {dir}: Permission denied"))
        };
        findings.push(if is_hidden { unseen() } else { lost.mended_by(mender.narmesh("mesh import FILE")) });
    }
    findings.extend(earlier_mesh_key(settings, mender));
    findings.extend(other_builder_key(settings, keys, mender));
    for (index, listener) in settings.gateway.listeners.iter().enumerate() {
        findings.extend(listener.warn_of_plain_tokens(index).map(Finding::warning));
        // `startable` reports files that cannot be used.
        if let Some(Ok(tls)) = listener.tls.as_ref().map(|files| files.read(index))
            && let Some(why) = tls.why_not_valid(Timestamp::now())
        {
            findings.push(Finding::warning(format!(
                "gateway.listener[{index}].tls_certificate_file: the certificate {why}, so clients refuse it"
            )));
        }
    }
    match (&settings.builder_key_file, &keys.builder) {
        (None, _) => findings.push(
            Finding::note("trust.builder_key_file is not set: nothing built here can be substituted elsewhere")
                .mended_by(mender.edit("builder_key_file = \"builder.key\" below [trust]")),
        ),
        (Some(_), Some(key)) if settings.trusted.by_name(key.name()) != Some(key) => findings.push(
            Finding::note(format!(
                "trust.trusted_public_keys lacks our own builder key {key}: what was built here and then deleted cannot be \
                 fetched back"
            ))
            .mended_by(mender.edit(&format!("\"{key}\" in trusted_public_keys"))),
        ),
        (Some(_), _) => {}
    }
    findings.extend(warn_of_gateway_keys(&settings.trusted).into_iter().map(Finding::warning));
    findings
}

/// A configuration that names a mesh key which was replaced works only as long as the state directory remembers what came of
/// it: without that, this machine would follow whoever has the earlier key.
fn earlier_mesh_key(settings: &Settings, mender: &Mender) -> Option<Finding> {
    let (named, in_force) = (settings.mesh.replaced.as_ref()?, settings.mesh.key.as_ref()?);
    let earlier = Finding::warning(format!(
        "[mesh] key = \"{named}\" was replaced by {in_force}: if the state directory is lost, this machine follows whoever \
         has the earlier one"
    ));
    Some(earlier.mended_by(mender.narmesh(&format!("mesh rekey --accept {in_force}"))))
}

/// Members trust the builder key that the roster has for this machine; what it signs with another one, nobody takes.
fn other_builder_key(settings: &Settings, keys: &OwnKeys, mender: &Mender) -> Option<Finding> {
    let (roster, node) = (settings.mesh.roster.as_ref()?, keys.node?);
    let me = roster.roster().members.iter().find(|member| member.peer_id() == Some(node))?;
    let told = me.builder_key.as_ref().filter(|_| me.role == MemberRole::Builder)?;
    let signs = match &keys.builder {
        Some(key) if key.to_string() == *told => return None,
        Some(key) => format!("signs with {key}"),
        // A file that this user may not read, or that is not there: other findings and the daemon's start tell.
        None if settings.builder_key_file.is_some() => return None,
        None => "signs with none (trust.builder_key_file is not set)".to_owned(),
    };
    let other = Finding::error(format!(
        "the roster has the builder key {told} for this machine, which {signs}: members take nothing that is built here"
    ));
    let back = "put the key of the roster back, or give this machine a new place:";
    Some(
        other.mended_by(format!("{back} narmesh mesh remove {} # on another member", quoted(&me.name))).mended_by(
            format!("{} # with a token of `narmesh mesh invite`", mender.narmesh("join --unless-member TOKEN")),
        ),
    )
}
