//! This machine and its mesh, for the commands that read and change it.

use super::client::ask;
use super::eprint_line;
use super::id::{introduced, own_name};
use crate::control::ControlRequest;
use crate::describe::describe;
use crate::membership::files::{MeshFiles, newest, no_roster, read_roster_file};
use crate::settings::{Secrets, Settings};
use anyhow::Context as _;
use libp2p::Multiaddr;
use narmesh_protocol::{Member, MemberRole, NixPublicKey, Roster, SignedRoster, node_key_of};
use std::path::Path;

/// This machine and its mesh, as the configuration says.
pub(super) struct Place {
    pub(super) settings: Settings,
    pub(super) secrets: Secrets,
    pub(super) files: MeshFiles,
}

impl Place {
    /// Reads the configuration and the secrets.
    pub(super) fn find(config: &Path) -> anyhow::Result<Self> {
        let settings = Settings::load(config)?;
        let secrets = settings.read_secrets()?;
        let files = MeshFiles::new(&settings.node.state_dir);
        Ok(Self { settings, secrets, files })
    }

    /// The mesh key that the configuration names. Another one may have taken its place.
    pub(super) fn mesh(&self) -> anyhow::Result<NixPublicKey> {
        let file = self.settings.file.display();
        self.settings.mesh.key.clone().with_context(|| {
            format!("{file} names no mesh; `narmesh mesh create` makes one, `narmesh join TOKEN` joins one")
        })
    }

    /// The newest roster that this machine has.
    pub(super) fn roster(&self) -> anyhow::Result<SignedRoster> {
        let mesh = self.mesh()?;
        let roster = newest(self.files.read_roster(&mesh)?, self.given(&mesh)?);
        roster.with_context(|| no_roster(&mesh))
    }

    /// The roster that the configuration names.
    pub(super) fn given(&self, mesh: &NixPublicKey) -> anyhow::Result<Option<SignedRoster>> {
        let file = self.settings.mesh.roster_file.as_deref();
        Ok(file.map(|file| read_roster_file(mesh, file)).transpose()?.flatten())
    }

    /// Changes the newest roster and signs it.
    pub(super) fn edit(&self, change: impl FnOnce(&mut Roster) -> anyhow::Result<()>) -> anyhow::Result<SignedRoster> {
        let (mesh, me) = (self.mesh()?, self.secrets.peer_id());
        let (roster, ()) = self.files.edit(&mesh, &me, self.given(&mesh)?.as_ref(), change)?;
        Ok(roster)
    }

    /// Notes in the roster where this machine is reached.
    pub(super) fn note_addresses(&self, addresses: &[Multiaddr]) -> anyhow::Result<()> {
        let addresses: Vec<_> = addresses.iter().map(Multiaddr::to_string).collect();
        let own_key = node_key_of(&self.secrets.peer_id());
        let is_own = |member: &&mut Member| Some(member.node_key) == own_key;
        if self
            .roster()?
            .roster()
            .members
            .iter()
            .any(|member| Some(member.node_key) == own_key && member.addresses == addresses)
        {
            return Ok(());
        }
        self.edit(|roster| {
            if let Some(member) = roster.members.iter_mut().find(is_own) {
                member.addresses = addresses;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// This machine as a member.
    pub(super) fn as_member(&self, role: MemberRole) -> anyhow::Result<Member> {
        let (peer, name) = (self.secrets.peer_id(), own_name(&self.settings, &self.secrets));
        Ok(Member {
            node_key: node_key_of(&peer).context("the node key is no Ed25519 key")?,
            addresses: introduced(&name, &self.settings, &self.secrets).addresses,
            name,
            role,
            builder_key: self.secrets.builder_key.as_ref().map(|key| key.public().to_string()),
            group: None,
            relay: false,
            ephemeral_s: 0,
        })
    }
}

/// Where the member of that name is.
pub(super) fn find_member(members: &[Member], name: &str) -> anyhow::Result<usize> {
    members.iter().position(|member| member.name == name).with_context(|| {
        let mut names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
        names.sort_unstable();
        format!("there is no member {name:?}; accepted: {}", names.join(", "))
    })
}

/// Has the daemon read what has changed, and says whether it did.
pub(super) fn tell_daemon(config: &Path, done: &str) {
    match ask(config, &ControlRequest::Reload) {
        Ok(_) => eprint_line(&format!("the running daemon knows: {done}")),
        Err(error) => eprint_line(&format!("for the daemon, when it runs: {done} ({})", describe(&error))),
    }
}
