//! `narmesh mesh list`.

use super::emit_report;
use crate::membership::invitations::role_word;
use jiff::{SignedDuration, Timestamp};
use libp2p::PeerId;
use narmesh_protocol::{Member, NixPublicKey, SignedRoster};
use serde::Serialize;

/// One line of `narmesh mesh list`.
#[derive(Serialize)]
struct MemberView {
    name: String,
    peer_id: Option<String>,
    role: &'static str,
    relay: bool,
    builder_key: Option<String>,
    ephemeral_s: u32,
    addresses: Vec<String>,
    is_this_machine: bool,
}

/// `narmesh mesh list`.
#[derive(Serialize)]
struct MeshReport {
    mesh: String,
    version: u64,
    issued_at_ms: u64,
    has_mesh_key: bool,
    invitations_open: usize,
    members: Vec<MemberView>,
}

/// What this machine knows of its mesh.
pub(super) struct Known {
    pub(super) mesh: NixPublicKey,
    pub(super) roster: SignedRoster,
    pub(super) me: PeerId,
    pub(super) has_mesh_key: bool,
    pub(super) invitations_open: usize,
}

pub(super) fn list(known: &Known, json: bool) -> anyhow::Result<()> {
    let Known { mesh, roster, me, has_mesh_key, invitations_open } = known;
    let view = |member: &Member| MemberView {
        name: member.name.clone(),
        peer_id: member.peer_id().map(|peer| peer.to_string()),
        role: role_word(member.role),
        relay: member.relay,
        builder_key: member.builder_key.clone(),
        ephemeral_s: member.ephemeral_s,
        addresses: member.addresses.clone(),
        is_this_machine: member.peer_id() == Some(*me),
    };
    let mut members: Vec<_> = roster.roster().members.iter().map(view).collect();
    members.sort_by(|one, other| one.name.cmp(&other.name));
    let report = MeshReport {
        mesh: mesh.to_string(),
        version: roster.roster().version,
        issued_at_ms: roster.roster().issued_at_ms,
        has_mesh_key: *has_mesh_key,
        invitations_open: *invitations_open,
        members,
    };
    emit_report(&report, json, text_of)
}

fn text_of(report: &MeshReport) -> String {
    let issued = i64::try_from(report.issued_at_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let issued = issued.map_or_else(|| "?".to_owned(), |issued| issued.strftime("%Y-%m-%d %H:%M UTC").to_string());
    let mut text = format!("mesh {}\nroster version {} of {issued}\n", report.mesh, report.version);
    if report.has_mesh_key {
        text += &format!("the mesh key is here; invitations that are open: {}\n", report.invitations_open);
    }
    text += "\n";
    let width = report.members.iter().map(|member| member.name.chars().count()).max().unwrap_or(0);
    for member in &report.members {
        let name = crate::describe::escaped(&member.name);
        let this = if member.is_this_machine { "  (this machine)" } else { "" };
        let peer = member.peer_id.as_deref().unwrap_or("no peer id");
        let ephemeral = match member.ephemeral_s {
            0 => String::new(),
            seconds => format!("  removed when away for {}", SignedDuration::from_secs(seconds.into())),
        };
        let relay = if member.relay { "  relay" } else { "" };
        text += &format!("{name:<width$}  {:<7}  {peer}{relay}{ephemeral}{this}\n", member.role);
    }
    text
}
