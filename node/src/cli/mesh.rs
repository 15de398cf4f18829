//! `narmesh mesh` and `narmesh leave`.

use super::client::ask;
use super::mesh_list::MeshReport;
use super::mesh_place::{Place, find_member, tell_daemon};
use super::rekey::{self, Rekey};
use super::{emit, emit_report, eprint_line, setup_nix};
use crate::control::{ControlReply, ControlRequest};
use crate::membership::config_file::{self, set_mesh_key};
use crate::membership::files::{MeshFiles, no_roster};
use crate::membership::invitations::{Invitation, SECRET_BYTES, parse_role, role_word};
use crate::membership::joins::{check_group, check_new, find_key_in_use, higher, put_member};
use crate::membership::request_file;
use crate::membership::token::{ADDRESSES_MAX, JoinToken};
use crate::settings::{may_be_dialled, new_nix_key, socket_address};
use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use libp2p::Multiaddr;
use narmesh_protocol::{Member, MemberRole, node_key_of};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Longest time that an invitation is open, or that an ephemeral member may be away.
const TIME_MAX: SignedDuration = SignedDuration::from_hours(366 * 24);

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Make a mesh with this machine as its first member; whoever has its mesh key decides who belongs
    Create {
        /// What the mesh is called, in the name of its key
        #[arg(default_value = "mesh")]
        name: String,
    },
    /// Print a token with which other machines join (for as long as the daemon runs here)
    Invite(Invite),
    /// Show the members, and which roster names them
    List {
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Remove a member: its connections are closed and its builder key is no longer trusted, on every machine that hears of it
    Remove {
        /// The member's name
        name: String,
    },
    /// Give a member another name
    Rename {
        /// The member's name
        name: String,
        /// Its new name
        new_name: String,
    },
    /// Make a member a builder, whose builder key all members trust, or a client
    Role {
        /// The member's name
        name: String,
        /// `client` or `builder`
        role: String,
    },
    /// Say to which group a builder belongs where builders are counted: all of one group have one voice
    Group {
        /// The member's name
        name: String,
        /// The group, such as the owner of the machines; without it the member is a group by itself
        group: Option<String>,
    },
    /// Have a member relay for others that cannot reach each other, or not: it has to be one that all of them reach
    Relay {
        /// The member's name
        name: String,
        /// `on` or `off`
        switch: String,
    },
    /// Close all invitations that are open
    CloseInvitations,
    /// Admit a machine by the file that `narmesh join --request FILE` wrote there, and give `export` to it
    Admit {
        /// The file
        file: PathBuf,
        /// What it may do: `client` or `builder`
        #[arg(long, default_value = "client")]
        role: String,
        /// Its group among the builders, as of `invite`
        #[arg(long)]
        group: Option<String>,
        /// It relays, as of `invite`
        #[arg(long)]
        relay: bool,
    },
    /// Take a roster that `export` wrote on another member, where the own one is lost
    Import {
        /// The file
        file: PathBuf,
        /// Take it although it is of this mesh key, which nothing here says has taken the place of ours
        #[arg(long, value_name = "MESH_KEY")]
        accept: Option<String>,
    },
    /// Put another mesh key in the place of this one, where it may be in wrong hands; all members follow
    Rekey(Rekey),
    /// Write the signed roster into a file, for mesh.roster_file on machines that are configured from one place
    Export {
        /// The file
        file: PathBuf,
    },
}

#[derive(clap::Args, Debug)]
pub(super) struct Invite {
    /// The name of the new member; by default the one that it gives itself
    #[arg(long)]
    name: Option<String>,
    /// What it may do: `client` (fetch) or `builder` (all members also trust its builder key)
    #[arg(long, default_value = "client")]
    role: String,
    /// Its group where builders are counted: all builders of one group have one voice. By default it is a group by itself
    #[arg(long)]
    group: Option<String>,
    /// It relays for members that cannot reach each other; it has to be a machine that all of them reach
    #[arg(long)]
    relay: bool,
    /// How many machines may join with this token
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// How long the token is good, such as 30m, 2h or 7d
    #[arg(long = "for", value_name = "TIME", default_value = "1h")]
    good_for: String,
    /// Remove the member when it was not connected for this long, such as 24h (for CI runners)
    #[arg(long, value_name = "TIME")]
    ephemeral: Option<String>,
    /// Where others reach this machine, as a multiaddr; several times for several. It is also noted in the roster. By default
    /// a guess
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<Multiaddr>,
}

