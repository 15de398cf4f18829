//! Follows the roster of the mesh: takes newer ones, puts them in force, and strikes off members that are gone.

use super::Daemon;
use crate::describe::describe;
use crate::membership::files::{MeshFiles, newest, read_roster_file};
use crate::membership::rekey::Taken;
use crate::settings::Settings;
use jiff::Timestamp;
use libp2p::PeerId;
use narmesh_mesh::MeshNews;
use narmesh_protocol::{Removal, SignedRoster, Standing};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How often it is checked whether ephemeral members are gone and whether invitations are over. Members that are gone are
/// struck off together: a thousand short lives a day make no thousand rosters.
const CHECK: Duration = Duration::from_secs(60);

/// The settings with the members of the newest roster, if this machine is on it. The one `in_force` counts as well, and is
/// written again if its file is lost.
pub(crate) fn with_members(configured: &Settings, me: &PeerId, in_force: Option<Arc<SignedRoster>>) -> Settings {
    let mut settings = configured.clone();
    let Some(mesh) = &configured.mesh.key else { return settings };
    let usable = |read: anyhow::Result<Option<SignedRoster>>| {
        read.unwrap_or_else(|error| {
            tracing::error!(error = describe(&error), "a roster cannot be used");
            None
        })
    };
    let files = MeshFiles::new(&configured.node.state_dir);
    let mut kept = usable(files.read_roster(mesh));
    // What is in force counts even if the disk has lost it.
    let is_lost =
        |roster: &Arc<SignedRoster>| kept.as_ref().is_none_or(|kept| kept.standing_of(roster) == Standing::Newer);
    if let Some(roster) = in_force.filter(is_lost) {
        tracing::warn!(version = roster.roster().version, "the roster was lost on disk: written again");
        if let Err(error) = files.take(mesh, &roster) {
            tracing::error!(error = describe(&error), "the roster cannot be kept");
        }
        kept = Some(SignedRoster::clone(&roster));
    }
    // A file of the operator counts beside what peers told; the newer of both wins.
    let given = configured.mesh.roster_file.as_ref().and_then(|file| usable(read_roster_file(mesh, file)));
    let Some(roster) = newest(kept, given) else {
        tracing::warn!(%mesh, "there is no roster of the mesh here: its members are unknown; `narmesh mesh export FILE` on a member and `narmesh mesh import FILE` here bring it");
        return settings;
    };
    settings.mesh.key = Some(roster.key().clone());
    settings.mesh.replaced = (mesh.bytes() != roster.key().bytes()).then(|| mesh.clone());
    settings.mesh.contradicting = files.read_other(mesh).ok().flatten().map(|other| other.key().clone());
    // Whoever was removed has no peers any more.
    if !MeshFiles::is_on(&roster, me) {
        let version = roster.roster().version;
        tracing::warn!(%mesh, version, "this machine is not on the roster of the mesh: its members are no peers");
        return settings;
    }
    let removal = files.read_removal(&roster, me);
    for remark in settings.add_members(Arc::new(roster), me) {
        tracing::warn!("{remark}");
    }
    // Its peers stay: a member that admits this machine again dials it. A `[[peer]]` goes on as it did without the mesh.
    if let Some(removal) = removal {
        settings.mesh.removed_in = Some(removal.version);
        let by_roster = settings.peers.iter().filter(|peer| configured.peer(&peer.peer_id).is_none());
        settings.mesh.refusing = by_roster.map(|peer| peer.peer_id).collect();
    }
    settings
}

/// Whether machines that are no members may ask to join.
pub(super) fn is_open(settings: &Settings) -> bool {
    if settings.mesh.key.is_none() {
        return false;
    }
    let invitations = MeshFiles::new(&settings.node.state_dir).read_invitations();
    invitations.is_ok_and(|invitations| invitations.is_any_open(Timestamp::now()))
}

/// Logs what became of a roster; returns whether anything has changed.
fn tell_taken(taken: Taken, roster: &SignedRoster) -> bool {
    let key = roster.key();
    match taken {
        Taken::Newer => {}
        Taken::NotNewer => return false,
        Taken::NewKey => tracing::warn!(
            %key,
            "the mesh key was replaced: what the one before signs counts no more, and invitations of this machine have ended"
        ),
        Taken::Contradicts => tracing::error!(
            %key,
            "a second key is said to have taken the place of the mesh key: it counts nothing here; docs/mesh.md says what to do"
        ),
    }
    true
}

