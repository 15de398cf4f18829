//! `[mesh]`, checked, and what the roster adds to the settings.

use super::{ADDRESSES_MAX, PeerSettings, Settings, SettingsError, path_from, refused, socket_address};
use crate::config::RosterConfig;
use libp2p::{Multiaddr, PeerId};
use narmesh_protocol::{Member, MemberRole, NixPublicKey, SignedRoster, Summary, TrustedKeys};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Checked `[mesh]`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RosterSettings {
    /// The mesh key: that of the configuration, or the one that has taken its place, once a roster was added that says so.
    pub key: Option<NixPublicKey>,
    /// The mesh key of the configuration, if another one has taken its place.
    pub replaced: Option<NixPublicKey>,
    /// A file with a signed roster.
    pub roster_file: Option<PathBuf>,
    /// Whether members find each other on the local network.
    pub discover_lan: bool,
    /// The roster in force, once its members were added.
    pub roster: Option<Arc<SignedRoster>>,
    /// The version of the roster from which on this machine is no member, if it was told so.
    pub removed_in: Option<u64>,
    /// The members that refuse it since then.
    pub refusing: BTreeSet<PeerId>,
    /// A mesh key that is said to have taken the place of the same one as ours.
    pub contradicting: Option<NixPublicKey>,
}

pub(super) fn check(mesh: &RosterConfig, base: &Path) -> Result<RosterSettings, SettingsError> {
    let parse = |text: &String| {
        let accepted = "a Nix public key, name:base64 of 32 bytes, as `narmesh mesh create` prints it";
        NixPublicKey::parse(text).map_err(|_| refused("mesh.key", text, accepted))
    };
    let key = mesh.key.as_ref().map(parse).transpose()?;
    let roster_file = mesh.roster_file.as_ref().map(|path| path_from(base, "mesh.roster_file", path)).transpose()?;
    // A roster without the key that signed it would be believed whoever wrote the file.
    if let (None, Some(path)) = (&key, &roster_file) {
        return Err(refused("mesh.roster_file", path, "no file, or mesh.key, which signed the roster, beside it"));
    }
    Ok(RosterSettings { key, roster_file, discover_lan: mesh.discover_lan, ..RosterSettings::default() })
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
            if peer_id == *me {
                // The machine's own configuration decides, if it says anything.
                self.node.relay = self.node.relay.or(Some(member.relay));
            } else if let Some(known) = self.peers.iter_mut().find(|peer| peer.peer_id == peer_id) {
                // Either is enough.
                known.relay |= member.relay;
            } else {
                // A summary has no room for more, so whoever is beyond would be told nothing.
                if self.peers.len() >= Summary::AUDIENCE_MAX {
                    remarks.push(format!(
                        "member {:?} is no peer: there are {} already",
                        member.name,
                        self.peers.len()
                    ));
                    continue;
                }
                let name = free_name(&member.name, |name| self.peers.iter().all(|peer| peer.name != name));
                let addresses = self.addresses_of(member);
                self.peers.push(PeerSettings {
                    name,
                    peer_id,
                    addresses,
                    relay: member.relay,
                    upload_bytes_per_s: None,
                });
            }
            let Some(key) = builder_key_of(member) else { continue };
            match keys.iter().find(|known| known.name() == key.name()) {
                Some(known) if known.bytes() == key.bytes() => {}
                Some(_) => remarks.push(format!(
                    "the builder key {} of member {:?} does not count: another key of that name is trusted",
                    key.name(),
                    member.name
                )),
                None => keys.push(key.clone()),
            }
            let node = (peer_id != *me).then_some(peer_id);
            remarks.extend(self.quorum.add_member(member, &key, node));
        }
        self.trusted = TrustedKeys::new(keys).expect("two keys of one name were sorted out above");
        self.mesh.roster = Some(roster);
        remarks
    }

    /// Those of a member's addresses that can be dialled; another version of narmesh may write more kinds. Loopback is
    /// another machine for each member.
    fn addresses_of(&self, member: &Member) -> Vec<Multiaddr> {
        let is_loopback =
            |address: &Multiaddr| socket_address(address).is_some_and(|address| address.ip().is_loopback());
        let addresses = member.addresses.iter().filter_map(|text| super::addresses::parse_dialable(text));
        let dialled = addresses.filter(|address| self.node.advertise_loopback || !is_loopback(address));
        dialled.take(ADDRESSES_MAX).collect()
    }
}

/// This name, or one made of it that is free.
pub(super) fn free_name(name: &str, is_free: impl Fn(&str) -> bool) -> String {
    let numbered = (2_u32..).map(|number| format!("{name} ({number})"));
    let mut names = std::iter::once(name.to_owned()).chain(numbered);
    names.find(|name| is_free(name)).expect("there are more numbers than names")
}