pub(super) fn mesh(config: &Path, command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Create { name } => create(config, name),
        Command::Invite(invite) => print_token(config, invite),
        Command::List { json } => list(config, *json),
        Command::Remove { name } => remove(config, name),
        Command::Rename { name, new_name } => edit_member(config, name, |member| {
            member.name.clone_from(new_name);
            check_new(member)
        }),
        Command::Role { name, role } => {
            let role = role_of(role)?;
            edit_member(config, name, |member| {
                member.role = role;
                Ok(())
            })
        }
        Command::Group { name, group } => {
            check_group(group.as_deref())?;
            edit_member(config, name, |member| {
                member.group.clone_from(group);
                Ok(())
            })
        }
        Command::Relay { name, switch } => {
            let is_relay = switch_of(switch)?;
            edit_member(config, name, |member| {
                member.relay = is_relay;
                Ok(())
            })
        }
        Command::CloseInvitations => {
            let place = Place::find(config)?;
            let open = place.files.change_invitations(|invitations| {
                let open = invitations.count_open(Timestamp::now());
                invitations.close_all();
                Ok(open)
            })?;
            let whose = "; each machine with the mesh key closes its own";
            tell_daemon(config, &format!("{open} invitations of this machine were closed{whose}"));
            Ok(())
        }
        Command::Admit { file, role, group, relay } => admit(config, file, (role_of(role)?, group.as_deref(), *relay)),
        Command::Import { file, accept } => rekey::import(config, file, accept.as_deref()),
        Command::Rekey(arguments) => rekey::rekey(config, arguments),
        Command::Export { file } => {
            let roster = Place::find(config)?.roster()?;
            std::fs::write(file, roster.as_bytes()).with_context(|| format!("cannot write {}", file.display()))
        }
    }
}

fn role_of(word: &str) -> anyhow::Result<MemberRole> {
    parse_role(word).with_context(|| format!("role {word:?} is refused; accepted: client, builder"))
}

fn switch_of(word: &str) -> anyhow::Result<bool> {
    match word {
        "on" => Ok(true),
        "off" => Ok(false),
        other => anyhow::bail!("switch {other:?} is refused; accepted: on, off"),
    }
}

/// A time such as `2h`.
fn duration_of(option: &str, text: &str) -> anyhow::Result<SignedDuration> {
    const FORM: &str = "1 second to 366 days, such as 30m, 2h or 7d";
    let span: Option<jiff::Span> = text.parse().ok();
    let duration = span.and_then(|span| span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).ok());
    let duration = duration.filter(|duration| *duration >= SignedDuration::from_secs(1) && *duration <= TIME_MAX);
    duration.with_context(|| format!("{option} {text:?} is refused; accepted: {FORM}"))
}

fn create(config: &Path, name: &str) -> anyhow::Result<()> {
    let place = Place::find(config)?;
    if let Some(mesh) = &place.settings.mesh.key {
        anyhow::bail!("this machine is in the mesh {mesh} already; `narmesh leave` leaves it");
    }
    let key = new_nix_key(name).map_err(|error| anyhow::anyhow!("NAME {name:?} is refused: {error}"))?;
    let file = place.files.key_file();
    anyhow::ensure!(
        !file.exists(),
        "{} is the key of an earlier mesh; move it away, or put its public half into [mesh] of {}",
        file.display(),
        config.display()
    );
    let this = place.as_member(MemberRole::Builder)?;
    check_new(&this)?;
    // Before a key is made that could not be used.
    config_file::ensure_writable(config)?;
    place.files.forget()?;
    // The key first: a roster without it could never be changed again.
    place.files.create_key(&key)?;
    let mesh = key.public();
    place.files.create_roster(&key, this)?;
    set_mesh_key(config, Some(&mesh))?;
    emit(&format!(
        "wrote {} (mode 0600): the mesh key. Who has it decides who belongs; keep a copy in a safe place\n\
         mesh key: {mesh}\n\nNext: narmesh mesh invite\n",
        file.display()
    ))?;
    tell_daemon(config, "this machine is the first member");
    Ok(())
}

