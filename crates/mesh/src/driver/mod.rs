//! The task that owns the swarm and the gossip core. It turns events of the one into inputs of the other, and performs
//! what the core wants.
//!
//! [`Mesh`] is the loop. Each of its parts owns what it changes, and is given the [`Context`] that all work on:
//! `gossip_link` carries what the core says and hears, `dials` decides with whom there are connections, `bulk_dials` has
//! others dial, `circuits` asks relays and answers as one, `narinfos`, `trees`, `logs` and `realisations` ask and answer,
//! `attestations` serves the thread that exchanges them, and `kept` writes summaries. The loop alone passes on what one of
//! them means for another.

mod attestations;
mod bulk_dials;
mod circuits;
mod context;
mod core_events;
mod dial_names;
mod dials;
mod gossip_link;
mod kept;
mod logs;
mod narinfos;
mod parts;
mod questions;
mod realisations;
mod removal_asks;
mod requests;
mod rosters;
mod start;
mod trees;
mod upgrades;
mod ways;

pub use self::parts::{MeshNews, MeshParts, StartError};

use self::attestations::{Attestations, view_audiences};
use self::bulk_dials::BulkDials;
use self::circuits::CircuitRequests;
use self::context::Context;
use self::dials::Dials;
use self::gossip_link::{GossipLink, publish};
use self::kept::SummaryWriter;
use self::logs::Logs;
use self::narinfos::NarInfos;
use self::realisations::Realisations;
use self::rosters::Rosters;
use self::trees::Trees;
use super::addresses::{choose_told, find_outward_v4, find_outward_v6, is_local};
use super::behaviour::MeshBehaviourEvent;
use super::clock::now;
use super::config::MeshConfig;
use super::first_words::FirstWords;
use super::handle::{Command, MeshView};
use super::listeners::Listeners;
use super::nar_client::NarPool;
use super::shut_out::SHUT_OUT;
use super::transport::is_handed_over;
use futures::StreamExt;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, gossipsub, ping};
use narmesh_gossip::{Event, Input, Misdeed, Moment, Output, Record};
use std::iter;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Commands that may wait for the driver.
const COMMANDS_MAX: usize = 1_024;
/// The driver looks at the clocks at least this often, so that suspend is noticed.
const TICK_MAX: Duration = Duration::from_secs(10);
/// A start waits no longer than this for its listeners.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections in all, kept and on demand.
const CONNECTIONS_MAX: u32 = 1_024;

/// The driver. `Mesh::start` makes it; `run` is its loop.
pub struct Mesh {
    context: Context,
    listeners: Listeners,
    commands: mpsc::Receiver<Command>,
    gossip_link: GossipLink,
    dials: Dials,
    bulk_dials: BulkDials,
    narinfos: NarInfos,
    trees: Trees,
    logs: Logs,
    realisations: Realisations,
    nars: NarPool,
    attestations: Attestations,
    /// Missing when summaries cannot be kept.
    summaries: Option<SummaryWriter>,
    first_words: Arc<FirstWords>,
    rosters: Rosters,
    circuits: CircuitRequests,
    /// Whether machines that are no members may ask to join.
    is_open: Arc<AtomicBool>,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("peer", self.context.swarm.local_peer_id()).finish_non_exhaustive()
    }
}

impl Mesh {
    /// Runs until the last handle is dropped.
    pub async fn run(mut self) {
        loop {
            // First what the last event asked for, so that deadlines are those after it.
            self.perform();
            self.dials.dial_due(&mut self.context);
            self.circuits.run_due(&mut self.context, &self.dials);
            self.rosters.tick(&mut self.context);
            if let Some(writer) = &mut self.summaries {
                writer.write_due(&self.context.gossip);
            }
            let sleep = tokio::time::sleep(self.until_deadline());
            let context = &mut self.context;
            tokio::select! {
                event = context.swarm.select_next_some() => self.on_swarm_event(event),
                command = self.commands.recv() => match command {
                    Some(Command::Goodbye(reply)) => self.say_goodbye(reply).await,
                    Some(command) => self.on_command(command),
                    None => return,
                },
                Some(answer) = self.narinfos.next_answer() => answer.send(context),
                Some(answer) = self.trees.next_answer() => answer.send(context),
                Some(answer) = self.logs.next_answer() => answer.send(context),
                Some(answer) = self.realisations.next_answer() => answer.send(context),
                Some(next) = self.circuits.next() => self.circuits.on_next(context, next),
                Some(ask) = self.bulk_dials.next_ask() => self.bulk_dials.ask(context, ask),
                Some(order) = self.attestations.next_order() => self.attestations.on_order(context, order),
                Some((peer, resolved)) = self.dials.next_resolved() => self.dials.on_resolved(context, peer, resolved),
                () = sleep => context.gossip.handle(now(), Input::Tick),
            }
        }
    }

