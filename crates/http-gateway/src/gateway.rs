//! The gateway of a listener, and the service behind each of its connections.

use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::{Request, Response};
use prometheus_client::registry::Registry;
use tower::ServiceExt;

use crate::access::{Attempts, ClientAddress};
use crate::body::RoutedBody;
use crate::connection::ConnectionState;
use crate::error::RequestIds;
use crate::metrics::GatewayMetrics;
use crate::role::ListenerRole;
use crate::routes::{self, Endpoint};
use crate::substituter::{ClientUser, Substituter};
use crate::target::NARINFO_SUFFIX;

/// The gateway of one listener, to be given to [`serve`](crate::serve). A clone serves the same listener.
pub struct Gateway<S> {
    endpoint: Arc<Endpoint<S>>,
    router: Router,
}

impl<S: Substituter> Gateway<S> {
    /// A gateway that answers from `substituter` as far as `role` permits, counts into `metrics`, and shows all of
    /// `registry` (in which `metrics` are registered) at `/metrics`.
    pub fn new(substituter: Arc<S>, role: ListenerRole, metrics: Arc<GatewayMetrics>, registry: Arc<Registry>) -> Self {
        let (request_ids, attempts) = (RequestIds::new(), Attempts::default());
        let endpoint = Arc::new(Endpoint { substituter, role, metrics, registry, request_ids, attempts });
        let router = routes::router(Arc::clone(&endpoint));
        Self { endpoint, router }
    }

    /// All endpoints as an axum router, to serve them in another way.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    pub(crate) fn metrics(&self) -> &Arc<GatewayMetrics> {
        &self.endpoint.metrics
    }

    /// Makes the service for one connection.
    pub(crate) fn connection(
        &self,
        state: Arc<ConnectionState>,
        user: ClientUser,
        address: Option<IpAddr>,
    ) -> ConnectionService {
        // Whence a client comes matters only where it may send wrong tokens.
        let address = self.endpoint.role.access.as_ref().map(|_| ClientAddress(address));
        ConnectionService { router: self.router.clone(), state, user, address }
    }

    /// Whether bodies have to wait for memory.
    pub(crate) fn is_short_of_memory(&self) -> bool {
        self.endpoint.substituter.is_short_of_memory()
    }
}

impl<S> Clone for Gateway<S> {
    fn clone(&self) -> Self {
        Self { endpoint: Arc::clone(&self.endpoint), router: self.router.clone() }
    }
}

impl<S> fmt::Debug for Gateway<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("role", &self.endpoint.role).finish_non_exhaustive()
    }
}

/// Answers the requests of one connection.
pub(crate) struct ConnectionService {
    router: Router,
    state: Arc<ConnectionState>,
    user: ClientUser,
    address: Option<ClientAddress>,
}

impl hyper::service::Service<Request<Incoming>> for ConnectionService {
    type Response = Response<RoutedBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let busy = ConnectionState::begin_request(&self.state);
        let mut request = request.map(Body::new);
        // Only a NAR may have to wait for its user's turn; most requests are for narinfos.
        if !request.uri().path().ends_with(NARINFO_SUFFIX) {
            request.extensions_mut().insert(self.user.clone());
        }
        if let Some(address) = self.address {
            request.extensions_mut().insert(address);
        }
        let answer = self.router.clone().oneshot(request);
        Box::pin(async move { Ok(answer.await?.map(|body| RoutedBody::new(body, busy))) })
    }
}
