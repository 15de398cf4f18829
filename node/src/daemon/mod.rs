//! `narmesh run`: starts everything in order, reloads on SIGHUP, and says goodbye to the peers on SIGTERM.
//!
//! Walk: settings and secrets, state database, Nix store and the offer, mesh, resolver, control socket, gateway; then
//! signals. The gateway's socket is opened first and closed last: a refused connection aborts builds on Nix up to 2.31.

mod access;
mod advertised;
mod certificate;
mod clock;
mod control;
mod dashboard;
mod follow;
mod lan;
mod listener;
mod listeners;
mod members;
mod metrics;
mod part_settings;
mod process_metrics;
mod publish;
mod requests;
mod signals;
mod status;
mod store;

use crate::attestations::{Attestations, LiveLedger};
use crate::control::ControlSocket;
use crate::dashboard::{LinkAsker, link_askers};
use crate::describe::describe;
use crate::given_totals::GivenTotals;
use crate::membership::files::MeshFiles;
use crate::membership::joins::Admission;
use crate::serving::{ServeState, Serving, minute_now};
use crate::settings::{Secrets, Settings, TlsInForce};
use crate::sources::{AllSources, PreparedUpstreams, UpstreamSources};
use crate::state_db::{SharedStateDb, StateDb, StateDbError, SummaryFiles};
use crate::substituter::{GatewaySubstituter, Scope};
pub(crate) use members::with_members;

use certificate::LiveCertificate;
use clock::warn_if_clock_is_unset;
use listener::HandedSockets;
use listeners::{OpenListener, ShownListener};
use narmesh_http_gateway::{Gateway, GatewayLimits, GatewayMetrics, ListenerRole};
use narmesh_mesh::{Mesh, MeshHandle, MeshParts, PeerStatistics, SummaryStore, Uploads};
use narmesh_protocol::{HashPart, NixSecretKey};
use narmesh_quorum::{Mode, Policy};
use narmesh_resolver::Resolver;
use narmesh_store::{NixStore, Offer, PartialCopies};
use parking_lot::RwLock;
use part_settings::{
    key_names, load_gateway_key, may_compress, mesh_config, offer_policy, prepare_upstreams, quorum_policy,
    resolver_settings, upload_limits,
};
use prometheus_client::registry::Registry;
use signals::Signals;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

/// How long bodies that are being sent may take to end after SIGTERM.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// The parts of a running daemon, and what they share.
pub(crate) struct Daemon {
    config_file: PathBuf,
    started: Instant,
    secrets: Secrets,
    in_force: RwLock<InForce>,
    /// One reload at a time: SIGHUP and the control socket may ask for two at once.
    reloading: tokio::sync::Mutex<()>,
    admission: Arc<Admission>,
    gateway_address: SocketAddr,
    listeners: Vec<ShownListener>,
    store: Arc<NixStore>,
    offer: Arc<Offer>,
    mesh: MeshHandle,
    lan: lan::Discovery,
    resolver: Arc<Resolver>,
    serving: Serving,
    /// Whether what is in force serves peers.
    is_serving: AtomicBool,
    sources: Arc<AllSources>,
    upstreams: Arc<UpstreamSources>,
    uploads: Uploads,
    partial_copies: PartialCopies,
    gateway_metrics: Arc<GatewayMetrics>,
    attestations: Attestations,
    given_totals: GivenTotals,
    link_asker: LinkAsker,
}

/// The settings in force.
struct InForce {
    /// With the members of the roster.
    settings: Arc<Settings>,
    /// As the configuration says, without them.
    configured: Arc<Settings>,
    loaded_unix_s: u64,
    /// Why the last reload was refused, if it was.
    error: Option<String>,
}

/// Runs the daemon on the settings in `config_file` until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start. Once it runs, failures are logged and shown in `status`.
pub fn run(config_file: &Path) -> anyhow::Result<()> {
    gather_entropy();
    let configured = Settings::load(config_file)?;
    let secrets = configured.read_secrets()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("narmesh").build()?;
    runtime.block_on(serve(config_file, configured, secrets))
}

/// Gathers entropy while everything else starts. AWS-LC times the processor before it gives its first random number,
/// which took 45 to 80 ms when measured. Otherwise the first handshake with a peer, and the first lookup with it, would
/// wait for that.
fn gather_entropy() {
    let gather = || rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut [0]);
    // If this fails, the handshake gathers entropy itself, or reports why it cannot.
    drop(thread::Builder::new().name("entropy".to_owned()).spawn(gather));
}

