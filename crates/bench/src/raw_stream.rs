//! Bytes over one libp2p stream of the daemon's transport (TCP, TLS 1.3, yamux), and nothing else. This is what a NAR could
//! reach if hashing, the file system and HTTP cost nothing. Other security protocols can take the place of TLS.

use crate::plain_tcp::CHUNK_BYTES;
use crate::process::Running;
use anyhow::{Context as _, bail};
use clap::ValueEnum as _;
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol, Swarm, SwarmBuilder, tls};
use narmesh_mesh::transport::{self, Multiplexing, Tls};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/narmesh-bench/raw");

/// The security protocol between TCP and yamux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Security {
    /// TLS as the daemon has it.
    Daemon,
    /// libp2p-tls as shipped, which prefers ChaCha20.
    StockTls,
    /// libp2p-noise.
    Noise,
}

/// A server process and a connection to it.
pub(crate) struct RawStream {
    process: Running,
    runtime: Runtime,
    control: libp2p_stream::Control,
    server: PeerId,
}

impl RawStream {
    /// Starts the server and connects.
    pub(crate) fn start(security: Security) -> anyhow::Result<Self> {
        let name = security.to_possible_value().context("every security has a name")?.get_name().to_owned();
        let (process, line) = Running::spawn_server("raw-stream", &[name])?;
        let address: Multiaddr = line.parse()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let (server, control) = runtime.block_on(connect(security, address))?;
        Ok(Self { process, runtime, control, server })
    }

    /// Pulls `bytes` bytes over a new stream, and returns the seconds that it took.
    pub(crate) fn pull(&self, bytes: u64) -> anyhow::Result<f64> {
        let mut control = self.control.clone();
        let server = self.server;
        // On a worker, because the thread that blocks on a runtime is a poor place for a busy task.
        let pulled = self.runtime.spawn(async move {
            let mut stream = control.open_stream(server, PROTOCOL).await?;
            let started = Instant::now();
            stream.write_all(&bytes.to_le_bytes()).await?;
            stream.flush().await?;
            let mut buffer = vec![0; CHUNK_BYTES];
            let mut left = bytes;
            while left > 0 {
                let got = stream.read(&mut buffer).await? as u64;
                if got == 0 || got > left {
                    bail!("the raw stream ended with {left} bytes left");
                }
                left -= got;
            }
            Ok(started.elapsed().as_secs_f64())
        });
        self.runtime.block_on(pulled)?
    }

    /// The server's process.
    pub(crate) fn process(&self) -> &Running {
        &self.process
    }
}

/// The server: it reads a count from each stream and sends that many bytes back.
pub(crate) fn serve(security: &str) -> anyhow::Result<()> {
    let security = Security::from_str(security, false).map_err(anyhow::Error::msg)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut swarm = swarm(security)?;
        swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
        let mut incoming = swarm.behaviour().new_control().accept(PROTOCOL)?;
        tokio::spawn(async move {
            while let Some((_, stream)) = incoming.next().await {
                tokio::spawn(send(stream));
            }
        });
        loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                let address = address
                    .with_p2p(*swarm.local_peer_id())
                    .map_err(|_| anyhow::anyhow!("an address with a peer id"))?;
                crate::print_line(&address.to_string())?;
            }
        }
    })
}

async fn send(mut stream: Stream) -> anyhow::Result<()> {
    let mut count = [0; 8];
    stream.read_exact(&mut count).await?;
    let mut left = usize::try_from(u64::from_le_bytes(count))?;
    let chunk = vec![0x5a; CHUNK_BYTES];
    while left > 0 {
        let piece = chunk.get(..left.min(CHUNK_BYTES)).unwrap_or_default();
        stream.write_all(piece).await?;
        left -= piece.len();
    }
    stream.close().await?;
    Ok(())
}

async fn connect(security: Security, address: Multiaddr) -> anyhow::Result<(PeerId, libp2p_stream::Control)> {
    let mut swarm = swarm(security)?;
    let control = swarm.behaviour().new_control();
    swarm.dial(address)?;
    let server = loop {
        match tokio::time::timeout(Duration::from_secs(10), swarm.select_next_some()).await.context("dialling")? {
            SwarmEvent::ConnectionEstablished { peer_id, .. } => break peer_id,
            SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.into()),
            _ => {}
        }
    };
    tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    Ok((server, control))
}

/// A swarm with the daemon's transport, or with another security protocol in it, and with no behaviour but streams.
fn swarm(security: Security) -> anyhow::Result<Swarm<libp2p_stream::Behaviour>> {
    let idle = |config: libp2p::swarm::Config| config.with_idle_connection_timeout(Duration::from_secs(3_600));
    let streams = |_: &_| libp2p_stream::Behaviour::new();
    let (tcp, yamux) = (transport::tcp(), || Multiplexing::Bulk);
    let builder = SwarmBuilder::with_new_identity().with_tokio();
    Ok(match security {
        Security::Daemon => {
            builder.with_tcp(tcp, Tls::new, yamux)?.with_behaviour(streams)?.with_swarm_config(idle).build()
        }
        Security::StockTls => {
            builder.with_tcp(tcp, tls::Config::new, yamux)?.with_behaviour(streams)?.with_swarm_config(idle).build()
        }
        Security::Noise => {
            let noise = libp2p_noise::Config::new;
            builder.with_tcp(tcp, noise, yamux)?.with_behaviour(streams)?.with_swarm_config(idle).build()
        }
    })
}
