//! A crowd of peers for one daemon. Each has a node key, a signed announcement and a summary of 100,000 paths of its own.
//! One libp2p peer hands all of them over; it relays for all, as any peer may.
//!
//! The daemon is real. It hears of the announcements in its first `Sync` with the relay, checks each signature, pulls each
//! body, checks the body's digest, bounds and audience, and writes it into its table, as in a mesh of that size.

use crate::process::Running;
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::identity::Keypair;
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder};
use narmesh_mesh::transport::{self, Multiplexing, Tls};
use narmesh_protocol::wire::{GOSSIP_PROTOCOL, GossipReply, GossipRequest};
use narmesh_protocol::{
    Announcement, AudienceDigest, BitPositions, Envelope, FilterClass, Generation, HASH_ID_V1, HashPart, Summary,
};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Paths in each summary.
const PATHS_PER_PEER: u64 = 100_000;
/// Wasted probes for each lookup that a whole mesh may cost; a daemon sizes its own filter by its share of them.
const WASTED_PROBES_MAX: f64 = 0.025;
/// Lifetime of the summaries, seconds.
const LIFETIME_S: u32 = 14_400;

/// The relay's process.
#[derive(Debug)]
pub(crate) struct Crowd {
    /// The process that holds all bodies; it is idle once they are handed over.
    _process: Running,
    /// Where the relay listens. It is peer 0.
    pub(crate) address: String,
}

impl Crowd {
    /// Starts a crowd of `peers` whose summaries are for the daemon `audience` only.
    pub(crate) fn start(peers: usize, audience: &str) -> anyhow::Result<Self> {
        let (process, address) = Running::spawn_server("crowd", &[peers.to_string(), audience.to_owned()])?;
        Ok(Self { _process: process, address })
    }
}

/// The peer id of the crowd's peer `number`, the same in every process.
pub(crate) fn peer_id(number: usize) -> PeerId {
    keypair(number).public().to_peer_id()
}

fn keypair(number: usize) -> Keypair {
    let mut seed = [0; 32];
    rng(number, 1).fill_bytes(&mut seed);
    Keypair::ed25519_from_bytes(seed).expect("any 32 bytes are an Ed25519 seed")
}

/// A random generator for a peer; `stream` separates the randomness for keys (1) from that for paths (2).
fn rng(number: usize, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(number as u64);
    rng.set_stream(stream);
    rng
}

/// One peer of the crowd, as the relay knows it.
struct Peer {
    envelope: Envelope,
    body: Vec<u8>,
}

impl Peer {
    fn make(number: usize, peers: usize, audience: &PeerId) -> anyhow::Result<Self> {
        let class = FilterClass::for_items(PATHS_PER_PEER, WASTED_PROBES_MAX / peers as f64);
        let class = class.ok_or_else(|| anyhow::anyhow!("no filter is large enough"))?;
        let mut filter_bytes = vec![0_u8; class.bytes()];
        let mut rng = rng(number, 2);
        for _ in 0..PATHS_PER_PEER {
            let mut hash_part = HashPart([0; 20]);
            rng.fill_bytes(&mut hash_part.0);
            for bit in BitPositions::of(&hash_part).in_class(class) {
                if let Some(byte) = filter_bytes.get_mut(bit as usize / 8) {
                    *byte |= 1 << (bit % 8);
                }
            }
        }
        let audience = vec![AudienceDigest::of(audience)];
        let summary =
            Summary { hash_id: HASH_ID_V1, items: PATHS_PER_PEER, audience, addresses: Vec::new(), filter_bytes };
        let body = summary.encode()?;
        let now_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        let announcement = Announcement {
            generation: Generation { epoch: now_ms, seq: 0 },
            path_count: PATHS_PER_PEER,
            body_digest: Summary::digest(&body),
            body_bytes: u32::try_from(body.len())?,
            lifetime_s: LIFETIME_S,
            issued_at_ms: now_ms,
        };
        Ok(Self { envelope: Envelope::seal(&keypair(number), announcement)?, body })
    }
}

/// Makes all peers, on all cores.
fn make_all(peers: usize, audience: PeerId) -> anyhow::Result<BTreeMap<AudienceDigest, Peer>> {
    let threads = std::thread::available_parallelism()?.get();
    let share = |thread: usize| -> anyhow::Result<Vec<Peer>> {
        (thread..peers).step_by(threads).map(|number| Peer::make(number, peers, &audience)).collect()
    };
    let made = std::thread::scope(|scope| {
        let share = &share;
        let workers: Vec<_> = (0..threads).map(|thread| scope.spawn(move || share(thread))).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker does not panic"))
            .collect::<anyhow::Result<Vec<_>>>()
    })?;
    Ok(made.into_iter().flatten().map(|peer| (AudienceDigest::of(&peer.envelope.peer()), peer)).collect())
}

