//! `narmesh mesh rekey` and `narmesh mesh import`: another mesh key, and rosters that are brought by hand.

use super::mesh_place::{Place, find_member, tell_daemon};
use super::{emit, eprint_line};
use crate::describe::describe;
use crate::membership::config_file::replace_mesh_key;
use crate::membership::files::{read_roster_file, read_unknown};
use crate::membership::rekey::Taken;
use anyhow::Context as _;
use narmesh_protocol::{MemberRole, NixPublicKey, SignedRoster, node_key_of};
use std::path::Path;

#[derive(clap::Args, Debug)]
pub(super) struct Rekey {
    /// Also remove this member, such as the machine that was stolen; several times for several
    #[arg(long, value_name = "NAME")]
    remove: Vec<String>,
    /// Make no key. Take this one, of which `narmesh mesh list` says that it contradicts ours, or note the one that counts
    /// already in the configuration
    #[arg(long, value_name = "MESH_KEY", conflicts_with = "remove")]
    accept: Option<String>,
}

pub(super) fn rekey(config: &Path, arguments: &Rekey) -> anyhow::Result<()> {
    match &arguments.accept {
        Some(key) => accept(config, &parse_key("--accept", key)?),
        None => make_key(config, &arguments.remove),
    }
}

fn make_key(config: &Path, gone: &[String]) -> anyhow::Result<()> {
    let place = Place::find(config)?;
    let mesh = place.mesh()?;
    let this = place.as_member(MemberRole::Builder)?;
    let own_key = this.node_key;
    let roster = place.files.rekey(&mesh, this, place.given(&mesh)?.as_ref(), |roster| {
        for name in gone {
            let at = find_member(&roster.members, name)?;
            let removed = roster.members.remove(at);
            // It would make a key that nobody on the roster has.
            anyhow::ensure!(removed.node_key != own_key, "{name:?} is this machine, which makes the new mesh key");
        }
        Ok(())
    })?;
    let (key, file) = (roster.key(), place.files.key_file());
    emit(&format!(
        "wrote {} (mode 0600): the new mesh key. Keep a copy in a safe place; copies of the old one are of no use any more\n\
         mesh key: {key}\n\n\
         Other machines that had the old mesh key need this file to invite and remove again. All invitations have ended.\n",
        file.display()
    ))?;
    note_key(config, key);
    tell_daemon(config, &format!("roster version {} is in force", roster.roster().version));
    Ok(())
}

/// Has the configuration name this mesh key: a machine that loses its state then follows no older one.
fn note_key(config: &Path, key: &NixPublicKey) {
    if let Err(error) = replace_mesh_key(config, key) {
        eprint_line(&format!(
            "the configuration still names the mesh key before, which leads here: {}",
            describe(&error)
        ));
    }
}

/// Takes a mesh key that a person has decided on.
fn accept(config: &Path, key: &NixPublicKey) -> anyhow::Result<()> {
    let place = Place::find(config)?;
    let (mesh, roster) = (place.mesh()?, place.roster()?);
    let is_it = |roster: &SignedRoster| roster.key().bytes() == key.bytes();
    // The one in force is right: only the other one has to go.
    if is_it(&roster) {
        replace_mesh_key(config, roster.key())?;
        place.files.forget_other()?;
        tell_daemon(config, &format!("{key} is the mesh key, as it was"));
        return Ok(());
    }
    let other = place.files.read_other(&mesh)?.filter(is_it).with_context(|| {
        format!(
            "no roster of the mesh key {key} was heard here; `narmesh mesh export FILE` on a member that has one and \
             `narmesh mesh import FILE --accept {key}` here bring it"
        )
    })?;
    put_accepted(config, &place, &other)
}

fn put_accepted(config: &Path, place: &Place, roster: &SignedRoster) -> anyhow::Result<()> {
    let own_key = node_key_of(&place.secrets.peer_id());
    anyhow::ensure!(
        own_key.is_some_and(|key| roster.member(&key).is_some()),
        "this machine is not on the roster of the mesh key {}",
        roster.key()
    );
    // The configuration first: with the roster alone the machine would know no members.
    replace_mesh_key(config, roster.key())?;
    place.files.put_accepted(roster)?;
    tell_daemon(config, &format!("{} is the mesh key, with roster version {}", roster.key(), roster.roster().version));
    Ok(())
}

pub(super) fn import(config: &Path, file: &Path, accepted: Option<&str>) -> anyhow::Result<()> {
    let place = Place::find(config)?;
    let absent = || format!("{} is not there", file.display());
    // Two keys say that they have taken the place of one: only a person can decide, and says which.
    if let Some(accepted) = accepted {
        let key = parse_key("--accept", accepted)?;
        let roster = read_roster_file(&key, file)?.with_context(absent)?;
        anyhow::ensure!(
            roster.key().bytes() == key.bytes(),
            "{} is of the mesh key {}, which has taken the place of {key}",
            file.display(),
            roster.key()
        );
        return put_accepted(config, &place, &roster);
    }
    let Some(mesh) = place.settings.mesh.key.clone() else { return Err(explain_no_mesh(config, file)) };
    let roster = read_roster_file(&mesh, file)?.with_context(absent)?;
    let version = roster.roster().version;
    match place.files.take(&mesh, &roster)? {
        Taken::Newer | Taken::NewKey => {}
        Taken::NotNewer => anyhow::bail!("roster version {version} is not newer than the one that is here"),
        Taken::Contradicts => anyhow::bail!(
            "{} is of the mesh key {key}, and another one has taken the place of the same key here; if {key} is right: \
             `narmesh mesh import FILE --accept {key}`",
            file.display(),
            key = roster.key()
        ),
    }
    tell_daemon(config, &format!("roster version {version} is in force"));
    Ok(())
}

/// What to do with a roster where the configuration names no mesh: nothing here says that its key is the right one.
fn explain_no_mesh(config: &Path, file: &Path) -> anyhow::Error {
    match read_unknown(file) {
        Ok(roster) => anyhow::anyhow!(
            "{} names no mesh. {} is signed by {key}; if that is the mesh key: `narmesh mesh import FILE --accept {key}`",
            config.display(),
            file.display(),
            key = roster.key()
        ),
        Err(error) => error,
    }
}

fn parse_key(option: &str, text: &str) -> anyhow::Result<NixPublicKey> {
    NixPublicKey::parse(text).map_err(|_| {
        anyhow::anyhow!("{option} {text:?} is refused; accepted: a mesh key, name:base64 of 32 bytes, as `narmesh mesh list` prints it")
    })
}
