//! The inside of one of our peers: its connections, and the answers to requests that come over them.

use crate::bulk::Bulk;
use crate::log_wire::{LOG, LOG_ABSENT, LogRequest, REALISATION, REALISATION_ABSENT};
use crate::peer::{Move, PeerState, Play, Script, honest_nar};
use crate::quorum_wire::{QuorumRequest, attestations, only_builders};
use crate::tree_wire::{TREE, TREE_ABSENT, TreeRequest};
use crate::wire::{
    ABSENT, CIRCUIT, CIRCUIT_REFUSED, DIAL, DIALLING, GOSSIP, GossipReply, GossipRequest, NARINFO, NarRequest, QUORUM,
    ROSTER, ROSTER_ABSENT, TOPIC, audience_digest, found, nar_absent,
};
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, gossipsub, request_response, tcp, tls, yamux};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// What a peer can be told to do.
pub enum Command {
    Dial(PeerId, Multiaddr),
    Leave(PeerId),
    Publish(Vec<u8>, oneshot::Sender<bool>),
}

#[derive(NetworkBehaviour)]
pub struct Protocols {
    pub gossipsub: gossipsub::Behaviour,
    /// For our own requests. Requests of others come by the behaviours below, because libp2p-stream drops incoming
    /// streams when many come at once.
    pub streams: libp2p_stream::Behaviour,
    gossip: request_response::Behaviour<Actor>,
    narinfo: request_response::Behaviour<Actor>,
    tree: request_response::Behaviour<Actor>,
    log: Toggle<request_response::Behaviour<Actor>>,
    realisation: Toggle<request_response::Behaviour<Actor>>,
    dial: request_response::Behaviour<Actor>,
    quorum: request_response::Behaviour<Actor>,
    roster: request_response::Behaviour<Actor>,
    circuit: request_response::Behaviour<Actor>,
}

/// Reads a whole request, and answers with a [`Play`].
#[derive(Debug, Clone, Copy)]
pub struct Actor;

