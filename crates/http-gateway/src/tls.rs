//! The handshake of TLS, and what a client gets that speaks plain HTTP instead.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::connection::{ConnectionState, Order};
use crate::limits::LastWait;
use crate::listener::ClientStream;

/// What a client gets that speaks plain HTTP: without it people would see a broken connection, and look for the fault elsewhere.
const PLAIN_ANSWER: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 41\r\n\
                              Connection: close\r\n\r\nthis port speaks TLS: ask it by https://\n";

/// Most bytes of a plain request that are read before the answer.
const PLAIN_BYTES_MAX: usize = 4 << 10;

/// Shakes hands with a client, until the table says that its time is over.
pub(crate) async fn shake_hands(
    stream: TcpStream,
    settings: Arc<ServerConfig>,
    state: &ConnectionState,
) -> io::Result<ClientStream> {
    // From the first byte on: whoever says nothing holds a connection, too.
    state.begin_handshake();
    let mut handshake = pin!(open(stream, settings));
    let mut wait = LastWait::default();
    let opened = poll_fn(|cx| match state.poll_order(cx) {
        Order::Serve => handshake.as_mut().poll(cx),
        // The request comes after it.
        Order::Drain if wait.poll_over(cx).is_pending() => handshake.as_mut().poll(cx),
        Order::Drain | Order::Close => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
    });
    let opened = opened.await?;
    state.end_handshake();
    Ok(opened)
}

/// Whether the handshake chose HTTP/2.
pub(crate) fn is_http2(stream: &ClientStream) -> bool {
    match stream {
        ClientStream::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        ClientStream::Tcp(_) | ClientStream::Unix(_) => false,
    }
}

async fn open(mut stream: TcpStream, settings: Arc<ServerConfig>) -> io::Result<ClientStream> {
    // A handshake begins with the byte 22, and a request with the letters of its method.
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0].is_ascii_uppercase() {
        // What lies unread when a socket is closed makes the kernel take the answer back.
        let _read_bytes = stream.read(&mut [0; PLAIN_BYTES_MAX]).await?;
        stream.write_all(PLAIN_ANSWER).await?;
        stream.shutdown().await?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it speaks plain HTTP"));
    }
    let stream = TlsAcceptor::from(settings).accept(stream).await?;
    Ok(ClientStream::Tls(Box::new(stream)))
}