    fn until_deadline(&self) -> Duration {
        let at = now().moment;
        let wait = |deadline: Option<Moment>| {
            deadline.map_or(TICK_MAX, |deadline| Duration::from_millis(deadline.0.saturating_sub(at.0)))
        };
        let writer = self.summaries.as_ref().and_then(SummaryWriter::deadline);
        let own = [self.dials.deadline(), self.circuits.deadline(), self.rosters.deadline(), writer];
        own.into_iter().map(wait).fold(wait(self.context.gossip.deadline()).min(TICK_MAX), Duration::min)
    }

    fn on_command(&mut self, command: Command) {
        let context = &mut self.context;
        match command {
            Command::AskNarInfo { peer, hash_part, reply } => self.narinfos.ask(context, peer, hash_part, reply),
            Command::AskTree { peer, request, reply } => self.trees.ask(context, peer, request, reply),
            Command::AskLog { peer, request, reply } => self.logs.ask(context, peer, request, reply),
            Command::AskRealisation { peer, request, reply } => self.realisations.ask(context, peer, &request, reply),
            Command::Find(peer, addresses) => self.dials.find(context, peer, addresses),
            Command::Connect { peer, reply } => self.dials.connect(context, peer, reply),
            Command::Paths(change) => {
                // The offer has looked at the store by now, so peers may hear of what was built here and is not
                // private.
                self.attestations.on_offer_looked(context);
                context.gossip.handle(now(), Input::Paths(change));
            }
            Command::Probe(peer, outcome) => context.gossip.handle(now(), Input::Probe { peer, outcome }),
            Command::Misbehaved(peer, misdeed) => context.report_misdeed(peer, misdeed),
            Command::Reconfigure(config, done) => {
                self.reconfigure(*config);
                done.send(()).unwrap_or(());
            }
            Command::View(reply) => {
                let mut listen: Vec<_> = context.swarm.listeners().cloned().collect();
                // The swarm lists them in no order, and `status` should not change from call to call.
                listen.sort_unstable();
                let view = MeshView {
                    listen,
                    peers: context.gossip.peers().collect(),
                    publication: context.gossip.publication(),
                    audiences: view_audiences(context),
                    relay: self.circuits.view_relay(),
                };
                drop(reply.send(view));
            }
            Command::Goodbye(reply) => reply.send(()).unwrap_or(()),
        }
    }

    fn reconfigure(&mut self, config: MeshConfig) {
        let before = std::mem::replace(&mut self.context.config, config);
        let Context { swarm, config, statistics, gossip, .. } = &mut self.context;
        let behaviour = swarm.behaviour_mut();
        for peer in before.peers.keys().filter(|peer| !config.peers.contains_key(*peer)) {
            // Closes its connections, too.
            behaviour.allowlist.disallow_peer(*peer);
            behaviour.shut_out.forget(peer);
            behaviour.connection_rates.forget(peer);
            behaviour.handshake_limits.forget(peer);
            self.nars.forget(peer);
            self.dials.forget(peer);
            self.bulk_dials.forget(peer);
            self.narinfos.forget(peer);
            self.trees.forget(peer);
            self.rosters.forget(peer);
            self.logs.forget(peer);
            self.realisations.forget(peer);
            self.circuits.forget(peer);
        }
        for peer in config.peers.keys() {
            behaviour.allowlist.allow_peer(*peer);
        }
        statistics.retain_only(config.peers.keys().copied());
        gossip.handle(now(), Input::Allowlist(config.peers.keys().copied().collect()));
        self.dials.set_peers(&mut self.context);
        self.circuits.on_reconfigured(&mut self.context, &mut self.dials);
        self.is_open.store(self.context.config.is_open, Relaxed);
        self.tell_addresses();
        self.attestations.tell_builders(&self.context);
        self.rosters.on_reconfigured(&mut self.context);
    }

    fn tell_addresses(&mut self) {
        let Context { swarm, config, gossip, .. } = &mut self.context;
        self.listeners.tell(swarm.listeners());
        // Only these lead out: bridges of containers come and go, and are nobody's way to us.
        let outward: Vec<_> = find_outward_v4().into_iter().chain(find_outward_v6()).collect();
        let addresses = choose_told(&config.external_addresses, swarm.listeners(), &outward, config.advertise_loopback);
        gossip.handle(now(), Input::Addresses(addresses));
    }

