//! Where clients connect: a TCP port or a Unix socket.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ServerConfig;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::server::TlsStream;

/// Bytes that the kernel takes from a response beyond what it may send at once. Without this bound it holds 4 MiB for each client
/// that does not read; 250 of them brought a machine to the limit of its memory for TCP, where other connections stand still for
/// minutes. A Unix socket holds 208 KiB by itself (`net.core.wmem_default`).
const UNSENT_BYTES_MAX: u32 = 256 << 10;

/// Tells how the next connection is answered: with which certificate, and which certificates of clients are accepted. It is
/// asked on each connection, so it must answer from memory.
pub trait TlsSettings: fmt::Debug + Send + Sync + 'static {
    /// The settings that count now.
    fn current(&self) -> Arc<ServerConfig>;
}

/// Where clients of one listener connect.
#[derive(Debug)]
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A TCP port whose clients speak TLS.
    Tls(TcpListener, Arc<dyn TlsSettings>),
    /// A Unix socket, whose file says who may connect.
    Unix(UnixListener),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

/// Whence a connection comes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Route {
    /// The addresses of both ends.
    Tcp { client: SocketAddr, server: SocketAddr },
    /// The user who connected, if the kernel knows.
    Unix(Option<u32>),
}

impl Listener {
    /// Waits for the next connection.
    pub(crate) async fn accept(&self) -> io::Result<(Accepted, Route)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, route) = accept_tcp(listener).await?;
                Ok((Accepted::Open(ClientStream::Tcp(stream)), route))
            }
            Self::Tls(listener, settings) => {
                let (stream, route) = accept_tcp(listener).await?;
                // The one of now, so that a renewed certificate counts from the next connection on.
                Ok((Accepted::Tls(stream, settings.current()), route))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let user = stream.peer_cred().ok().map(|credentials| credentials.uid());
                Ok((Accepted::Open(ClientStream::Unix(stream)), Route::Unix(user)))
            }
        }
    }
}

async fn accept_tcp(listener: &TcpListener) -> io::Result<(TcpStream, Route)> {
    let (stream, client) = listener.accept().await?;
    let server = listener.local_addr()?;
    Ok((stream, Route::Tcp { client, server }))
}

/// A connection that has just come.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// The client may send its request.
    Open(ClientStream),
    /// The client has to shake hands first, as these settings say.
    Tls(TcpStream, Arc<ServerConfig>),
}

/// The connection of one client.
#[derive(Debug)]
pub(crate) enum ClientStream {
    Tcp(TcpStream),
    /// In a box, because it is ten times as large as the others.
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

impl Accepted {
    /// Sets what the kernel does with responses. It fails if the client has gone.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        let (Self::Open(ClientStream::Tcp(stream)) | Self::Tls(stream, _)) = self else { return Ok(()) };
        // Without it, a body sent after its head would wait 40 ms for the client's acknowledgement of the head.
        stream.set_nodelay(true)?;
        // A kernel that does not know this costs memory, and no client its connection.
        if let Err(error) = SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX) {
            tracing::debug!(%error, "the kernel may hold megabytes for a client that does not read");
        }
        Ok(())
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