/// The key that members trust because of this one.
fn builder_key_of(member: &Member) -> Option<NixPublicKey> {
    match member.role {
        MemberRole::Client => None,
        MemberRole::Builder => NixPublicKey::parse(member.builder_key.as_ref()?).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use libp2p::identity::Keypair;
    use narmesh_protocol::{NixSecretKey, Roster, node_key_of};

    fn member(peer: &PeerId, name: &str, role: MemberRole, key: &str) -> Member {
        let addresses = ["/ip4/127.0.0.1/tcp/1", "/ip4/192.0.2.1/tcp/7280", "/unknown"].map(str::to_owned).into();
        let builder_key = Some(key.to_owned());
        Member {
            node_key: node_key_of(peer).unwrap(),
            name: name.to_owned(),
            role,
            builder_key,
            group: None,
            relay: false,
            ephemeral_s: 0,
            addresses,
        }
    }

    /// The settings with a roster of these members, and the names, groups and nodes of the builders that count.
    fn counted(text: &str, members: Vec<Member>, me: &PeerId) -> Vec<(String, Option<String>, Option<PeerId>, bool)> {
        let file = Path::new("/etc/narmesh.toml");
        let mut settings = Settings::check(Config::parse(text, file).unwrap(), file).unwrap();
        let mesh = NixSecretKey::from_seed("home", &[9; 32]).unwrap();
        let signed = SignedRoster::sign(
            &mesh,
            Roster { version: 1, issued_at_ms: 0, members, edits: Vec::new(), removals: Vec::new() },
        )
        .unwrap();
        settings.add_members(Arc::new(signed), me);
        settings.quorum.policy(None).expect("no roster makes a policy invalid");
        let quorum = &settings.quorum;
        let view = |(builder, node): (&narmesh_quorum::Builder, _)| {
            (builder.name.clone(), builder.group.clone(), node, quorum.is_from_roster(&builder.key))
        };
        quorum.builders().map(view).collect()
    }

    #[test]
    fn builders_of_a_roster_count_where_the_configuration_says_so() {
        let [me, known, new, client] = [(); 4].map(|()| Keypair::generate_ed25519().public().to_peer_id());
        let key = |seed| NixSecretKey::from_seed(&format!("b-{seed}"), &[seed; 32]).unwrap().public().to_string();
        let grouped = |member: Member| Member { group: Some("rack".to_owned()), ..member };
        let members = vec![
            grouped(member(&me, "me", MemberRole::Builder, &key(2))),
            grouped(member(&known, "known", MemberRole::Builder, &key(3))),
            grouped(member(&new, "box", MemberRole::Builder, &key(4))),
            grouped(member(&client, "client", MemberRole::Client, &key(5))),
        ];
        let text = format!("[[builder]]\nname = 'box'\npublic_key = '{}'\n[quorum]\nk = 1\n", key(3));
        let configured = ("box".to_owned(), None, None, false);
        assert_eq!(counted(&text, members.clone(), &me), [configured]);
        let text = format!("{text}grace = ['box']\nfrom_roster = true\n");
        let mut found = counted(&text, members, &me);
        found[1..].sort();
        let rack = Some("rack".to_owned());
        assert_eq!(
            found,
            [
                ("box".to_owned(), None, Some(known), false),
                ("box (2)".to_owned(), rack.clone(), Some(new), true),
                ("me".to_owned(), rack, None, true),
            ]
        );
    }

    #[test]
    fn the_configuration_comes_before_the_roster_and_only_builders_are_trusted() {
        let [me, known, new, client] = [(); 4].map(|()| Keypair::generate_ed25519().public().to_peer_id());
        let key = |name: &str, seed| NixSecretKey::from_seed(name, &[seed; 32]).unwrap().public().to_string();
        let text = format!(
            "[trust]\ntrusted_public_keys = ['{}']\n[[peer]]\nname = 'box'\npeer_id = '{known}'\naddresses = []\n",
            key("own-1", 1)
        );
        let file = Path::new("/etc/narmesh.toml");
        let mut settings = Settings::check(Config::parse(&text, file).unwrap(), file).unwrap();
        let members = vec![
            member(&me, "me", MemberRole::Builder, &key("me-1", 2)),
            member(&known, "known", MemberRole::Builder, &key("known-1", 3)),
            member(&new, "box", MemberRole::Builder, &key("own-1", 4)),
            member(&client, "client", MemberRole::Client, &key("client-1", 5)),
        ];
        let mesh = NixSecretKey::from_seed("home", &[9; 32]).unwrap();
        let signed = SignedRoster::sign(
            &mesh,
            Roster { version: 1, issued_at_ms: 0, members, edits: Vec::new(), removals: Vec::new() },
        )
        .unwrap();
        let remarks = settings.add_members(Arc::new(signed), &me);
        assert_eq!(remarks.len(), 1, "{remarks:?}");
        assert!(remarks[0].contains("own-1") && remarks[0].contains("another key of that name"), "{remarks:?}");
        let peer = |peer: &PeerId| settings.peer(peer).unwrap();
        assert_eq!((peer(&known).name.as_str(), peer(&known).addresses.len()), ("box", 0), "as configured");
        assert_eq!(peer(&new).name, "box (2)");
        assert_eq!(peer(&new).addresses, ["/ip4/192.0.2.1/tcp/7280".parse().unwrap()]);
        assert!(settings.peer(&me).is_none() && settings.peer(&client).is_some());
        let mut keys: Vec<_> = settings.trusted.iter().map(NixPublicKey::name).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["known-1", "me-1", "own-1"]);
        assert_eq!(settings.trusted.by_name("own-1").unwrap().to_string(), key("own-1", 1));
    }
}
