//! The gateway of a listener, and the service behind each of its connections.

use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Version};
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tower::ServiceExt;

use crate::access::Attempts;
use crate::access_log::{AccessLine, AccessLog};
use crate::body::RoutedBody;
use crate::client::Client;
use crate::connection::ConnectionState;
use crate::connection_table::{Entered, Place};
use crate::error::RequestIds;
use crate::metrics::GatewayMetrics;
use crate::proxies::TrustedProxies;
use crate::role::ListenerRole;
use crate::routes::{self, Endpoint, EndpointsByToken, ListenerState};
use crate::substituter::{Caller, ClientUser, Substituter};
use crate::target::NARINFO_SUFFIX;
use crate::zstd_body::Encoders;

/// The gateway of one listener, to be given to [`serve`](crate::serve). A clone serves the same listener.
pub struct Gateway<S> {
    endpoints: Arc<EndpointsByToken<S>>,
    router: Router,
    count: ConnectionCount,
    access_log: Option<Arc<AccessLog>>,
}

/// How many connections of a listener are open now. A clone counts the same ones.
#[derive(Clone, Debug, Default)]
pub struct ConnectionCount(Arc<AtomicUsize>);

impl ConnectionCount {
    /// The number now.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts one more until the guard is dropped.
    pub(crate) fn enter(&self) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self.clone())
    }
}

#[derive(Debug)]
pub(crate) struct Counted(ConnectionCount);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S: Substituter> Gateway<S> {
    /// A gateway that answers from `substituter` as far as `role` permits, counts into `metrics`, and shows all of
    /// `registry` (in which `metrics` are registered) at `/metrics`.
    pub fn new(substituter: Arc<S>, role: ListenerRole, metrics: Arc<GatewayMetrics>, registry: Arc<Registry>) -> Self {
        let access_log = role.access_log.clone().map(|listener| Arc::new(AccessLog::new(listener)));
        let (request_ids, attempts) = (RequestIds::new(), Attempts::default());
        let encoders = Encoders::new();
        let listener = Arc::new(ListenerState { role, metrics, registry, request_ids, attempts, encoders });
        let everything = Endpoint { substituter, listener };
        let endpoints = Arc::new(EndpointsByToken { everything, own_store: None });
        let router = routes::router(Arc::clone(&endpoints));
        Self { endpoints, router, count: ConnectionCount::default(), access_log }
    }

    /// Answers clients whose token is for the own store alone from `substituter`. Without this, they are told that nothing is
    /// there.
    #[must_use]
    pub fn with_own_store(self, substituter: Arc<S>) -> Self {
        let Endpoint { substituter: everything, listener } = &self.endpoints.everything;
        let [everything, own_store] = [Arc::clone(everything), substituter]
            .map(|substituter| Endpoint { substituter, listener: Arc::clone(listener) });
        let endpoints = Arc::new(EndpointsByToken { everything, own_store: Some(own_store) });
        Self { router: routes::router(Arc::clone(&endpoints)), endpoints, ..self }
    }

    /// All endpoints as an axum router, to serve them in another way.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// Counts the open connections into `count`.
    #[must_use]
    pub fn counting(self, count: ConnectionCount) -> Self {
        Self { count, ..self }
    }

    pub(crate) fn connection_count(&self) -> &ConnectionCount {
        &self.count
    }

    /// The proxies that are believed on this listener.
    pub(crate) fn trusted_proxies(&self) -> &TrustedProxies {
        &self.endpoints.everything.listener.role.trusted_proxies
    }

    pub(crate) fn metrics(&self) -> &Arc<GatewayMetrics> {
        &self.endpoints.everything.listener.metrics
    }

    /// Makes the service for one connection.
    pub(crate) fn connection(&self, entered: &Entered, client: Client) -> ConnectionService {
        let (state, user) = (Arc::clone(&entered.state), entered.user());
        let role = &self.endpoints.everything.listener.role;
        let proxy = role.trusted_proxies.includes(client).then(|| (entered.place(), role.trusted_proxies.clone()));
        // Whence a client comes matters to the router only where it may send wrong tokens.
        let is_told = role.access.is_some();
        let log = self.access_log.clone();
        let turns = state.answers_several().then(|| Arc::new(Semaphore::new(BODIES_MAX)));
        ConnectionService { router: self.router.clone(), state, user, client, proxy, is_told, log, turns }
    }

