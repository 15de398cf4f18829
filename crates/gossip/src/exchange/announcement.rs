//! Announcements of others: which are news, and what follows from them.

use super::Context;
use super::pull::Pulls;
use crate::output::{Event, Forward, Output, Record};
use crate::peers::entry::Worth;
use crate::peers::misdeed::Misdeed;
use libp2p_identity::PeerId;
use narmesh_protocol::{Envelope, EnvelopeError};
use std::sync::Arc;

/// Takes what came by gossip, and says whether it is handed on.
pub(crate) fn receive_announcement(
    cx: &mut Context,
    pulls: &mut Pulls,
    author: PeerId,
    from: PeerId,
    bytes: &[u8],
) -> Forward {
    // Before the signature is verified, which costs far more than this look at the claimed generation.
    let is_older = match cx.peers.get(&author) {
        Some(entry) => entry.is_older(bytes),
        // An honest peer hands on what those announce whom it knows and we do not. What that costs is bounded below us, by
        // the pace at which a connection is read.
        None => return Forward::Ignore,
    };
    if is_older || cx.peers.has_spent_announcements(cx.io.now.moment, &author, &from) {
        return Forward::Ignore;
    }
    match open_charged(cx, author, from, bytes) {
        (Ok(envelope), is_flood) if envelope.peer() == author => {
            let worth = receive_envelope(cx, pulls, &envelope, from);
            if is_flood {
                cx.penalize(pulls, author, Misdeed::AnnouncementFlood);
            }
            if worth == Worth::News { Forward::Accept } else { Forward::Ignore }
        }
        (Err(EnvelopeError::UnknownVersion { version }), _) => {
            cx.io.push_event(Event::UnknownVersion { peer: author, version });
            Forward::Ignore
        }
        (Err(EnvelopeError::Length { .. } | EnvelopeError::Signature | EnvelopeError::Payload(_)), _) => {
            cx.penalize(pulls, author, Misdeed::MalformedAnnouncement);
            Forward::Ignore
        }
        (Ok(_), _) => {
            cx.penalize(pulls, author, Misdeed::ForeignAnnouncement);
            Forward::Ignore
        }
    }
}

/// Opens an envelope that `teller` says is of `author`. It is charged for, unless we have opened it before: whatever it
/// turns out to be, its signature has to be verified. True when that makes a flood.
pub(super) fn open_charged(
    cx: &mut Context,
    author: PeerId,
    teller: PeerId,
    bytes: &[u8],
) -> (Result<Arc<Envelope>, EnvelopeError>, bool) {
    let is_repeat = cx.peers.get(&author).is_some_and(|entry| entry.is_newest(bytes));
    let is_flood = !is_repeat && cx.peers.charge_announcement(cx.io.now.moment, &author, &teller);
    (cx.peers.open_envelope(bytes), is_flood)
}

/// Takes a foreign envelope. All of them pass through here, whether from gossipsub or from anti-entropy. `teller` is
/// the peer that showed it to us.
pub(crate) fn receive_envelope(cx: &mut Context, pulls: &mut Pulls, envelope: &Arc<Envelope>, teller: PeerId) -> Worth {
    let peer = envelope.peer();
    let announcement = *envelope.announcement();
    let Some(entry) = cx.peers.get_mut(&peer) else { return Worth::Old };
    let worth = entry.accept_if_newer(cx.io.now, envelope);
    // The owner answers later for not having a body only if it named it on this connection: one that has restarted does
    // not answer for what others still hand on.
    if teller == peer && matches!(worth, Worth::News | Worth::Known) {
        entry.set_claimed(Some(announcement.generation));
    }
    match worth {
        Worth::Old => {}
        // A repeat is no news, but whoever shows it is one more peer to pull the body from.
        Worth::Known => pulls.pull_if_wanted(cx, peer, Some(teller)),
        // What another peer hands on may be old although nobody's clock is wrong.
        Worth::ClockDiffers if teller != peer => {}
        Worth::ClockDiffers => cx.io.push_event(Event::ClockDiffers { peer, issued_at_ms: announcement.issued_at_ms }),
        Worth::Bad(misdeed) => cx.penalize(pulls, peer, misdeed),
        Worth::News => {
            let adopted = cx.peers.adopt_renewed(&mut cx.io, &peer);
            // Written before anything is done with it, so that after a crash no older announcement counts as news.
            cx.io.push(Output::Persist(Record::Newest { peer, envelope: envelope.as_bytes().to_vec() }));
            if announcement.is_goodbye() {
                // It asked to be no candidate any more: whoever asked it would only lose time.
                pulls.drop_body(cx, &peer);
                cx.io.push_event(Event::Departed { peer });
                return worth;
            }
            let (generation, path_count) = (announcement.generation, announcement.path_count);
            cx.io.push_event(Event::Announced { peer, generation, path_count });
            if adopted {
                pulls.end_pull(cx, &peer);
                cx.io.push_event(Event::BodyPulled { owner: peer, from: peer, generation, bytes: 0, delta: false });
            } else {
                pulls.pull_if_wanted(cx, peer, Some(teller));
            }
        }
    }
    worth
}