impl Daemon {
    /// Takes what members tell of the mesh, and puts in force what has changed.
    pub(super) async fn follow_roster(self: Arc<Self>, mut heard: mpsc::Receiver<MeshNews>) {
        let mut check = tokio::time::interval(CHECK);
        let mut seen = HashMap::new();
        let mut was_open = is_open(&self.settings());
        loop {
            let is_changed = tokio::select! {
                Some(news) = heard.recv() => match news {
                    MeshNews::Roster(roster) => self.keep_roster(roster).await,
                    MeshNews::Removed(removal) => self.keep_removal(removal).await,
                },
                () = self.admission.changed() => true,
                _ = check.tick() => {
                    let is_open = is_open(&self.settings());
                    let is_other = std::mem::replace(&mut was_open, is_open) != is_open;
                    self.strike_off_gone(&mut seen).await || is_other
                }
            };
            if is_changed && let Err(error) = self.reload_roster().await {
                tracing::error!(error = describe(&error), "the newest roster is not in force");
            }
        }
    }

    /// Writes a roster if it is newer than ours; says whether anything has changed.
    async fn keep_roster(&self, roster: Arc<SignedRoster>) -> bool {
        let settings = self.settings();
        let Some(mesh) = settings.mesh.key.clone() else { return false };
        let files = MeshFiles::new(&settings.node.state_dir);
        let me = self.secrets.peer_id();
        // On a thread that may block: this reads and writes files.
        let keep = move || {
            let taken = files.take(&mesh, &roster)?;
            let is_newer = matches!(taken, Taken::Newer | Taken::NewKey);
            let completed = if is_newer { files.make_lost_edits_again(&mesh, &me)? } else { None };
            anyhow::Ok((taken, roster, completed))
        };
        match tokio::task::spawn_blocking(keep).await {
            Ok(Ok((taken, roster, completed))) => {
                if let Some(roster) = completed {
                    let version = roster.roster().version;
                    tracing::info!(
                        version,
                        "another machine signed at the same time: what this one changed is made again"
                    );
                }
                tell_taken(taken, &roster)
            }
            Ok(Err(error)) => {
                tracing::error!(error = describe(&error), "a newer roster cannot be kept");
                false
            }
            Err(_) => false,
        }
    }

    /// Keeps what says that this machine was removed; says whether that is news.
    async fn keep_removal(&self, removal: Removal) -> bool {
        let settings = self.settings();
        let Some(roster) = settings.mesh.roster.clone() else { return false };
        let files = MeshFiles::new(&settings.node.state_dir);
        let me = self.secrets.peer_id();
        let (name, version) = (roster.key().name().to_owned(), removal.version);
        match tokio::task::spawn_blocking(move || files.keep_removal(&roster, &me, &removal)).await {
            Ok(Ok(is_news)) => {
                if is_news {
                    tracing::warn!(
                        mesh = name,
                        version,
                        "this machine was removed from the mesh: its members are dialled once an hour; `narmesh join TOKEN` makes it a member again"
                    );
                }
                is_news
            }
            Ok(Err(error)) => {
                tracing::error!(error = describe(&error), "that this machine was removed cannot be kept");
                false
            }
            Err(_) => false,
        }
    }

    /// Where the mesh key is: removes ephemeral members that were not connected for their time. `seen` says when each was
    /// seen last; a start counts as a sign of life. Returns whether anybody was removed.
    async fn strike_off_gone(&self, seen: &mut HashMap<PeerId, Instant>) -> bool {
        let settings = self.settings();
        let Some(roster) = settings.mesh.roster.clone() else { return false };
        let files = MeshFiles::new(&settings.node.state_dir);
        if !files.has_key_of(&roster) {
            return false;
        }
        let mut gone = Vec::new();
        let ephemeral = roster.roster().members.iter().filter(|member| member.ephemeral_s > 0);
        let mut still = HashMap::new();
        for member in ephemeral {
            let Some(peer) = member.peer_id() else { continue };
            // Whoever is not known yet counts as seen now, or each start of this machine would strike off everybody.
            let last = match seen.get(&peer) {
                Some(last) if !self.mesh.statistics().is_connected(&peer) => *last,
                _ => Instant::now(),
            };
            still.insert(peer, last);
            if last.elapsed() > Duration::from_secs(member.ephemeral_s.into()) {
                gone.push(member.node_key);
            }
        }
        *seen = still;
        let Some(mesh) = settings.mesh.key.clone().filter(|_| !gone.is_empty()) else { return false };
        let (count, me) = (gone.len(), self.secrets.peer_id());
        let strike = move || {
            files.edit(&mesh, &me, Some(&roster), |roster| {
                roster.members.retain(|member| !gone.contains(&member.node_key));
                Ok(())
            })
        };
        match tokio::task::spawn_blocking(strike).await {
            Ok(Ok((roster, ()))) => {
                tracing::info!(
                    count,
                    version = roster.roster().version,
                    "ephemeral members that are gone were removed"
                );
                true
            }
            Ok(Err(error)) => {
                tracing::error!(error = describe(&error), "ephemeral members that are gone cannot be removed");
                false
            }
            Err(_) => false,
        }
    }
}
