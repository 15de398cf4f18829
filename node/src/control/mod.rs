//! The control socket: how the command line talks to the running daemon.
//!
//! A Unix socket of mode 0660, for the daemon's user and one group. A connection carries any number of requests and
//! replies, each of them one line of JSON. [`ControlRequest::Quorum`] is the last request on its connection: its answer
//! has many lines ([`ask_in_parts`]).
//!
//! Bounds: [`REQUEST_BYTES_MAX`], [`REPLY_BYTES_MAX`], [`CONNECTIONS_MAX`], [`CONNECTIONS_OF_OTHERS_MAX`],
//! [`STREAMS_MAX`], [`IDLE_MAX`].

mod places;
mod stream;

pub use self::stream::{AT_ONCE_MAX, Asker, Input, Output, PartReader, STREAMS_MAX, ask_in_parts};

use self::places::Places;
use self::stream::Turns;
use crate::account::look_up_group_id;
use crate::attestations::Question;
use crate::serving::{ServeState, ServeSwitch};
use crate::status::log::{LogQuery, LogReport};
use crate::status::{AdvertisedReport, PeerProbe, Status, WhyReport};
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader as AsyncBufReader};
use tokio::net::{UnixListener, UnixStream};

/// Longest request line, bytes.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Longest reply line, bytes: 200,000 advertised paths at about 200 bytes each, with room to spare.
pub const REPLY_BYTES_MAX: usize = 64 << 20;
/// Most connections at a time of root, and of the daemon's user.
pub const CONNECTIONS_MAX: usize = 16;
/// Most connections at a time of each other user.
pub const CONNECTIONS_OF_OTHERS_MAX: usize = 4;
/// For each of these, so many may wait for it or be served; further ones are refused.
const WAITING_PER_PLACE_MAX: usize = 4;
/// A connection is closed when it sends no request, or takes no reply, for this long.
pub const IDLE_MAX: Duration = Duration::from_secs(30);

/// A request to the daemon.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlRequest {
    /// The state of the daemon.
    Status,
    /// What leaves this machine, and what is withheld.
    Advertised,
    /// What would happen to a path now, and what happened last.
    Why {
        /// Full store path, base name, or hash part.
        path: String,
    },
    /// What the resolver decided, and the NARs that Nix asked for.
    Log(LogQuery),
    /// A link to the dashboard.
    Dashboard,
    /// Read the configuration again, as SIGHUP does.
    Reload,
    /// Dial one peer, or all.
    Probe {
        /// The name or peer id of the peer; all peers if `None`.
        peer: Option<String>,
    },
    /// Say whether peers get anything of this machine, after setting the switch if one is given.
    Serve(Option<ServeSwitch>),
    /// A question of `narmesh quorum`, answered with [`crate::attestations::Part`]s.
    Quorum(Question),
}

/// A reply of the daemon.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlReply {
    /// To `Status`.
    Status(Box<Status>),
    /// To `Advertised`.
    Advertised(AdvertisedReport),
    /// To `Why`.
    Why(Box<WhyReport>),
    /// To `Log`.
    Log(LogReport),
    /// To `Dashboard`.
    Dashboard {
        /// Opens it once, within a minute.
        link: String,
    },
    /// To `Reload`: the new settings are in force.
    Reloaded,
    /// To `Serve`.
    Serve(ServeState),
    /// To `Probe`.
    Probe(Vec<PeerProbe>),
    /// The request was refused.
    Refused {
        /// The reason for the refusal, for people.
        why: String,
    },
}

/// Answers requests; the daemon implements it.
pub trait ControlHandler: Send + Sync + 'static {
    /// Answers a request other than [`ControlRequest::Quorum`] with one reply.
    fn handle(&self, request: ControlRequest) -> impl Future<Output = ControlReply> + Send;

    /// Sends the answer to a question part by part, without the last part, which the caller sends. May block. Fails if
    /// a part cannot be sent.
    fn stream(&self, question: &Question, asker: &mut Asker) -> anyhow::Result<()>;
}

/// Why the socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No daemon answers.
    #[error("no narmesh daemon answers on {path}; start one with `narmesh run`, or name its configuration with --config", path = path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// This user may not use the socket.
    #[error("no permission for {path}; run this as root, or as a member of the group of that socket", path = path.display())]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// Another daemon serves the socket.
    #[error("another narmesh daemon answers on {path}", path = path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// There is something else at the path.
    #[error("{path} exists and is not a socket; move it away, or set node.control_socket", path = path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The configured group does not exist, or the daemon may not give the socket to it.
    #[error("node.control_group = {group:?}: {why}; accepted: a group that the daemon's user is a member of")]
    Group {
        /// The group as written in the configuration.
        group: String,
        /// The error of finding the group or of changing the socket's group.
        why: io::Error,
    },
    /// Reading or writing failed.
    #[error("control socket {path}: {source}", path = path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The error of the operation on the socket.
        source: io::Error,
    },
    /// The daemon's answer could not be parsed; it may be of another version.
    #[error("the daemon on {path} gave an answer that this version does not understand: {source}", path = path.display())]
    Reply {
        /// The socket.
        path: PathBuf,
        /// The error of parsing the reply or of encoding the request.
        source: serde_json::Error,
    },
}

