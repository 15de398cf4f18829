//! What `narmesh mesh list` shows.

use crate::membership::invitations::role_word;
use crate::status::text::{contradiction, duration};
use jiff::Timestamp;
use libp2p::PeerId;
use narmesh_protocol::{Member, SignedRoster};
use serde::Serialize;

/// One line of `narmesh mesh list`.
#[derive(Serialize)]
struct MemberView {
    name: String,
    peer_id: Option<String>,
    role: &'static str,
    group: Option<String>,
    relay: bool,
    builder_key: Option<String>,
    ephemeral_s: u32,
    addresses: Vec<String>,
    is_this_machine: bool,
}

/// `narmesh mesh list`.
#[derive(Serialize)]
pub(super) struct MeshReport {
    mesh: String,
    version: u64,
    issued_at_ms: u64,
    pub(super) has_mesh_key: bool,
    pub(super) invitations_open: usize,
    /// A mesh key that is said to have taken the place of the same one as ours.
    pub(super) contradicting_key: Option<String>,
    members: Vec<MemberView>,
}

impl MeshReport {
    /// The report on a roster alone.
    pub(super) fn new(roster: &SignedRoster, me: &PeerId) -> Self {
        let view = |member: &Member| MemberView {
            name: member.name.clone(),
            peer_id: member.peer_id().map(|peer| peer.to_string()),
            role: role_word(member.role),
            group: member.group.clone(),
            relay: member.relay,
            builder_key: member.builder_key.clone(),
            ephemeral_s: member.ephemeral_s,
            addresses: member.addresses.clone(),
            is_this_machine: member.peer_id() == Some(*me),
        };
        let mut members: Vec<_> = roster.roster().members.iter().map(view).collect();
        members.sort_by(|one, other| one.name.cmp(&other.name));
        Self {
            mesh: roster.key().to_string(),
            version: roster.roster().version,
            issued_at_ms: roster.roster().issued_at_ms,
            has_mesh_key: false,
            invitations_open: 0,
            contradicting_key: None,
            members,
        }
    }

    /// The report for people.
    pub(super) fn text(&self) -> String {
        let issued = i64::try_from(self.issued_at_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let issued = issued.map_or_else(|| "?".to_owned(), |issued| issued.strftime("%Y-%m-%d %H:%M UTC").to_string());
        let mut text = format!("mesh {}\nroster version {} of {issued}\n", self.mesh, self.version);
        if self.has_mesh_key {
            text += &format!("the mesh key is here; invitations that are open: {}\n", self.invitations_open);
        }
        if let Some(key) = &self.contradicting_key {
            text += &format!("{}\n", contradiction(key));
        }
        text += "\n";
        let width = self.members.iter().map(|member| member.name.chars().count()).max().unwrap_or(0);
        for member in &self.members {
            let name = crate::describe::escaped(&member.name);
            let this = if member.is_this_machine { "  (this machine)" } else { "" };
            let peer = member.peer_id.as_deref().unwrap_or("no peer id");
            let ephemeral = match member.ephemeral_s {
                0 => String::new(),
                seconds => format!("  removed when away for {}", duration(seconds.into())),
            };
            let group = member.group.as_ref().map(|group| format!("  of {}", crate::describe::escaped(group)));
            let group = group.unwrap_or_default();
            let relay = if member.relay { "  relay" } else { "" };
            text += &format!("{name:<width$}  {:<7}  {peer}{group}{relay}{ephemeral}{this}\n", member.role);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_by_the_other_commands() {
        let member = MemberView {
            name: "runner".to_owned(),
            peer_id: Some("12D3KooWa".to_owned()),
            role: "client",
            group: Some("rack 1".to_owned()),
            relay: true,
            builder_key: None,
            ephemeral_s: 5_400,
            addresses: Vec::new(),
            is_this_machine: false,
        };
        let report = MeshReport {
            mesh: "home:AA==".to_owned(),
            version: 3,
            issued_at_ms: 0,
            has_mesh_key: false,
            invitations_open: 0,
            contradicting_key: None,
            members: vec![member],
        };
        assert_eq!(
            report.text(),
            "mesh home:AA==\nroster version 3 of 1970-01-01 00:00 UTC\n\n\
             runner  client   12D3KooWa  of rack 1  relay  removed when away for 1 h 30 min\n"
        );
    }
}
