//! News: whom we tell that our ledger has something new, and when.

use super::context::{Context, Purpose};
use super::peer::Peer;
use super::{Fault, Moment};
use crate::ledger::Ledger;
use crate::reconcile::{Answer, Next, Query, Session};
use crate::wire::{QuorumReply, QuorumRequest};
use libp2p_identity::PeerId;

/// The most peers that are told of news. With 8, a given node of 1,000 is told by nobody once in 3,000 times; it then
/// compares within about a minute.
const TOLD_MAX: usize = 8;
/// News waits this long for further news, milliseconds.
const TELL_DELAY_MS: u64 = 50;
/// The least time between two rounds of telling, milliseconds.
const TELL_INTERVAL_MS: u64 = 1_000;

/// Whether peers are to be told that the ledger has something new, and when.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Whether the ledger has something new; otherwise only those are told to whom we owe it.
    grew: bool,
    tell_at: Option<Moment>,
    told_at: Option<Moment>,
}

impl News {
    /// When the next round of telling is due.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.tell_at
    }

    /// The ledger has something new.
    pub(super) fn on_grown(&mut self, now: Moment) {
        self.grew = true;
        self.plan_telling(now);
    }

    pub(super) fn plan_telling(&mut self, now: Moment) {
        let earliest = self.told_at.map_or(now, |at| at + TELL_INTERVAL_MS);
        self.tell_at.get_or_insert(earliest.max(now + TELL_DELAY_MS));
    }

    /// Tells some random peers that there is something new, and the peers to which we owe it, if it is time.
    pub(super) fn tell_if_due(&mut self, cx: &mut Context, ledger: &Ledger) {
        if self.tell_at.is_none_or(|at| at > cx.now) {
            return;
        }
        self.tell_at = None;
        self.told_at = Some(cx.now);
        let now = cx.now;
        let may_be = |peer: &Peer| !peer.spoken.told.is_empty() && peer.shunned_until <= now;
        let grew = std::mem::take(&mut self.grew);
        // Without anything new only those are told to whom it is owed: they compared before they might hear of a
        // builder.
        let all: Vec<PeerId> =
            cx.peers.iter().filter(|(_, peer)| grew && may_be(peer)).map(|(peer, _)| *peer).collect();
        let mut chosen = cx.chance.choose(all, TOLD_MAX);
        chosen.extend(cx.peers.iter().filter(|(_, peer)| peer.owed && may_be(peer)).map(|(peer, _)| *peer));
        chosen.sort_unstable();
        chosen.dedup();
        for peer in chosen {
            // From a random builder on: of more than one session can name, each is named sooner or later.
            let from = usize::try_from(cx.chance.draw_below(u64::from(u16::MAX))).unwrap_or(0);
            let Some(known) = cx.peers.get_mut(&peer) else { continue };
            known.owed = false;
            let (session, query) = Session::start(ledger, known.spoken.told.window(from));
            send_news(cx, peer, session, query);
        }
    }
}

fn send_news(cx: &mut Context, peer: PeerId, session: Session, query: Query) {
    cx.send(peer, Purpose::News(Box::new(session)), &QuorumRequest::Compare { query, news: true });
}

/// Handles the reply of a peer that was told. It is asked once more when it knows fewer builders than we named.
pub(super) fn on_news_reply(
    cx: &mut Context,
    ledger: &Ledger,
    from: PeerId,
    mut session: Session,
    reply: Option<QuorumReply>,
) {
    match reply {
        Some(QuorumReply::Compared(answer @ Answer::Builders(_))) if answer != Answer::Builders(Vec::new()) => {
            if let Next::Ask(query) = session.on_answer(ledger, &answer) {
                send_news(cx, from, session, query);
            }
        }
        Some(QuorumReply::Attestations { .. }) => cx.penalize(from, Fault::MalformedReply),
        // If it differs from us, it compares with us by itself; here we only told it.
        Some(QuorumReply::Compared(_) | QuorumReply::Busy) | None => {}
    }
}
