//! `narmesh dashboard`: pages on loopback about what the daemon does, for those who may ask for its `status`.
//!
//! Walk: [`run`] waits until somebody asks over the control socket for a link ([`LinkAsker`]). Then it opens a port on
//! loopback, and closes it when nobody has a link or a session any more. [`sessions`] turns a link into a session, once;
//! [`guard`] refuses what comes by another name, from another site, or without the session; [`server`] answers;
//! [`pages`] writes the pages, and [`live`] sends what changes in them.
//!
//! Invariants: a page changes nothing in the daemon; each text goes through maud, which escapes it; a page asks nobody but
//! this server for anything. Bounds: [`CONNECTIONS_MAX`], and those of [`sessions`], [`pages`] and [`live`].

mod answers;
mod guard;
mod live;
mod pages;
mod server;
mod sessions;
#[cfg(test)]
mod tests;

use crate::status::log::{LogQuery, LogReport};
use crate::status::{Status, WhyReport};
use answers::Site;
use parking_lot::Mutex;
use sessions::Sessions;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// Most connections at a time. A browser opens six.
const CONNECTIONS_MAX: usize = 64;
/// Links that may be asked for at a time; the next ones wait.
const ASKED_MAX: usize = 4;
/// How often it is looked for sessions that have ended.
const LOOK: Duration = Duration::from_secs(5);

/// What the pages show; the daemon implements it.
pub(crate) trait DashboardSource: Send + Sync + 'static {
    /// What `narmesh status` shows.
    fn read_status(&self) -> impl Future<Output = anyhow::Result<Status>> + Send;
    /// What `narmesh log` shows. From memory.
    fn read_log(&self, query: &LogQuery) -> anyhow::Result<LogReport>;
    /// What `narmesh why` shows.
    fn read_why(&self, path: String) -> impl Future<Output = anyhow::Result<WhyReport>> + Send;
    /// What `narmesh quorum why` says of a store path, in sentences.
    fn read_verdict(&self, path: String) -> impl Future<Output = anyhow::Result<Vec<String>>> + Send;
}

/// Asks for a link to the dashboard.
#[derive(Clone, Debug)]
pub(crate) struct LinkAsker(mpsc::Sender<oneshot::Sender<io::Result<String>>>);

/// Those who ask for a link.
pub(crate) type LinkAskers = mpsc::Receiver<oneshot::Sender<io::Result<String>>>;

/// The two ends of a queue of those who ask for a link.
pub(crate) fn link_askers() -> (LinkAsker, LinkAskers) {
    let (sender, receiver) = mpsc::channel(ASKED_MAX);
    (LinkAsker(sender), receiver)
}

impl LinkAsker {
    /// A link that can be opened once, within a minute.
    pub(crate) async fn ask(&self) -> io::Result<String> {
        let (answer, link) = oneshot::channel();
        let stopping = || io::Error::other("the daemon is stopping");
        self.0.send(answer).await.map_err(|_| stopping())?;
        link.await.map_err(|_| stopping())?
    }
}

/// Serves the dashboard whenever somebody has a link or a session, until the future is dropped.
pub(crate) async fn run<S: DashboardSource>(source: Arc<S>, mut askers: LinkAskers) {
    let sessions = Arc::<Mutex<Sessions>>::default();
    let mut listener: Option<(TcpListener, SocketAddr)> = None;
    let mut connections = JoinSet::new();
    loop {
        // Those that have ended are taken out here, or the set would grow.
        while connections.try_join_next().is_some() {}
        tokio::select! {
            asker = askers.recv() => {
                let Some(answer) = asker else { return };
                let link = open(&mut listener).await.map(|address| sessions.lock().make_link(address, Instant::now()));
                // Fails if the asker has gone; then nobody knows the link, and it dies by itself.
                drop(answer.send(link));
            }
            accepted = accept(listener.as_ref()), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, address)) => {
                    let site = Site { source: Arc::clone(&source), sessions: Arc::clone(&sessions), address };
                    connections.spawn(server::serve(stream, site));
                }
                Err(error) => {
                    tracing::warn!(%error, "the dashboard cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            () = tokio::time::sleep(LOOK) => {
                // While nobody looks there is no port at all.
                let is_wanted = sessions.lock().expire(Instant::now());
                if !is_wanted && listener.take().is_some() {
                    connections.abort_all();
                    tracing::info!("nobody has the dashboard open any more: its port is closed");
                }
            }
        }
    }
}

/// Opens a port on loopback, unless one is open.
async fn open(listener: &mut Option<(TcpListener, SocketAddr)>) -> io::Result<SocketAddr> {
    if let Some((_, address)) = listener {
        return Ok(*address);
    }
    let opened = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = opened.local_addr()?;
    tracing::info!(%address, "the dashboard is open");
    *listener = Some((opened, address));
    Ok(address)
}

async fn accept(listener: Option<&(TcpListener, SocketAddr)>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some((listener, address)) => listener.accept().await.map(|(stream, _)| (stream, *address)),
        None => std::future::pending().await,
    }
}
