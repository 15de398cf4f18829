//! A peer of our own on raw libp2p: it does what its script says, and records what it was asked.

use crate::bulk::Bulk;
use crate::filter::filter;
use crate::formats::NarInfo;
use crate::log_wire::LogRequest;
use crate::quorum_wire::QuorumRequest;
use crate::swarm::{self, Command};
use crate::tree_wire::TreeRequest;
use crate::wire::{
    ABSENT, Address, Announcement, GOSSIP, GossipReply, GossipRequest, NAR, NAR_END, NarRequest, Summary,
    audience_digest, found, nar_absent, nar_chunks, nar_head, sha256,
};
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::identity::Keypair;
use libp2p::{PeerId, StreamProtocol};
use narmesh_tests::{PeerCard, TestNode};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};

/// A connection is promised within this.
const MEETING: Duration = Duration::from_secs(5);

/// A runtime for the peers of one test: a peer that floods must not slow down the peers of other tests.
pub fn runtime() -> Arc<Runtime> {
    let mut builder = Builder::new_multi_thread();
    Arc::new(builder.worker_threads(1).enable_all().build().expect("a runtime"))
}

/// Lets this thread run only when nothing else wants to: those who flood have processors of their own elsewhere, and here
/// they must not take what is measured of the daemon.
pub fn stand_back() {
    rustix::process::nice(19).expect("a lower priority is always allowed");
}

pub fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// A step on a stream after a request was read.
#[derive(Debug, Clone)]
pub enum Move {
    Send(Vec<u8>),
    Wait(Duration),
    /// Sends these bytes again and again until the other side ends it, with this pause in between.
    Endless(Vec<u8>, Duration),
    /// Sends nothing more and leaves the stream open.
    Hold,
    /// Closes the stream.
    Close,
}

pub type Play = Vec<Move>;

/// A path that the peer claims to hold.
#[derive(Debug, Clone)]
pub struct Item {
    pub narinfo: NarInfo,
    pub nar: Vec<u8>,
}

/// An announcement that the peer made, with its body.
#[derive(Debug, Clone)]
pub struct Published {
    pub announcement: Announcement,
    pub envelope: Vec<u8>,
    pub body: Vec<u8>,
}

/// The state of a peer: what it tells others, and what it was asked.
#[derive(Debug, Default)]
pub struct PeerState {
    pub shelf: BTreeMap<[u8; 20], Item>,
    pub published: Option<Published>,
    pub software: String,
    /// What `sync_reply` tells in `yours`, and in `news` beside its own envelope.
    pub yours: Option<Vec<u8>>,
    pub news: Vec<Vec<u8>>,
    pub asked: Asked,
    pub connected: HashSet<PeerId>,
    /// Epochs whose body was asked for.
    pub pulled: HashSet<u64>,
    /// Reasons why connections ended and dials failed.
    pub ended: Vec<String>,
}

/// The requests that a peer received, with the time of each.
#[derive(Debug, Default, Clone)]
pub struct Asked {
    pub syncs: Vec<Instant>,
    pub pulls: Vec<Instant>,
    pub narinfos: Vec<(Instant, [u8; 20])>,
    pub nars: Vec<(Instant, [u8; 20])>,
    pub attestations: Vec<Instant>,
    pub trees: Vec<(Instant, [u8; 20])>,
    pub logs: Vec<(Instant, LogRequest)>,
    pub realisations: Vec<Instant>,
    /// Authors and data of the gossipsub messages that came.
    pub announced: Vec<(PeerId, Vec<u8>)>,
}

impl Asked {
    /// The number of requests, without those for attestations, trees, logs and realisations.
    pub fn count(&self) -> usize {
        self.syncs.len() + self.pulls.len() + self.narinfos.len() + self.nars.len()
    }
}

type Answer<Q> = Option<Box<dyn Fn(&PeerState, Q) -> Play + Send + Sync>>;