    /// Says what the access log left out; in any case if `at_once`.
    pub(crate) fn tell_left_out(&self, at_once: bool) {
        if let Some(log) = &self.access_log {
            log.tell_left_out(at_once);
        }
    }

    /// Whether bodies have to wait for memory.
    pub(crate) fn is_short_of_memory(&self) -> bool {
        let Endpoint { substituter, listener } = &self.endpoints.everything;
        substituter.is_short_of_memory() || listener.encoders.are_taken()
    }
}

impl<S> Clone for Gateway<S> {
    fn clone(&self) -> Self {
        Self {
            endpoints: Arc::clone(&self.endpoints),
            router: self.router.clone(),
            count: self.count.clone(),
            access_log: self.access_log.clone(),
        }
    }
}

impl<S> fmt::Debug for Gateway<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("role", &self.endpoints.everything.listener.role).finish_non_exhaustive()
    }
}

/// Bodies besides narinfos that are under way at once over one connection of HTTP/2; the others wait. Each holds a piece of 64 KiB
/// or so in memory, as a body over HTTP/1 does. Nix fetches 16 NARs at a time.
const BODIES_MAX: usize = 32;

/// Answers the requests of one connection.
pub(crate) struct ConnectionService {
    router: Router,
    state: Arc<ConnectionState>,
    user: ClientUser,
    client: Client,
    /// The connection and the proxies that are believed, if this is one of them.
    proxy: Option<(Place, TrustedProxies)>,
    /// Whether the router is told the client.
    is_told: bool,
    log: Option<Arc<AccessLog>>,
    /// The turns of bodies, where several may be under way.
    turns: Option<Arc<Semaphore>>,
}

impl hyper::service::Service<Request<Incoming>> for ConnectionService {
    type Response = Response<RoutedBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let is_narinfo = request.uri().path().ends_with(NARINFO_SUFFIX);
        let mut request = request.map(Body::new);
        // HTTP/2 has it in the target. All that looks at a request finds it in one place.
        if request.version() == Version::HTTP_2
            && !request.headers().contains_key(HOST)
            && let Some(host) = request.uri().authority().and_then(|it| HeaderValue::try_from(it.as_str()).ok())
        {
            request.headers_mut().insert(HOST, host);
        }
        let forwarded = self.find_forwarded(&request);
        let client = forwarded.map_or(self.client, Client::Address);
        let caller = forwarded.and(client.counted()).map(Caller::Address);
        let user = caller.map_or_else(|| self.user.clone(), |caller| ClientUser::new(move || Some(caller)));
        request.extensions_mut().insert(user);
        if self.is_told {
            request.extensions_mut().insert(client);
        }
        let mut line = self.log.as_ref().map(|log| log.begin(client, request.method(), request.uri().path()));
        let answer = self.router.clone().oneshot(request);
        // A narinfo is small, and must not wait for NARs.
        let Some(turns) = self.turns.as_ref().filter(|_| !is_narinfo) else {
            let busy = ConnectionState::begin_request(&self.state);
            return Box::pin(async move {
                let answer = noted(answer.await?, &mut line);
                Ok(answer.map(|body| RoutedBody::new(body, busy, None).with_line(line)))
            });
        };
        let (turn, state) = (Arc::clone(turns).acquire_owned(), Arc::clone(&self.state));
        Box::pin(async move {
            // It fails only for a semaphore that was closed, which this one never is.
            let turn = turn.await.ok();
            // While it waits it does not count as a body that stands still.
            let busy = ConnectionState::begin_request(&state);
            let answer = noted(answer.await?, &mut line);
            Ok(answer.map(|body| RoutedBody::new(body, busy, turn).with_line(line)))
        })
    }
}

impl ConnectionService {
    /// The client for which a proxy asks. The connection counts as that client's.
    fn find_forwarded<B>(&self, request: &Request<B>) -> Option<IpAddr> {
        let (place, proxies) = self.proxy.as_ref()?;
        let client = proxies.find_client(self.client, request.headers())?;
        if let Some(counted) = Client::Address(client).counted() {
            place.give_to(counted);
        }
        Some(client)
    }
}

/// The answer, whose status the line of its request now has.
fn noted<B>(answer: Response<B>, line: &mut Option<AccessLine>) -> Response<B> {
    if let Some(line) = line {
        line.note_status(answer.status());
    }
    answer
}