fn print_token(config: &Path, invite: &Invite) -> anyhow::Result<()> {
    let place = Place::find(config)?;
    let roster = place.roster()?;
    place.files.key_of(&roster).context("only a machine with the mesh key can invite")?;
    let mesh = roster.key().clone();
    anyhow::ensure!(
        MeshFiles::is_on(&roster, &place.secrets.peer_id()),
        "this machine is not on the roster of the mesh; {}",
        no_roster(&mesh)
    );
    let role = role_of(&invite.role)?;
    anyhow::ensure!(invite.uses > 0, "--uses 0 is refused; accepted: 1 to 4294967295");
    let now = Timestamp::now();
    let until = now + duration_of("--for", &invite.good_for)?;
    let ephemeral = invite.ephemeral.as_deref().map(|text| duration_of("--ephemeral", text)).transpose()?;
    check_group(invite.group.as_deref())?;
    if let Some(name) = &invite.name {
        // As it will be when the machine joins, so that a bad name is refused here and not there.
        check_new(&Member { name: name.clone(), ..place.as_member(role)? })?;
    }
    let guessed: Vec<Multiaddr> =
        place.as_member(role)?.addresses.iter().filter_map(|text| text.parse().ok()).take(ADDRESSES_MAX).collect();
    let (addresses, are_in_roster) = match &invite.address {
        none if none.is_empty() && guessed.is_empty() => (listened(config), false),
        none if none.is_empty() => (guessed, true),
        given => (given.clone(), false),
    };
    if let Some(bad) = addresses.iter().find(|address| !may_be_dialled(&address.to_string())) {
        anyhow::bail!(
            "--address {bad} is refused; accepted: an IP address or host name with a TCP port, such as /ip4/192.0.2.1/tcp/7280"
        );
    }
    anyhow::ensure!(
        (1..=ADDRESSES_MAX).contains(&addresses.len()),
        "{} addresses would be in the token; accepted: 1 to {ADDRESSES_MAX}, each with --address (without it, while the \
         daemon runs, those of its interfaces)",
        addresses.len()
    );
    let mut secret = [0; SECRET_BYTES];
    rand::fill(&mut secret);
    let mut invitation = Invitation::new(&secret, role, invite.uses, until);
    invitation.ephemeral_s = ephemeral.map_or(0, |time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
    invitation.relay = invite.relay;
    invitation.group.clone_from(&invite.group);
    invitation.name.clone_from(&invite.name);
    let token = JoinToken { mesh, inviter: place.secrets.peer_id(), addresses, secret };
    let text = token.render().context("an address is too long for a token; accepted: at most 255 bytes")?;
    // Other members do not have the token, and have to find this machine as well.
    if !are_in_roster {
        place.note_addresses(&token.addresses)?;
    }
    place.files.change_invitations(|invitations| invitations.add(now, invitation))?;
    emit(&format!("{text}\n"))?;
    let machines = if invite.uses == 1 { "one machine".to_owned() } else { format!("{} machines", invite.uses) };
    eprint_line(&format!(
        "{machines} may join as {} until {}: narmesh join TOKEN",
        role_word(role),
        until.strftime("%Y-%m-%d %H:%M UTC")
    ));
    tell_daemon(config, "the invitation is open");
    Ok(())
}

/// Where the running daemon listens, for a machine whose addresses no default route tells: those of its interfaces.
fn listened(config: &Path) -> Vec<Multiaddr> {
    // Without a daemon nothing is known, and the caller asks for --address.
    let Ok(ControlReply::Status(status)) = ask(config, &ControlRequest::Status) else { return Vec::new() };
    let is_reached = |address: &Multiaddr| {
        let ip = socket_address(address).map(|address| address.ip());
        let is_link_local = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        ip.is_some_and(|ip| !ip.is_loopback() && !ip.is_unspecified() && !is_link_local(ip))
    };
    let listened = status.listen.iter().filter_map(|text| text.parse().ok());
    listened.filter(is_reached).take(ADDRESSES_MAX).collect()
}

fn list(config: &Path, json: bool) -> anyhow::Result<()> {
    let place = Place::find(config)?;
    let roster = place.roster()?;
    let invitations = place.files.read_invitations()?.count_open(Timestamp::now());
    let mut report = MeshReport::new(&roster, &place.secrets.peer_id());
    report.has_mesh_key = place.files.has_key_of(&roster);
    report.invitations_open = invitations;
    report.contradicting_key = place.files.read_other(&place.mesh()?)?.map(|other| other.key().to_string());
    emit_report(&report, json, MeshReport::text)
}

fn remove(config: &Path, name: &str) -> anyhow::Result<()> {
    let place = Place::find(config)?;
    let own_key = node_key_of(&place.secrets.peer_id());
    let mut same_key = Vec::new();
    let roster = place.edit(|roster| {
        let at = find_member(&roster.members, name)?;
        let Some(node_key) = roster.members.get(at).map(|member| member.node_key) else { return Ok(()) };
        anyhow::ensure!(
            Some(node_key) != own_key,
            "{name:?} is this machine, which has the mesh key; `narmesh leave` leaves the mesh"
        );
        same_key = roster.remove(&node_key);
        Ok(())
    })?;
    for other in same_key {
        eprint_line(&format!("{other:?} had the builder key of {name:?}: it is a client now, and has no builder key"));
    }
    tell_daemon(config, &format!("roster version {} is in force", roster.roster().version));
    Ok(())
}

fn edit_member(config: &Path, name: &str, edit: impl FnOnce(&mut Member) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let place = Place::find(config)?;
    let mut is_changed = false;
    let roster = place.edit(|roster| {
        let at = find_member(&roster.members, name)?;
        let Some(member) = roster.members.get_mut(at) else { return Ok(()) };
        let before = member.clone();
        edit(member)?;
        is_changed = *member != before;
        Ok(())
    })?;
    // No version was signed, so no member has to hear of it.
    if !is_changed {
        eprint_line(&format!("{name:?} is that already: the roster stays as it is"));
        return Ok(());
    }
    tell_daemon(config, &format!("roster version {} is in force", roster.roster().version));
    Ok(())
}

fn admit(config: &Path, file: &Path, (role, group, relay): (MemberRole, Option<&str>, bool)) -> anyhow::Result<()> {
    let place = Place::find(config)?;
    check_group(group)?;
    // What it may be is said here, and not by the machine that asks.
    let group = group.map(str::to_owned);
    let mut member = Member { role, group, relay, ephemeral_s: 0, ..request_file::read(file)? };
    let name = member.name.clone();
    let roster = place.edit(|roster| {
        if let Some(known) = roster.members.iter().find(|known| known.node_key == member.node_key) {
            // Whoever comes again stays a builder, as with a token.
            member.role = higher(known.role, role);
            member.relay |= known.relay;
            member.group = member.group.take().or_else(|| known.group.clone());
        }
        if let Some(why) = find_key_in_use(roster, &member) {
            anyhow::bail!("this machine cannot be a member: {why}");
        }
        put_member(roster, member);
        Ok(())
    })?;
    eprint_line(&format!(
        "{name} is a member; give it the roster (`narmesh mesh export FILE`) and the mesh key {}",
        roster.key()
    ));
    tell_daemon(config, &format!("roster version {} is in force", roster.roster().version));
    Ok(())
}

/// Writes what `narmesh mesh admit` needs to know of this machine.
pub(super) fn write_request(config: &Path, file: &Path, name: Option<&str>) -> anyhow::Result<()> {
    let place = Place::find(config)?;
    let mut member = place.as_member(MemberRole::Client)?;
    if let Some(name) = name {
        name.clone_into(&mut member.name);
    }
    check_new(&member)?;
    request_file::write(file, &place.secrets.keypair, place.secrets.builder_key.as_ref(), &member)?;
    eprint_line(&format!("wrote {}; on the machine with the mesh key: narmesh mesh admit FILE", file.display()));
    Ok(())
}

pub(super) fn leave(config: &Path) -> anyhow::Result<()> {
    let place = Place::find(config)?;
    // `init --setup-nix` writes into nix.conf without a mesh.
    if place.settings.mesh.key.is_none() && setup_nix::take_out(&place.settings)? {
        return Ok(());
    }
    let mesh = place.mesh()?;
    let has_key = place.files.read_key()?.is_some();
    // The file that decides comes first: what is kept of the mesh counts for nothing without it.
    set_mesh_key(config, None)?;
    place.files.forget()?;
    if has_key {
        eprint_line(&format!(
            "warning: the mesh key is on this machine. If no other machine has it, nobody can invite or remove members \
             any more. It stays in {file}: keep a copy, or move it to a machine that is a member. The roster is deleted \
             here; every other member has it (`narmesh mesh export FILE` there)",
            file = place.files.key_file().display()
        ));
    }
    eprint_line(&format!(
        "left the mesh {mesh}; its other members go on trusting this machine until one with the mesh key removes it"
    ));
    tell_daemon(config, "its members are no peers any more");
    setup_nix::take_out(&place.settings)?;
    Ok(())
}