/// What the peer does instead of the honest answer, for each protocol; `None`: it answers honestly.
#[derive(Default)]
pub struct Script {
    pub sync: Answer<()>,
    pub pull: Answer<(u64, u64)>,
    pub narinfo: Answer<[u8; 20]>,
    pub nar: Answer<NarRequest>,
    pub quorum: Answer<QuorumRequest>,
    pub tree: Answer<TreeRequest>,
    pub roster: Answer<Vec<u8>>,
    /// Of circuits; the request is as it came.
    pub circuit: Answer<Vec<u8>>,
    /// Without it the peer does not know the protocol, as one of an earlier version.
    pub log: Answer<LogRequest>,
    /// The same of realisations; the request is as it came.
    pub realisation: Answer<Vec<u8>>,
}

impl Script {
    pub fn nar(mut self, answer: impl Fn(&Item, NarRequest) -> Play + Send + Sync + 'static) -> Self {
        self.nar = Some(Box::new(move |state, request| match state.shelf.get(&request.hash_part) {
            Some(item) => answer(item, request),
            None => vec![Move::Send(nar_absent())],
        }));
        self
    }

    /// Answers narinfo requests with this text, in an otherwise honest reply.
    pub fn narinfo(mut self, text: impl Fn(&Item) -> Vec<u8> + Send + Sync + 'static) -> Self {
        self.narinfo = Some(Box::new(move |state, part| match state.shelf.get(&part) {
            Some(item) => vec![Move::Send(found(&text(item)))],
            None => vec![Move::Send(ABSENT.to_vec())],
        }));
        self
    }

    /// Answers requests for trees of items; the key is the one that the peer will have.
    pub fn tree(mut self, answer: impl Fn(&Item, TreeRequest) -> Play + Send + Sync + 'static) -> Self {
        self.tree = Some(Box::new(move |state, request| match state.shelf.get(&request.hash_part) {
            Some(item) => answer(item, request),
            None => vec![Move::Send(ABSENT.to_vec())],
        }));
        self
    }

    /// Knows requests for logs, and answers them so.
    pub fn log(mut self, answer: impl Fn(LogRequest) -> Play + Send + Sync + 'static) -> Self {
        self.log = Some(Box::new(move |_, request| answer(request)));
        self
    }

    /// Knows requests for realisations, and answers them so.
    pub fn realisation(mut self, answer: impl Fn(Vec<u8>) -> Play + Send + Sync + 'static) -> Self {
        self.realisation = Some(Box::new(move |_, request| answer(request)));
        self
    }

    pub fn quorum(mut self, answer: impl Fn(QuorumRequest) -> Play + Send + Sync + 'static) -> Self {
        self.quorum = Some(Box::new(move |_, request| answer(request)));
        self
    }

    pub fn narinfo_play(mut self, play: impl Fn(&Item) -> Play + Send + Sync + 'static) -> Self {
        self.narinfo = Some(Box::new(move |state, part| match state.shelf.get(&part) {
            Some(item) => play(item),
            None => vec![Move::Send(ABSENT.to_vec())],
        }));
        self
    }

    pub fn pull(mut self, answer: impl Fn(&Published, u64) -> Play + Send + Sync + 'static) -> Self {
        self.pull = Some(Box::new(move |state, (_, seq)| {
            state.published.as_ref().map_or(vec![Move::Close], |published| answer(published, seq))
        }));
        self
    }
}

/// An honest answer to a request for a NAR.
pub fn honest_nar(nar: &[u8], request: NarRequest) -> Play {
    let [from, end] = [request.offset, request.end].map(|at| usize::try_from(at).unwrap());
    // A script may send more or less than the NAR that was promised.
    let end = if request.end == request.nar_size { nar.len() } else { end.min(nar.len()) };
    let rest = nar.get(from..end).unwrap_or_default();
    vec![Move::Send([nar_head(false), nar_chunks(rest), NAR_END.to_vec()].concat())]
}

/// Opens streams, on the control connection of the swarm or on a bulk connection.
#[derive(Clone)]
pub struct Control {
    streams: libp2p_stream::Control,
    bulk: Bulk,
}

impl Control {
    /// Dials a new bulk connection, on which later streams are opened.
    pub async fn dial_bulk(&self, peer: PeerId) -> io::Result<()> {
        self.bulk.dial(peer).await.map(drop)
    }
}

