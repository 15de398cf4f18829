//! Requests for build logs: ours under way, and those of peers, which blocking threads answer a part at a time.

use super::context::Context;
use super::questions::{Asker, Dialogue, FoundAnswer, level_absence};
use super::requests::Event;
use crate::request_rates::RequestRates;
use crate::unread::Protocol;
use libp2p::PeerId;
use narmesh_protocol::wire::{LOG_BYTES_MAX, LOG_PART_BYTES_MAX, LogPart, LogReply, LogRequest};
use narmesh_store::{BuildLog, Offer};
use std::sync::Arc;
use std::time::Instant;

/// Requests of peers answered at the same time; further ones are told *busy*. A reply has up to 64 KiB.
const ANSWERS_AT_ONCE_MAX: usize = 16;

#[derive(Debug)]
pub(super) struct Logs {
    offer: Arc<Offer>,
    dialogue: Dialogue,
}

impl Logs {
    pub(super) fn new(offer: Arc<Offer>) -> Self {
        Self { offer, dialogue: Dialogue::new(Protocol::Log, RequestRates::of_logs(), ANSWERS_AT_ONCE_MAX) }
    }

    /// Asks a connected peer for a part of a log.
    pub(super) fn ask(&mut self, context: &mut Context, peer: PeerId, request: LogRequest, reply: Asker) {
        self.dialogue.ask(context, peer, request.encode(), reply);
    }

    /// Takes what happened. Memory does not know the outputs of derivations, so that a blocking thread says "no", too.
    pub(super) fn on_event(&mut self, context: &mut Context, event: Event) {
        let Some((request, bytes)) = self.dialogue.on_event(context, event) else { return };
        let asked = LogRequest::decode(&bytes).ok();
        let Some((asked, request)) = self.dialogue.admit(context, request, asked) else { return };
        let offer = Arc::clone(&self.offer);
        self.dialogue.look_up(context, request, move || {
            let since = Instant::now();
            let reply = match offer.find_log_of(&asked.derivation) {
                Ok(Some(log)) => read_part(&log, asked.offset),
                Err(error) if error.may_pass() => LogReply::Busy,
                Ok(None) | Err(_) => LogReply::Absent,
            };
            // Otherwise the time that "no" takes would tell whether a path is withheld or not there.
            if reply == LogReply::Absent {
                level_absence(since);
            }
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

fn read_part(log: &BuildLog, offset: u64) -> LogReply {
    let size_bytes = log.size_bytes();
    // The asker takes no longer one, so it need not begin.
    if size_bytes > LOG_BYTES_MAX || offset > size_bytes {
        return LogReply::Absent;
    }
    match log.read_part(offset, LOG_PART_BYTES_MAX) {
        Ok(bytes) => {
            LogReply::Part(LogPart { is_compressed: log.is_compressed(), size_bytes, version: log.version(), bytes })
        }
        Err(error) => {
            tracing::debug!(%error, "one of our logs cannot be read");
            LogReply::Absent
        }
    }
}
