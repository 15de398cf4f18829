//! The service behind a connection: it answers narinfos straight from memory, and everything else through the router.

use std::convert::Infallible;
use std::fmt;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use prometheus_client::registry::Registry;
use tower::ServiceExt;

use crate::body::{ResponseBody, RoutedBody};
use crate::connection::ConnectionState;
use crate::error::RequestIds;
use crate::metrics::{GatewayMetrics, Outcome, RequestKind};
use crate::role::ListenerRole;
use crate::routes::{self, Endpoint, NARINFO_TYPE};
use crate::substituter::{Lookup, Substituter};
use crate::target::parse_plain_narinfo;

/// The gateway of one listener, to be given to [`serve`](crate::serve). A clone serves the same listener.
pub struct Gateway<S> {
    endpoint: Arc<Endpoint<S>>,
    router: Router,
}

impl<S: Substituter> Gateway<S> {
    /// A gateway that answers from `substituter` as far as `role` permits, counts into `metrics`, and shows all of
    /// `registry` (in which `metrics` are registered) at `/metrics`.
    pub fn new(substituter: Arc<S>, role: ListenerRole, metrics: Arc<GatewayMetrics>, registry: Arc<Registry>) -> Self {
        let endpoint = Arc::new(Endpoint { substituter, role, metrics, registry, request_ids: RequestIds::new() });
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
    pub(crate) fn connection(&self, state: Arc<ConnectionState>) -> ConnectionService<S> {
        ConnectionService { endpoint: Arc::clone(&self.endpoint), router: self.router.clone(), state }
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
pub(crate) struct ConnectionService<S> {
    endpoint: Arc<Endpoint<S>>,
    router: Router,
    state: Arc<ConnectionState>,
}

impl<S: Substituter> ConnectionService<S> {
    /// Answers a narinfo request from memory if possible: without router or boxed future, and the response reuses the
    /// header map of the request, so that nothing is allocated. `None` means that the router has to answer.
    fn answer_from_memory(&self, request: &mut Request<Incoming>) -> Option<Response<ResponseBody>> {
        let part = parse_plain_narinfo(request.uri().path())?;
        let started = Instant::now();
        let Endpoint { role, metrics, substituter, .. } = &*self.endpoint;
        // Requests to refuse are left to the router, which makes the error responses.
        let is_plain = matches!(*request.method(), Method::GET | Method::HEAD)
            && role.endpoints.substituter
            && role.admit(request.uri(), request.headers()).is_ok()
            && !routes::has_body(request.headers());
        if !is_plain {
            return None;
        }
        let found = match substituter.look_up(part) {
            Lookup::Found(text) => Some(text),
            Lookup::Absent => None,
            Lookup::Ask => return None,
        };
        let mut headers: HeaderMap = std::mem::take(request.headers_mut());
        headers.clear();
        let (status, outcome) = match &found {
            Some(text) => {
                headers.insert(CONTENT_TYPE, NARINFO_TYPE);
                if *request.method() == Method::GET {
                    metrics.add_body_bytes(RequestKind::NarInfo, text.len() as u64);
                }
                (StatusCode::OK, Outcome::Served)
            }
            None => {
                if *request.method() == Method::HEAD {
                    // hyper adds no Content-Length here if it is 0.
                    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
                }
                (StatusCode::NOT_FOUND, Outcome::Absent)
            }
        };
        let mut response = Response::new(ResponseBody::Fixed(found));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        metrics.on_finished(RequestKind::NarInfo, outcome);
        metrics.on_answered(RequestKind::NarInfo, started.elapsed());
        Some(response)
    }
}

impl<S: Substituter> hyper::service::Service<Request<Incoming>> for ConnectionService<S> {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, mut request: Request<Incoming>) -> Answer {
        if let Some(response) = self.answer_from_memory(&mut request) {
            self.state.on_request_answered();
            return Answer::Memory(ready(Ok(response)));
        }
        let busy = ConnectionState::begin_request(&self.state);
        let answer = self.router.clone().oneshot(request.map(Body::new));
        Answer::Routed(Box::pin(async move {
            let response = answer.await?;
            Ok(response.map(|body| ResponseBody::Routed(RoutedBody::new(body, busy))))
        }))
    }
}

/// The future of a response.
pub(crate) enum Answer {
    Memory(Ready<Result<Response<ResponseBody>, Infallible>>),
    Routed(Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Infallible>> + Send>>),
}

impl Future for Answer {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Memory(answer) => Pin::new(answer).poll(cx),
            Self::Routed(answer) => answer.as_mut().poll(cx),
        }
    }
}
