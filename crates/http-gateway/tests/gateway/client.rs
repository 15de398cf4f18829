//! A gateway on its own port, and a client that writes and reads raw HTTP/1.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use narmesh_http_gateway::{
    ConnectionCount, Gateway, GatewayLimits, GatewayMetrics, Listener, ListenerRole, TlsSettings, serve,
};
use narmesh_protocol::{HashPart, NarHash, NarUrl};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::memory::MemorySubstituter;

/// Longest wait in tests: ten times what anything here may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A running gateway.
pub(crate) struct TestGateway {
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Arc<GatewayMetrics>,
    pub(crate) connections: ConnectionCount,
    pub(crate) substituter: Arc<MemorySubstituter>,
    shutdown: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
}

impl TestGateway {
    pub(crate) async fn start(substituter: MemorySubstituter) -> Self {
        Self::start_with(substituter, ListenerRole::local(), GatewayLimits::default()).await
    }

    pub(crate) async fn start_with(substituter: MemorySubstituter, role: ListenerRole, limits: GatewayLimits) -> Self {
        Self::start_at(substituter, role, limits, Listener::from).await
    }

    /// A gateway whose clients speak TLS.
    pub(crate) async fn start_tls(
        substituter: MemorySubstituter,
        limits: GatewayLimits,
        tls: Arc<dyn TlsSettings>,
    ) -> Self {
        Self::start_at(substituter, ListenerRole::local(), limits, |port| Listener::Tls(port, tls)).await
    }

    async fn start_at(
        substituter: MemorySubstituter,
        role: ListenerRole,
        limits: GatewayLimits,
        listener: impl FnOnce(TcpListener) -> Listener,
    ) -> Self {
        let substituter = Arc::new(substituter);
        let metrics = Arc::new(GatewayMetrics::default());
        let mut registry = Registry::with_prefix("narmesh");
        metrics.register(&mut registry);
        let gateway = Gateway::new(Arc::clone(&substituter), role, Arc::clone(&metrics), Arc::new(registry));
        let connections = ConnectionCount::default();
        let gateway = gateway.counting(connections.clone());
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = port.local_addr().unwrap();
        let listener = listener(port);
        let (shutdown, told) = oneshot::channel::<()>();
        let served = tokio::spawn(serve(listener, gateway, limits, async { drop(told.await) }));
        Self { address, metrics, connections, substituter, shutdown: Some(shutdown), served }
    }

    pub(crate) async fn connect(&self) -> Connection {
        Connection::new(TcpStream::connect(self.address).await.unwrap())
    }

    /// Sends one GET on a new connection.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[]).await
    }

    pub(crate) async fn get_with(&self, path: &str, headers: &[&str]) -> Answer {
        let mut connection = self.connect().await;
        connection.send(&request("GET", path, headers)).await;
        connection.answer().await
    }

    /// Tells the gateway to stop; the handle resolves when it has stopped.
    pub(crate) fn stop(mut self) -> JoinHandle<()> {
        drop(self.shutdown.take());
        self.served
    }
}

/// The bytes of a request with our own host name.
pub(crate) fn request(method: &str, path: &str, headers: &[&str]) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text + "\r\n"
}

/// One connection of a client.
pub(crate) struct Connection<S = TcpStream> {
    pub(crate) stream: S,
    buffer: Vec<u8>,
}

/// A response as it was received.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
    /// Whether the connection ended before Content-Length was reached.
    pub(crate) is_short: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads one response to a GET.
    pub(crate) async fn answer(&mut self) -> Answer {
        self.answer_to("GET").await
    }

    /// Reads one response, which for a HEAD has no body whatever its Content-Length.
    pub(crate) async fn answer_to(&mut self, method: &str) -> Answer {
        let head_end = loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.more().await, "closed in the head: {:?}", String::from_utf8_lossy(&self.buffer));
        };
        let head = String::from_utf8(self.buffer.drain(..head_end).collect()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: HashMap<String, String> = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let is_chunked = headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked");
        let mut answer = Answer { status, headers, body: Vec::new(), is_short: false };
        if is_chunked {
            if method != "HEAD" {
                self.read_chunks(&mut answer).await;
            }
            return answer;
        }
        // What a HEAD would have sent in chunks has no length, and neither has what did not change.
        let length: usize = match answer.header("content-length") {
            "" if method == "HEAD" || status == 304 => 0,
            length => length.parse().expect("every other response has a Content-Length"),
        };
        if method != "HEAD" {
            while self.buffer.len() < length && !answer.is_short {
                answer.is_short = !self.more().await;
            }
            answer.body = self.buffer.drain(..length.min(self.buffer.len())).collect();
        }
        answer
    }

    async fn read_chunks(&mut self, answer: &mut Answer) {
        loop {
            let line_end = loop {
                if let Some(at) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                    break at;
                }
                if !self.more().await {
                    answer.is_short = true;
                    return;
                }
            };
            let line = String::from_utf8(self.buffer.drain(..line_end + 2).collect()).unwrap();
            let size = usize::from_str_radix(line.trim(), 16).unwrap();
            while self.buffer.len() < size + 2 {
                if !self.more().await {
                    answer.body.append(&mut self.buffer);
                    answer.is_short = true;
                    return;
                }
            }
            answer.body.extend(self.buffer.drain(..size));
            self.buffer.drain(..2);
            if size == 0 {
                return;
            }
        }
    }

    /// The status code in the first line received; empty if the connection ends without one.
    pub(crate) async fn status_line(&mut self) -> String {
        while !self.buffer.contains(&b'\n') && self.more().await {}
        let line = String::from_utf8_lossy(&self.buffer).into_owned();
        line.split(' ').nth(1).unwrap_or_default().to_owned()
    }

    /// Whether the gateway closes this connection without sending another byte.
    pub(crate) async fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && !self.more().await
    }

    /// Reads more bytes; false when the connection has ended in any way.
    pub(crate) async fn more(&mut self) -> bool {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.buffer))
            .await
            .expect("the gateway neither writes nor closes");
        read.is_ok_and(|bytes| bytes > 0)
    }
}

/// A hash part made of one byte.
pub(crate) fn part(byte: u8) -> HashPart {
    HashPart([byte; 20])
}

/// The URL of a NAR of `size` bytes for [`part`].
pub(crate) fn nar_url(byte: u8, size: usize) -> NarUrl {
    NarUrl::new(part(byte), NarHash([byte; 32]), size as u64)
}

/// `size` bytes of a pattern in which no two parts look alike.
pub(crate) fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|at| u8::try_from((at.wrapping_mul(2_654_435_761) >> 7) & 0xff).unwrap()).collect()
}

/// Waits for a condition that other tasks bring about.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("the condition never came true");
}
