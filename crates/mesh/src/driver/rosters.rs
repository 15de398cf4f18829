//! Rosters of our mesh: carries the questions and answers by which members come to the newest one (`crates/roster`).

use super::context::{Context, encode_busy};
use super::parts::MeshNews;
use super::questions::is_admitted;
use super::requests::{Event, NumberedRequests, RequestEvent};
use crate::clock::moment;
use crate::removals::Removals;
use crate::request_rates::RequestRates;
use crate::unread::Protocol;
use libp2p::PeerId;
use narmesh_gossip::{Misdeed, Moment};
use narmesh_roster::{Fault, Input, Output, RosterExchange};
use tokio::sync::mpsc;

#[derive(Debug)]
pub(super) struct Rosters {
    exchange: RosterExchange,
    /// Where newer rosters go.
    news: mpsc::Sender<MeshNews>,
    requests: NumberedRequests,
    rates: RequestRates,
    /// What machines are told that were removed.
    told: Removals,
}

impl Rosters {
    pub(super) fn new(news: mpsc::Sender<MeshNews>, told: Removals) -> Self {
        let (requests, rates) = (NumberedRequests::new(Protocol::Roster), RequestRates::of_rosters());
        Self { exchange: RosterExchange::new(moment()), news, requests, rates, told }
    }

    pub(super) fn on_connected(&mut self, context: &mut Context, peer: PeerId) {
        self.handle(context, Input::Peer(peer));
    }

    pub(super) fn on_disconnected(&mut self, context: &mut Context, peer: PeerId) {
        self.handle(context, Input::Gone(peer));
    }

    /// Takes over the roster of the configuration in force.
    pub(super) fn on_reconfigured(&mut self, context: &mut Context) {
        let membership = context.config.mesh.clone();
        self.told.set(membership.as_ref(), &context.config.peers);
        self.handle(context, Input::Held(membership));
    }

    /// When [`Self::tick`] is due.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.exchange.deadline()
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, context: &mut Context) {
        if self.deadline().is_some_and(|deadline| deadline <= moment()) {
            self.handle(context, Input::Tick);
        }
    }

    pub(super) fn on_event(&mut self, context: &mut Context, event: Event) {
        let input = match self.requests.on_event(context, event) {
            Some(RequestEvent::Request { from, id, bytes }) => {
                if !is_admitted(context, &mut self.rates, from) {
                    if let Ok(busy) = encode_busy(Protocol::Roster) {
                        self.requests.respond(context, id, busy);
                    }
                    return;
                }
                Input::Request { from, id, bytes }
            }
            Some(RequestEvent::Response { from, id, bytes }) => Input::Response { from, id, bytes },
            Some(RequestEvent::Failed { id, .. }) => Input::Failed { id },
            None => return,
        };
        self.handle(context, input);
    }

    fn handle(&mut self, context: &mut Context, input: Input) {
        self.exchange.handle(moment(), input);
        while let Some(output) = self.exchange.poll() {
            match output {
                Output::Request { to, id, bytes } => {
                    // Not connected any more: the exchange need not wait until the question is overdue.
                    if !self.requests.send(context, to, id, bytes) {
                        self.exchange.handle(moment(), Input::Failed { id });
                    }
                }
                Output::Respond { id, bytes } => self.requests.respond(context, id, bytes),
                Output::Heard { from, roster } => {
                    tracing::info!(peer = %from, version = roster.roster().version, "newer roster heard");
                    // While the daemon is busy with another one, this one comes again with the next comparison.
                    drop(self.news.try_send(MeshNews::Roster(roster)));
                }
                Output::Misbehaved { peer, fault } => context.report_misdeed(peer, misdeed_of(fault)),
            }
        }
    }

    /// Forgets a peer that left the allowlist, before its connections are closed: it is asked nothing more.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.rates.forget(peer);
        self.exchange.handle(moment(), Input::Gone(*peer));
    }
}

fn misdeed_of(fault: Fault) -> Misdeed {
    match fault {
        Fault::MalformedRequest => Misdeed::MalformedRequest,
        Fault::MalformedReply => Misdeed::MalformedReply,
    }
}
