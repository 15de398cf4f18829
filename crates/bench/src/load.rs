//! The load on an HTTP server: keep-alive connections that each send the next request when the last answer is complete.
//!
//! One thread drives all connections, for every server alike, so that only the servers differ. It shares the machine with
//! the server. CPU time per request is the figure that does not depend on how much of the machine the client takes.

use anyhow::{Context as _, bail};
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The largest body that a load may ask for, bytes: narinfos and small NARs.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// What to ask for, and how.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Targets of the requests, asked for in turn.
    pub(crate) targets: Arc<[String]>,
    /// The status that every answer must have.
    pub(crate) status: u16,
    /// How many connections ask at the same time.
    pub(crate) connections: usize,
    /// When to stop.
    pub(crate) end: End,
}

/// When a load ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// After this time.
    After(Duration),
    /// When each connection has asked for each target once.
    OncePerTarget,
    /// When each target was asked for once, by any connection that was free.
    Shared,
}

/// What a load measured.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Seconds from the first request to the last answer.
    pub(crate) seconds: f64,
    /// Times from a request's first byte to its answer's last byte, nanoseconds, sorted.
    latencies_ns: Vec<u32>,
}

impl Seen {
    /// How many answers came.
    pub(crate) fn requests(&self) -> usize {
        self.latencies_ns.len()
    }

    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        self.requests() as f64 / self.seconds
    }

    /// The latency that `percent` of the answers did not exceed, microseconds.
    pub(crate) fn percentile_us(&self, percent: usize) -> f64 {
        let at = (self.latencies_ns.len() * percent / 100).min(self.latencies_ns.len().saturating_sub(1));
        self.latencies_ns.get(at).map_or(f64::NAN, |ns| f64::from(*ns) / 1e3)
    }
}

impl Load {
    /// Puts the load on `address` and returns when it is over.
    pub(crate) fn run(&self, address: SocketAddr) -> anyhow::Result<Seen> {
        let requests: Arc<[Vec<u8>]> = self.targets.iter().map(|target| request(address, target)).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.all_connections(address, &requests))
    }

    async fn all_connections(&self, address: SocketAddr, requests: &Arc<[Vec<u8>]>) -> anyhow::Result<Seen> {
        let mut streams = Vec::new();
        for _ in 0..self.connections {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            streams.push(stream);
        }
        let started = Instant::now();
        let local = tokio::task::LocalSet::new();
        let shared = Rc::new(Cell::new(0));
        let mut tasks = Vec::new();
        for (number, stream) in streams.into_iter().enumerate() {
            // Each connection starts at another place in the list, or all would ask for the same target at the same time.
            let first = number * requests.len() / self.connections;
            let list = match self.end {
                End::Shared => List::Shared(Rc::clone(&shared)),
                End::After(_) | End::OncePerTarget => List::Own(first),
            };
            tasks.push(local.spawn_local(connection(stream, Arc::clone(requests), list, self.status, self.end)));
        }
        let mut latencies_ns = Vec::new();
        local
            .run_until(async {
                for task in tasks {
                    latencies_ns.extend(task.await.context("a connection's task")??);
                }
                anyhow::Ok(())
            })
            .await?;
        let seconds = started.elapsed().as_secs_f64();
        latencies_ns.sort_unstable();
        Ok(Seen { seconds, latencies_ns })
    }
}

/// Where a connection finds its next target.
enum List {
    /// In turn, from this place on.
    Own(usize),
    /// The next place that no connection has taken.
    Shared(Rc<Cell<usize>>),
}

impl List {
    fn next(&mut self, length: usize) -> Option<usize> {
        match self {
            Self::Own(next) => {
                let at = *next % length;
                *next += 1;
                Some(at)
            }
            Self::Shared(next) => {
                let at = next.get();
                next.set(at + 1);
                (at < length).then_some(at)
            }
        }
    }
}

async fn connection(
    mut stream: TcpStream,
    requests: Arc<[Vec<u8>]>,
    mut list: List,
    status: u16,
    end: End,
) -> anyhow::Result<Vec<u32>> {
    let started = Instant::now();
    let mut latencies_ns = Vec::new();
    let mut buffer = Vec::with_capacity(64 << 10);
    let requests_max = match end {
        End::After(_) => usize::MAX,
        End::OncePerTarget | End::Shared => requests.len(),
    };
    while latencies_ns.len() < requests_max
        && let Some(request) = list.next(requests.len()).and_then(|at| requests.get(at))
    {
        let sent = Instant::now();
        stream.write_all(request).await?;
        let answered = answer(&mut stream, &mut buffer, status).await;
        answered
            .with_context(|| format!("answer {} of a connection with {}", latencies_ns.len() + 1, told(request)))?;
        latencies_ns.push(u32::try_from(sent.elapsed().as_nanos()).unwrap_or(u32::MAX));
        if matches!(end, End::After(duration) if started.elapsed() >= duration) {
            break;
        }
    }
    Ok(latencies_ns)
}

