//! The task that owns the swarm and the gossip core, and the handle by which others reach it.

use super::behaviour::{MeshBehaviour, MeshBehaviourEvent, SwarmError};
mod attestations;
mod bulk_dials;
mod core_outputs;
mod dials;
mod kept;
mod protocols;

use self::dials::Lookups;
use self::kept::SummaryWriter;
use self::protocols::NarInfoAnswer;
use super::addresses::{choose_told, find_outward_v4, find_outward_v6};
use super::bulk::{AskToDial, Bulk, Surroundings};
use super::clock::now;
use super::config::MeshConfig;
use super::dialer::Dialer;
use super::exchange::{DriverEnd, ExchangeLink, ExchangeOrder};
use super::handle::Blame;
use super::handle::{AskError, Command, MeshHandle, MeshView};
use super::listeners::{ListenError, Listeners};
use super::nar_client::NarPool;
use super::peers::PeerStatistics;
use super::rates::{DialRates, NarInfoRates};
use super::state::{MeshState, SummaryStore};
use super::swarm;
use super::transport::is_handed_over;
use super::unread::{Protocol, UnreadReplies};
use super::uploads::Uploads;
use futures::StreamExt;
use libp2p::identity::Keypair;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, Swarm, gossipsub, ping, request_response};
use narmesh_gossip::{Gossip, GossipConfig, Input, Misdeed, Moment, PATHS_MAX};
use narmesh_protocol::wire::NarInfoRequest;
use narmesh_protocol::{AudienceDigest, HashPart, StoreDir};
use narmesh_store::Offer;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use request_response::{InboundRequestId, OutboundRequestId, ResponseChannel};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Commands that may wait for the driver.
const COMMANDS_MAX: usize = 1_024;
/// Narinfo requests of peers answered at the same time; further ones are told *busy*.
const ANSWERS_AT_ONCE_MAX: usize = 64;
/// The driver looks at the clocks at least this often, so that suspend is noticed.
const TICK_MAX: Duration = Duration::from_secs(10);
/// A start waits no longer than this for its listeners.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections in all, kept and on demand.
const CONNECTIONS_MAX: u32 = 1_024;

/// What the mesh works with besides its configuration.
#[derive(Debug)]
pub struct MeshParts {
    /// Says which paths may leave.
    pub offer: Arc<Offer>,
    /// Sends our NARs to peers.
    pub uploads: Uploads,
    /// Counters of each peer.
    pub statistics: Arc<PeerStatistics>,
    /// What survives a restart.
    pub state: Box<dyn MeshState>,
    /// Peers' summaries of the last run, if they can be kept.
    pub summaries: Option<Box<dyn SummaryStore>>,
    /// Leads to the thread that exchanges attestations.
    pub exchange: DriverEnd,
}

/// Why the mesh cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The swarm cannot be built.
    #[error(transparent)]
    Swarm(#[from] SwarmError),
    /// The node cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The state cannot be read, or no thread can be started that keeps summaries.
    #[error(transparent)]
    State(#[from] io::Error),
}

/// A question under way: the peer that was asked, since when, and who waits for the answer.
type Asked = (PeerId, Instant, oneshot::Sender<Result<Vec<u8>, AskError>>);

/// The driver. `Mesh::start` makes it; `run` is its loop.
pub struct Mesh {
    swarm: Swarm<MeshBehaviour>,
    listeners: Listeners,
    gossip: Gossip,
    dialer: Dialer,
    statistics: Arc<PeerStatistics>,
    nar: NarPool,
    bulk: Bulk,
    dial_rates: DialRates,
    offer: Arc<Offer>,
    state: Box<dyn MeshState>,
    config: MeshConfig,
    commands: mpsc::Receiver<Command>,
    asks_to_dial: mpsc::Receiver<AskToDial>,
    answers: mpsc::Receiver<NarInfoAnswer>,
    answers_sender: mpsc::Sender<NarInfoAnswer>,
    answering: Arc<Semaphore>,
    narinfo_rates: NarInfoRates,
    unread: UnreadReplies,
    asked: HashMap<OutboundRequestId, Asked>,
    lookups: Lookups,
    connecting: HashMap<PeerId, Vec<oneshot::Sender<Result<(), AskError>>>>,
    exchange: ExchangeLink,
    orders: mpsc::Receiver<ExchangeOrder>,
    /// The audiences of builders' nodes, as they stand in the state database.
    audiences_kept: HashMap<PeerId, Arc<[AudienceDigest]>>,
    writer: Option<SummaryWriter>,
    /// Whether it is known which of our own builds are private, so that peers may be told of the rest.
    tells_own: bool,
    quorum_sent: HashMap<OutboundRequestId, (PeerId, u64)>,
    quorum_received: HashMap<u64, (PeerId, InboundRequestId, ResponseChannel<Vec<u8>>)>,
    gossip_sent: HashMap<OutboundRequestId, (PeerId, u64)>,
    /// Requests to dial a bulk connection that we sent, with the number of the dial.
    dials_asked: HashMap<OutboundRequestId, u64>,
    /// Whether an address of a peer changed since the handshake limits were told.
    are_known_addresses_stale: bool,
    gossip_received: HashMap<u64, (InboundRequestId, ResponseChannel<Vec<u8>>)>,
    judged: HashMap<u64, (gossipsub::MessageId, PeerId)>,
    next_id: u64,
    rng: StdRng,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("peer", self.swarm.local_peer_id()).finish_non_exhaustive()
    }
}

