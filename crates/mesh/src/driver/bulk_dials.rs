//! Bulk connections that the other side has to dial: asking for them, and being asked.

use super::context::Context;
use super::requests::Event;
use crate::bulk::{AskToDial, Bulk};
use crate::request_rates::DialRates;
use libp2p::PeerId;
use libp2p::request_response::{Message, OutboundRequestId};
use narmesh_gossip::Misdeed;
use narmesh_protocol::wire::{DialReply, DialRequest};
use std::collections::HashMap;
use tokio::sync::mpsc;

#[derive(Debug)]
pub(super) struct BulkDials {
    bulk: Bulk,
    asks: mpsc::Receiver<AskToDial>,
    /// Requests that we sent, with the number of the dial.
    asked: HashMap<OutboundRequestId, u64>,
    rates: DialRates,
}

impl BulkDials {
    /// `asks` brings what `bulk` wants peers to dial.
    pub(super) fn new(bulk: Bulk, asks: mpsc::Receiver<AskToDial>) -> Self {
        Self { bulk, asks, asked: HashMap::new(), rates: DialRates::default() }
    }

    /// The next peer to ask, for [`Self::ask`]. Dropping the future loses nothing.
    pub(super) async fn next_ask(&mut self) -> Option<AskToDial> {
        self.asks.recv().await
    }

    /// Asks a peer to dial a bulk connection; it dialled our control connection.
    pub(super) fn ask(&mut self, context: &mut Context, AskToDial { peer, number }: AskToDial) {
        match DialRequest::Bulk.encode() {
            Ok(bytes) if context.swarm.is_connected(&peer) => {
                let sent = context.swarm.behaviour_mut().dial.send_request(&peer, bytes);
                self.asked.insert(sent, number);
            }
            Ok(_) => self.bulk.on_dial_refused(peer, number, "the connection with it was closed"),
            Err(error) => self.bulk.on_dial_refused(peer, number, &error.to_string()),
        }
    }

    /// Notes a refusal for the dial that it answers: a late one says nothing about a later dial.
    fn on_refused(&mut self, peer: PeerId, asked: OutboundRequestId, why: &str) {
        if let Some(number) = self.asked.remove(&asked) {
            self.bulk.on_dial_refused(peer, number, why);
        }
    }

    pub(super) fn on_request(&mut self, context: &mut Context, event: Event) {
        match event {
            Event::Message { peer, message: Message::Request { request, channel, .. }, .. } => {
                if DialRequest::decode(&request).is_err() {
                    return context.report_misdeed(peer, Misdeed::MalformedRequest);
                }
                // Within the rates of the peer, or it could have us dial without end.
                let dials = self.rates.admit(peer) && self.bulk.dial_for(peer);
                let reply = if dials { DialReply::Dialling } else { DialReply::NotNow };
                if let Ok(bytes) = reply.encode() {
                    // The channel is closed if the asker left.
                    drop(context.swarm.behaviour_mut().dial.send_response(channel, bytes));
                }
            }
            Event::Message { peer, message: Message::Response { request_id, response }, .. } => {
                match DialReply::decode(&response) {
                    // We go on waiting for the connection itself.
                    Ok(DialReply::Dialling) => {
                        self.asked.remove(&request_id);
                        context.statistics.on_responsive(&peer);
                    }
                    Ok(DialReply::NotNow) => {
                        self.on_refused(peer, request_id, "the peer was asked to dial, but will not now");
                    }
                    Err(error) => {
                        // What only ends too early may be the fault of the connection.
                        if !error.is_truncated() {
                            context.report_misdeed(peer, Misdeed::MalformedReply);
                        }
                        self.on_refused(peer, request_id, &error.to_string());
                    }
                }
            }
            Event::OutboundFailure { peer, request_id, error, .. } => {
                self.on_refused(peer, request_id, &error.to_string());
            }
            Event::InboundFailure { .. } | Event::ResponseSent { .. } => {}
        }
    }

    /// Forgets a peer that left the allowlist.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.rates.forget(peer);
    }
}
