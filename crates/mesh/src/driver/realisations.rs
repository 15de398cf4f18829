//! Requests for realisations: ours under way, and those of peers, which blocking threads answer.

use super::context::Context;
use super::questions::{Asker, Dialogue, FoundAnswer, level_absence};
use super::requests::Event;
use crate::request_rates::RequestRates;
use crate::unread::Protocol;
use libp2p::PeerId;
use narmesh_protocol::wire::{RealisationReply, RealisationRequest};
use narmesh_store::{Offer, OfferedRealisation};
use std::sync::Arc;
use std::time::Instant;

/// Requests of peers answered at the same time; further ones are told *busy*.
const ANSWERS_AT_ONCE_MAX: usize = 16;

#[derive(Debug)]
pub(super) struct Realisations {
    offer: Arc<Offer>,
    dialogue: Dialogue,
}

impl Realisations {
    pub(super) fn new(offer: Arc<Offer>) -> Self {
        Self {
            offer,
            dialogue: Dialogue::new(Protocol::Realisation, RequestRates::of_realisations(), ANSWERS_AT_ONCE_MAX),
        }
    }

    /// Asks a connected peer which path an output is.
    pub(super) fn ask(&mut self, context: &mut Context, peer: PeerId, request: &RealisationRequest, reply: Asker) {
        self.dialogue.ask(context, peer, request.encode(), reply);
    }

    pub(super) fn on_event(&mut self, context: &mut Context, event: Event) {
        let Some((request, bytes)) = self.dialogue.on_event(context, event) else { return };
        let id = RealisationRequest::decode(&bytes).ok().and_then(|asked| asked.id().ok());
        let Some((id, request)) = self.dialogue.admit(context, request, id) else { return };
        let offer = Arc::clone(&self.offer);
        self.dialogue.look_up(context, request, move || {
            let since = Instant::now();
            let reply = match offer.find_realisation(&id) {
                Ok(OfferedRealisation::Offered(realisation)) => {
                    RealisationReply::Found(realisation.render().into_bytes())
                }
                Err(error) if error.may_pass() => RealisationReply::Busy,
                Ok(OfferedRealisation::Withheld | OfferedRealisation::Absent) | Err(_) => RealisationReply::Absent,
            };
            // As for logs: the time that "no" takes must not tell what is withheld.
            if reply == RealisationReply::Absent {
                level_absence(since);
            }
            // One that is too long is not given.
            reply.encode().or_else(|_| RealisationReply::Absent.encode())
        });
    }

    /// The next answer that a blocking thread looked up. Dropping the future loses nothing.
    pub(super) async fn next_answer(&mut self) -> Option<FoundAnswer> {
        self.dialogue.next_answer().await
    }

    /// Forgets a peer that left the allowlist.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.dialogue.forget(peer);
    }
}