/// The relay: answers `Sync` with every announcement and `Pull` with the body.
pub(crate) fn serve(peers: usize, audience: &str) -> anyhow::Result<()> {
    let crowd = make_all(peers, audience.parse()?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut swarm = swarm()?;
        swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse::<Multiaddr>()?)?;
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::NewListenAddr { address, .. } => crate::print_line(&address.to_string())?,
                SwarmEvent::Behaviour(request_response::Event::Message {
                    message: request_response::Message::Request { request, channel, .. },
                    ..
                }) => {
                    let reply = answer(&crowd, &GossipRequest::decode(&request)?).encode()?;
                    // The asker may have gone; it asks again on its next connection.
                    drop(swarm.behaviour_mut().send_response(channel, reply));
                }
                _ => {}
            }
        }
    })
}

fn answer(crowd: &BTreeMap<AudienceDigest, Peer>, request: &GossipRequest) -> GossipReply {
    match request {
        GossipRequest::Sync(sync) => {
            let held: BTreeMap<_, _> = sync.have.iter().map(|have| (have.owner, have.generation)).collect();
            let is_news = |owner: &AudienceDigest, peer: &Peer| {
                held.get(owner).is_none_or(|generation| *generation < peer.envelope.announcement().generation)
            };
            let news = crowd.iter().filter(|(owner, peer)| is_news(owner, peer)).take(GossipReply::NEWS_MAX);
            GossipReply::Sync {
                store_dir: sync.store_dir.clone(),
                software: "narmesh-bench".to_owned(),
                yours: None,
                news: news.map(|(_, peer)| peer.envelope.as_bytes().to_vec()).collect(),
            }
        }
        GossipRequest::Pull { owner, .. } => {
            crowd.get(owner).map_or(GossipReply::Absent, |peer| GossipReply::Body(peer.body.clone()))
        }
    }
}

fn swarm() -> anyhow::Result<Swarm<request_response::Behaviour<Bytes>>> {
    let protocol = [(StreamProtocol::new(GOSSIP_PROTOCOL), ProtocolSupport::Full)];
    let config = request_response::Config::default().with_max_concurrent_streams(1_024);
    Ok(SwarmBuilder::with_existing_identity(keypair(0))
        .with_tokio()
        .with_tcp(transport::tcp(), Tls::new, || Multiplexing::Control)?
        .with_behaviour(|_| request_response::Behaviour::with_codec(Bytes, protocol, config))?
        .with_swarm_config(|config| {
            config
                .with_idle_connection_timeout(Duration::from_secs(3_600))
                .with_substream_upgrade_protocol_override(libp2p::core::upgrade::Version::V1Lazy)
        })
        .build())
}

/// Whole messages as bytes. The end of the stream ends a message.
#[derive(Clone, Copy, Debug)]
struct Bytes;

impl request_response::Codec for Bytes {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: futures::AsyncRead + Unpin + Send,
    {
        read(io, GossipRequest::BYTES_MAX).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: futures::AsyncRead + Unpin + Send,
    {
        read(io, GossipReply::BYTES_MAX).await
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, bytes: Vec<u8>) -> io::Result<()>
    where
        T: futures::AsyncWrite + Unpin + Send,
    {
        io.write_all(&bytes).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, bytes: Vec<u8>) -> io::Result<()>
    where
        T: futures::AsyncWrite + Unpin + Send,
    {
        io.write_all(&bytes).await
    }
}

async fn read(io: &mut (impl futures::AsyncRead + Unpin), bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io.take(bytes_max as u64 + 1).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_signed_and_have_different_bodies() {
        let audience = peer_id(1_000_000);
        let crowd = make_all(3, audience).unwrap();
        assert_eq!(crowd.len(), 3);
        let mut bodies = Vec::new();
        for number in 0..3 {
            let owner = AudienceDigest::of(&peer_id(number));
            let peer = &crowd[&owner];
            let envelope = Envelope::open(peer.envelope.as_bytes()).unwrap();
            assert_eq!(envelope.peer(), peer_id(number));
            assert_eq!(envelope.announcement().body_digest, Summary::digest(&peer.body));
            let summary = Summary::decode(&peer.body).unwrap();
            assert!(summary.admits(&audience) && !summary.admits(&peer_id(number)));
            summary.filter().unwrap();
            let have_seq = None;
            let pull = GossipRequest::Pull { owner, generation: envelope.announcement().generation, have_seq };
            assert_eq!(answer(&crowd, &pull), GossipReply::Body(peer.body.clone()));
            bodies.push(&peer.body);
        }
        bodies.dedup();
        assert_eq!(bodies.len(), 3);
    }
}
