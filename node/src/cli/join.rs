//! `narmesh join`.

use super::id::{introduced, own_name};
use super::mesh::write_request;
use super::mesh_place::tell_daemon;
use super::{emit, init, setup_nix};
use crate::membership::config_file::{self, set_mesh_key};
use crate::membership::files::MeshFiles;
use crate::membership::token::JoinToken;
use crate::settings::{Secrets, Settings};
use anyhow::Context as _;
use narmesh_protocol::wire::{JoinReply, JoinRequest};
use narmesh_protocol::{KeyProof, Member, SignedRoster, node_key_of};
use std::path::{Path, PathBuf};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// The token that `narmesh mesh invite` printed
    #[arg(required_unless_present = "request")]
    token: Option<String>,
    /// What this machine would like to be called in the mesh; by default node.name, or the host name
    #[arg(long)]
    name: Option<String>,
    /// Also write our lines into nix.conf, which are shown, and restart nix-daemon; `narmesh leave` takes them out again
    #[arg(long)]
    setup_nix: bool,
    /// Do nothing if this machine is a member already: for scripts that run at each start
    #[arg(long, requires = "token")]
    unless_member: bool,
    /// Join without a line to the other machine: write a file for `narmesh mesh admit` there
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    request: Option<PathBuf>,
}

pub(super) fn join(config: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    // First, because a member needs no token any more: it may be empty.
    if arguments.unless_member && is_member(config)? {
        return Ok(emit("this machine is a member already\n")?);
    }
    // Before anything is written.
    let token = arguments.token.as_deref().map(JoinToken::parse).transpose()?;
    if !config.exists() {
        init::init(config, &init::Arguments::of_name(arguments.name.clone(), arguments.setup_nix))?;
    }
    match (token, &arguments.request) {
        (Some(token), _) => join_by_token(config, &token, arguments.name.as_deref())?,
        (None, Some(file)) => write_request(config, file, arguments.name.as_deref())?,
        (None, None) => anyhow::bail!("a TOKEN or --request FILE is needed"),
    }
    if arguments.setup_nix { setup_nix::set_up(&Settings::load(config)?) } else { Ok(()) }
}

/// Whether the newest roster that this machine has heard of names it.
fn is_member(config: &Path) -> anyhow::Result<bool> {
    if !config.exists() {
        return Ok(false);
    }
    let settings = Settings::load(config)?;
    let Some(mesh) = &settings.mesh.key else { return Ok(false) };
    let secrets = settings.read_secrets()?;
    let files = MeshFiles::new(&settings.node.state_dir);
    // Who was removed, and was told so, has to join anew.
    let is_on = |roster: &SignedRoster| {
        find_own(roster, &secrets).is_ok() && files.read_removal(roster, &secrets.peer_id()).is_none()
    };
    Ok(files.read_roster(mesh)?.as_ref().is_some_and(is_on))
}

fn join_by_token(config: &Path, token: &JoinToken, name: Option<&str>) -> anyhow::Result<()> {
    let settings = Settings::load(config)?;
    let secrets = settings.read_secrets()?;
    let files = MeshFiles::new(&settings.node.state_dir);
    if let Some(mesh) = &settings.mesh.key {
        // Another key may have taken the place of the one that the configuration names.
        let in_force =
            files.read_roster(mesh).ok().flatten().map_or_else(|| mesh.clone(), |roster| roster.key().clone());
        anyhow::ensure!(
            in_force.bytes() == token.mesh.bytes(),
            "this machine is in the mesh {in_force} already; `narmesh leave` leaves it"
        );
    }
    // Before the token is used up: it is good once, and joining writes this file.
    config_file::ensure_writable(config)?;
    let name = name.map_or_else(|| own_name(&settings, &secrets), str::to_owned);
    let node_key = node_key_of(&secrets.peer_id()).context("the node key is no Ed25519 key")?;
    let request = JoinRequest {
        secret: token.secret,
        builder_key: secrets.builder_key.as_ref().map(|key| KeyProof::sign(key, &node_key)),
        addresses: introduced(&name, &settings, &secrets).addresses,
        name,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = narmesh_mesh::join(&secrets.keypair, token.inviter, &token.addresses, &request);
    let bytes = match runtime.block_on(asked)? {
        JoinReply::Welcome(bytes) => bytes,
        JoinReply::Refused => {
            anyhow::bail!("the invitation is not good: it is over, used up, revoked, or was never made")
        }
        JoinReply::Unfit { why } => {
            anyhow::bail!("the inviting machine refuses this one: {}", crate::describe::escaped(&why))
        }
        JoinReply::NotNow => anyhow::bail!("the inviting machine cannot admit anybody now; its log says why"),
    };
    let roster = SignedRoster::open(&token.mesh, &bytes).context("the inviting machine sent no good roster")?;
    let member = find_own(&roster, &secrets)?;
    // What this machine changed as an earlier member is not made again.
    files.forget_edits()?;
    files.take(&token.mesh, &roster)?;
    if settings.mesh.key.is_none() {
        set_mesh_key(config, Some(&token.mesh))?;
    }
    emit(&format!(
        "joined the mesh {} as {:?}; it has {} members\n",
        token.mesh.name(),
        member.name,
        roster.roster().members.len()
    ))?;
    tell_daemon(config, "the members of the mesh are peers");
    Ok(())
}

fn find_own<'r>(roster: &'r SignedRoster, secrets: &Secrets) -> anyhow::Result<&'r Member> {
    let key = node_key_of(&secrets.peer_id()).context("the node key is no Ed25519 key")?;
    roster.member(&key).context("the inviting machine sent a roster without this machine")
}
