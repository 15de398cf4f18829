//! Admits machines that show an invitation.

use super::files::MeshFiles;
use super::invitations::Invitation;
use crate::settings::{NAME_FORM, is_name, may_be_told};
use jiff::Timestamp;
use libp2p::PeerId;
use narmesh_mesh::JoinHandler;
use narmesh_protocol::wire::{JoinReply, JoinRequest};
use narmesh_protocol::{KeyProof, Member, MemberRole, NixPublicKey, Roster, SignedRoster, node_key_of};
use parking_lot::RwLock;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Whoever is refused hears of it after this long, whatever the reason: so nobody learns whether a secret was ever good.
const REFUSED_AFTER: Duration = Duration::from_millis(500);

/// Admits machines to the mesh whose key is in the state directory.
#[derive(Debug)]
pub(crate) struct Admission {
    files: MeshFiles,
    /// This machine, which signs.
    me: PeerId,
    mesh: RwLock<Option<(NixPublicKey, Option<Arc<SignedRoster>>)>>,
    changed: Notify,
}

impl Admission {
    /// Admits nobody until [`Self::set_mesh`] says to which mesh.
    pub(crate) fn new(files: MeshFiles, me: PeerId) -> Self {
        Self { files, me, mesh: RwLock::new(None), changed: Notify::new() }
    }

    /// Sets the mesh of this machine, and the roster in force.
    pub(crate) fn set_mesh(&self, mesh: Option<NixPublicKey>, roster: Option<Arc<SignedRoster>>) {
        *self.mesh.write() = mesh.map(|mesh| (mesh, roster));
    }

    /// Returns when the roster was changed by an admission.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What answers machines that want to join.
    pub(crate) fn handler(self: &Arc<Self>) -> JoinHandler {
        let this = Arc::clone(self);
        Arc::new(move |peer, request| {
            let this = Arc::clone(&this);
            Box::pin(async move {
                let admit = move || this.admit(peer, &request);
                let reply = tokio::task::spawn_blocking(admit).await.unwrap_or(JoinReply::NotNow);
                // All that are refused take as long, whatever the reason, and nobody can guess fast.
                if reply == JoinReply::Refused {
                    tokio::time::sleep(REFUSED_AFTER).await;
                }
                reply
            })
        })
    }

    fn admit(&self, peer: PeerId, request: &JoinRequest) -> JoinReply {
        let (Some((mesh, roster)), Some(node_key)) = (self.mesh.read().clone(), node_key_of(&peer)) else {
            return JoinReply::Refused;
        };
        let now = Timestamp::now();
        // Looked at, and not used up yet: whoever is refused for another reason may try again.
        let is_open = self.files.read_invitations().map(|mut invitations| invitations.use_up(now, &request.secret));
        let invitation = match is_open {
            Ok(Some(invitation)) => invitation,
            Ok(None) => return JoinReply::Refused,
            Err(error) => return cannot_admit(peer, &error),
        };
        let known = roster.as_ref().and_then(|roster| roster.member(&node_key));
        let own_choice = || known.map_or_else(|| request.name.clone(), |known| known.name.clone());
        let wanted = Member {
            node_key,
            name: invitation.name.clone().unwrap_or_else(own_choice),
            // Who comes again stays a builder.
            role: known.map_or(invitation.role, |known| higher(known.role, invitation.role)),
            builder_key: request.builder_key.as_ref().map(|proof| proof.key.clone()),
            group: invitation.group.clone().or_else(|| known.and_then(|known| known.group.clone())),
            relay: invitation.relay || known.is_some_and(|known| known.relay),
            ephemeral_s: invitation.ephemeral_s,
            addresses: request.addresses.clone(),
        };
        // Before the invitation is used up: it stays good for a second try.
        if let Err(error) = check_proof(request.builder_key.as_ref(), &node_key) {
            return JoinReply::Unfit { why: error.to_string() };
        }
        if let Err(error) = check_new(&wanted) {
            return JoinReply::Unfit { why: error.to_string() };
        }
        if let Some(why) = roster.as_ref().and_then(|roster| find_key_in_use(roster.roster(), &wanted)) {
            return JoinReply::Unfit { why };
        }
        match self.admit_as((&mesh, roster.as_deref()), &request.secret, now, wanted) {
            Ok(Some(roster)) => {
                tracing::info!(%peer, version = roster.roster().version, "a machine has joined");
                self.changed.notify_one();
                JoinReply::Welcome(roster.as_bytes().to_vec())
            }
            Ok(None) => JoinReply::Refused,
            Err(error) => cannot_admit(peer, &error),
        }
    }

