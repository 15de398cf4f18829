//! Puts TLS and a multiplexer on a socket, each negotiated by name.

use super::super::addresses::socket_address;
use super::super::removals;
use super::Tls;
use super::kinds::{Elsewhere, HandedOver, Multiplexing};
use futures::{AsyncRead, AsyncWrite};
use libp2p::PeerId;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use libp2p::core::{ConnectedPoint, Endpoint};
use multistream_select::{Version, dialer_select_proto, listener_select_proto};
use narmesh_protocol::Removal;
use narmesh_protocol::wire::{RELAY_PROTOCOL, REMOVAL_PROTOCOL};
use std::io;
use std::net::SocketAddr;

/// Why there is no connection. libp2p's layers pass on the source of an error and not the error itself, so this puts it
/// under one.
#[derive(Debug, thiserror::Error)]
#[error("handshake: {0}")]
pub(super) struct LayerError(#[source] io::Error);

/// What goes on a socket.
#[derive(Clone, Debug)]
pub(super) struct Layers {
    pub(super) tls: Tls,
    /// The kind of connection that is dialled.
    pub(super) dialled: Multiplexing,
    /// Where connections go that come in; without it, none do.
    pub(super) elsewhere: Option<Elsewhere>,
}

impl Layers {
    /// Makes a connection of a socket, within [`super::HANDSHAKE_TIMEOUT`].
    pub(super) async fn put_on(
        self,
        socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        endpoint: ConnectedPoint,
    ) -> Result<(PeerId, StreamMuxerBox), LayerError> {
        let made = async {
            match (endpoint.to_endpoint(), self.elsewhere) {
                (Endpoint::Dialer, _) => dial(socket, self.tls, self.dialled).await,
                (Endpoint::Listener, Some(elsewhere)) => {
                    accept(socket, socket_address(endpoint.get_remote_address()), self.tls, elsewhere).await
                }
                (Endpoint::Listener, None) => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        };
        tokio::time::timeout(super::HANDSHAKE_TIMEOUT, made)
            .await
            .map_err(io::Error::from)
            .flatten()
            .map_err(LayerError)
    }
}

async fn dial(
    socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    tls: Tls,
    kind: Multiplexing,
) -> io::Result<(PeerId, StreamMuxerBox)> {
    // Lazily: the name goes with the first bytes of what it names, and costs no round trip.
    let (name, socket) =
        dialer_select_proto(socket, tls.protocol_info(), Version::V1Lazy).await.map_err(io::Error::other)?;
    let (peer, stream) = tls.upgrade_outbound(socket, name).await.map_err(io::Error::other)?;
    let names = kind.protocol_info();
    let (name, stream) = dialer_select_proto(stream, names, Version::V1Lazy).await.map_err(io::Error::other)?;
    Ok((peer, StreamMuxerBox::new(kind.upgrade_outbound(stream, name).await?)))
}

/// Asks whoever is at the other end whether we were removed from its mesh, within [`super::HANDSHAKE_TIMEOUT`].
pub(super) async fn ask_removal(
    tls: Tls,
    socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<(PeerId, Removal), LayerError> {
    let asked = async {
        let (name, socket) =
            dialer_select_proto(socket, tls.protocol_info(), Version::V1Lazy).await.map_err(io::Error::other)?;
        let (peer, stream) = tls.upgrade_outbound(socket, name).await.map_err(io::Error::other)?;
        // Not lazily: nothing is sent with which the name could go.
        let (_, stream) =
            dialer_select_proto(stream, [REMOVAL_PROTOCOL], Version::V1).await.map_err(io::Error::other)?;
        Ok((peer, removals::read(stream).await?))
    };
    tokio::time::timeout(super::HANDSHAKE_TIMEOUT, asked).await.map_err(io::Error::from).flatten().map_err(LayerError)
}

async fn accept(
    socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    from: Option<SocketAddr>,
    tls: Tls,
    elsewhere: Elsewhere,
) -> io::Result<(PeerId, StreamMuxerBox)> {
    // A relay offers its protocol only while it is switched on; otherwise it is as unknown here.
    let names = tls.protocol_info().chain(elsewhere.relay.is_on().then_some(RELAY_PROTOCOL));
    let (name, socket) = listener_select_proto(socket, names).await.map_err(io::Error::other)?;
    // The bytes of a circuit are encrypted between its two ends, so it needs no handshake with us.
    if name == RELAY_PROTOCOL {
        elsewhere.relay.receive(Box::new(socket), from).await?;
        return Err(io::Error::other(HandedOver));
    }
    let (peer, stream) = tls.upgrade_inbound(socket, name).await.map_err(io::Error::other)?;
    let removals = elsewhere.removals.clone();
    let is_removed = removals.is_due(&peer);
    let kind = Multiplexing::Either { peer, elsewhere };
    // Bulk or control: that is agreed on under TLS, once it is known who asks.
    let names = kind.protocol_info().into_iter().chain(is_removed.then_some(REMOVAL_PROTOCOL));
    let (name, stream) = listener_select_proto(stream, names).await.map_err(io::Error::other)?;
    if name == REMOVAL_PROTOCOL {
        removals.tell(&peer, stream).await?;
        return Err(io::Error::other(HandedOver));
    }
    Ok((peer, StreamMuxerBox::new(kind.upgrade_inbound(stream, name).await?)))
}