/// A bound control socket; dropping it removes its file.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Binds the socket for the daemon's user and `group` (its own if `None`), in place of one that a dead daemon left.
    /// Needs a tokio runtime.
    pub fn bind(path: &Path, group: Option<&str>) -> Result<Self, ControlError> {
        let io_error = |source| ControlError::Io { path: path.to_owned(), source };
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error(error)),
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(ControlError::NoSocket { path: path.to_owned() });
            }
            Ok(_) if BlockingStream::connect(path).is_ok() => {
                return Err(ControlError::InUse { path: path.to_owned() });
            }
            // Nobody answers on this socket, so a dead daemon left it.
            Ok(_) => std::fs::remove_file(path).map_err(io_error)?,
        }
        let listener = UnixListener::bind(path).map_err(io_error)?;
        let socket = Self { listener, path: path.to_owned() };
        // The group is set before the mode: otherwise the wrong group could use the socket for a moment.
        if let Some(group) = group {
            let refused = |why| ControlError::Group { group: group.to_owned(), why };
            let id = look_up_group_id(group).ok_or_else(|| refused(io::ErrorKind::NotFound.into()))?;
            chown(path, None, Some(id)).map_err(refused)?;
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(io_error)?;
        Ok(socket)
    }

    /// Serves until the future is dropped.
    pub async fn serve<H: ControlHandler>(self, handler: Arc<H>) {
        let own_uid = rustix::process::geteuid().as_raw();
        let (places, turns) = (Places::new(own_uid), Turns::new(own_uid));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            // Those that have ended are taken out here, or the set would grow for as long as the daemon runs.
            while connections.try_join_next().is_some() {}
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    // Users are told apart, so that one who opens many connections takes no places of others.
                    let Some(place) = stream.peer_cred().ok().and_then(|asker| places.take_in(asker.uid())) else {
                        refuse(&stream);
                        continue;
                    };
                    let (handler, turns) = (Arc::clone(&handler), Arc::clone(&turns));
                    connections.spawn(async move {
                        let Some(_served) = place.wait().await else { return };
                        if let Err(error) = serve_connection(stream, handler, turns).await {
                            tracing::debug!(%error, "control connection closed");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "control socket cannot accept");
                    // Without it, a process that is out of descriptors would do nothing but this.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // An error does not matter: the next start replaces what is left.
        drop(std::fs::remove_file(&self.path));
    }
}

/// Tells a client that its user has too many connections, if that can be told at once.
fn refuse(stream: &UnixStream) {
    let why = "this user has too many connections to the control socket; wait until some have ended".to_owned();
    let told = encode_reply(&ControlReply::Refused { why }).and_then(|reply| stream.try_write(&reply));
    if let Err(error) = told {
        tracing::debug!(%error, "a client could not be told that its user has too many connections");
    }
}

async fn serve_connection<H: ControlHandler>(stream: UnixStream, handler: Arc<H>, turns: Arc<Turns>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = AsyncBufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        // One byte more than is accepted shows that the line goes on.
        let mut bounded = (&mut read).take(REQUEST_BYTES_MAX as u64 + 1);
        limit_time(bounded.read_until(b'\n', &mut line)).await?;
        if line.is_empty() {
            return Ok(());
        }
        let whole = line.ends_with(b"\n") && line.len() <= REQUEST_BYTES_MAX;
        let reply = match (whole, serde_json::from_slice(&line)) {
            (true, Ok(ControlRequest::Quorum(question))) => {
                // What was read beyond the question is part of what the asker sends with it.
                let rest = read.buffer().to_vec();
                let stream = read.into_inner().reunite(write).map_err(io::Error::other)?;
                return stream::serve(stream, rest, question, handler, turns).await;
            }
            (true, Ok(request)) => handler.handle(request).await,
            (true, Err(error)) => ControlReply::Refused { why: format!("not a request: {error}") },
            (false, _) => {
                ControlReply::Refused { why: format!("a request is one line of at most {REQUEST_BYTES_MAX} bytes") }
            }
        };
        limit_time(write.write_all(&encode_reply(&reply)?)).await?;
        // Where the next line begins is not known any more.
        if !whole {
            return Ok(());
        }
    }
}

fn encode_reply(reply: &ControlReply) -> io::Result<Vec<u8>> {
    let mut encoded = serde_json::to_vec(reply)?;
    // The asker would cut it there, and take what is left for damage.
    if encoded.len() >= REPLY_BYTES_MAX {
        let why = format!("the reply would take {} bytes, more than {REPLY_BYTES_MAX}", encoded.len());
        encoded = serde_json::to_vec(&ControlReply::Refused { why })?;
    }
    encoded.push(b'\n');
    Ok(encoded)
}

