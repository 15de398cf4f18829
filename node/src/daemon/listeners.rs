//! `[[gateway.listener]]`: the places where others ask, each with its role.

use super::access::LiveTokens;
use super::certificate::LiveCertificate;
use super::listener::{HandedSocket, HandedSockets};
use crate::settings::{GatewayRole, ListenerAddress, ListenerSettings};
use crate::status::ListenerStatus;
use crate::substituter::{GatewaySubstituter, Scope};
use anyhow::Context;
use narmesh_http_gateway::{
    Access, ConnectionCount, Endpoints, Gateway, GatewayLimits, GatewayMetrics, HostCheck, Listener, ListenerRole,
    TlsSettings,
};
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

/// A listener that is open and does not answer yet.
#[derive(Debug)]
pub(super) struct OpenListener {
    settings: ListenerSettings,
    listener: Listener,
    tokens: Option<Arc<LiveTokens>>,
    shown: ShownListener,
    /// Removes the file of a Unix socket when the listener has ended.
    _file: Option<SocketFile>,
}

/// What can be told and renewed of a listener while it serves.
#[derive(Clone, Debug)]
pub(super) struct ShownListener {
    address: String,
    role: GatewayRole,
    needs_token: bool,
    /// Its certificate, if it has one.
    pub(super) certificate: Option<Arc<LiveCertificate>>,
    count: ConnectionCount,
}

impl ShownListener {
    pub(super) fn status(&self) -> ListenerStatus {
        ListenerStatus {
            address: self.address.clone(),
            role: self.role.name().to_owned(),
            needs_token: self.needs_token,
            tls: self.certificate.as_ref().map(|certificate| certificate.status()),
            connections: self.count.get() as u64,
        }
    }
}

impl OpenListener {
    pub(super) fn shown(&self) -> ShownListener {
        self.shown.clone()
    }
}

#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "the socket of a listener is not there any more");
        }
    }
}

/// Opens all listeners. Needs a tokio runtime.
///
/// # Errors
/// When one cannot be opened: then others would be refused without anybody noticing.
pub(super) fn open_all(settings: &[ListenerSettings], handed: &mut HandedSockets) -> anyhow::Result<Vec<OpenListener>> {
    settings.iter().enumerate().map(|(index, settings)| open_one(index, settings, handed)).collect()
}

fn open_one(index: usize, settings: &ListenerSettings, handed: &mut HandedSockets) -> anyhow::Result<OpenListener> {
    let failed = || format!("gateway.listener[{index}].address = {} cannot be opened", settings.address);
    // Read before anything is opened, because an error here is the likelier one.
    let certificate = settings.tls.as_ref().map(|files| LiveCertificate::open(index, files)).transpose()?;
    let (socket, settings, file) = match &settings.address {
        ListenerAddress::Tcp(address) => {
            let listener = bind_tcp(*address).with_context(failed)?;
            (Socket::Tcp(listener), settings.clone(), None)
        }
        ListenerAddress::Unix(path) => {
            let listener = bind_unix(path, settings.role).with_context(failed)?;
            (Socket::Unix(listener), settings.clone(), Some(SocketFile(path.clone())))
        }
        ListenerAddress::Systemd(name) => {
            let (socket, address) = take_handed(name, handed).with_context(failed)?;
            // Only now it is known who can connect there.
            (socket, settings.at(index, address)?, None)
        }
    };
    // Here, because only now it is known whether a socket of systemd is on the network.
    if let Some(warning) = settings.warn_of_plain_tokens(index) {
        tracing::warn!("{warning}");
    }
    let (listener, address) = match (socket, &certificate) {
        (Socket::Tcp(listener), None) => {
            let address = listener.local_addr()?.to_string();
            (listener.into(), address)
        }
        (Socket::Tcp(listener), Some(certificate)) => {
            let address = listener.local_addr()?.to_string();
            (Listener::Tls(listener, Arc::clone(certificate) as Arc<dyn TlsSettings>), address)
        }
        (Socket::Unix(listener), _) => (listener.into(), settings.address.to_string()),
    };
    // A file that cannot be read stops the start: without it nobody knows who may ask.
    let tokens = settings.tokens_file.as_deref().map(LiveTokens::open).transpose();
    let tokens = tokens.with_context(|| format!("gateway.listener[{index}].tokens_file"))?;
    let shown = ShownListener {
        address,
        role: settings.role,
        needs_token: tokens.is_some(),
        certificate,
        count: ConnectionCount::default(),
    };
    Ok(OpenListener { settings, listener, tokens, shown, _file: file })
}

/// A socket that is open, before it is known how its clients are answered.
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The socket that systemd handed over under this name, and where it is.
fn take_handed(name: &str, handed: &mut HandedSockets) -> anyhow::Result<(Socket, ListenerAddress)> {
    Ok(match handed.take(name)? {
        HandedSocket::Tcp(listener) => {
            let address = ListenerAddress::Tcp(listener.local_addr()?);
            (Socket::Tcp(TcpListener::from_std(listener)?), address)
        }
        HandedSocket::Unix(listener) => {
            // A socket in the abstract namespace has no path, and no file that says who may connect.
            let path = listener.local_addr()?.as_pathname().map(Path::to_owned);
            let path = path.context("the socket has no path; accepted: a Unix socket with a path")?;
            (Socket::Unix(UnixListener::from_std(listener)?), ListenerAddress::Unix(path))
        }
    })
}