impl request_response::Codec for Actor {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Play;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut request = Vec::new();
        io.read_to_end(&mut request).await?;
        Ok(request)
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, play: Play) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        perform(play, io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, _: &mut T) -> io::Result<Play>
    where
        T: AsyncRead + Unpin + Send,
    {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, _: &mut T, _: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn answers(protocol: &'static str) -> request_response::Behaviour<Actor> {
    let config = request_response::Config::default()
        .with_request_timeout(Duration::from_secs(3_600))
        .with_max_concurrent_streams(10_000);
    request_response::Behaviour::with_codec(
        Actor,
        [(StreamProtocol::new(protocol), request_response::ProtocolSupport::Inbound)],
        config,
    )
}

/// A peer that knows requests for logs and for realisations, or does not.
pub fn build(keys: &Keypair, knows_logs: bool, knows_realisations: bool) -> Swarm<Protocols> {
    let config =
        gossipsub::ConfigBuilder::default().heartbeat_initial_delay(Duration::from_millis(500)).build().unwrap();
    let signed = gossipsub::MessageAuthenticity::Signed(keys.clone());
    let mut gossipsub: gossipsub::Behaviour = gossipsub::Behaviour::new(signed, config).unwrap();
    gossipsub.subscribe(&gossipsub::IdentTopic::new(TOPIC)).unwrap();
    SwarmBuilder::with_existing_identity(keys.clone())
        .with_tokio()
        .with_tcp(tcp::Config::new().nodelay(true), tls::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_| Protocols {
            gossipsub,
            streams: libp2p_stream::Behaviour::new(),
            gossip: answers(GOSSIP),
            narinfo: answers(NARINFO),
            tree: answers(TREE),
            log: knows_logs.then(|| answers(LOG)).into(),
            realisation: knows_realisations.then(|| answers(REALISATION)).into(),
            dial: answers(DIAL),
            quorum: answers(QUORUM),
            roster: answers(ROSTER),
            circuit: answers(CIRCUIT),
        })
        .unwrap()
        .with_swarm_config(|config| {
            config
                .with_idle_connection_timeout(Duration::from_secs(3_600))
                .with_substream_upgrade_protocol_override(Version::V1Lazy)
        })
        .build()
}

/// Runs the peer until its command channel is closed.
pub async fn run(
    mut swarm: Swarm<Protocols>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    stage: Arc<Stage>,
    bulk: Bulk,
) {
    let locked = || stage.locked();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                None => return,
                Some(Command::Dial(peer, address)) => {
                    bulk.learn_address(peer, address.clone());
                    let options = libp2p::swarm::dial_opts::DialOpts::peer_id(peer).addresses(vec![address]).build();
                    if let Err(error) = swarm.dial(options) {
                        locked().ended.push(format!("dial: {error:?}"));
                    }
                }
                Some(Command::Leave(peer)) => {
                    swarm.disconnect_peer_id(peer).ok();
                }
                Some(Command::Publish(data, done)) => {
                    let published = swarm.behaviour_mut().gossipsub.publish(gossipsub::IdentTopic::new(TOPIC), data);
                    done.send(published.is_ok()).ok();
                }
            },
            event = swarm.select_next_some() => match event {
                SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                    locked().connected.insert(peer_id);
                }
                SwarmEvent::ConnectionClosed { peer_id, num_established: 0, cause, .. } => {
                    let mut state = locked();
                    state.connected.remove(&peer_id);
                    state.ended.push(format!("closed: {cause:?}"));
                }
                SwarmEvent::OutgoingConnectionError { error, .. } => locked().ended.push(format!("dial: {error:?}")),
                SwarmEvent::Behaviour(ProtocolsEvent::Gossipsub(gossipsub::Event::Message { message, .. })) => {
                    if let Some(author) = message.source {
                        locked().asked.announced.push((author, message.data));
                    }
                }
                SwarmEvent::Behaviour(ProtocolsEvent::Gossip(event)) => {
                    if let Some((request, channel)) = asked(event) {
                        swarm.behaviour_mut().gossip.send_response(channel, stage.gossip(&request)).ok();
                    }
                }
                SwarmEvent::Behaviour(ProtocolsEvent::Narinfo(event)) => {
                    if let Some((request, channel)) = asked(event) {
                        swarm.behaviour_mut().narinfo.send_response(channel, stage.narinfo(&request)).ok();
                    }
                }
                SwarmEvent::Behaviour(ProtocolsEvent::Tree(event)) => {
                    if let Some((request, channel)) = asked(event) {
                        swarm.behaviour_mut().tree.send_response(channel, stage.tree(&request)).ok();
                    }
                }
                SwarmEvent::Behaviour(ProtocolsEvent::Log(event)) => {
                    if let (Some((request, channel)), Some(log)) = (asked(event), swarm.behaviour_mut().log.as_mut()) {
                        log.send_response(channel, stage.log(&request)).ok();
                    }
                }
                SwarmEvent::Behaviour(ProtocolsEvent::Realisation(event)) => {
                    let behaviour = swarm.behaviour_mut().realisation.as_mut();
                    if let (Some((request, channel)), Some(realisation)) = (asked(event), behaviour) {
                        realisation.send_response(channel, stage.realisation(request)).ok();
                    }
                }
                SwarmEvent::Behaviour(ProtocolsEvent::Dial(event)) => {
                    let from = match &event {
                        request_response::Event::Message { peer, .. } => Some(*peer),
                        _ => None,
                    };
                    if let (Some(peer), Some((_, channel))) = (from, asked(event)) {
                        swarm.behaviour_mut().dial.send_response(channel, vec![Move::Send(DIALLING.to_vec())]).ok();
                        let bulk = bulk.clone();
                        tokio::spawn(async move { bulk.dial(peer).await.ok() });
                    }
                }
                SwarmEvent::Behaviour(ProtocolsEvent::Quorum(event)) => {
                    if let Some((request, channel)) = asked(event) {
                        swarm.behaviour_mut().quorum.send_response(channel, stage.quorum(&request)).ok();
                    }
                }
                SwarmEvent::Behaviour(ProtocolsEvent::Roster(event)) => {
                    if let Some((request, channel)) = asked(event) {
                        swarm.behaviour_mut().roster.send_response(channel, stage.roster(request)).ok();
                    }
                }
                SwarmEvent::Behaviour(ProtocolsEvent::Circuit(event)) => {
                    if let Some((request, channel)) = asked(event) {
                        swarm.behaviour_mut().circuit.send_response(channel, stage.circuit(request)).ok();
                    }
                }
                _ => {}
            },
        }
    }
}

fn asked(event: request_response::Event<Vec<u8>, Play>) -> Option<(Vec<u8>, request_response::ResponseChannel<Play>)> {
    match event {
        request_response::Event::Message {
            message: request_response::Message::Request { request, channel, .. },
            ..
        } => Some((request, channel)),
        _ => None,
    }
}

/// Answers requests, honestly or as the script says.
pub struct Stage {
    pub state: Arc<Mutex<PeerState>>,
    pub script: Script,
    pub me: PeerId,
}

impl Stage {
    pub fn nar(&self, request: &[u8]) -> Play {
        let request = NarRequest::decode(request).expect("a NAR request as docs/protocol.md has it");
        let mut state = self.locked();
        state.asked.nars.push((Instant::now(), request.hash_part));
        match (&self.script.nar, state.shelf.get(&request.hash_part)) {
            (Some(answer), _) => answer(&state, request),
            (None, Some(item)) => honest_nar(&item.nar, request),
            (None, None) => vec![Move::Send(nar_absent())],
        }
    }