    /// Uses the invitation up, and signs a roster with the member; `None` if somebody else has used it up meanwhile.
    fn admit_as(
        &self,
        (mesh, roster): (&NixPublicKey, Option<&SignedRoster>),
        secret: &[u8; 16],
        now: Timestamp,
        member: Member,
    ) -> anyhow::Result<Option<SignedRoster>> {
        // Used up first: if signing fails, the token is lost, and nobody can join twice with it.
        let used: Option<Invitation> =
            self.files.change_invitations(|invitations| Ok(invitations.use_up(now, secret)))?;
        if used.is_none() {
            return Ok(None);
        }
        let (roster, ()) = self.files.edit(mesh, &self.me, roster, |roster| {
            put_member(roster, member);
            Ok(())
        })?;
        Ok(Some(roster))
    }
}

/// Why this cannot be a new member, or a member's new name. In a roster of another machine such names are shown escaped.
pub(crate) fn check_new(member: &Member) -> anyhow::Result<()> {
    anyhow::ensure!(
        is_name(&member.name),
        "member name \"{}\" is refused; accepted: {NAME_FORM}",
        crate::describe::escaped(&member.name)
    );
    check_group(member.group.as_deref())?;
    Ok(member.check()?)
}

/// Why this cannot be the name of a group.
pub(crate) fn check_group(group: Option<&str>) -> anyhow::Result<()> {
    let Some(group) = group.filter(|group| !is_name(group)) else { return Ok(()) };
    anyhow::bail!("group \"{}\" is refused; accepted: {NAME_FORM}", crate::describe::escaped(group))
}

/// A builder stays one.
pub(crate) fn higher(one: MemberRole, other: MemberRole) -> MemberRole {
    if one == MemberRole::Builder { one } else { other }
}

/// Whether the machine holds the builder key that it names: the keys of all builders are known, so naming one proves nothing.
pub(crate) fn check_proof(proof: Option<&KeyProof>, node_key: &[u8; 32]) -> anyhow::Result<()> {
    let Some(proof) = proof.filter(|proof| !proof.is_of(node_key)) else { return Ok(()) };
    anyhow::bail!(
        "builder key \"{}\" is refused; accepted: a key whose secret part this machine has (trust.builder_key_file)",
        crate::describe::escaped(&proof.key)
    )
}

/// Why this member's builder key cannot be told from another one.
pub(crate) fn find_key_in_use(roster: &Roster, wanted: &Member) -> Option<String> {
    let (other, key) = roster.find_builder_key(wanted)?;
    if other
        .builder_key
        .as_deref()
        .is_some_and(|text| NixPublicKey::parse(text).is_ok_and(|it| it.bytes() == key.bytes()))
    {
        return Some(format!(
            "its builder key is that of the member {0:?}; remove that one first if it is the same machine (`narmesh mesh remove {0:?}`), or make a key of its own (delete builder.key, and run `narmesh init --force --name NAME`)",
            other.name
        ));
    }
    Some(format!(
        "its builder key is called {}, as that of the member {:?} is; make one of another name (delete builder.key, and run `narmesh init --force --name NAME`)",
        key.name(),
        other.name
    ))
}

/// Adds a member, or puts it in the place of the one with its node key. Of the addresses that it gives, those that may not be
/// told are left out.
pub(crate) fn put_member(roster: &mut Roster, mut member: Member) {
    member.addresses.retain(|address| may_be_told(address));
    roster.put(member);
}

