//! `[mesh]`, checked, and what the roster adds to the settings.

use super::{ADDRESSES_MAX, PeerSettings, Settings, SettingsError, path_from, refused};
use crate::config::RosterConfig;
use libp2p::{Multiaddr, PeerId};
use narmesh_protocol::{Member, MemberRole, NixPublicKey, SignedRoster, TrustedKeys};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Checked `[mesh]`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RosterSettings {
    /// The mesh key.
    pub key: Option<NixPublicKey>,
    /// A file with a signed roster.
    pub roster_file: Option<PathBuf>,
    /// The roster in force, once [`Settings::add_members`] was called.
    pub roster: Option<Arc<SignedRoster>>,
}

pub(super) fn check(mesh: &RosterConfig, base: &Path) -> Result<RosterSettings, SettingsError> {
    let parse = |text: &String| {
        let accepted = "a Nix public key, name:base64 of 32 bytes, as `narmesh mesh create` prints it";
        NixPublicKey::parse(text).map_err(|_| refused("mesh.key", text, accepted))
    };
    let key = mesh.key.as_ref().map(parse).transpose()?;
    let roster_file = mesh.roster_file.as_ref().map(|path| path_from(base, "mesh.roster_file", path)).transpose()?;
    if let (None, Some(path)) = (&key, &roster_file) {
        return Err(refused("mesh.roster_file", path, "no file, or mesh.key, which signed the roster, beside it"));
    }
    Ok(RosterSettings { key, roster_file, roster: None })
}

impl Settings {
    /// Adds the members of a roster, whose machine `me` is one of them, to the peers, and the keys of its builders to
    /// those that are trusted. A `[[peer]]` and a key of the configuration come first: of a machine that has both, the
    /// entry of the configuration counts. Returns what cannot be used, in words.
    pub(crate) fn add_members(&mut self, roster: Arc<SignedRoster>, me: &PeerId) -> Vec<String> {
        let mut remarks = Vec::new();
        let mut keys: Vec<NixPublicKey> = self.trusted.iter().cloned().collect();
        for member in &roster.roster().members {
            let Some(peer_id) = member.peer_id() else {
                remarks.push(format!("member {:?} of the roster has no Ed25519 node key", member.name));
                continue;
            };
            if peer_id != *me && self.peer(&peer_id).is_none() {
                let name = self.free_name(&member.name);
                let addresses = addresses_of(member);
                self.peers.push(PeerSettings { name, peer_id, addresses, upload_bytes_per_s: None });
            }
            let Some(key) = builder_key_of(member) else { continue };
            match keys.iter().find(|known| known.name() == key.name()) {
                Some(known) if known.bytes() == key.bytes() => {}
                Some(_) => remarks.push(format!(
                    "the builder key {} of member {:?} does not count: another key of that name is trusted",
                    key.name(),
                    member.name
                )),
                None => keys.push(key),
            }
        }
        self.trusted = TrustedKeys::new(keys).expect("two keys of one name were sorted out above");
        self.mesh.roster = Some(roster);
        remarks
    }

    /// This name, or one made of it that no peer has.
    fn free_name(&self, name: &str) -> String {
        let is_free = |name: &String| self.peers.iter().all(|peer| peer.name != *name);
        let numbered = (2_u32..).map(|number| format!("{name} ({number})"));
        std::iter::once(name.to_owned()).chain(numbered).find(is_free).expect("there are more numbers than peers")
    }
}

/// The key that members trust because of this one.
fn builder_key_of(member: &Member) -> Option<NixPublicKey> {
    match member.role {
        MemberRole::Client => None,
        MemberRole::Builder => NixPublicKey::parse(member.builder_key.as_ref()?).ok(),
    }
}

/// Those of a member's addresses that can be dialled; another version of narmesh may write more kinds.
fn addresses_of(member: &Member) -> Vec<Multiaddr> {
    let addresses = member.addresses.iter().filter_map(|text| super::addresses::parse_dialable(text));
    addresses.take(ADDRESSES_MAX).collect()
}
