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
    let moment = cx.io.now.moment;
    let is_hearsay = from != author;
    let Some(entry) = cx.peers.get_mut(&author) else {
        // An honest peer hands on what those announce whom it knows and we do not. What that costs is bounded below us, by
        // the pace at which a connection is read.
        return Forward::Ignore;
    };
    if entry.conduct.has_spent_announcements(moment, is_hearsay) {
        return Forward::Ignore;
    }
    // Before the signature is verified, which costs far more than this look at the claimed generation.
    if entry.is_older(bytes) {
        return Forward::Ignore;
    }
    let envelope = match entry.open_envelope(bytes) {
        Ok(envelope) if envelope.peer() == author => envelope,
        refused => {
            cx.peers.charge_announcement(moment, &author, is_hearsay);
            match refused {
                Err(EnvelopeError::UnknownVersion { version }) => {
                    cx.io.push_event(Event::UnknownVersion { peer: author, version });
                }
                Err(EnvelopeError::Length { .. } | EnvelopeError::Signature | EnvelopeError::Payload(_)) => {
                    cx.penalize(pulls, author, Misdeed::MalformedAnnouncement);
                }
                Ok(_) => cx.penalize(pulls, author, Misdeed::ForeignAnnouncement),
            }
            return Forward::Ignore;
        }
    };
    let worth = receive_envelope(cx, pulls, &envelope, from);
    if !matches!(worth, Worth::Known | Worth::Old) {
        let flood = cx.peers.charge_announcement(moment, &author, is_hearsay);
        // Other peers may hand on at once what the author said in a week, so only the author itself is
        // blamed for a flood.
        if flood && !is_hearsay {
            cx.penalize(pulls, author, Misdeed::AnnouncementFlood);
        }
    }
    if worth == Worth::News { Forward::Accept } else { Forward::Ignore }
}

/// Takes a foreign envelope. All of them pass through here, whether from gossipsub or from anti-entropy. `teller` is
/// the peer that showed it to us.
pub(crate) fn receive_envelope(cx: &mut Context, pulls: &mut Pulls, envelope: &Arc<Envelope>, teller: PeerId) -> Worth {
    let peer = envelope.peer();
    let announcement = *envelope.announcement();
    let Some(entry) = cx.peers.get_mut(&peer) else { return Worth::Old };
    let worth = entry.accept_if_newer(cx.io.now, envelope);
    if teller == peer && matches!(worth, Worth::News | Worth::Known) {
        entry.set_claimed(Some(announcement.generation));
    }
    match worth {
        Worth::Old => {}
        Worth::Known => pulls.pull_if_wanted(cx, peer, Some(teller)),
        // What another peer hands on may be old although nobody's clock is wrong.
        Worth::ClockDiffers if teller != peer => {}
        Worth::ClockDiffers => cx.io.push_event(Event::ClockDiffers { peer, issued_at_ms: announcement.issued_at_ms }),
        Worth::Bad(misdeed) => cx.penalize(pulls, peer, misdeed),
        Worth::News => {
            let adopted = cx.peers.adopt_renewed(&mut cx.io, &peer);
            cx.io.push(Output::Persist(Record::Newest { peer, envelope: envelope.as_bytes().to_vec() }));
            if announcement.is_goodbye() {
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
