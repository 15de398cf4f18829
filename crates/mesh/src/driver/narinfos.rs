//! Narinfo requests: ours under way, and those of peers, which are answered from memory or by blocking threads.

use super::context::Context;
use super::questions::{Asker, Dialogue, FoundAnswer};
use super::requests::Event;
use crate::request_rates::RequestRates;
use crate::unread::Protocol;
use libp2p::PeerId;
use narmesh_protocol::HashPart;
use narmesh_protocol::wire::{NarInfoReply, NarInfoRequest};
use narmesh_store::Offer;
use std::sync::Arc;

/// Requests of peers answered at the same time; further ones are told *busy*.
const ANSWERS_AT_ONCE_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct NarInfos {
    offer: Arc<Offer>,
    dialogue: Dialogue,
}

impl NarInfos {
    pub(super) fn new(offer: Arc<Offer>) -> Self {
        let dialogue = Dialogue::new(Protocol::NarInfo, RequestRates::of_narinfos(), ANSWERS_AT_ONCE_MAX);
        Self { offer, dialogue }
    }

    /// Asks a connected peer for the narinfo of a path.
    pub(super) fn ask(&mut self, context: &mut Context, peer: PeerId, hash_part: HashPart, reply: Asker) {
        self.dialogue.ask(context, peer, NarInfoRequest { hash_part }.encode(), reply);
    }

    /// Takes what happened. "No" comes from memory; for "yes" a blocking thread asks the predicate again.
    pub(super) fn on_event(&mut self, context: &mut Context, event: Event) {
        let Some((request, bytes)) = self.dialogue.on_event(context, event) else { return };
        let asked = NarInfoRequest::decode(&bytes).ok();
        let Some((asked, request)) = self.dialogue.admit(context, request, asked) else { return };
        if !self.offer.is_offered(&asked.hash_part) {
            return self.dialogue.respond(context, request, NarInfoReply::Absent.encode());
        }
        let offer = Arc::clone(&self.offer);
        // The row may have changed since memory said yes, and to read it blocks.
        self.dialogue.look_up(context, request, move || {
            let reply = match offer.find_offered(&asked.hash_part) {
                Ok(Some(offered)) => NarInfoReply::Found(offered.narinfo_text.to_vec()),
                // Our database is locked for a moment. "Absent" would have the asker think that our filter lied.
                Err(error) if error.may_pass() => NarInfoReply::Busy,
                Ok(None) | Err(_) => NarInfoReply::Absent,
            };
            reply.encode()
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
