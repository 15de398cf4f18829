//! The sockets that systemd hands over, the gateway's own socket, and what systemd is told.

use anyhow::Context;
use listenfd::ListenFd;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use tokio::net::TcpListener;

/// The sockets that systemd handed over, each with its name, until somebody takes them.
///
/// Socket activation matters: the socket outlives the daemon, so during a restart clients wait for a moment. Without it
/// they are refused a connection, which aborts builds on Nix up to 2.31.
pub(super) struct HandedSockets {
    sockets: ListenFd,
    /// The name of each, while nobody has taken it.
    names: Vec<Option<String>>,
}

/// A listening socket that systemd handed over. It does not block.
#[derive(Debug)]
pub(super) enum HandedSocket {
    Tcp(std::net::TcpListener),
    Unix(UnixListener),
}

impl HandedSockets {
    /// Those of the environment. To be called once: it takes the variables out of the environment.
    pub(super) fn from_env() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let sockets = ListenFd::from_env();
        let mut named = names.split(':').map(str::to_owned);
        // Without a name it is called as systemd does it.
        let names = (0..sockets.len()).map(|_| named.next().filter(|name| !name.is_empty()));
        let names = names.map(|name| Some(name.unwrap_or_else(|| "unknown".to_owned()))).collect();
        Self { sockets, names }
    }

    /// None, for tests.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self { sockets: ListenFd::empty(), names: Vec::new() }
    }

    /// Takes the one of this name.
    pub(super) fn take(&mut self, name: &str) -> anyhow::Result<HandedSocket> {
        let is_named = |found: &Option<String>| found.as_deref() == Some(name);
        let mut found = (0..self.names.len()).filter(|at| self.names.get(*at).is_some_and(is_named));
        match (found.next(), found.next()) {
            (Some(at), None) => self.take_at(at),
            // Which of them is meant cannot be told, and clients of the other would wait without end.
            (Some(_), Some(_)) => anyhow::bail!(
                "systemd handed over several sockets with the name {name:?}; accepted: one, so a socket unit with one \
                 ListenStream= and a FileDescriptorName= of its own for each listener"
            ),
            (None, _) => anyhow::bail!(
                "systemd handed over no socket with the name {name:?}, but {}; accepted: the FileDescriptorName= of a socket \
                 unit that is named in Sockets= of the service",
                self.list_left()
            ),
        }
    }

    /// The gateway's socket: the one that is left when all listeners have theirs, otherwise a new one on `address`.
    pub(super) fn bind_gateway(mut self, address: SocketAddr) -> anyhow::Result<TcpListener> {
        let left: Vec<usize> =
            (0..self.names.len()).filter(|at| matches!(self.names.get(*at), Some(Some(_)))).collect();
        let listener = match left[..] {
            [] => {
                let listener = std::net::TcpListener::bind(address)
                    .with_context(|| format!("gateway.listen = {address} cannot be opened"))?;
                listener.set_nonblocking(true)?;
                listener
            }
            [at] => match self.take_at(at)? {
                HandedSocket::Tcp(listener) => {
                    let local = listener.local_addr()?;
                    anyhow::ensure!(
                        // The gateway answers for the whole mesh, whoever asks; systemd must not open it to the network
                        // by mistake.
                        local.ip().is_loopback(),
                        "the socket handed over by systemd listens on {local}; accepted: a loopback address, or a listener \
                         in [[gateway.listener]] with address = \"systemd:NAME\""
                    );
                    listener
                }
                HandedSocket::Unix(_) => anyhow::bail!(
                    "the socket handed over by systemd for gateway.listen is a Unix socket; accepted: a TCP socket on \
                     loopback, or a listener in [[gateway.listener]] with address = \"systemd:NAME\""
                ),
            },
            // Clients would connect to those that nobody takes, and never get an answer.
            _ => anyhow::bail!(
                "systemd handed over {}; accepted: one for gateway.listen, and one for each [[gateway.listener]] with \
                 address = \"systemd:NAME\"",
                self.list_left()
            ),
        };
        Ok(TcpListener::from_std(listener)?)
    }

    fn take_at(&mut self, at: usize) -> anyhow::Result<HandedSocket> {
        let name = self.names.get_mut(at).and_then(Option::take).unwrap_or_default();
        let wrong = || {
            anyhow::anyhow!(
                "the socket {name:?} handed over by systemd is not one that clients connect to; accepted: ListenStream= with \
                 a TCP port or the path of a Unix socket, and Accept=no"
            )
        };
        let socket = match self.sockets.take_tcp_listener(at) {
            Ok(Some(socket)) => HandedSocket::Tcp(socket),
            Ok(None) | Err(_) => {
                HandedSocket::Unix(self.sockets.take_unix_listener(at).ok().flatten().ok_or_else(wrong)?)
            }
        };
        // A connected socket, as `Accept=yes` hands over, would look like a listener on which nobody ever calls.
        let is_listening = match &socket {
            HandedSocket::Tcp(socket) => socket.set_nonblocking(true).and_then(|()| is_listener(socket)),
            HandedSocket::Unix(socket) => socket.set_nonblocking(true).and_then(|()| is_listener(socket)),
        };
        if is_listening? { Ok(socket) } else { Err(wrong()) }
    }

    fn list_left(&self) -> String {
        let left: Vec<_> = self.names.iter().flatten().map(|name| format!("{name:?}")).collect();
        if left.is_empty() { "none besides".to_owned() } else { left.join(", ") }
    }
}

fn is_listener<S: std::os::fd::AsFd>(socket: &S) -> std::io::Result<bool> {
    socket2::SockRef::from(socket).is_listener()
}

/// Tells systemd (`Type=notify`) that the daemon is up.
pub(super) fn notify_ready() {
    notify(&[sd_notify::NotifyState::Ready]);
}

/// Tells systemd (`Type=notify`) that the daemon is going down.
pub(super) fn notify_stopping() {
    notify(&[sd_notify::NotifyState::Stopping]);
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    // Does nothing if systemd did not start the daemon.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}
