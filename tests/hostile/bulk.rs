//! Bulk connections, implemented a second time: TCP, TLS and yamux of stock libp2p, under another name and without a swarm.

use crate::swarm::{Stage, perform};
use crate::wire::NAR;
use futures::future::poll_fn;
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer as _, StreamMuxerBox, SubstreamBox};
use libp2p::core::transport::{DialOpts, PortUse};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo, Version};
use libp2p::core::{Endpoint, Transport as _};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId, tcp, tls, yamux};
use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use tokio::sync::{mpsc, oneshot};

/// Stock yamux under another protocol name.
#[derive(Debug, Clone)]
struct NamedYamux(yamux::Config, &'static str);

impl UpgradeInfo for NamedYamux {
    type Info = &'static str;
    type InfoIter = std::iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(self.1)
    }
}

impl<C> InboundConnectionUpgrade<C> for NamedYamux
where
    yamux::Config: InboundConnectionUpgrade<C, Info = &'static str>,
{
    type Output = <yamux::Config as InboundConnectionUpgrade<C>>::Output;
    type Error = <yamux::Config as InboundConnectionUpgrade<C>>::Error;
    type Future = <yamux::Config as InboundConnectionUpgrade<C>>::Future;

    fn upgrade_inbound(self, socket: C, name: &'static str) -> Self::Future {
        self.0.upgrade_inbound(socket, name)
    }
}

impl<C> OutboundConnectionUpgrade<C> for NamedYamux
where
    yamux::Config: OutboundConnectionUpgrade<C, Info = &'static str>,
{
    type Output = <yamux::Config as OutboundConnectionUpgrade<C>>::Output;
    type Error = <yamux::Config as OutboundConnectionUpgrade<C>>::Error;
    type Future = <yamux::Config as OutboundConnectionUpgrade<C>>::Future;

    fn upgrade_outbound(self, socket: C, name: &'static str) -> Self::Future {
        self.0.upgrade_outbound(socket, name)
    }
}

type Wanted = mpsc::UnboundedSender<oneshot::Sender<io::Result<SubstreamBox>>>;

/// The bulk connections of one of our peers.
#[derive(Clone)]
pub struct Bulk {
    keys: Keypair,
    stage: Arc<Stage>,
    known: Arc<Mutex<BTreeMap<PeerId, Known>>>,
    /// Allows one dial at a time: a daemon keeps only two bulk connections.
    dialling: Arc<tokio::sync::Mutex<()>>,
}

/// The address of a daemon, and the channel that opens streams on the bulk connection to it.
struct Known {
    address: Multiaddr,
    wanted: Option<Wanted>,
}

impl Bulk {
    pub fn new(keys: Keypair, stage: Arc<Stage>) -> Self {
        Self { keys, stage, known: Arc::default(), dialling: Arc::default() }
    }

    pub fn learn_address(&self, peer: PeerId, address: Multiaddr) {
        self.known().insert(peer, Known { address, wanted: None });
    }

    /// Opens a stream, and dials a connection if there is none.
    pub async fn open(&self, peer: PeerId) -> io::Result<SubstreamBox> {
        let _dialling = self.dialling.lock().await;
        let wanted = self.known().get(&peer).and_then(|known| known.wanted.clone());
        if let Some(wanted) = wanted
            && let Ok(stream) = open_on(&wanted).await
        {
            return Ok(stream);
        }
        open_on(&self.dial(peer).await?).await
    }

    /// Dials a connection, and answers requests that come over it.
    pub async fn dial(&self, peer: PeerId) -> io::Result<Wanted> {
        let address = self.known().get(&peer).map(|known| known.address.clone()).ok_or(io::ErrorKind::NotFound)?;
        let muxer = dial_as(&self.keys, address.clone(), NAR).await?;
        let (wanted, wishes) = mpsc::unbounded_channel();
        self.known().insert(peer, Known { address, wanted: Some(wanted.clone()) });
        tokio::spawn(run(muxer, wishes, Arc::clone(&self.stage)));
        Ok(wanted)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<PeerId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dials a connection whose multiplexer has this name.
pub async fn dial_as(keys: &Keypair, address: Multiaddr, name: &'static str) -> io::Result<StreamMuxerBox> {
    let tls = tls::Config::new(keys).map_err(io::Error::other)?;
    let mut transport = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(tls)
        .multiplex(NamedYamux(yamux::Config::default(), name))
        .boxed();
    let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
    Ok(transport.dial(address, options).map_err(io::Error::other)?.await?.1)
}

async fn open_on(wanted: &Wanted) -> io::Result<SubstreamBox> {
    let gone = || io::Error::from(io::ErrorKind::ConnectionReset);
    let (sender, opened) = oneshot::channel();
    wanted.send(sender).map_err(|_| gone())?;
    opened.await.map_err(|_| gone())?
}

/// Runs a connection until it ends: opens streams that are wished for, and serves incoming ones.
async fn run(
    mut muxer: StreamMuxerBox,
    mut wishes: mpsc::UnboundedReceiver<oneshot::Sender<io::Result<SubstreamBox>>>,
    stage: Arc<Stage>,
) {
    let mut wish = None;
    loop {
        // A multiplexer makes progress only while it is polled: each time, wishes, the connection and incoming streams have
        // their turn.
        let next = poll_fn(|context| {
            loop {
                if wish.is_none() {
                    match wishes.poll_recv(context) {
                        Poll::Ready(Some(new)) => wish = Some(new),
                        Poll::Ready(None) | Poll::Pending => break,
                    }
                }
                match Pin::new(&mut muxer).poll_outbound(context) {
                    Poll::Ready(stream) => drop(wish.take().map(|wish| wish.send(stream).ok())),
                    Poll::Pending => break,
                }
            }
            loop {
                match Pin::new(&mut muxer).poll(context) {
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => break,
                }
            }
            Pin::new(&mut muxer).poll_inbound(context)
        });
        let Ok(stream) = next.await else { return };
        let stage = Arc::clone(&stage);
        tokio::spawn(async move { serve(stream, &stage).await.ok() });
    }
}

/// Serves the requests on a stream one after the other; an error resets the stream.
async fn serve<T: AsyncRead + AsyncWrite + Unpin>(mut stream: T, stage: &Stage) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length).await?;
        let mut request = vec![0; u32::from_le_bytes(length) as usize];
        stream.read_exact(&mut request).await?;
        perform(stage.nar(&request), &mut stream).await?;
    }
}
