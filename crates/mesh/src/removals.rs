//! Machines that were removed from the mesh, and what they are told: who dials, and is no peer any more, and was removed, may
//! fetch the statement of the mesh key that says so.
//!
//! Walk: the dialler negotiates [`REMOVAL_PROTOCOL`] in the place of a multiplexer, under TLS, and reads [`Removal::BYTES`]
//! bytes; it sends nothing. Invariants: the protocol is offered to a machine that has a removal and to nobody else, so a
//! stranger learns nothing, not even that there is one; each is told at most once in [`PAUSE`].

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::{Multiaddr, PeerId};
use narmesh_protocol::{Removal, peer_of};
use narmesh_roster::Membership;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A machine is told at most once in this time; it asks each member at most once in ten seconds.
const PAUSE: Duration = Duration::from_secs(5);
#[derive(Debug)]
struct Told {
    removal: Removal,
    last: Option<Instant>,
}

/// What removed machines are told by this one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Removals(Arc<Mutex<HashMap<PeerId, Told>>>);

impl Removals {
    /// Sets who is told: whoever the roster says was removed, without those that are peers all the same.
    pub(crate) fn set(&self, mesh: Option<&Membership>, peers: &BTreeMap<PeerId, Vec<Multiaddr>>) {
        let mut table = self.0.lock();
        let roster = mesh.and_then(|mesh| mesh.roster.as_ref());
        let removed = roster.map_or(&[][..], |roster| roster.roster().removals.as_slice());
        let told = removed.iter().filter_map(|removed| {
            let peer = peer_of(&removed.node_key).filter(|peer| !peers.contains_key(peer))?;
            // Another roster must not bring a flood its next answer.
            let last = table.get(&peer).and_then(|told| told.last);
            Some((peer, Told { removal: removed.removal, last }))
        });
        *table = told.collect();
    }

    /// Whether this peer may be told now.
    pub(crate) fn is_due(&self, peer: &PeerId) -> bool {
        self.0.lock().get(peer).is_some_and(Told::is_due)
    }

    /// Tells a peer. If it was told meanwhile, the connection ends without a word.
    pub(crate) async fn tell(&self, peer: &PeerId, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let removal = {
            let mut table = self.0.lock();
            table.get_mut(peer).filter(|told| told.is_due()).map(|told| {
                told.last = Some(Instant::now());
                told.removal
            })
        };
        if let Some(removal) = removal {
            stream.write_all(&removal.encode()).await?;
            tracing::debug!(%peer, version = removal.version, "a machine that was removed was told so");
        }
        stream.close().await
    }
}

impl Told {
    fn is_due(&self) -> bool {
        self.last.is_none_or(|last| last.elapsed() >= PAUSE)
    }
}

/// Reads what a member says.
pub(crate) async fn read(mut stream: impl AsyncRead + Unpin) -> io::Result<Removal> {
    let mut bytes = [0; Removal::BYTES];
    stream.read_exact(&mut bytes).await?;
    Ok(Removal::decode(&bytes))
}
