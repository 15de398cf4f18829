//! How the rest of the daemon reaches the mesh: a cheap handle, and the commands it sends to the driver.

pub use super::ask_error::AskError;
use super::attestation_link::{ExchangeLink, ExchangeMessage};
use super::circuits::{Relay, RelayView};
use super::config::MeshConfig;
use super::first_words::FirstWords;
use super::nar_client::NarPool;
use super::statistics::PeerStatistics;
use libp2p::{Multiaddr, PeerId};
use narmesh_gossip::{FilterTable, Misdeed, PathChange, PeerView, ProbeOutcome, PublicationView};
use narmesh_protocol::HashPart;
use narmesh_protocol::nar_tree::NarTree;
use narmesh_protocol::wire::{
    LogPart, LogReply, LogRequest, NarInfoReply, RealisationReply, RealisationRequest, TreeReply, TreeRequest,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

/// Questions under way at one peer, each on a stream of its own; further ones wait for their turn. One Nix asks 25 at a
/// time.
const ASKS_MAX: usize = 32;
/// The same of trees. Nobody waits long for one, so a few at a time are enough.
const TREE_ASKS_MAX: usize = 8;

/// The same of parts of build logs: whoever waits for one reads it part by part.
const LOG_ASKS_MAX: usize = 4;
/// The same of realisations.
const REALISATION_ASKS_MAX: usize = 16;
/// After a *busy* for a part of a log or a realisation it is asked for again after this. The peer blames who asks faster.
const BUSY_PAUSE: Duration = Duration::from_millis(200);

/// How often a question is asked again when its connection ends before the answer.
const LOST_MAX: u32 = 3;

/// What the driver is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    AskNarInfo { peer: PeerId, hash_part: HashPart, reply: oneshot::Sender<Result<Vec<u8>, AskError>> },
    AskTree { peer: PeerId, request: TreeRequest, reply: oneshot::Sender<Result<Vec<u8>, AskError>> },
    AskLog { peer: PeerId, request: LogRequest, reply: oneshot::Sender<Result<Vec<u8>, AskError>> },
    AskRealisation { peer: PeerId, request: RealisationRequest, reply: oneshot::Sender<Result<Vec<u8>, AskError>> },
    Connect { peer: PeerId, reply: oneshot::Sender<Result<(), AskError>> },
    Find(PeerId, Vec<SocketAddr>),
    Paths(PathChange),
    Probe(PeerId, ProbeOutcome),
    Misbehaved(PeerId, Misdeed),
    Reconfigure(Box<MeshConfig>, oneshot::Sender<()>),
    View(oneshot::Sender<MeshView>),
    Goodbye(oneshot::Sender<()>),
}

/// Reports misdeeds of peers to the core, which counts them.
#[derive(Clone, Debug)]
pub(super) struct Blame(pub(super) mpsc::Sender<Command>);

impl Blame {
    /// Reports that this peer was caught lying, or broke the protocol; does not wait.
    pub(super) fn report_misdeed(&self, peer: PeerId, misdeed: Misdeed) {
        if self.0.try_send(Command::Misbehaved(peer, misdeed)).is_err() {
            tracing::warn!(%peer, %misdeed, "peer misbehaved, but this was not counted: the mesh is too busy");
        }
    }
}

/// What `status` shows of the mesh.
#[derive(Clone, Debug)]
pub struct MeshView {
    /// Addresses listened on.
    pub listen: Vec<Multiaddr>,
    /// Every peer as the gossip core sees it.
    pub peers: Vec<PeerView>,
    /// Our own summary.
    pub publication: PublicationView,
    /// Who may hear of the attestations of each builder's node.
    pub audiences: BTreeMap<PeerId, AudienceView>,
    /// This node as a relay.
    pub relay: RelayView,
}

/// The audience of a peer's summary, as far as we know it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AudienceView {
    /// Whether we have held a summary of it, in this run or an earlier one.
    pub is_known: bool,
    /// Whether we hold a summary of it now: the peer is there, or was a short time ago.
    pub is_present: bool,
    /// The peers of our allowlist that are in it.
    pub admitted: BTreeSet<PeerId>,
}

