//! Bulk connections that the other side has to dial: asking for them, and being asked.

use super::Mesh;
use libp2p::PeerId;
use libp2p::request_response;
use narmesh_gossip::Misdeed;
use narmesh_protocol::wire::{DialReply, DialRequest};

impl Mesh {
    /// Asks a peer to dial a bulk connection; it dialled our control connection.
    pub(super) fn ask_to_dial(&mut self, peer: PeerId, number: u64) {
        match DialRequest::Bulk.encode() {
            Ok(bytes) if self.swarm.is_connected(&peer) => {
                let sent = self.swarm.behaviour_mut().dial.send_request(&peer, bytes);
                self.dials_asked.insert(sent, number);
            }
            Ok(_) => self.bulk.on_dial_refused(peer, number, "the connection with it was closed"),
            Err(error) => self.bulk.on_dial_refused(peer, number, &error.to_string()),
        }
    }

    /// Notes a refusal for the dial that it answers: a late one says nothing about a later dial.
    fn on_dial_refused(&mut self, peer: PeerId, asked: request_response::OutboundRequestId, why: &str) {
        if let Some(number) = self.dials_asked.remove(&asked) {
            self.bulk.on_dial_refused(peer, number, why);
        }
    }

    pub(super) fn on_dial(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                request_response::Message::Request { request, channel, .. } => {
                    if DialRequest::decode(&request).is_err() {
                        return self.report_misdeed(peer, Misdeed::MalformedRequest);
                    }
                    let dials = self.dial_rates.admit(peer) && self.bulk.dial_for(peer);
                    let reply = if dials { DialReply::Dialling } else { DialReply::NotNow };
                    if let Ok(bytes) = reply.encode() {
                        // The channel is closed if the asker left.
                        drop(self.swarm.behaviour_mut().dial.send_response(channel, bytes));
                    }
                }
                request_response::Message::Response { request_id, response } => match DialReply::decode(&response) {
                    // We go on waiting for the connection itself.
                    Ok(DialReply::Dialling) => {
                        self.dials_asked.remove(&request_id);
                        self.statistics.on_responsive(&peer);
                    }
                    Ok(DialReply::NotNow) => {
                        self.on_dial_refused(peer, request_id, "the peer was asked to dial, but will not now");
                    }
                    Err(error) => {
                        if !error.is_truncated() {
                            self.report_misdeed(peer, Misdeed::MalformedReply);
                        }
                        self.on_dial_refused(peer, request_id, &error.to_string());
                    }
                },
            },
            request_response::Event::OutboundFailure { peer, request_id, error, .. } => {
                self.on_dial_refused(peer, request_id, &error.to_string());
            }
            request_response::Event::InboundFailure { .. } | request_response::Event::ResponseSent { .. } => {}
        }
    }
}
