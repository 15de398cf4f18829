//! What the gossip core wants done, and what it reports.

use super::Mesh;
use crate::addresses::{may_be_told, multiaddr};
use crate::behaviour::announce_topic;
use crate::clock::now;
use crate::shut_out::SHUT_OUT;
use crate::unread::Protocol;
use libp2p::{Multiaddr, PeerId, gossipsub};
use narmesh_gossip::{Event, Forward, Input, Misdeed, Output, Record};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

impl Mesh {
    /// Performs the core's outputs in order; a `Persist` is durable before the next one is looked at.
    pub(super) fn perform(&mut self) {
        for peer in self.swarm.behaviour_mut().announcements.take_flooders() {
            self.gossip.handle(now(), Input::Misbehaved { peer, misdeed: Misdeed::AnnouncementFlood });
        }
        while let Some(output) = self.gossip.poll() {
            match output {
                Output::Persist(record) => self.persist(&record),
                Output::Publish(bytes) => self.publish(bytes),
                Output::Judge { id, verdict } => self.judge(id, verdict),
                Output::Request { to, id, bytes } => {
                    if self.swarm.is_connected(&to) {
                        let sent = self.swarm.behaviour_mut().gossip.send_request(&to, bytes);
                        self.gossip_sent.insert(sent, (to, id));
                    } else {
                        self.gossip.handle(now(), Input::RequestFailed { to, id });
                    }
                }
                Output::Respond { to, id, bytes } => {
                    if let Some((asked, channel)) = self.gossip_received.remove(&id) {
                        self.give((Protocol::Gossip, asked), to, channel, bytes);
                    }
                }
                Output::Penalize { peer, misdeed } => self.penalize(peer, misdeed),
                Output::Event(event) => self.on_core_event(event),
            }
        }
        if std::mem::take(&mut self.are_known_addresses_stale) {
            self.tell_handshake_limits();
        }
    }

    /// Notes a misdeed. A peer that floods us, or goes on and on, is disconnected and not dialled for a while.
    fn penalize(&mut self, peer: PeerId, misdeed: Misdeed) {
        tracing::warn!(%peer, %misdeed, "peer misbehaved");
        self.statistics.count_misdeed(&peer, misdeed);
        if self.swarm.behaviour_mut().shut_out.count(Instant::now(), peer, misdeed) {
            tracing::warn!(%peer, %misdeed, lasting = ?SHUT_OUT, "peer is disconnected: it does this too often");
            self.dialer.leave(now().moment, &peer, SHUT_OUT);
        }
    }

    fn persist(&mut self, record: &Record) {
        if let Record::Forget(peer) = record {
            self.on_summary_changed(*peer);
        }
        if let Err(error) = self.state.persist(record) {
            tracing::error!(%error, "state database: cannot write; peers may hear old epochs again after a restart");
        }
    }

    fn publish(&mut self, bytes: Vec<u8>) {
        match self.swarm.behaviour_mut().announcements.publish(announce_topic(), bytes) {
            Ok(_) => {}
            // We are alone: whoever connects later learns it from the greeting.
            Err(error) => tracing::debug!(%error, "announcement not gossiped"),
        }
    }

    fn judge(&mut self, id: u64, verdict: Forward) {
        if let Some((message, from)) = self.judged.remove(&id) {
            let acceptance = match verdict {
                Forward::Accept => gossipsub::MessageAcceptance::Accept,
                Forward::Ignore => gossipsub::MessageAcceptance::Ignore,
            };
            let announcements = &mut self.swarm.behaviour_mut().announcements;
            announcements.report_message_validation_result(&message, &from, acceptance);
        }
    }

    fn on_core_event(&mut self, event: Event) {
        match event {
            Event::AddressesLearned { peer, addresses } => self.on_addresses(peer, addresses),
            Event::Greeted { peer, software } => self.statistics.update(&peer, |stats| {
                stats.allowed_there = Some(true);
                stats.store_dir_differs = None;
                stats.software = Some(software);
            }),
            Event::StoreDirDiffers { peer, store_dir } => {
                tracing::warn!(%peer, store_dir, "peer has another store directory: nothing can be shared with it");
                self.statistics.update(&peer, |stats| stats.store_dir_differs = Some(store_dir));
                self.on_summary_changed(peer);
            }
            Event::Published { generation, paths, body_bytes } => {
                tracing::info!(epoch = generation.epoch, seq = generation.seq, paths, body_bytes, "summary announced");
            }
            Event::Overtaken { generation } => {
                let (epoch, seq) = (generation.epoch, generation.seq);
                tracing::warn!(epoch, seq, "peers hold a newer summary of ours: our state was lost; going on above it");
            }
            Event::Announced { peer, generation, path_count } => {
                tracing::debug!(%peer, epoch = generation.epoch, seq = generation.seq, path_count, "peer announced");
            }
            Event::BodyPulled { owner, from, generation, bytes, delta } => {
                let (epoch, seq) = (generation.epoch, generation.seq);
                tracing::info!(peer = %owner, %from, epoch, seq, bytes, delta, "summary pulled");
                self.statistics.update(&owner, |stats| {
                    (stats.summary_since, stats.summary_epoch) = (Some(Instant::now()), Some(epoch));
                });
                self.on_summary_changed(owner);
                self.on_audience_changed(&owner);
            }
            Event::PullGivenUp { owner, generation } => {
                let (epoch, seq) = (generation.epoch, generation.seq);
                tracing::info!(peer = %owner, epoch, seq, "nobody had the announced summary; the next sync tries again");
            }
            Event::Expired { peer } => self.on_summary_dropped(peer, "its lifetime ended"),
            Event::Departed { peer } => self.on_summary_dropped(peer, "its owner said goodbye"),
            Event::UnknownVersion { peer, version } => {
                tracing::info!(%peer, version, "ignored an announcement of a newer protocol version");
            }
            Event::UnknownHashId { peer, hash_id } => {
                tracing::info!(%peer, hash_id, "ignored a summary with an unknown hash id");
            }
            Event::ClockDiffers { peer, issued_at_ms } => {
                tracing::warn!(%peer, issued_at_ms, "ignored an announcement: its date is more than a day off our clock");
            }
            Event::SetAside { peer, misdeed, until } => {
                let lasting_ms = until.since(now().moment);
                self.statistics.set_aside(&peer, Duration::from_millis(lasting_ms));
                self.exchange.pass_input(narmesh_quorum::exchange::Input::SetAside { peer, lasting_ms });
                tracing::warn!(%peer, %misdeed, "peer set aside: it is asked nothing for a while");
            }
            Event::Demoted { peer, until: _ } => {
                tracing::warn!(%peer, "peer demoted: its filter claims far more than it holds; it is asked last");
            }
        }
    }

    fn on_addresses(&mut self, peer: PeerId, addresses: Vec<SocketAddr>) {
        let loopback = self.config.advertise_loopback;
        let usable = addresses.into_iter().filter(|address| may_be_told(address.ip(), loopback)).map(multiaddr);
        self.dialer.learn(now().moment, &peer, usable.collect());
        let all = self.dialer.addresses(&peer).iter().map(Multiaddr::to_string).collect();
        self.statistics.update(&peer, |stats| stats.addresses = all);
        self.are_known_addresses_stale = true;
    }

    fn on_summary_dropped(&mut self, peer: PeerId, why: &str) {
        tracing::info!(%peer, why, "summary dropped");
        self.statistics.update(&peer, |stats| (stats.summary_since, stats.summary_epoch) = (None, None));
        self.on_summary_changed(peer);
    }
}