    async fn say_goodbye(&mut self, reply: oneshot::Sender<()>) {
        self.context.gossip.handle(now(), Input::Goodbye);
        self.perform();
        // gossipsub hands messages to its connection tasks only while the swarm is polled.
        let drained = async {
            loop {
                let event = self.context.swarm.select_next_some().await;
                drop(event);
            }
        };
        drop(tokio::time::timeout(Duration::from_millis(200), drained).await);
        if let Some(writer) = &mut self.summaries {
            writer.finish(&self.context.gossip).await;
        }
        // An error means that nobody waits for it any more.
        reply.send(()).unwrap_or(());
    }

    fn on_swarm_event(&mut self, event: SwarmEvent<MeshBehaviourEvent>) {
        let context = &mut self.context;
        match event {
            SwarmEvent::Behaviour(MeshBehaviourEvent::Announcements(event)) => self.on_announcement(event),
            SwarmEvent::Behaviour(MeshBehaviourEvent::Gossip(event)) => self.gossip_link.on_request(context, event),
            SwarmEvent::Behaviour(MeshBehaviourEvent::Narinfo(event)) => self.narinfos.on_event(context, event),
            SwarmEvent::Behaviour(MeshBehaviourEvent::Tree(event)) => self.trees.on_event(context, event),
            SwarmEvent::Behaviour(MeshBehaviourEvent::Log(event)) => self.logs.on_event(context, event),
            SwarmEvent::Behaviour(MeshBehaviourEvent::Realisation(event)) => {
                self.realisations.on_event(context, event);
            }
            SwarmEvent::Behaviour(MeshBehaviourEvent::Quorum(event)) => self.attestations.on_request(context, event),
            SwarmEvent::Behaviour(MeshBehaviourEvent::Roster(event)) => self.rosters.on_event(context, event),
            SwarmEvent::Behaviour(MeshBehaviourEvent::Circuit(event)) => self.circuits.on_event(context, event),
            SwarmEvent::Behaviour(MeshBehaviourEvent::Dial(event)) => self.bulk_dials.on_request(context, event),
            SwarmEvent::Behaviour(MeshBehaviourEvent::Ping(ping::Event { peer, result: Ok(round_trip), .. })) => {
                context.statistics.update(&peer, |stats| stats.on_ping(round_trip));
            }
            SwarmEvent::NewListenAddr { listener_id, address } => {
                self.listeners.on_address(listener_id);
                tracing::info!(%address, "listening for peers");
                self.dials.on_new_address();
                self.tell_addresses();
            }
            SwarmEvent::ExpiredListenAddr { .. } => {
                self.dials.on_moved();
                self.tell_addresses();
            }
            SwarmEvent::ListenerClosed { .. } => self.tell_addresses(),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, num_established, endpoint, .. } => {
                self.circuits.on_opened(context, &mut self.dials, (peer_id, connection_id), &endpoint);
                // Two at once are possible, when both sides dial; the core knows a peer as connected or not.
                if num_established.get() == 1 {
                    self.on_connected(peer_id, endpoint.get_remote_address(), endpoint.is_dialer());
                }
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, cause, .. } => {
                self.circuits.on_closed(context, &mut self.dials, &peer_id, connection_id);
                if num_established == 0 {
                    let why = cause.map_or_else(|| "closed".to_owned(), |cause| cause.to_string());
                    self.on_disconnected(peer_id, why);
                }
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => {
                self.circuits.on_dial_failed(context, &peer, &error);
                self.dials.on_failed(context, peer, &error);
            }
            SwarmEvent::IncomingConnectionError { error, send_back_addr, .. } if !is_handed_over(&error) => {
                tracing::debug!(%error, from = %send_back_addr, "refused an incoming connection");
            }
            // No other event needs a decision of ours.
            _ => {}
        }
    }

    fn on_announcement(&mut self, event: gossipsub::Event) {
        if self.gossip_link.on_announcement(&mut self.context, event) {
            self.perform();
            self.gossip_link.clear_unjudged();
        }
    }

    fn on_connected(&mut self, peer: PeerId, address: &Multiaddr, is_dialled: bool) {
        tracing::info!(%peer, dialled = is_dialled, "connected");
        let is_local = is_local(address);
        // First: whoever waits for this connection looks there when it is told.
        self.context.statistics.update(&peer, |stats| {
            (stats.connected, stats.is_local, stats.why, stats.why_kind) = (true, is_local, None, None);
        });
        self.dials.on_connected(peer, is_dialled.then_some(address));
        self.context.gossip.handle(now(), Input::Connected(peer));
        self.attestations.speak_with(&self.context, peer);
        self.rosters.on_connected(&mut self.context, peer);
    }

