//! Real nodes: libp2p's gossipsub with the daemon's parameters over TCP, TLS and yamux on loopback, with delayed
//! connections.

use crate::Spread;
use futures::{AsyncRead, AsyncWrite, StreamExt as _};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::core::upgrade::Version;
use libp2p::gossipsub::{self, DataTransform, Message, MessageAcceptance, RawMessage, TopicHash};
use libp2p::identity::Keypair;
use libp2p::swarm::SwarmEvent;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::{Multiaddr, PeerId, Swarm, SwarmBuilder, Transport as _, tcp, tls, yamux};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const TOPIC: &str = "agreement";
/// The size of a real announcement.
const MESSAGE_BYTES: usize = 180;
/// The time in which meshes form: ten heartbeats.
const SETTLED: Duration = Duration::from_secs(10);
/// Time for fifty nodes to meet on two busy cores.
const MEETING_MAX: Duration = Duration::from_secs(120);
/// Time for all announcements to arrive: ten times what the slowest needs.
const ARRIVAL_MAX: Duration = Duration::from_secs(20);

/// What all nodes saw.
#[derive(Debug, Default)]
struct Seen {
    published: BTreeMap<u32, Instant>,
    /// Times of first arrivals after the publication, microseconds, by message.
    heard_us: BTreeMap<u32, Vec<u64>>,
    copies: u64,
    connections: usize,
    addresses: BTreeMap<usize, Multiaddr>,
}

type Shared = Arc<Mutex<Seen>>;
type Announcements = gossipsub::Behaviour<Counting, gossipsub::AllowAllSubscriptionFilter>;

/// Sees each copy of a message, before gossipsub knows whether it is the first.
#[derive(Clone, Debug)]
struct Counting(Shared);

impl DataTransform for Counting {
    fn inbound_transform(&self, raw: RawMessage) -> Result<Message, io::Error> {
        self.0.lock().unwrap().copies += 1;
        Ok(Message { source: raw.source, data: raw.data, sequence_number: raw.sequence_number, topic: raw.topic })
    }

    fn outbound_transform(&self, _: &TopicHash, data: Vec<u8>) -> Result<Vec<u8>, io::Error> {
        Ok(data)
    }
}

/// What a node is told to do.
enum Command {
    Dial(PeerId, usize),
    Publish(u32),
}

/// Measures how announcements spread among `nodes` real nodes with `connections` connections each.
pub(crate) fn measure(nodes: usize, connections: usize, messages: u32, delay_ms: u64, jitter_ms: u64) -> Spread {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let seen = Shared::default();
        let keys: Vec<_> = (0..nodes).map(|_| Keypair::generate_ed25519()).collect();
        let peers: Vec<_> = keys.iter().map(|key| key.public().to_peer_id()).collect();
        let delay = Delay { delay: Duration::from_millis(delay_ms), jitter_us: jitter_ms * 1_000 };
        let mut commands = Vec::new();
        for (number, key) in keys.iter().enumerate() {
            let (tell, told) = mpsc::unbounded_channel();
            let swarm = swarm(key, delay, &seen);
            tokio::spawn(live(swarm, number, told, Arc::clone(&seen)));
            commands.push(tell);
        }
        wait(MEETING_MAX, &seen, |seen| seen.addresses.len() == nodes).await;
        let links = links(nodes, connections);
        for (from, to) in &links {
            commands[*from].send(Command::Dial(peers[*to], *to)).unwrap();
        }
        wait(MEETING_MAX, &seen, |seen| seen.connections == 2 * links.len()).await;
        tokio::time::sleep(SETTLED).await;
        seen.lock().unwrap().copies = 0;
        for number in 0..messages {
            commands[number as usize * 7 % nodes].send(Command::Publish(number)).unwrap();
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        let all = nodes - 1;
        let whole = |seen: &Seen| seen.heard_us.values().filter(|heard| heard.len() == all).count();
        wait(ARRIVAL_MAX, &seen, |seen| whole(seen) == messages as usize).await;
        // Copies that are not the first may still be on their way.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let seen = seen.lock().unwrap();
        let mut heard: Vec<u64> = seen.heard_us.values().flatten().copied().collect();
        heard.sort_unstable();
        let quantile = |permille: usize| heard[(heard.len() * permille).div_ceil(1_000) - 1] as f64 / 1_000.0;
        let copies = seen.copies as f64 / f64::from(messages) / nodes as f64;
        Spread { p50_ms: quantile(500), p99_ms: quantile(990), copies }
    })
}

/// Random pairs, until each node has about `connections` of them.
fn links(nodes: usize, connections: usize) -> BTreeSet<(usize, usize)> {
    let mut rng = ChaCha8Rng::seed_from_u64(50);
    let mut degrees = vec![0; nodes];
    let mut links = BTreeSet::new();
    for _ in 0..100 * nodes * connections {
        let mut pick = || usize::try_from(rng.next_u64() % nodes as u64).unwrap();
        let (a, b) = (pick(), pick());
        let room = degrees[a] < connections && degrees[b] < connections;
        if a != b && room && links.insert((a.min(b), a.max(b))) {
            degrees[a] += 1;
            degrees[b] += 1;
        }
    }
    links
}

async fn wait(most: Duration, seen: &Shared, holds: impl Fn(&Seen) -> bool) {
    let until = Instant::now() + most;
    while !holds(&seen.lock().unwrap()) {
        assert!(Instant::now() < until, "not within {most:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn swarm(key: &Keypair, delay: Delay, seen: &Shared) -> Swarm<Announcements> {
    let mut swarm = SwarmBuilder::with_existing_identity(key.clone())
        .with_tokio()
        .with_other_transport(|key| transport(key, delay))
        .unwrap()
        .with_behaviour(|key| announcements(key, seen))
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(3_600)))
        .build();
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    swarm
}