impl Mesh {
    /// Builds swarm and core, starts listening, and takes bulk connections; the caller spawns [`Mesh::run`].
    pub fn start(
        keypair: &Keypair,
        store_dir: StoreDir,
        config: MeshConfig,
        parts: MeshParts,
    ) -> Result<(Self, MeshHandle), StartError> {
        let MeshParts { offer, uploads, statistics, state, summaries, exchange } = parts;
        let DriverEnd { link: exchange, orders } = exchange;
        let (mut swarm, bulk, arrivals) = swarm::build(keypair, config.peers.keys().copied(), CONNECTIONS_MAX)?;
        let listeners = Listeners::open(&mut swarm, &config.listen)?;
        let mut rng = StdRng::from_rng(&mut rand::rng());
        let software = concat!("narmesh/", env!("CARGO_PKG_VERSION"));
        let mut gossip_config = GossipConfig::new(keypair.clone(), store_dir, software, rng.random());
        // The offer keeps to the number of the settings, which a reload may change.
        gossip_config.path_count_max = PATHS_MAX;
        let gossip = Gossip::new(now(), gossip_config, state.read()?);
        let (commands_sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (asks_to_dial_sender, asks_to_dial) = mpsc::channel(COMMANDS_MAX);
        let (answers_sender, answers) = mpsc::channel(ANSWERS_AT_ONCE_MAX);
        let nar = NarPool::new(bulk.clone());
        let handle = MeshHandle {
            commands: commands_sender,
            table: gossip.table(),
            statistics: Arc::clone(&statistics),
            nar: nar.clone(),
            exchange: exchange.clone(),
            asks: Arc::default(),
        };
        let blame = Blame(handle.commands.clone());
        let surroundings = Surroundings {
            statistics: Arc::clone(&statistics),
            asks_to_dial: asks_to_dial_sender,
            incoming: Box::new(move |stream| uploads.accept(stream, blame.clone())),
        };
        tokio::spawn(bulk.clone().run(surroundings, arrivals));
        let mut mesh = Self {
            dialer: Dialer::new(config.connections_gossip),
            swarm,
            listeners,
            gossip,
            statistics,
            nar,
            bulk,
            dial_rates: DialRates::default(),
            offer,
            state,
            config: config.clone(),
            commands,
            asks_to_dial,
            answers,
            answers_sender,
            narinfo_rates: NarInfoRates::default(),
            unread: UnreadReplies::default(),
            answering: Arc::new(Semaphore::new(ANSWERS_AT_ONCE_MAX)),
            asked: HashMap::new(),
            lookups: Lookups::default(),
            connecting: HashMap::new(),
            exchange,
            orders,
            audiences_kept: HashMap::new(),
            writer: None,
            tells_own: false,
            quorum_sent: HashMap::new(),
            quorum_received: HashMap::new(),
            gossip_sent: HashMap::new(),
            dials_asked: HashMap::new(),
            are_known_addresses_stale: false,
            gossip_received: HashMap::new(),
            judged: HashMap::new(),
            next_id: 0,
            rng,
        };
        mesh.reconfigure(config);
        // Before anybody can ask, so that the table answers from the first question on.
        if let Some(files) = summaries {
            mesh.remember_summaries(files)?;
        }
        Ok((mesh, handle))
    }

    /// Waits, at most 2 s, until an address is known of each listener that can have one.
    pub async fn wait_until_listening(&mut self) {
        let all = async {
            while !self.listeners.are_known() {
                let event = self.swarm.select_next_some().await;
                self.on_swarm_event(event);
            }
        };
        if tokio::time::timeout(LISTEN_TIMEOUT, all).await.is_err() {
            tracing::warn!(after = ?LISTEN_TIMEOUT, "not all addresses of node.listen are listened on yet");
        }
    }

    /// Runs until the last handle is dropped.
    pub async fn run(mut self) {
        loop {
            self.perform();
            self.dial_due();
            if let Some(writer) = &mut self.writer {
                writer.write_due(&self.gossip);
            }
            let sleep = tokio::time::sleep(self.until_deadline());
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
                command = self.commands.recv() => match command {
                    Some(Command::Goodbye(reply)) => self.say_goodbye(reply).await,
                    Some(command) => self.on_command(command),
                    None => return,
                },
                Some(NarInfoAnswer { peer, asked, channel, bytes }) = self.answers.recv() => {
                    self.give((Protocol::NarInfo, asked), peer, channel, bytes);
                }
                Some(AskToDial { peer, number }) = self.asks_to_dial.recv() => self.ask_to_dial(peer, number),
                Some(order) = self.orders.recv() => self.on_order(order),
                Some((peer, resolved)) = self.lookups.next() => self.on_resolved(peer, resolved),
                () = sleep => self.gossip.handle(now(), Input::Tick),
            }
        }
    }

