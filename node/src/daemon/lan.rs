//! Finds members of our mesh on the local network, and is found by them, as the settings say.

use crate::settings::Settings;
use libp2p::PeerId;
use narmesh_lan::{LanKey, Presence, discover};
use narmesh_mesh::{MeshHandle, now};
use narmesh_protocol::{node_key_of, peer_of};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

/// The search for members, which runs while the settings want it.
pub(super) struct Discovery {
    mesh: MeshHandle,
    me: PeerId,
    running: Mutex<Option<Running>>,
}

struct Running {
    key: LanKey,
    task: JoinHandle<()>,
}

impl Discovery {
    /// Begins what `settings` want.
    pub(super) fn start(mesh: MeshHandle, me: PeerId, settings: &Settings) -> Self {
        let discovery = Self { mesh, me, running: Mutex::default() };
        discovery.follow(settings);
        discovery
    }

    /// Does from now on what `settings` want. Without a roster nobody is a member, so there is nobody to be found.
    pub(super) fn follow(&self, settings: &Settings) {
        let mesh = settings.mesh.key.as_ref().filter(|_| settings.mesh.discover_lan && settings.mesh.roster.is_some());
        let key = mesh.map(|key| LanKey::of_mesh(&key.bytes()));
        let mut running = self.running.lock();
        if running.as_ref().map(|running| &running.key) == key.as_ref() {
            return;
        }
        if let Some(before) = running.take() {
            before.task.abort();
        }
        let (Some(key), Some(node_key)) = (key, node_key_of(&self.me)) else { return };
        let handle = self.mesh.clone();
        let found = move |presence: Presence| {
            if let Some(peer) = peer_of(&presence.node_key) {
                handle.report_found(peer, presence.addresses);
            }
        };
        let clock = || now().moment;
        let task = tokio::spawn(discover(node_key, key.clone(), self.mesh.listened(), clock, found));
        *running = Some(Running { key, task });
    }
}