fn transport(key: &Keypair, delay: Delay) -> Boxed<(PeerId, StreamMuxerBox)> {
    tcp::tokio::Transport::new(tcp::Config::new().nodelay(true))
        .map(move |socket, _| Delayed::new(socket, delay))
        .upgrade(Version::V1Lazy)
        .authenticate(tls::Config::new(key).unwrap())
        .multiplex(yamux::Config::default())
        .boxed()
}

/// Follows `announcements` of `crates/mesh/src/behaviour.rs`; `the_parameters_are_those_of_the_daemon` compares what is set.
fn announcements(key: &Keypair, seen: &Shared) -> Announcements {
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(gossipsub::ValidationMode::Strict)
        .validate_messages()
        .max_transmit_size(64 << 10)
        .max_transmit_size_for_topic(4_096, gossipsub::IdentTopic::new(TOPIC).hash())
        .max_control_messages_sent(400)
        .heartbeat_initial_delay(Duration::from_millis(500))
        .message_id_fn(|message: &Message| {
            let source = message.source.map(PeerId::to_bytes).unwrap_or_default();
            let digest = Sha256::new().chain_update(source).chain_update(&message.data).finalize();
            gossipsub::MessageId::from(digest.to_vec())
        })
        .build()
        .unwrap();
    let signed = gossipsub::MessageAuthenticity::Signed(key.clone());
    let counting = Counting(Arc::clone(seen));
    let mut behaviour = Announcements::new_with_transform(signed, config, counting).unwrap();
    behaviour.subscribe(&gossipsub::IdentTopic::new(TOPIC)).unwrap();
    behaviour
}

/// Runs one node.
async fn live(
    mut swarm: Swarm<Announcements>,
    number: usize,
    mut told: mpsc::UnboundedReceiver<Command>,
    seen: Shared,
) {
    loop {
        tokio::select! {
            command = told.recv() => match command {
                None => return,
                Some(Command::Dial(peer, to)) => {
                    let address = seen.lock().unwrap().addresses[&to].clone();
                    swarm.dial(DialOpts::peer_id(peer).addresses(vec![address]).build()).unwrap();
                }
                Some(Command::Publish(number)) => {
                    let mut data = number.to_le_bytes().to_vec();
                    data.resize(MESSAGE_BYTES, 0);
                    seen.lock().unwrap().published.insert(number, Instant::now());
                    swarm.behaviour_mut().publish(gossipsub::IdentTopic::new(TOPIC), data).unwrap();
                }
            },
            event = swarm.select_next_some() => match event {
                SwarmEvent::NewListenAddr { address, .. } => {
                    seen.lock().unwrap().addresses.insert(number, address);
                }
                SwarmEvent::ConnectionEstablished { .. } => seen.lock().unwrap().connections += 1,
                SwarmEvent::Behaviour(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                    let data = message.data.first_chunk::<4>().copied().unwrap();
                    let mut seen = seen.lock().unwrap();
                    let took = seen.published[&u32::from_le_bytes(data)].elapsed();
                    let heard = seen.heard_us.entry(u32::from_le_bytes(data)).or_default();
                    heard.push(u64::try_from(took.as_micros()).unwrap());
                    drop(seen);
                    // The daemon's core accepts what an allowlisted author signed.
                    swarm.behaviour_mut().report_message_validation_result(
                        &message_id,
                        &propagation_source,
                        MessageAcceptance::Accept,
                    );
                }
                _ => {}
            },
        }
    }
}

/// The delay of one direction of a connection.
#[derive(Clone, Copy, Debug)]
struct Delay {
    delay: Duration,
    jitter_us: u64,
}

/// A socket whose bytes are read later than they arrive.
struct Delayed<S> {
    socket: S,
    delay: Delay,
    rng: ChaCha8Rng,
    waiting: VecDeque<(Instant, Vec<u8>)>,
    alarm: Option<Pin<Box<tokio::time::Sleep>>>,
    ended: bool,
}

impl<S> Delayed<S> {
    fn new(socket: S, delay: Delay) -> Self {
        let rng = ChaCha8Rng::from_rng(&mut rand::rng());
        Self { socket, delay, rng, waiting: VecDeque::new(), alarm: None, ended: false }
    }

    /// When bytes that arrive now may be read: never before those that arrived earlier.
    fn due(&mut self) -> Instant {
        let jitter = Duration::from_micros(self.rng.next_u64() % (self.delay.jitter_us + 1));
        let due = Instant::now() + self.delay.delay + jitter;
        self.waiting.back().map_or(due, |(last, _)| due.max(*last))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Delayed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let mut chunk = [0; 16_384];
        while !this.ended && this.waiting.len() < 1_024 {
            match Pin::new(&mut this.socket).poll_read(cx, &mut chunk)? {
                Poll::Ready(0) => this.ended = true,
                Poll::Ready(count) => {
                    let due = this.due();
                    this.waiting.push_back((due, chunk[..count].to_vec()));
                }
                Poll::Pending => break,
            }
        }
        let Some((due, bytes)) = this.waiting.front_mut() else {
            return if this.ended { Poll::Ready(Ok(0)) } else { Poll::Pending };
        };
        if *due <= Instant::now() {
            let count = bytes.len().min(buffer.len());
            buffer[..count].copy_from_slice(&bytes[..count]);
            bytes.drain(..count);
            if bytes.is_empty() {
                this.waiting.pop_front();
            }
            return Poll::Ready(Ok(count));
        }
        let mut alarm = Box::pin(tokio::time::sleep_until((*due).into()));
        if alarm.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        this.alarm = Some(alarm);
        Poll::Pending
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Delayed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}