    fn on_disconnected(&mut self, peer: PeerId, why: String) {
        tracing::info!(%peer, why, "disconnected");
        self.nars.on_disconnected(&peer);
        self.dials.on_disconnected(&self.context, &peer);
        self.context.statistics.update(&peer, |stats| stats.on_lost(why));
        self.context.gossip.handle(now(), Input::Disconnected(peer));
        self.attestations.on_disconnected(peer);
        self.rosters.on_disconnected(&mut self.context, peer);
    }

    /// Performs the core's outputs in order. What is to be persisted is durable before the first of them is looked at: an
    /// answer to a sync brings a thousand announcements, and is written at once.
    fn perform(&mut self) {
        let behaviour = self.context.swarm.behaviour_mut();
        // They were noted below the swarm, where nobody can be blamed.
        let (announcing, connecting) =
            (behaviour.announcements.take_flooders(), behaviour.connection_rates.take_flooders());
        for peer in announcing {
            self.context.report_misdeed(peer, Misdeed::AnnouncementFlood);
        }
        for peer in connecting {
            self.context.report_misdeed(peer, Misdeed::ConnectionFlood);
        }
        // What is performed may give the core something else to say.
        loop {
            let outputs: Vec<_> = iter::from_fn(|| self.context.gossip.poll()).collect();
            if outputs.is_empty() {
                break;
            }
            self.context.persist(&outputs);
            outputs.into_iter().for_each(|output| self.perform_one(output));
        }
        self.dials.tell_handshake_limits(&mut self.context);
        if self.first_words.are_awaited() && self.context.gossip.has_heard_all() {
            self.first_words.end();
        }
    }

    fn perform_one(&mut self, output: Output) {
        let context = &mut self.context;
        match output {
            Output::Persist(Record::Forget(peer)) => self.on_summary_changed(peer),
            Output::Persist(Record::OwnEpoch(_) | Record::Newest { .. }) => {}
            Output::Publish(bytes) => publish(context, bytes),
            Output::Judge { id, verdict } => self.gossip_link.judge(context, id, verdict),
            Output::Request { to, id, bytes } => self.gossip_link.send_request(context, to, id, bytes),
            Output::Respond { to: _, id, bytes } => self.gossip_link.respond(context, id, bytes),
            Output::Penalize { peer, misdeed } => self.penalize(peer, misdeed),
            Output::Event(event) => self.on_core_event(event),
        }
    }

    /// Notes a misdeed. A peer that floods us, or goes on and on, is disconnected and not dialled for a while.
    fn penalize(&mut self, peer: PeerId, misdeed: Misdeed) {
        tracing::warn!(%peer, %misdeed, "peer misbehaved");
        self.context.statistics.count_misdeed(&peer, misdeed);
        let behaviour = self.context.swarm.behaviour_mut();
        if behaviour.shut_out.count(Instant::now(), peer, misdeed) {
            // Meanwhile its handshakes, which lead to nothing, count among those of strangers.
            behaviour.handshake_limits.forget(&peer);
            tracing::warn!(%peer, %misdeed, lasting = ?SHUT_OUT, "peer is disconnected: it does this too often");
            self.dials.leave(&peer, SHUT_OUT);
        }
    }

    fn on_core_event(&mut self, event: Event) {
        core_events::note(&self.context.statistics, &event);
        match event {
            Event::AddressesLearned { peer, addresses } => {
                self.dials.learn(&self.context, peer, addresses);
                self.circuits.on_addresses_learned(&mut self.context, &mut self.dials, &peer);
            }
            Event::StoreDirDiffers { peer, .. } | Event::Expired { peer } | Event::Departed { peer } => {
                self.on_summary_changed(peer);
            }
            Event::BodyPulled { owner, .. } => {
                self.on_summary_changed(owner);
                self.attestations.on_audience_changed(&self.context, &owner);
            }
            Event::SetAside { peer, until, .. } => {
                let lasting = Duration::from_millis(until.since(now().moment));
                self.context.statistics.set_aside(&peer, lasting);
                self.attestations.on_set_aside(peer, lasting);
            }
            Event::Greeted { .. }
            | Event::Published { .. }
            | Event::Overtaken { .. }
            | Event::Announced { .. }
            | Event::PullGivenUp { .. }
            | Event::UnknownVersion { .. }
            | Event::UnknownHashId { .. }
            | Event::ClockDiffers { .. }
            | Event::Demoted { .. } => {}
        }
    }

    /// Notes that what we hold of this peer changed.
    fn on_summary_changed(&mut self, owner: PeerId) {
        if let Some(writer) = &mut self.summaries {
            writer.on_changed(owner);
        }
    }
}