/// What a peer says of the tree of a NAR.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TreeAnswer {
    /// It has none.
    Absent,
    /// It is computing it, or is busy: ask again.
    NotYet,
    /// This is it, and the peer signed that.
    Bound(NarTree),
}

/// The questions under way at each peer.
type AskSlots = Arc<Mutex<HashMap<PeerId, Arc<Semaphore>>>>;

/// A handle of the mesh, cheap to clone.
#[derive(Clone)]
pub struct MeshHandle {
    commands: mpsc::Sender<Command>,
    table: Arc<FilterTable>,
    statistics: Arc<PeerStatistics>,
    nar: NarPool,
    exchange: ExchangeLink,
    asks: AskSlots,
    tree_asks: AskSlots,
    log_asks: AskSlots,
    realisation_asks: AskSlots,
    first_words: Arc<FirstWords>,
    listened: watch::Receiver<Vec<SocketAddr>>,
    relay: Relay,
}

impl std::fmt::Debug for MeshHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshHandle").finish_non_exhaustive()
    }
}

impl MeshHandle {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        table: Arc<FilterTable>,
        statistics: Arc<PeerStatistics>,
        nar: NarPool,
        exchange: ExchangeLink,
        first_words: Arc<FirstWords>,
        listened: watch::Receiver<Vec<SocketAddr>>,
    ) -> Self {
        let (asks, tree_asks, log_asks, realisation_asks) = Default::default();
        Self {
            commands,
            table,
            statistics,
            nar,
            exchange,
            asks,
            tree_asks,
            log_asks,
            realisation_asks,
            first_words,
            listened,
            relay: Relay::default(),
        }
    }

    /// The same, which shows this node as a relay.
    pub(super) fn with_relay(self, relay: Relay) -> Self {
        Self { relay, ..self }
    }

    /// This node as a relay; can be read without asking the driver.
    pub fn view_relay(&self) -> RelayView {
        self.relay.view()
    }

    /// Who may hold what; can be read without asking the driver.
    pub fn table(&self) -> &Arc<FilterTable> {
        &self.table
    }

    /// Whether we started a moment ago and have not heard all peers yet: what no filter claims may still be claimed.
    pub fn awaits_first_words(&self) -> bool {
        self.first_words.are_awaited()
    }

    /// Counters of each peer.
    pub fn statistics(&self) -> &Arc<PeerStatistics> {
        &self.statistics
    }

    /// Asks peers for NARs.
    pub fn nar(&self) -> &NarPool {
        &self.nar
    }

    /// Asks a peer for its narinfo of a path, dialling it if need be; the caller sets the deadline. A question that is
    /// lost with its connection is asked again on the next one.
    pub async fn ask_narinfo(&self, peer: PeerId, hash_part: HashPart) -> Result<NarInfoReply, AskError> {
        self.connect(peer).await?;
        let slots = ask_slots(&self.asks, ASKS_MAX, peer);
        let _slot = slots.acquire().await.map_err(|_| AskError::Stopping)?;
        let bytes = self.ask_connected(peer, hash_part).await?;
        let reply = NarInfoReply::decode(&bytes).map_err(|error| {
            // A reply that was cut short may be the connection's fault.
            if !error.is_truncated() {
                self.report_misdeed(peer, Misdeed::MalformedReply);
            }
            AskError::Failed(error.to_string())
        })?;
        if reply == NarInfoReply::Busy { Err(AskError::Busy) } else { Ok(reply) }
    }

    /// Asks a peer for the tree of a NAR, dialling it if need be; the caller sets the deadline. A tree that it did not sign,
    /// or that no such NAR can have, is a misdeed.
    pub async fn ask_tree(&self, peer: PeerId, request: TreeRequest) -> Result<TreeAnswer, AskError> {
        self.connect(peer).await?;
        // Further questions wait here and not at the peer: a connection has only so many streams.
        let slots = ask_slots(&self.tree_asks, TREE_ASKS_MAX, peer);
        let _slot = slots.acquire().await.map_err(|_| AskError::Stopping)?;
        let bytes = self.call(|reply| Command::AskTree { peer, request, reply }).await??;
        let malformed = |why: String| {
            self.report_misdeed(peer, Misdeed::MalformedReply);
            AskError::Failed(why)
        };
        match TreeReply::decode(&bytes) {
            Ok(TreeReply::Absent) => Ok(TreeAnswer::Absent),
            Ok(TreeReply::NotYet | TreeReply::Busy) => Ok(TreeAnswer::NotYet),
            Ok(TreeReply::Tree { signature, leaves }) => {
                let tree = NarTree::fold(request.nar_size, leaves);
                // The signature names the NarHash, so that a tree of another NAR cannot be passed off for this one.
                let bound = tree.filter(|tree| tree.is_bound_by(&peer, &request.nar_hash, &signature));
                bound.map(TreeAnswer::Bound).ok_or_else(|| malformed("a tree that is not its own".to_owned()))
            }
            // A reply that was cut short may be the connection's fault.
            Err(error) if error.is_truncated() => Err(AskError::Failed(error.to_string())),
            Err(error) => Err(malformed(error.to_string())),
        }
    }

    /// Asks a connected peer for a part of the log of a derivation, again while it is busy; the caller sets the deadline.
    /// `None`: it gives no such log. One that does not know the question fails at once, and is not blamed.
    pub async fn ask_log(&self, peer: PeerId, request: LogRequest) -> Result<Option<LogPart>, AskError> {
        let slots = ask_slots(&self.log_asks, LOG_ASKS_MAX, peer);
        let _slot = slots.acquire().await.map_err(|_| AskError::Stopping)?;
        loop {
            let bytes = self.call(|reply| Command::AskLog { peer, request, reply }).await??;
            let why = match LogReply::decode(&bytes) {
                Ok(LogReply::Absent) => return Ok(None),
                Ok(LogReply::Busy) => {
                    tokio::time::sleep(BUSY_PAUSE).await;
                    continue;
                }
                Ok(LogReply::Part(part)) if part.is_from(request.offset) => return Ok(Some(part)),
                Ok(LogReply::Part(_)) => "a part of a log that was not asked for".to_owned(),
                // A reply that was cut short may be the connection's fault.
                Err(error) if error.is_truncated() => return Err(AskError::Failed(error.to_string())),
                Err(error) => error.to_string(),
            };
            self.report_misdeed(peer, Misdeed::MalformedReply);
            return Err(AskError::Failed(why));
        }
    }

    /// Asks a connected peer which path an output is, again while it is busy; the caller sets the deadline. The text is as it
    /// came. `None`: it gives no such realisation. One that does not know the question fails at once, and is not blamed.
    pub async fn ask_realisation(
        &self,
        peer: PeerId,
        request: RealisationRequest,
    ) -> Result<Option<Vec<u8>>, AskError> {
        let slots = ask_slots(&self.realisation_asks, REALISATION_ASKS_MAX, peer);
        let _slot = slots.acquire().await.map_err(|_| AskError::Stopping)?;
        loop {
            let request = request.clone();
            let bytes = self.call(|reply| Command::AskRealisation { peer, request, reply }).await??;
            match RealisationReply::decode(&bytes) {
                Ok(RealisationReply::Absent) => return Ok(None),
                Ok(RealisationReply::Found(text)) => return Ok(Some(text)),
                Ok(RealisationReply::Busy) => tokio::time::sleep(BUSY_PAUSE).await,
                Err(error) => {
                    // A reply that was cut short may be the connection's fault.
                    if !error.is_truncated() {
                        self.report_misdeed(peer, Misdeed::MalformedReply);
                    }
                    return Err(AskError::Failed(error.to_string()));
                }
            }
        }
    }

    /// Asks up to three connected peers what builders attest of a path. Returns when `enough` says so after an answer,
    /// when all have answered, or at the deadline. Their attestations are in the ledger by then, verified.
    pub async fn ask_builders(&self, hash_part: HashPart, deadline: Instant, enough: impl Fn() -> bool) {
        // Room for one: an answer that was not looked at yet is as good as two.
        let (sender, mut answers) = mpsc::channel(1);
        let lasting = deadline.saturating_duration_since(Instant::now());
        self.exchange.tell(ExchangeMessage::Wanted(hash_part, lasting, sender));
        let satisfied = async { while answers.recv().await.is_some() && !enough() {} };
        drop(tokio::time::timeout_at(deadline.into(), satisfied).await);
    }

    async fn ask_connected(&self, peer: PeerId, hash_part: HashPart) -> Result<Vec<u8>, AskError> {
        let mut lost = 0;
        loop {
            match self.call(|reply| Command::AskNarInfo { peer, hash_part, reply }).await? {
                // After we have restarted, a peer refuses the first dial: it still has the old connection.
                Err(AskError::NotConnected(_)) if lost < LOST_MAX => {
                    lost += 1;
                    self.call(|reply| Command::Connect { peer, reply }).await??;
                }
                reply => return reply,
            }
        }
    }

    /// Makes sure that there is a connection; waits for one that is expected soon, and the caller sets the deadline.
    pub async fn connect(&self, peer: PeerId) -> Result<(), AskError> {
        if self.statistics.is_connected(&peer) {
            return Ok(());
        }
        self.call(|reply| Command::Connect { peer, reply }).await?
    }

    /// The addresses that are listened on, as they change.
    pub fn listened(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.listened.clone()
    }

    /// Tells where a peer was found on the local network; a peer that is not on the allowlist is ignored. Does not wait: it
    /// is dropped when the mesh is too busy, and comes again.
    pub fn report_found(&self, peer: PeerId, addresses: Vec<SocketAddr>) {
        drop(self.commands.try_send(Command::Find(peer, addresses)));
    }

    /// Tells the core what the store offers now.
    pub async fn report_paths(&self, change: PathChange) {
        self.send(Command::Paths(change)).await;
    }

    /// Tells the core whether a candidate held what its filter promised. Does not wait: it is dropped when the mesh is
    /// too busy.
    pub fn report_probe(&self, peer: PeerId, outcome: ProbeOutcome) {
        drop(self.commands.try_send(Command::Probe(peer, outcome)));
    }

    /// Reports to the core, which counts, that this peer was caught lying; does not wait.
    pub fn report_misdeed(&self, peer: PeerId, misdeed: Misdeed) {
        Blame(self.commands.clone()).report_misdeed(peer, misdeed);
    }

    /// Applies a new allowlist and limits; returns when they are in force, or the mesh is stopping.
    pub async fn reconfigure(&self, config: MeshConfig) {
        drop(self.call(|done| Command::Reconfigure(Box::new(config), done)).await);
    }

    /// Asks the driver for what `status` shows of the mesh.
    pub async fn ask_view(&self) -> Result<MeshView, AskError> {
        self.call(Command::View).await
    }

    /// Publishes the signed goodbye and waits until it was handed to the network.
    pub async fn say_goodbye(&self) -> Result<(), AskError> {
        self.call(Command::Goodbye).await
    }

    async fn send(&self, command: Command) {
        // An error means that the driver is gone: the daemon is stopping.
        drop(self.commands.send(command).await);
    }

    async fn call<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, AskError> {
        let (sender, receiver) = oneshot::channel();
        self.commands.send(command(sender)).await.map_err(|_| AskError::Stopping)?;
        receiver.await.map_err(|_| AskError::Stopping)
    }
}

fn ask_slots(asks: &AskSlots, at_once_max: usize, peer: PeerId) -> Arc<Semaphore> {
    let mut asks = asks.lock();
    // Peers that are not asked at present need no entry.
    asks.retain(|known, slots| *known == peer || slots.available_permits() < at_once_max);
    Arc::clone(asks.entry(peer).or_insert_with(|| Arc::new(Semaphore::new(at_once_max))))
}
