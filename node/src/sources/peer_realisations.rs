//! Asks peers which path an output of a derivation is.

use super::realisations::{Distrust, judge};
use futures::{StreamExt, stream};
use libp2p::PeerId;
use narmesh_gossip::Misdeed;
use narmesh_mesh::MeshHandle;
use narmesh_protocol::wire::RealisationRequest;
use narmesh_protocol::{Realisation, RealisationId, TrustedKeys};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Peers asked at the same time for one realisation.
const ASKED_AT_ONCE_MAX: usize = 8;
/// Peers asked for one realisation. No filter tells who has it.
const ASKED_MAX: usize = 64;
/// How long one peer has to answer, *busy* included, before others take its turn.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// Realisations looked for at the same time; Nix asks for 25 at once.
const SEARCHES_MAX: usize = 32;

/// The realisations of peers; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct PeerRealisations {
    mesh: MeshHandle,
    searches: Arc<Semaphore>,
}

impl PeerRealisations {
    pub(crate) fn new(mesh: MeshHandle) -> Self {
        Self { mesh, searches: Arc::new(Semaphore::new(SEARCHES_MAX)) }
    }

    /// The realisation of this output that the first of the connected peers gives under a signature that counts, with those
    /// signatures alone. The caller sets the deadline. A peer that is set aside or does not answer lately is asked nothing.
    pub(crate) async fn find(&self, id: &RealisationId, trusted: &TrustedKeys) -> Option<Realisation> {
        let peers = self.mesh.statistics().rank_connected();
        if peers.is_empty() {
            return None;
        }
        let _turn = self.searches.acquire().await.ok()?;
        let asked = peers.into_iter().take(ASKED_MAX).map(|peer| self.ask(peer, id, trusted));
        let found = stream::iter(asked).buffer_unordered(ASKED_AT_ONCE_MAX).filter_map(std::future::ready);
        std::pin::pin!(found).next().await
    }

    async fn ask(&self, peer: PeerId, id: &RealisationId, trusted: &TrustedKeys) -> Option<Realisation> {
        let asked = self.mesh.ask_realisation(peer, RealisationRequest::of(id));
        // It counts against the ranking of the peer, like a narinfo that does not come.
        let Ok(answer) = tokio::time::timeout(ANSWER_WAIT, asked).await else {
            self.mesh.statistics().on_timed_out(&peer);
            tracing::debug!(%peer, %id, waited = ?ANSWER_WAIT, "does not say which path this output is");
            return None;
        };
        let text = answer
            .inspect_err(|error| tracing::debug!(%peer, %id, %error, "does not say which path this output is"))
            .ok()??;
        let blame = || self.mesh.report_misdeed(peer, Misdeed::MalformedReply);
        let Ok(realisation) = Realisation::parse(&text) else {
            blame();
            return None;
        };
        match judge(realisation, id, trusted) {
            Ok(realisation) => Some(realisation),
            Err(distrust) => {
                // That it trusts other keys than we do breaks no rule.
                if distrust != Distrust::Unsigned {
                    blame();
                }
                tracing::debug!(%peer, %id, %distrust, "its realisation is not passed on");
                None
            }
        }
    }
}