fn bind_tcp(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    // As the library does for the other listeners: a restart need not wait for connections of before.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // "[::]" is all of IPv6: who wants IPv4 as well names it.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(1_024)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into())?)
}

/// Opens the socket in place of one that a dead daemon left.
fn bind_unix(path: &Path, role: GatewayRole) -> anyhow::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
        Ok(found) if !found.file_type().is_socket() => anyhow::bail!("there is something that is not a socket"),
        Ok(_) if BlockingStream::connect(path).is_ok() => anyhow::bail!("somebody answers there already"),
        Ok(_) => std::fs::remove_file(path)?,
    }
    let listener = UnixListener::bind(path)?;
    // What may leave this machine is for everybody. All else is for the daemon's user and group.
    let mode = match role {
        GatewayRole::Serve => 0o666,
        GatewayRole::Local | GatewayRole::Site => 0o660,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// Answers on all of them until `on_stop` resolves for each, and then as long as their bodies take.
pub(super) fn serve_all<F: Future<Output = ()> + Send + 'static>(
    open: Vec<OpenListener>,
    substituter: &GatewaySubstituter,
    metrics: &Arc<GatewayMetrics>,
    registry: &Arc<Registry>,
    limits: &GatewayLimits,
    on_stop: impl Fn() -> F,
) -> JoinSet<()> {
    let mut serving = JoinSet::new();
    for OpenListener { settings, listener, tokens, shown, _file } in open {
        let scope = match settings.role {
            GatewayRole::Local => Scope::Local,
            GatewayRole::Serve => Scope::Serve,
            GatewayRole::Site => Scope::Site,
        };
        tracing::info!(
            address = shown.address,
            role = settings.role.name(),
            tls = settings.tls.is_some(),
            "others may ask here"
        );
        let [substituter, own_store] = [scope, Scope::Serve].map(|scope| Arc::new(substituter.with_scope(scope)));
        let access_log = settings.access_log.then(|| shown.address.clone());
        let trusted_proxies = settings.trusted_proxies.clone();
        let role = ListenerRole { access_log, zstd: settings.zstd, trusted_proxies, ..role_of(&settings, tokens) };
        let gateway = Gateway::new(substituter, role, Arc::clone(metrics), Arc::clone(registry));
        let gateway = gateway.with_own_store(own_store).counting(shown.count);
        let limits = GatewayLimits {
            connections_max: settings.connections_max,
            connections_per_user_max: settings.connections_per_client_max,
            idle_timeout: settings.idle_timeout,
            stall_timeout: settings.stall_timeout,
            ..limits.clone()
        };
        let stop = on_stop();
        serving.spawn(async move {
            narmesh_http_gateway::serve(listener, gateway, limits, stop).await;
            // Only now, so that the socket's file stays for as long as somebody may connect.
            drop(_file);
        });
    }
    serving
}

fn role_of(settings: &ListenerSettings, tokens: Option<Arc<LiveTokens>>) -> ListenerRole {
    let is_any = settings.host_names.iter().any(|name| name == "*");
    let host_check = match &settings.address {
        ListenerAddress::Unix(_) => HostCheck::Nothing,
        // It was replaced by the address that it has.
        ListenerAddress::Systemd(_) => HostCheck::Loopback,
        ListenerAddress::Tcp(_) if is_any => HostCheck::Nothing,
        ListenerAddress::Tcp(_) => HostCheck::Addresses,
    };
    let host_names = settings.host_names.iter().filter(|name| *name != "*").cloned().collect();
    let role = ListenerRole::for_others(host_check, host_names);
    let endpoints = Endpoints { metrics: settings.role == GatewayRole::Local, ..role.endpoints };
    let access = tokens.map(|tokens| tokens as Arc<dyn Access>);
    ListenerRole { endpoints, access, ..role }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_http_gateway::TrustedProxies;
    use std::time::Duration;

    fn unix(path: &Path, role: GatewayRole) -> ListenerSettings {
        let address = ListenerAddress::Unix(path.to_owned());
        ListenerSettings {
            address,
            role,
            host_names: Vec::new(),
            tokens_file: None,
            tls: None,
            connections_max: 1,
            connections_per_client_max: 1,
            idle_timeout: Duration::from_secs(1),
            stall_timeout: Duration::from_secs(1),
            zstd: false,
            trusted_proxies: TrustedProxies::default(),
            access_log: false,
        }
    }

    #[tokio::test]
    async fn socket_of_a_dead_daemon_is_replaced_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        for (role, mode) in [(GatewayRole::Serve, 0o666), (GatewayRole::Site, 0o660), (GatewayRole::Local, 0o660)] {
            let open = open_all(&[unix(&path, role)], &mut HandedSockets::none()).unwrap();
            let found = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "{role:?}");
            let error = format!("{:#}", open_all(&[unix(&path, role)], &mut HandedSockets::none()).unwrap_err());
            assert!(
                error.contains("gateway.listener[0].address") && error.contains("answers there already"),
                "{error}"
            );
            drop(open);
            assert!(!path.exists(), "removed with the listener");
        }
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        drop(open_all(&[unix(&path, GatewayRole::Serve)], &mut HandedSockets::none()).unwrap());
        std::fs::write(&path, "a file").unwrap();
        assert!(open_all(&[unix(&path, GatewayRole::Serve)], &mut HandedSockets::none()).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"a file");
    }
}