/// A stream on either kind of connection.
pub type Stream = Box<dyn Duplex>;

pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// One of our peers; it ends when this is dropped.
pub struct Peer {
    pub name: String,
    pub id: PeerId,
    pub keys: Keypair,
    pub control: Control,
    pub runtime: Arc<Runtime>,
    commands: mpsc::UnboundedSender<Command>,
    state: Arc<Mutex<PeerState>>,
}

impl Peer {
    pub fn honest(name: &str) -> Self {
        Self::new(name, Keypair::generate_ed25519(), Script::default())
    }

    pub fn liar(name: &str, script: Script) -> Self {
        Self::new(name, Keypair::generate_ed25519(), script)
    }

    /// Several honest peers that share two threads, which [stand back](stand_back).
    pub fn crowd(names: impl IntoIterator<Item = String>) -> Vec<Self> {
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).on_thread_start(stand_back).enable_all().build().expect("a runtime");
        let runtime = Arc::new(runtime);
        let honest = |name: String| Self::on(&runtime, &name, Keypair::generate_ed25519(), Script::default());
        names.into_iter().map(honest).collect()
    }

    pub fn new(name: &str, keys: Keypair, script: Script) -> Self {
        Self::on(&runtime(), name, keys, script)
    }

    fn on(runtime: &Arc<Runtime>, name: &str, keys: Keypair, script: Script) -> Self {
        let entered = runtime.enter();
        let swarm = swarm::build(&keys, script.log.is_some(), script.realisation.is_some());
        let streams = swarm.behaviour().streams.new_control();
        let state = Arc::new(Mutex::new(PeerState { software: "second/1".to_owned(), ..PeerState::default() }));
        let me = keys.public().to_peer_id();
        let stage = Arc::new(swarm::Stage { state: Arc::clone(&state), script, me });
        let bulk = Bulk::new(keys.clone(), Arc::clone(&stage));
        let control = Control { streams, bulk: bulk.clone() };
        let (commands, receiver) = mpsc::unbounded_channel();
        let id = keys.public().to_peer_id();
        tokio::spawn(swarm::run(swarm, receiver, stage, bulk));
        drop(entered);
        Self { name: name.to_owned(), id, keys, control, runtime: Arc::clone(runtime), commands, state }
    }

    /// What a daemon has to know to allow this peer.
    pub fn card(&self) -> PeerCard {
        PeerCard { name: self.name.clone(), peer_id: self.id.to_string(), builder_key: None }
    }

    /// Reads or changes the peer's state.
    pub fn state<T>(&self, look: impl FnOnce(&mut PeerState) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn asked(&self) -> Asked {
        self.state(|state| state.asked.clone())
    }

    /// Holds the items from now on, and announces a summary of them to `audience`.
    pub fn offer(&self, items: &[Item], audience: &[PeerId]) {
        let parts: Vec<_> =
            items.iter().map(|item| crate::formats::hash_part_bytes(&item.narinfo.store_path)).collect();
        self.state(|state| state.shelf.extend(parts.iter().copied().zip(items.iter().cloned())));
        self.announce(&self.summary(&filter(&parts, 13), parts.len() as u64, audience));
    }

    /// A valid summary with these contents.
    pub fn summary(&self, filter_bytes: &[u8], items: u64, audience: &[PeerId]) -> Summary {
        let mut digests: Vec<_> = audience.iter().chain([&self.id]).map(audience_digest).collect();
        digests.sort_unstable();
        digests.dedup();
        let addresses = vec![Address::V4([192, 0, 2, 1], 7_280)];
        Summary { hash_id: 1, items, audience: digests, addresses, filter_bytes: filter_bytes.to_vec() }
    }

    /// Announces the summary with a new epoch.
    pub fn announce(&self, summary: &Summary) {
        let epoch = self.state(|state| state.published.as_ref().map_or(0, |old| old.announcement.epoch + 1));
        self.announce_body(summary.encode(), summary.items, epoch.max(now_ms()), 0);
    }

    pub fn announce_body(&self, body: Vec<u8>, path_count: u64, epoch: u64, seq: u64) {
        let announcement = Announcement {
            epoch,
            seq,
            path_count,
            body_digest: sha256(&body),
            body_bytes: u32::try_from(body.len()).unwrap(),
            lifetime_s: 14_400,
            issued_at_ms: now_ms(),
        };
        self.announce_as(announcement, body);
    }

    pub fn announce_as(&self, announcement: Announcement, body: Vec<u8>) {
        let envelope = announcement.seal(&self.keys);
        self.state(|state| state.published = Some(Published { announcement, envelope: envelope.clone(), body }));
        self.publish(envelope);
    }

    /// Sends a gossipsub message; false when there is nobody to send it to, or no room for it.
    pub fn publish(&self, data: Vec<u8>) -> bool {
        let (sender, receiver) = oneshot::channel();
        self.commands.send(Command::Publish(data, sender)).ok();
        receiver.blocking_recv().unwrap_or(false)
    }

    /// Connects to a daemon, and waits until the daemon shows the connection.
    #[track_caller]
    pub fn connect(&self, node: &TestNode) {
        self.dial(node);
        node.wait_connected(&self.name, true, MEETING);
    }

    pub fn dial(&self, node: &TestNode) {
        let (peer, address) = (peer_id(node), node.p2p_address().parse().unwrap());
        self.commands.send(Command::Dial(peer, address)).ok();
    }

    /// Closes the connection.
    pub fn leave(&self, node: &TestNode) {
        self.commands.send(Command::Leave(peer_id(node))).ok();
    }

    pub fn is_connected(&self, node: &TestNode) -> bool {
        self.state(|state| state.connected.contains(&peer_id(node)))
    }

    /// Sends one request on a stream of its own, and reads the reply to its end.
    pub fn ask(&self, node: &TestNode, protocol: &'static str, request: &[u8]) -> io::Result<Vec<u8>> {
        let (control, peer, request) = (self.control.clone(), peer_id(node), request.to_vec());
        self.runtime.block_on(timed(ask(control, peer, protocol, request)))
    }

    pub fn ask_gossip(&self, node: &TestNode, request: &GossipRequest) -> io::Result<GossipReply> {
        let reply = self.ask(node, GOSSIP, &request.encode())?;
        GossipReply::decode(&reply).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Sends an honest Sync request.
    pub fn sync(&self, node: &TestNode) -> io::Result<GossipReply> {
        self.ask_gossip(node, &sync_request(None))
    }

    pub fn open(&self, node: &TestNode, protocol: &'static str) -> io::Result<Stream> {
        self.runtime.block_on(timed(open(self.control.clone(), peer_id(node), protocol)))
    }
}

pub fn sync_request(yours: Option<Vec<u8>>) -> GossipRequest {
    GossipRequest::Sync { store_dir: "/nix/store".to_owned(), software: "second/1".to_owned(), yours, have: Vec::new() }
}

pub fn peer_id(node: &TestNode) -> PeerId {
    node.card().peer_id.parse().unwrap()
}

pub async fn open(mut control: Control, peer: PeerId, protocol: &'static str) -> io::Result<Stream> {
    if protocol == NAR {
        return Ok(Box::new(control.bulk.open(peer).await?));
    }
    let stream = control.streams.open_stream(peer, StreamProtocol::new(protocol)).await.map_err(io::Error::other)?;
    Ok(Box::new(stream))
}

pub async fn ask(control: Control, peer: PeerId, protocol: &'static str, request: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut stream = open(control, peer, protocol).await?;
    stream.write_all(&request).await?;
    stream.close().await?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await?;
    Ok(reply)
}

/// Ends `work` with an error after 20 s, so that no request of ours waits for ever.
pub async fn timed<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(Duration::from_secs(20), work).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

impl PeerState {
    /// An honest peer's reply to a Sync request.
    pub fn sync_reply(&self) -> GossipReply {
        let own = self.published.as_ref().map(|published| published.envelope.clone());
        GossipReply::Sync {
            store_dir: "/nix/store".to_owned(),
            software: self.software.clone(),
            yours: self.yours.clone(),
            news: own.into_iter().chain(self.news.iter().cloned()).collect(),
        }
    }
}