    fn until_deadline(&self) -> Duration {
        let at = now().moment;
        let wait = |deadline: Option<Moment>| {
            deadline.map_or(TICK_MAX, |deadline| Duration::from_millis(deadline.0.saturating_sub(at.0)))
        };
        let writer = self.writer.as_ref().and_then(SummaryWriter::deadline);
        wait(self.gossip.deadline()).min(wait(self.dialer.deadline())).min(wait(writer)).min(TICK_MAX)
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Ask { peer, hash_part, reply } => self.ask_narinfo(peer, hash_part, reply),
            Command::Connect { peer, reply } => self.connect(peer, reply),
            Command::Paths(change) => {
                self.on_offer_looked();
                self.gossip.handle(now(), Input::Paths(change));
            }
            Command::Probe(peer, outcome) => self.gossip.handle(now(), Input::Probe { peer, outcome }),
            Command::Misbehaved(peer, misdeed) => self.gossip.handle(now(), Input::Misbehaved { peer, misdeed }),
            Command::Reconfigure(config, done) => {
                self.reconfigure(config);
                done.send(()).unwrap_or(());
            }
            Command::View(reply) => {
                let mut listen: Vec<_> = self.swarm.listeners().cloned().collect();
                listen.sort_unstable();
                let view = MeshView {
                    listen,
                    peers: self.gossip.peers().collect(),
                    publication: self.gossip.publication(),
                    audiences: self.audiences(),
                };
                drop(reply.send(view));
            }
            Command::Goodbye(reply) => reply.send(()).unwrap_or(()),
        }
    }

    fn ask_narinfo(&mut self, peer: PeerId, hash_part: HashPart, reply: oneshot::Sender<Result<Vec<u8>, AskError>>) {
        let bytes = match (NarInfoRequest { hash_part }).encode() {
            Ok(bytes) => bytes,
            Err(error) => return drop(reply.send(Err(AskError::Failed(error.to_string())))),
        };
        if !self.swarm.is_connected(&peer) {
            return drop(reply.send(Err(AskError::NotConnected("connection closed".to_owned()))));
        }
        self.asked.retain(|_, (_, _, waiting)| !waiting.is_closed());
        let id = self.swarm.behaviour_mut().narinfo.send_request(&peer, bytes);
        self.asked.insert(id, (peer, Instant::now(), reply));
    }

    fn reconfigure(&mut self, config: MeshConfig) {
        let at = now();
        for peer in self.config.peers.keys().filter(|peer| !config.peers.contains_key(*peer)) {
            // Closes its connections, too.
            self.swarm.behaviour_mut().allowlist.disallow_peer(*peer);
            self.nar.forget(peer);
            self.lookups.forget(peer);
            self.dial_rates.forget(peer);
            self.narinfo_rates.forget(peer);
            self.swarm.behaviour_mut().shut_out.forget(peer);
            for waiter in self.connecting.remove(peer).unwrap_or_default() {
                drop(waiter.send(Err(AskError::NotConnected("no longer on the allowlist".to_owned()))));
            }
        }
        for peer in config.peers.keys() {
            self.swarm.behaviour_mut().allowlist.allow_peer(*peer);
        }
        self.statistics.retain_only(config.peers.keys().copied());
        self.dialer.set_peers(at.moment, &config.peers, config.connections_gossip);
        self.gossip.handle(at, Input::Allowlist(config.peers.keys().copied().collect()));
        self.config = config;
        self.tell_addresses();
        for peer in self.config.peers.keys() {
            let addresses = self.dialer.addresses(peer).iter().map(Multiaddr::to_string).collect();
            self.statistics.update(peer, |stats| stats.addresses = addresses);
        }
        self.tell_handshake_limits();
        self.tell_builders();
    }

    fn tell_addresses(&mut self) {
        let external = &self.config.external_addresses;
        // Only these lead out: bridges of containers come and go, and are nobody's way to us.
        let outward: Vec<_> = find_outward_v4().into_iter().chain(find_outward_v6()).collect();
        let addresses = choose_told(external, self.swarm.listeners(), &outward, self.config.advertise_loopback);
        self.gossip.handle(now(), Input::Addresses(addresses));
    }

    async fn say_goodbye(&mut self, reply: oneshot::Sender<()>) {
        self.gossip.handle(now(), Input::Goodbye);
        self.perform();
        // gossipsub hands messages to its connection tasks only while the swarm is polled.
        let drained = async {
            loop {
                let event = self.swarm.select_next_some().await;
                drop(event);
            }
        };
        drop(tokio::time::timeout(Duration::from_millis(200), drained).await);
        if let Some(writer) = &mut self.writer {
            writer.finish(&self.gossip).await;
        }
        // An error means that nobody waits for it any more.
        reply.send(()).unwrap_or(());
    }

    fn on_swarm_event(&mut self, event: SwarmEvent<MeshBehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(MeshBehaviourEvent::Announcements(event)) => self.on_announcement(event),
            SwarmEvent::Behaviour(MeshBehaviourEvent::Gossip(event)) => self.on_gossip(event),
            SwarmEvent::Behaviour(MeshBehaviourEvent::Narinfo(event)) => self.on_narinfo(event),
            SwarmEvent::Behaviour(MeshBehaviourEvent::Quorum(event)) => self.on_quorum(event),
            SwarmEvent::Behaviour(MeshBehaviourEvent::Dial(event)) => self.on_dial(event),
            SwarmEvent::Behaviour(MeshBehaviourEvent::Ping(ping::Event { peer, result: Ok(round_trip), .. })) => {
                self.statistics.update(&peer, |stats| {
                    stats.latency.get_or_insert(round_trip);
                });
            }
            SwarmEvent::NewListenAddr { listener_id, address } => {
                self.listeners.on_address(listener_id);
                tracing::info!(%address, "listening for peers");
                self.tell_addresses();
            }
            SwarmEvent::ExpiredListenAddr { .. } => {
                self.dialer.on_moved(now().moment);
                self.tell_addresses();
            }
            SwarmEvent::ListenerClosed { .. } => self.tell_addresses(),
            SwarmEvent::ConnectionEstablished { peer_id, num_established, endpoint, .. }
                if num_established.get() == 1 =>
            {
                self.on_connected(peer_id, endpoint.is_dialer().then(|| endpoint.get_remote_address()));
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, cause, .. } => {
                let why = cause.map_or_else(|| "closed".to_owned(), |cause| cause.to_string());
                self.on_disconnected(peer_id, why);
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => self.on_dial_failed(peer, &error),
            SwarmEvent::IncomingConnectionError { error, send_back_addr, .. } if !is_handed_over(&error) => {
                tracing::debug!(%error, from = %send_back_addr, "refused an incoming connection");
            }
            // No other event needs a decision of ours.
            _ => {}
        }
    }

    fn on_connected(&mut self, peer: PeerId, dialled: Option<&Multiaddr>) {
        tracing::info!(%peer, dialled = dialled.is_some(), "connected");
        self.dialer.on_connected(now().moment, &peer, dialled);
        self.lookups.on_connected(&peer);
        self.statistics.update(&peer, |stats| (stats.connected, stats.why) = (true, None));
        for waiter in self.connecting.remove(&peer).unwrap_or_default() {
            drop(waiter.send(Ok(())));
        }
        self.gossip.handle(now(), Input::Connected(peer));
        self.speak_with(peer);
    }

    fn on_disconnected(&mut self, peer: PeerId, why: String) {
        tracing::info!(%peer, why, "disconnected");
        self.nar.on_disconnected(&peer);
        self.dialer.on_disconnected(now().moment, &peer, &mut self.rng);
        self.statistics.update(&peer, |stats| (stats.connected, stats.why) = (false, Some(why)));
        self.gossip.handle(now(), Input::Disconnected(peer));
        self.exchange.pass_input(narmesh_quorum::exchange::Input::Gone(peer));
    }

    fn report_misdeed(&mut self, peer: PeerId, misdeed: Misdeed) {
        self.gossip.handle(now(), Input::Misbehaved { peer, misdeed });
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}