/// Reads one answer whole.
async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>, status: u16) -> anyhow::Result<()> {
    buffer.clear();
    let mut needed = None;
    while needed.is_none_or(|needed| buffer.len() < needed) {
        if stream.read_buf(buffer).await? == 0 {
            bail!("the server closed the connection in an answer");
        }
        if needed.is_none()
            && let Some(head) = Head::parse(buffer)?
        {
            if head.status != status {
                bail!("the server answered {}, not {status}", head.status);
            }
            needed = Some(head.head_bytes + head.body_bytes);
            if head.body_bytes > RESPONSE_BYTES_MAX {
                bail!("an answer of {} bytes", head.body_bytes);
            }
        }
    }
    if needed != Some(buffer.len()) {
        bail!("the server sent more than its answer");
    }
    Ok(())
}

/// The request line and the host, for an error.
fn told(request: &[u8]) -> String {
    let text = String::from_utf8_lossy(request);
    text.lines().take(2).collect::<Vec<_>>().join(", ")
}

fn request(address: SocketAddr, target: &str) -> Vec<u8> {
    // The same as Nix sends, except for the versions in `User-Agent`.
    format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: narmesh-bench\r\nAccept: */*\r\n\r\n").into_bytes()
}

/// The head of an answer, as far as a client needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// The status code.
    pub(crate) status: u16,
    /// Bytes of the head, with the empty line that ends it.
    pub(crate) head_bytes: usize,
    /// `Content-Length`.
    pub(crate) body_bytes: usize,
}

impl Head {
    /// Parses a head at the start of `bytes`; `None` while its end is missing.
    pub(crate) fn parse(bytes: &[u8]) -> anyhow::Result<Option<Self>> {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            return Ok(None);
        };
        let head = std::str::from_utf8(bytes.get(..end).unwrap_or_default()).context("a head that is no text")?;
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        let status = status.and_then(|status| status.parse().ok()).context("no HTTP/1.1 status line")?;
        let length =
            lines.filter_map(|line| line.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let (_, length) = length.context("an answer without Content-Length")?;
        let body_bytes = length.trim().parse().context("Content-Length")?;
        Ok(Some(Self { status, head_bytes: end + 4, body_bytes }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    #[test]
    fn heads_are_parsed_once_complete() {
        let text = b"HTTP/1.1 404 Not Found\r\nX: y\r\ncontent-LENGTH: 3\r\n\r\nabc";
        assert_eq!(Head::parse(text).unwrap(), Some(Head { status: 404, head_bytes: text.len() - 3, body_bytes: 3 }));
        assert_eq!(Head::parse(&text[..40]).unwrap(), None);
        assert!(Head::parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    /// Answers every request on every connection, one byte of the answer at a time.
    fn server(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                std::thread::spawn(move || {
                    let mut buffer = [0; 1_024];
                    while stream.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {
                        for byte in answer {
                            if stream.write_all(&[*byte]).is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        address
    }

    fn load(status: u16) -> Load {
        Load { targets: Arc::from(["/a".to_owned(), "/b".to_owned()]), status, connections: 3, end: End::OncePerTarget }
    }

    #[test]
    fn only_whole_answers_are_counted() {
        let address = server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        let seen = load(200).run(address).unwrap();
        assert_eq!(seen.requests(), 6);
        assert!(seen.percentile_us(50) <= seen.percentile_us(99));
        assert!(seen.rate() > 0.0);
    }

    #[test]
    fn a_shared_list_is_asked_once() {
        let address = server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        let seen = Load { end: End::Shared, ..load(200) }.run(address).unwrap();
        assert_eq!(seen.requests(), 2);
    }

    #[test]
    fn refuses_wrong_answers() {
        let address = server(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        assert!(format!("{:#}", load(200).run(address).unwrap_err()).contains("answered 404"));
        let address = server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhello");
        assert!(load(200).run(address).is_err());
    }
}