    fn gossip(&self, request: &[u8]) -> Play {
        let mut state = self.locked();
        match GossipRequest::decode(request) {
            Some(GossipRequest::Sync { .. }) => {
                state.asked.syncs.push(Instant::now());
                match &self.script.sync {
                    Some(answer) => answer(&state, ()),
                    None => vec![Move::Send(state.sync_reply().encode())],
                }
            }
            Some(GossipRequest::Pull { owner, epoch, seq, .. }) => {
                state.asked.pulls.push(Instant::now());
                state.pulled.insert(epoch);
                let mine = owner == audience_digest(&self.me);
                match (&self.script.pull, &state.published) {
                    (Some(answer), _) => answer(&state, (epoch, seq)),
                    (None, Some(own)) if mine && (own.announcement.epoch, own.announcement.seq) == (epoch, seq) => {
                        vec![Move::Send(GossipReply::Body(own.body.clone()).encode())]
                    }
                    (None, _) => vec![Move::Send(GossipReply::Absent.encode())],
                }
            }
            None => panic!("a gossip request that docs/protocol.md does not know: {request:?}"),
        }
    }

    fn roster(&self, request: Vec<u8>) -> Play {
        match &self.script.roster {
            Some(answer) => answer(&self.locked(), request),
            None => vec![Move::Send(ROSTER_ABSENT.to_vec())],
        }
    }

    fn circuit(&self, request: Vec<u8>) -> Play {
        match &self.script.circuit {
            Some(answer) => answer(&self.locked(), request),
            None => vec![Move::Send(CIRCUIT_REFUSED.to_vec())],
        }
    }

    fn narinfo(&self, request: &[u8]) -> Play {
        let part: [u8; 20] = request.try_into().expect("a narinfo request has 20 bytes");
        let mut state = self.locked();
        state.asked.narinfos.push((Instant::now(), part));
        match (&self.script.narinfo, state.shelf.get(&part)) {
            (Some(answer), _) => answer(&state, part),
            (None, Some(item)) => vec![Move::Send(found(item.narinfo.text().as_bytes()))],
            (None, None) => vec![Move::Send(ABSENT.to_vec())],
        }
    }

    fn tree(&self, request: &[u8]) -> Play {
        let request = TreeRequest::decode(request).expect("a tree request as docs/protocol.md has it");
        let mut state = self.locked();
        state.asked.trees.push((Instant::now(), request.hash_part));
        match &self.script.tree {
            Some(answer) => answer(&state, request),
            // It follows a version of the document that knew no trees.
            None => vec![Move::Send(TREE_ABSENT.to_vec())],
        }
    }

    fn log(&self, request: &[u8]) -> Play {
        let request = LogRequest::decode(request).expect("a request for a log as docs/protocol.md has it");
        let mut state = self.locked();
        state.asked.logs.push((Instant::now(), request));
        self.script.log.as_ref().map_or(vec![Move::Send(LOG_ABSENT.to_vec())], |answer| answer(&state, request))
    }

    fn realisation(&self, request: Vec<u8>) -> Play {
        let mut state = self.locked();
        state.asked.realisations.push(Instant::now());
        let absent = || vec![Move::Send(REALISATION_ABSENT.to_vec())];
        self.script.realisation.as_ref().map_or_else(absent, |answer| answer(&state, request))
    }

    fn quorum(&self, request: &[u8]) -> Play {
        let request = QuorumRequest::decode(request).expect("a quorum request as docs/protocol.md has it");
        let mut state = self.locked();
        state.asked.attestations.push(Instant::now());
        match (&self.script.quorum, request) {
            (Some(answer), request) => answer(&state, request),
            // An honest peer here knows no builder.
            (None, QuorumRequest::Compare { .. }) => vec![Move::Send(only_builders(&[]))],
            (None, QuorumRequest::Pull { wanted, .. }) => vec![Move::Send(attestations(wanted.len(), &[]))],
            (None, QuorumRequest::Ask { paths, .. }) => vec![Move::Send(attestations(paths.len(), &[]))],
        }
    }

    fn locked(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub async fn perform<T: AsyncWrite + Unpin>(play: Play, stream: &mut T) -> io::Result<()> {
    for step in play {
        match step {
            Move::Send(bytes) => {
                stream.write_all(&bytes).await?;
                stream.flush().await?;
            }
            Move::Wait(pause) => tokio::time::sleep(pause).await,
            Move::Endless(bytes, pause) => loop {
                stream.write_all(&bytes).await?;
                stream.flush().await?;
                tokio::time::sleep(pause).await;
            },
            Move::Hold => std::future::pending().await,
            Move::Close => return Err(io::ErrorKind::Other.into()),
        }
    }
    Ok(())
}