async fn serve(config_file: &Path, configured: Settings, secrets: Secrets) -> anyhow::Result<()> {
    warn_if_clock_is_unset();
    let settings = with_members(&configured, &secrets.peer_id(), None);
    let policy = quorum_policy(&settings, &secrets)?;
    let mut handed = HandedSockets::from_env();
    let for_others = listeners::open_all(&settings.gateway.listeners, &mut handed)?;
    let gateway_listener = handed.bind_gateway(settings.gateway.listen)?;
    let gateway_address = gateway_listener.local_addr()?;
    let state = SharedStateDb::new(open_state(&settings.node.state_dir)?);
    let summaries = open_summaries(&settings.node.state_dir);
    let control = ControlSocket::bind(&settings.node.control_socket, settings.node.control_group.as_deref())?;
    let store = store::open(&settings.store).await?;
    state.restore_failed_copies(&store);
    let gateway_key = load_gateway_key(&settings)?;
    let serving = Serving::open(&settings.node.state_dir);
    let is_serving = serving.decide(&settings, minute_now()).is_serving;
    let offered = offer_policy(&settings, &secrets, gateway_key.as_ref(), is_serving);
    let (offer, offer_changes) = publish::start_offer(&store, offered)?;
    let ledger = open_ledger(&settings, &secrets, &store, policy);
    let (attestations, exchange) =
        Attestations::start(ledger, &store, &offer, secrets.builder_key.clone(), settings.quorum.signers())?;
    let statistics = Arc::new(PeerStatistics::default());
    let partial_copies = PartialCopies::start(
        Arc::clone(&offer),
        settings.node.state_dir.clone(),
        settings.limits.partial_copies_bytes,
    )?;
    let uploads = make_uploads(&settings, &offer, &partial_copies, &statistics);
    let admission = Arc::new(Admission::new(MeshFiles::new(&settings.node.state_dir), secrets.peer_id()));
    admission.set_mesh(settings.mesh.key.clone(), settings.mesh.roster.clone());
    let (news, heard) = mpsc::channel(1);
    let parts = MeshParts {
        news,
        join_handler: admission.handler(),
        offer: Arc::clone(&offer),
        uploads: uploads.clone(),
        statistics,
        state: Box::new(state.clone()),
        summaries,
        exchange,
    };
    let (mut mesh, handle) =
        Mesh::start(&secrets.keypair, settings.store.store_dir.clone(), mesh_config(&settings, &secrets), parts)?;
    mesh.wait_until_listening().await;
    let mesh_task = tokio::spawn(mesh.run());
    let upstreams = Arc::new(UpstreamSources::new(settings.store.store_dir.clone()));
    upstreams.put_in_force(prepare_upstreams(&upstreams, &settings)?);
    let sources = Arc::new(AllSources::new(
        (handle.clone(), secrets.peer_id()),
        uploads.clone(),
        Arc::clone(&upstreams),
        settings.gateway.prefer,
    ));
    let resolver = Arc::new(Resolver::new(
        Arc::clone(&store),
        Arc::<AllSources>::clone(&sources),
        Arc::new(state.clone()),
        attestations.builders(handle.clone()),
        resolver_settings(&settings, &secrets, gateway_key),
        settings.limits.nar_buffer_bytes,
        Some(partial_copies.clone()),
    ));
    let [gateway_metrics, others_metrics] = [(); 2].map(|()| Arc::new(GatewayMetrics::default()));
    let gateways = (&*gateway_metrics, &*others_metrics);
    let registry = metrics::registry(gateways, &attestations, &resolver, &handle, &upstreams);
    let (link_asker, link_askers) = link_askers();
    let daemon = Arc::new(Daemon {
        config_file: config_file.to_owned(),
        started: Instant::now(),
        lan: lan::Discovery::start(handle.clone(), secrets.peer_id(), &settings),
        secrets,
        link_asker,
        given_totals: GivenTotals::open(&settings.node.state_dir),
        in_force: RwLock::new(InForce {
            settings: Arc::new(settings),
            configured: Arc::new(configured),
            loaded_unix_s: unix_s(),
            error: None,
        }),
        admission,
        reloading: tokio::sync::Mutex::default(),
        serving,
        is_serving: AtomicBool::new(is_serving),
        gateway_address,
        listeners: for_others.iter().map(OpenListener::shown).collect(),
        store,
        offer,
        mesh: handle,
        resolver,
        sources,
        upstreams,
        uploads,
        partial_copies,
        gateway_metrics: Arc::clone(&gateway_metrics),
        attestations,
    });
    let _watcher = publish::follow_store(&daemon.store, &daemon.resolver, daemon.attestations.ledger(), state)?;
    let on_dropped = daemon.attestations.on_dropped();
    tokio::spawn(publish::tell_mesh(Arc::clone(&daemon.offer), offer_changes, daemon.mesh.clone(), on_dropped));
    // Before anybody gets an answer: until then a signal ends the process at once, and with it what it answers.
    let signals = Signals::listen()?;
    let background = [
        mesh_task.abort_handle(),
        tokio::spawn(control.serve(Arc::clone(&daemon))).abort_handle(),
        tokio::spawn(Arc::clone(&daemon).follow_serving()).abort_handle(),
        tokio::spawn(Arc::clone(&daemon).keep_totals()).abort_handle(),
        tokio::spawn(crate::dashboard::run(Arc::clone(&daemon), link_askers)).abort_handle(),
        tokio::spawn(Arc::clone(&daemon).follow_roster(heard)).abort_handle(),
    ];
    let metrics = (gateway_metrics, others_metrics, Arc::new(registry));
    let gateways = Gateways::serve(&daemon, gateway_listener, for_others, metrics);
    tracing::info!(gateway = %gateway_address, peer_id = %daemon.secrets.peer_id(), "narmesh is up");
    listener::notify_ready();

    let asked_by = daemon.handle_signals(signals).await;

    let stopping = Instant::now();
    tracing::info!(asked_by, grace = ?SHUTDOWN_GRACE, "narmesh stops: bodies on their way may end within the grace");
    listener::notify_stopping();
    // First, so that peers ask others while what is under way may end.
    if let Err(error) = daemon.mesh.say_goodbye().await {
        tracing::warn!(%error, "peers could not be told that this daemon stops");
    }
    gateways.end(&daemon.uploads).await?;
    background.iter().for_each(AbortHandle::abort);
    daemon.keep_totals_now();
    tracing::info!(asked_by, after_ms = stopping.elapsed().as_millis(), "narmesh has stopped");
    Ok(())
}

