//! The gateway's socket, handed over by systemd or opened here, and what systemd is told.

use anyhow::Context;
use listenfd::ListenFd;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// The first listener handed over by socket activation, otherwise a new one on `address`.
///
/// Socket activation matters: the socket outlives the daemon, so during a restart Nix waits for a moment. Without it
/// Nix is refused a connection, which aborts builds on Nix up to 2.31.
pub(super) fn bind_gateway(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let inherited = ListenFd::from_env().take_tcp_listener(0).context("the socket handed over by systemd")?;
    let listener = match inherited {
        Some(listener) => {
            let local = listener.local_addr()?;
            anyhow::ensure!(
                local.ip().is_loopback(),
                "the socket handed over by systemd listens on {local}; accepted: a loopback address"
            );
            listener
        }
        None => std::net::TcpListener::bind(address)
            .with_context(|| format!("gateway.listen = {address} cannot be opened"))?,
    };
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
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