async fn limit_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(IDLE_MAX, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Sends one request to the daemon and blocks for its reply; each read and write takes at most `timeout`.
pub fn ask(path: &Path, request: &ControlRequest, timeout: Duration) -> Result<ControlReply, ControlError> {
    let io_error = |source| ControlError::Io { path: path.to_owned(), source };
    let stream = connect(path, request, timeout)?;
    let mut reply = Vec::new();
    BufReader::new(stream).take(REPLY_BYTES_MAX as u64).read_until(b'\n', &mut reply).map_err(io_error)?;
    if reply.is_empty() {
        return Err(io_error(io::ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_slice(&reply).map_err(|source| ControlError::Reply { path: path.to_owned(), source })
}

/// Connects and sends `request`.
fn connect(path: &Path, request: &ControlRequest, timeout: Duration) -> Result<BlockingStream, ControlError> {
    let io_error = |source| ControlError::Io { path: path.to_owned(), source };
    let mut stream = BlockingStream::connect(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ControlError::NotRunning { path: path.to_owned() }
        }
        io::ErrorKind::PermissionDenied => ControlError::Permission { path: path.to_owned() },
        _ => io_error(source),
    })?;
    stream.set_read_timeout(Some(timeout)).map_err(io_error)?;
    stream.set_write_timeout(Some(timeout)).map_err(io_error)?;
    let mut line =
        serde_json::to_vec(request).map_err(|source| ControlError::Reply { path: path.to_owned(), source })?;
    line.push(b'\n');
    stream.write_all(&line).map_err(io_error)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Fixed(AtomicUsize);

    impl ControlHandler for Fixed {
        async fn handle(&self, request: ControlRequest) -> ControlReply {
            self.0.fetch_add(1, Ordering::Relaxed);
            match request {
                ControlRequest::Reload => ControlReply::Reloaded,
                ControlRequest::Advertised => ControlReply::Advertised(AdvertisedReport::default()),
                ControlRequest::Status
                | ControlRequest::Why { .. }
                | ControlRequest::Log(_)
                | ControlRequest::Dashboard
                | ControlRequest::Probe { .. }
                | ControlRequest::Serve(_)
                | ControlRequest::Quorum(_) => ControlReply::Refused { why: "not here".to_owned() },
            }
        }

        fn stream(&self, _: &Question, _: &mut Asker) -> anyhow::Result<()> {
            anyhow::bail!("not here")
        }
    }

    fn ask_in_time(path: &Path, request: ControlRequest) -> Result<ControlReply, ControlError> {
        ask(path, &request, Duration::from_secs(10))
    }

    async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    #[tokio::test]
    async fn good_requests_are_answered_and_bad_ones_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let socket = ControlSocket::bind(&path, None).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let server = tokio::spawn(socket.serve(Arc::new(Fixed::default())));
        let at = path.clone();
        blocking(move || {
            assert_eq!(ask_in_time(&at, ControlRequest::Reload).unwrap(), ControlReply::Reloaded);
            let advertised = ask_in_time(&at, ControlRequest::Advertised).unwrap();
            assert_eq!(advertised, ControlReply::Advertised(AdvertisedReport::default()));
            assert!(matches!(ControlSocket::bind(&at, None), Err(ControlError::InUse { .. })));
            // Two requests on one connection, the first of them invalid.
            let mut stream = BlockingStream::connect(&at).unwrap();
            stream.write_all(b"{\"launch\":1}\n\"reload\"\n").unwrap();
            let mut lines = BufReader::new(stream).lines();
            assert!(lines.next().unwrap().unwrap().contains("not a request"));
            assert_eq!(lines.next().unwrap().unwrap(), "\"reloaded\"");
            // A line without an end is refused at the limit.
            let mut stream = BlockingStream::connect(&at).unwrap();
            stream.write_all(&vec![b'x'; REQUEST_BYTES_MAX + 1]).unwrap();
            let mut reply = String::new();
            BufReader::new(stream).read_line(&mut reply).unwrap();
            assert!(reply.contains("at most 65536 bytes"), "{reply}");
        })
        .await;
        server.abort();
        assert!(server.await.unwrap_err().is_cancelled());
        assert!(!path.exists(), "the socket file goes with its server");
    }

    #[tokio::test]
    async fn a_socket_left_by_a_dead_daemon_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(matches!(ask_in_time(&path, ControlRequest::Status), Err(ControlError::NotRunning { .. })));
        ControlSocket::bind(&path, None).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(ControlSocket::bind(&path, None), Err(ControlError::NoSocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn without_a_daemon_the_error_says_what_to_do() {
        let message =
            ask_in_time(Path::new("/nonexistent/control.sock"), ControlRequest::Status).unwrap_err().to_string();
        assert!(message.contains("/nonexistent/control.sock") && message.contains("narmesh run"), "{message}");
    }
}