/// The gateway of our own Nix and those of other machines, while they are served.
struct Gateways {
    local: JoinHandle<()>,
    for_others: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Gateways {
    /// Begins to answer on all listeners. `metrics` are those of our own gateway, those of the others, and what `/metrics`
    /// shows.
    fn serve(
        daemon: &Arc<Daemon>,
        listener: TcpListener,
        for_others: Vec<OpenListener>,
        (local_metrics, others_metrics, registry): (Arc<GatewayMetrics>, Arc<GatewayMetrics>, Arc<Registry>),
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let host_names = daemon.settings().gateway.host_names.clone();
        let role = ListenerRole { host_names, ..ListenerRole::local() };
        let (resolver, offer) = (Arc::clone(&daemon.resolver), Arc::clone(&daemon.offer));
        let (upstreams, mesh) = (Arc::clone(&daemon.upstreams), daemon.mesh.clone());
        let substituter = GatewaySubstituter::new(resolver, offer, upstreams, mesh, Scope::Local);
        let limits = GatewayLimits { shutdown_grace: SHUTDOWN_GRACE, ..GatewayLimits::default() };
        let stop_others = || on_stop(stopped.clone());
        let for_others =
            listeners::serve_all(for_others, &substituter, &others_metrics, &registry, &limits, stop_others);
        let gateway = Gateway::new(Arc::new(substituter), role, local_metrics, registry);
        let local = tokio::spawn(narmesh_http_gateway::serve(listener, gateway, limits, on_stop(stopped)));
        Self { local, for_others, stop }
    }

    /// Accepts nobody any more. Bodies to Nix and to peers get the same grace together; what is not finished by then is cut
    /// off.
    async fn end(self, uploads: &Uploads) -> anyhow::Result<()> {
        self.stop.send_replace(true);
        let (local_ended, _, uploads_ended) = tokio::join!(
            self.local,
            self.for_others.join_all(),
            tokio::time::timeout(SHUTDOWN_GRACE, uploads.finish())
        );
        if uploads_ended.is_err() {
            tracing::warn!(after = ?SHUTDOWN_GRACE, "uploads to peers were cut off");
        }
        Ok(local_ended?)
    }
}

/// Opens the files of peers' summaries. Without them the daemon works as well, but has to pull the summaries again after a
/// restart.
fn open_summaries(state_dir: &Path) -> Option<Box<dyn SummaryStore>> {
    let files = SummaryFiles::open(state_dir).inspect_err(
        |error| tracing::error!(%error, "summaries of peers cannot be kept; after a restart they are pulled again"),
    );
    files.ok().map(|files| Box::new(files) as Box<dyn SummaryStore>)
}

fn make_uploads(
    settings: &Settings,
    offer: &Arc<Offer>,
    partial_copies: &PartialCopies,
    statistics: &Arc<PeerStatistics>,
) -> Uploads {
    let (offer, statistics) = (Arc::clone(offer), Arc::clone(statistics));
    let limits = upload_limits(settings);
    let uploads = Uploads::new(offer, partial_copies.clone(), statistics, limits, may_compress(settings));
    uploads.set_peer_rates(&settings.peer_upload_rates());
    uploads
}

/// Opens the state of the last run. All of it can be lost without harm, but a missing gateway fails builds: so if the
/// state cannot be opened, the daemon runs without it, unless another daemon holds it.
fn open_state(state_dir: &Path) -> Result<StateDb, StateDbError> {
    match StateDb::open(state_dir) {
        Ok((state, recovered)) => {
            if let Some(recovered) = recovered {
                tracing::warn!("{recovered}");
            }
            Ok(state)
        }
        Err(error @ StateDbError::InUse { .. }) => Err(error),
        Err(error @ (StateDbError::Directory { .. } | StateDbError::Sqlite { .. })) => {
            tracing::error!(
                %error,
                "no state can be stored: running without it until a restart with a usable state directory"
            );
            StateDb::in_memory()
        }
    }
}

/// Opens the ledger, which every verdict comes from. With `prefer` or `require` it is read before Nix can ask anything:
/// a 404 for a path that is agreed would stay in Nix's own cache for an hour.
fn open_ledger(settings: &Settings, secrets: &Secrets, store: &Arc<NixStore>, policy: Policy) -> LiveLedger {
    let (held, decides) = (Arc::clone(store), matches!(policy.mode(), Mode::Prefer | Mode::Require));
    let is_held = Box::new(move |part: &HashPart| held.contains(part));
    let ledger = LiveLedger::new(&settings.node.state_dir, &settings.store.store_dir, policy, is_held);
    let ledger = ledger.named(key_names(settings, secrets)).repairing();
    ledger.keep(settings.quorum.keep.iter().copied());
    if decides && let Err(error) = ledger.catch_up() {
        tracing::error!(%error, "nothing is agreed on until the attestations can be read");
    }
    ledger
}

async fn on_stop(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a reason to stop, too.
    drop(stopped.wait_for(|stop| *stop).await);
}

impl Daemon {
    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.in_force.read().settings)
    }

    /// Reads the configuration again. If the file is bad, the previous settings stay in force and `status` says why.
    async fn reload(&self) -> anyhow::Result<()> {
        let _reloading = self.reloading.lock().await;
        let loaded = self.load_again().inspect_err(|error| self.in_force.write().error = Some(describe(error)))?;
        self.put_in_force(loaded, None).await;
        tracing::info!("configuration reloaded");
        Ok(())
    }

    /// Puts the newest roster in force, whatever the configuration looks like now.
    async fn reload_roster(&self) -> anyhow::Result<()> {
        let _reloading = self.reloading.lock().await;
        let (configured, error) = {
            let in_force = self.in_force.read();
            (Arc::clone(&in_force.configured), in_force.error.clone())
        };
        let loaded = self.prepare(Settings::clone(&configured))?;
        self.put_in_force(loaded, error).await;
        Ok(())
    }

    /// Gives each part its new settings. `error` is why the last reload of the configuration was refused, if it was.
    async fn put_in_force(&self, loaded: Loaded, error: Option<String>) {
        let Loaded { configured, settings, secrets, policy, gateway_key, upstreams, certificates } = loaded;
        self.admission.set_mesh(settings.mesh.key.clone(), settings.mesh.roster.clone());
        // The policy comes first: the resolver drops what it judged once more when it gets its own settings below.
        let kept = settings.quorum.keep.iter().copied();
        self.attestations.ledger().set_policy(policy, key_names(&settings, &secrets), kept);
        let is_serving = self.serving.decide(&settings, minute_now()).is_serving;
        let offer_policy = offer_policy(&settings, &secrets, gateway_key.as_ref(), is_serving);
        self.upstreams.put_in_force(upstreams);
        for (certificate, read) in certificates {
            certificate.put_in_force(read);
        }
        self.sources.set_preference(settings.gateway.prefer);
        self.resolver.reconfigure(resolver_settings(&settings, &secrets, gateway_key));
        self.uploads.set_compress(may_compress(&settings));
        self.uploads.set_rate(settings.limits.upload_bytes_per_s);
        self.partial_copies.set_bytes_max(settings.limits.partial_copies_bytes);
        self.uploads.set_peer_rates(&settings.peer_upload_rates());
        self.mesh.reconfigure(mesh_config(&settings, &secrets)).await;
        self.lan.follow(&settings);
        self.attestations.set_keys(secrets.builder_key.clone(), settings.quorum.signers());
        self.offer.set_policy(offer_policy);
        self.is_serving.store(is_serving, Ordering::SeqCst);
        self.attestations.judge_anew();
        let (settings, configured) = (Arc::new(settings), Arc::new(configured));
        *self.in_force.write() = InForce { settings, configured, loaded_unix_s: unix_s(), error };
        self.serving.on_settings_changed();
    }

    /// Serves peers, or stops it, when a switch or the clock says so.
    async fn follow_serving(self: Arc<Self>) {
        loop {
            self.apply_serving();
            let has_hours = !self.settings().serve_hours.is_empty();
            self.serving.wait(has_hours).await;
        }
    }

    /// Puts in force whether peers get anything, if that has changed.
    fn apply_serving(&self) {
        let settings = self.settings();
        let ServeState { is_serving, why, .. } = self.serving.decide(&settings, minute_now());
        if self.is_serving.swap(is_serving, Ordering::SeqCst) == is_serving {
            return;
        }
        tracing::info!(is_serving, why, "what peers get of this machine has changed");
        self.offer.set_serving(is_serving);
    }

    /// Everything that may be refused: once it is there, nothing of a reload can fail.
    fn load_again(&self) -> anyhow::Result<Loaded> {
        self.prepare(Settings::load(&self.config_file)?)
    }

    /// The same for a configuration that was read, with the newest roster.
    fn prepare(&self, configured: Settings) -> anyhow::Result<Loaded> {
        let secrets = configured.read_secrets()?;
        let old = self.settings();
        let is_same_mesh = self.in_force.read().configured.mesh.key == configured.mesh.key;
        let in_force = old.mesh.roster.clone().filter(|_| is_same_mesh);
        let settings = with_members(&configured, &secrets.peer_id(), in_force);
        let policy = quorum_policy(&settings, &secrets)?;
        let fixed = [
            ("node.key_file", secrets.peer_id() == self.secrets.peer_id()),
            ("node.state_dir", settings.node.state_dir == old.node.state_dir),
            ("node.control_socket", settings.node.control_socket == old.node.control_socket),
            ("node.control_group", settings.node.control_group == old.node.control_group),
            ("node.listen", settings.node.listen == old.node.listen),
            ("gateway.listen", settings.gateway.listen == old.gateway.listen),
            ("gateway.listener", settings.gateway.listeners == old.gateway.listeners),
            ("gateway.host_names", settings.gateway.host_names == old.gateway.host_names),
            ("store", settings.store == old.store),
            ("limits.nar_buffer_bytes", settings.limits.nar_buffer_bytes == old.limits.nar_buffer_bytes),
            ("limits.uploads_per_peer", settings.limits.uploads_per_peer == old.limits.uploads_per_peer),
            ("limits.uploads_total", settings.limits.uploads_total == old.limits.uploads_total),
        ];
        if let Some((key, _)) = fixed.iter().find(|(_, same)| !same) {
            anyhow::bail!(
                "{key} changed, which needs a restart; to reload everything else, set it back to what it was"
            );
        }
        let gateway_key = load_gateway_key(&settings)?;
        let upstreams = prepare_upstreams(&self.upstreams, &settings)?;
        let certificates = self.listeners.iter().filter_map(|listener| listener.certificate.as_ref());
        let read = |live: &Arc<LiveCertificate>| live.read().map(|read| (Arc::clone(live), read));
        let certificates = certificates.map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(Loaded { configured, settings, secrets, policy, gateway_key, upstreams, certificates })
    }
}

/// What a reload is about to put in force.
struct Loaded {
    configured: Settings,
    settings: Settings,
    secrets: Secrets,
    policy: Policy,
    gateway_key: Option<NixSecretKey>,
    upstreams: PreparedUpstreams,
    certificates: Vec<(Arc<LiveCertificate>, TlsInForce)>,
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