fn cannot_admit(peer: PeerId, error: &anyhow::Error) -> JoinReply {
    tracing::error!(%peer, error = crate::describe::describe(error), "a machine with an invitation cannot be admitted");
    JoinReply::NotNow
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::identity::Keypair;
    use narmesh_protocol::NixSecretKey;

    struct Stage {
        _dir: tempfile::TempDir,
        files: MeshFiles,
        admission: Admission,
    }

    fn stage(uses: u32) -> Stage {
        let dir = tempfile::tempdir().unwrap();
        let files = MeshFiles::new(dir.path());
        let key = NixSecretKey::from_seed("home", &[1; 32]).unwrap();
        files.create_key(&key).unwrap();
        let until = Timestamp::now() + jiff::SignedDuration::from_hours(1);
        let invitation = Invitation::new(&[7; 16], MemberRole::Client, uses, until);
        files.change_invitations(|invitations| invitations.add(Timestamp::now(), invitation)).unwrap();
        let me = peer();
        let admission = Admission::new(files.clone(), me);
        files.create_roster(&key, Member { node_key: node_key_of(&me).unwrap(), ..founder() }).unwrap();
        let roster = files.read_roster(&key.public()).unwrap().map(Arc::new);
        admission.set_mesh(Some(key.public()), roster);
        Stage { _dir: dir, files, admission }
    }

    fn founder() -> Member {
        Member {
            node_key: [9; 32],
            name: "founder".to_owned(),
            role: MemberRole::Builder,
            builder_key: Some(NixSecretKey::from_seed("b-1", &[9; 32]).unwrap().public().to_string()),
            group: None,
            relay: false,
            ephemeral_s: 0,
            addresses: Vec::new(),
        }
    }

    fn request(secret: u8, name: &str) -> JoinRequest {
        JoinRequest { secret: [secret; 16], name: name.to_owned(), builder_key: None, addresses: Vec::new() }
    }

    fn peer() -> PeerId {
        Keypair::generate_ed25519().public().to_peer_id()
    }

    #[test]
    fn an_invitation_admits_as_many_machines_as_it_says() {
        let Stage { files, admission, .. } = &stage(2);
        assert_eq!(admission.admit(peer(), &request(8, "a")), JoinReply::Refused);
        for name in ["\n", "box\u{202e}", "b\u{200b}ox"] {
            assert!(matches!(admission.admit(peer(), &request(7, name)), JoinReply::Unfit { .. }), "and stays good");
        }
        let (asker, other) = (peer(), peer());
        let of = |peer: &PeerId, name, seed| {
            let key = NixSecretKey::from_seed(name, &[seed; 32]).unwrap();
            Some(KeyProof::sign(&key, &node_key_of(peer).unwrap()))
        };
        for (builder_key, why) in [
            (of(&asker, "b-1", 8), "called b-1, as that of the member \"founder\""),
            (of(&asker, "b-1", 9), "is that of the member \"founder\""),
            (of(&asker, "b-2", 9), "is that of the member \"founder\""),
            (of(&other, "b-3", 8), "whose secret part this machine has"),
        ] {
            let reply = admission.admit(asker, &JoinRequest { builder_key, ..request(7, "b") });
            assert!(matches!(&reply, JoinReply::Unfit { why: said } if said.contains(why)), "{reply:?}, not {why}");
        }
        for _ in 0..2 {
            assert!(matches!(admission.admit(peer(), &request(7, "box")), JoinReply::Welcome(_)));
        }
        assert_eq!(admission.admit(peer(), &request(7, "box")), JoinReply::Refused);
        let mesh = files.read_key().unwrap().unwrap().public();
        let names: Vec<_> =
            files.read_roster(&mesh).unwrap().unwrap().roster().members.iter().map(|it| it.name.clone()).collect();
        assert!(
            names.len() == 3 && names.contains(&"box".to_owned()) && names.contains(&"box-2".to_owned()),
            "{names:?}"
        );
    }

    #[test]
    fn a_machine_that_joins_again_takes_its_own_place() {
        let mut roster =
            Roster { version: 1, issued_at_ms: 0, members: Vec::new(), edits: Vec::new(), removals: Vec::new() };
        let member = |number: u8, name: &str| Member {
            node_key: [number; 32],
            name: name.to_owned(),
            role: MemberRole::Client,
            builder_key: None,
            group: None,
            relay: false,
            ephemeral_s: 0,
            addresses: Vec::new(),
        };
        put_member(&mut roster, member(1, "a"));
        put_member(&mut roster, member(1, "a"));
        let named = ["/dns/evil.example/tcp/1", "/ip4/192.0.2.1/tcp/7280"].map(str::to_owned).into();
        put_member(&mut roster, Member { addresses: named, ..member(1, "a") });
        assert_eq!(roster.members[0].addresses, ["/ip4/192.0.2.1/tcp/7280"], "no names of hosts");
        put_member(&mut roster, member(2, &"\u{e4}".repeat(32)));
        put_member(&mut roster, member(3, &"\u{e4}".repeat(32)));
        let names: Vec<_> = roster.members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["a", &"\u{e4}".repeat(32), &format!("{}-2", "\u{e4}".repeat(31))]);
    }
}
