//! The endpoints, as an axum router.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use http_body::Body as _;
use hyper::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, RANGE, TRANSFER_ENCODING,
};
use hyper::{HeaderMap, Method, StatusCode};
use narmesh_protocol::{HashPart, NarUrl, RealisationId, circle};
use prometheus_client::registry::Registry;

use crate::GatewayError;
use crate::access::{Attempts, Reads, token_of};
use crate::body::{StreamedBody, without_length};
use crate::client::Client;
use crate::error::{RequestIds, shown};
use crate::exposition::Exposition;
use crate::metrics::{GatewayMetrics, Outcome, RequestKind};
use crate::nar_body::{BodyAborted, NarBody};
use crate::range::{Span, parse_span};
use crate::role::ListenerRole;
use crate::substituter::{ClientUser, Lookup, Substituter};
use crate::target::Target;
use crate::zstd_body::{Encoders, compress, with_zstd};

/// The head of a request.
type Head = hyper::http::request::Parts;

pub(crate) const NARINFO_TYPE: HeaderValue = HeaderValue::from_static("text/x-nix-narinfo");
const CACHE_INFO_TYPE: HeaderValue = HeaderValue::from_static("text/x-nix-cache-info");
/// For whom another daemon asks.
static NARMESH_VIA: HeaderName = HeaderName::from_static(circle::VIA);
/// Who answers another daemon.
static NARMESH_ID: HeaderName = HeaderName::from_static(circle::ID);
const NAR_TYPE: HeaderValue = HeaderValue::from_static("application/x-nix-nar");
const ZSTD_TYPE: HeaderValue = HeaderValue::from_static("application/zstd");
const TEXT_TYPE: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const REALISATION_TYPE: HeaderValue = HeaderValue::from_static("application/json");

/// The answer of `/version`.
const VERSION: &str = concat!("narmesh ", env!("CARGO_PKG_VERSION"), "\n");

/// What the requests on one listener share.
pub(crate) struct ListenerState {
    pub(crate) role: ListenerRole,
    pub(crate) metrics: Arc<GatewayMetrics>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) request_ids: RequestIds,
    pub(crate) attempts: Attempts,
    pub(crate) encoders: Encoders,
}

/// Answers requests from one substituter.
pub(crate) struct Endpoint<S> {
    pub(crate) substituter: Arc<S>,
    pub(crate) listener: Arc<ListenerState>,
}

/// Who answers on a listener, by what the client may read.
pub(crate) struct EndpointsByToken<S> {
    pub(crate) everything: Endpoint<S>,
    /// `None` where no token may be for the own store alone: such a one then reads nothing.
    pub(crate) own_store: Option<Endpoint<S>>,
}

/// The router of the endpoints. [`Target::parse`] tells paths apart, because they can arrive percent-encoded, and because a
/// malformed name must be an absent path.
pub(crate) fn router<S: Substituter>(endpoints: Arc<EndpointsByToken<S>>) -> Router {
    Router::new().fallback(answer::<S>).with_state(endpoints)
}

async fn answer<S: Substituter>(State(endpoints): State<Arc<EndpointsByToken<S>>>, request: Request) -> Response {
    let started = Instant::now();
    let target = Target::parse(request.uri().path(), request.uri().query());
    let kind = kind(&target);
    let (head, body) = request.into_parts();
    // Nothing here reads a body. If there was one, hyper closes the connection after the answer
    // because it was dropped unread.
    drop(body);
    let answer = match endpoints.admit(&head) {
        Ok(endpoint) => endpoint.dispatch(target, &head).await,
        Err(refusal) => Err(refusal),
    };
    let id = endpoints.everything.id_for(&head, answer.as_ref().err());
    let listener = &endpoints.everything.listener;
    listener.metrics.on_answered(kind, started.elapsed());
    let mut response = match answer {
        Ok(response) => {
            // A body that is streamed counts its own bytes as they are sent.
            if !kind.is_streamed() && head.method == Method::GET {
                listener.metrics.add_body_bytes(kind, response.body().size_hint().lower());
            }
            response
        }
        Err(error) => {
            listener.metrics.on_finished(kind, outcome(error));
            let id = listener.request_ids.next();
            tracing::debug!(request = %id, method = shown(head.method.as_str()), path = shown(head.uri.path()), %error, "request not served");
            error.into_response(id, has_body(&head.headers))
        }
    };
    if let Some(id) = id.and_then(|id| HeaderValue::try_from(id).ok()) {
        response.headers_mut().insert(&NARMESH_ID, id);
    }
    response
}

impl<S> EndpointsByToken<S> {
    /// Who answers this request, or why nobody does.
    fn admit(&self, head: &Head) -> Result<&Endpoint<S>, GatewayError> {
        let listener = &self.everything.listener;
        // A web page is refused first, and does not even learn whether tokens are needed here.
        listener.role.admit(&head.uri, &head.headers)?;
        match listener.demand_token(head)? {
            Reads::Everything => Ok(&self.everything),
            Reads::OwnStore => self.own_store.as_ref().ok_or(GatewayError::NotFound),
        }
    }
}

impl ListenerState {
    /// What the request may read. Refuses one without a token that counts, where one is needed.
    fn demand_token(&self, head: &Head) -> Result<Reads, GatewayError> {
        let Some(access) = &self.role.access else { return Ok(Reads::Everything) };
        let client = head.extensions.get().copied().and_then(Client::counted);
        let now = Instant::now();
        // Without any token no try is spent: a client asks so first, and repeats with one when it is told to.
        let token = token_of(&head.headers).ok_or(GatewayError::NoToken)?;
        // Before it is compared, or tries beyond the bound would still be worth making.
        if !self.attempts.may_try(client, now) {
            return Err(GatewayError::TooManyTries);
        }
        access.admit(&token).ok_or_else(|| {
            self.attempts.note_wrong(client, now);
            GatewayError::NoToken
        })
    }
}

impl<S: Substituter> Endpoint<S> {
    async fn dispatch(&self, target: Target, head: &Head) -> Result<Response, GatewayError> {
        let is_read = head.method == Method::GET || head.method == Method::HEAD;
        if is_read && has_body(&head.headers) {
            // Such bodies are used to smuggle one request inside another; no client that we know sends one.
            return Err(GatewayError::UnexpectedBody);
        }
        // Before the method: what is not here is not there for any.
        if !self.listener.role.offers(&target) {
            return Err(GatewayError::NotFound);
        }
        if !is_read {
            return Err(GatewayError::MethodNotAllowed);
        }
        // Before any source is asked, or two gateways would ask each other for ever.
        if let (Some(via), Some(part)) = (via_of(head), path_of(&target))
            && self.substituter.is_circle(&part, via)
        {
            return Err(GatewayError::Circle);
        }
        match target {
            Target::CacheInfo => {
                Ok(self.text(RequestKind::CacheInfo, CACHE_INFO_TYPE, self.substituter.cache_info().to_string()))
            }
            Target::NarInfo(Some(part)) => self.answer_narinfo(part, head).await,
            Target::Nar(Some(url)) if head.method == Method::HEAD => self.answer_nar_head(url, head).await,
            Target::Nar(Some(url)) => self.answer_nar(url, head).await,
            Target::ZstdNar(Some(url)) => self.answer_zstd_nar(url, head).await,
            Target::OtherNar(part, nar_hash) => {
                let url = self.find_nar_url(part, nar_hash, head).await?;
                if head.method == Method::HEAD {
                    self.answer_nar_head(url, head).await
                } else {
                    self.answer_nar(url, head).await
                }
            }
            Target::Log(Some(derivation)) => self.answer_log(derivation, head).await,
            Target::Realisation(Some(id)) => self.answer_realisation(id, head).await,
            Target::Listing(Some(part)) => self.answer_listing(part, head).await,
            Target::Entry(Some((part, path))) => self.answer_entry(part, path, head).await,
            Target::Health => Ok(self.text(RequestKind::Health, TEXT_TYPE, "ok\n")),
            // Nothing is ever answered 5xx, and whoever asks this takes any refusal as "not ready".
            Target::Readiness if !self.substituter.is_ready() => Err(GatewayError::NotFound),
            Target::Readiness => Ok(self.text(RequestKind::Health, TEXT_TYPE, "ok\n")),
            Target::Version => Ok(self.text(RequestKind::Health, TEXT_TYPE, VERSION)),
            Target::Metrics => self.answer_metrics(head),
            Target::NarInfo(None)
            | Target::Nar(None)
            | Target::ZstdNar(None)
            | Target::Log(None)
            | Target::Realisation(None)
            | Target::Listing(None)
            | Target::Entry(None)
            | Target::Unknown => Err(GatewayError::NotFound),
        }
    }

    /// The id of this daemon, if another one asks who may ask here.
    fn id_for(&self, head: &Head, error: Option<&GatewayError>) -> Option<String> {
        use GatewayError::{ForeignHost, NoToken, TooManyTries, WebPage};
        if matches!(error, Some(ForeignHost | WebPage | NoToken | TooManyTries)) {
            return None;
        }
        via_of(head).and_then(|_| self.substituter.process_id())
    }

    async fn answer_narinfo(&self, part: HashPart, head: &Head) -> Result<Response, GatewayError> {
        let text = self.find_narinfo(part, head).await.ok_or(GatewayError::NotFound)?;
        let compressed =
            if self.listener.role.zstd { std::str::from_utf8(&text).ok().and_then(with_zstd) } else { None };
        Ok(self.text(RequestKind::NarInfo, NARINFO_TYPE, compressed.map_or(text, Bytes::from)))
    }

    async fn answer_realisation(&self, id: RealisationId, head: &Head) -> Result<Response, GatewayError> {
        let text = self.substituter.find_realisation(id, user_of(head)).await;
        Ok(self.text(RequestKind::Realisation, REALISATION_TYPE, text.ok_or(GatewayError::NotFound)?))
    }

    pub(crate) async fn find_narinfo(&self, part: HashPart, head: &Head) -> Option<Bytes> {
        match self.substituter.look_up(part) {
            Lookup::Found(text) => Some(text),
            Lookup::Absent => None,
            Lookup::Ask => self.substituter.find_narinfo(part, user_of(head)).await,
        }
    }

    async fn answer_nar_head(&self, url: NarUrl, head: &Head) -> Result<Response, GatewayError> {
        if !self.substituter.has_nar(url, user_of(head)).await {
            return Err(GatewayError::NotFound);
        }
        let mut response = nar_response(Body::empty());
        set(&mut response, CONTENT_LENGTH, url.nar_size);
        self.listener.metrics.on_finished(RequestKind::Nar, Outcome::Served);
        Ok(response)
    }

    /// A NAR compressed with zstd. There are no ranges: what was compressed is not there any more.
    async fn answer_zstd_nar(&self, url: NarUrl, head: &Head) -> Result<Response, GatewayError> {
        let mut response = if head.method == Method::HEAD {
            if !self.substituter.has_nar(url, user_of(head)).await {
                return Err(GatewayError::NotFound);
            }
            self.listener.metrics.on_finished(RequestKind::Nar, Outcome::Served);
            Response::new(without_length())
        } else {
            // Before the NAR is fetched, which would else wait for an encoder with its memory taken.
            let permit = self.listener.encoders.take().await.ok_or(GatewayError::Busy)?;
            let nar = self.substituter.fetch_nar(url, 0, false, user_of(head)).await?;
            let mut stream = compress(nar, url.nar_size, permit);
            // A NAR that cannot be read at all is 404, and that can only be said before the head is out.
            let first = read_first_chunk(&mut stream).await.map_err(|BodyAborted| GatewayError::NotFound)?;
            let metrics = Arc::clone(&self.listener.metrics);
            Response::new(Body::new(StreamedBody::new(RequestKind::Nar, first, stream, None, metrics)))
        };
        response.headers_mut().insert(CONTENT_TYPE, ZSTD_TYPE);
        Ok(response)
    }

    async fn answer_nar(&self, url: NarUrl, head: &Head) -> Result<Response, GatewayError> {
        let headers = &head.headers;
        let resumed = headers.contains_key(RANGE);
        let (first_byte, length) = match parse_span(headers, url.nar_size, None) {
            Span::Whole => (0, url.nar_size),
            Span::Part { first, last } => (first, last.saturating_sub(first).saturating_add(1)),
            Span::Unsatisfiable => {
                // If the path is gone, 404 takes precedence over 416, because it makes Nix build the path.
                let there = self.substituter.has_nar(url, user_of(head)).await;
                return Err(if there {
                    GatewayError::RangeNotSatisfiable { size: url.nar_size }
                } else {
                    GatewayError::NotFound
                });
            }
        };
        let mut stream = self.substituter.fetch_nar(url, first_byte, resumed, user_of(head)).await?;
        // As long as no byte is out, a failure is a 404, on which Nix builds; later it is a broken body.
        let first = read_first_chunk(&mut stream).await.map_err(|BodyAborted| GatewayError::NotFound)?;
        let metrics = Arc::clone(&self.listener.metrics);
        let body = StreamedBody::new(RequestKind::Nar, first, stream, Some(length), metrics);
        let mut response = nar_response(Body::new(body));
        set(&mut response, CONTENT_LENGTH, length);
        if let Span::Part { first, last } = parse_span(headers, url.nar_size, None) {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            set(&mut response, CONTENT_RANGE, format_args!("bytes {first}-{last}/{}", url.nar_size));
        }
        Ok(response)
    }

    fn answer_metrics(&self, head: &Head) -> Result<Response, GatewayError> {
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &self.listener.registry).is_err() {
            tracing::error!("the metrics could not be encoded");
            return Err(GatewayError::NotFound);
        }
        let exposition = Exposition::choose(&head.headers);
        Ok(self.text(RequestKind::Metrics, exposition.content_type(), exposition.render(text)))
    }

    /// A complete, short response. For a HEAD, axum removes the body and keeps its length.
    fn text(&self, kind: RequestKind, content_type: HeaderValue, text: impl Into<Bytes>) -> Response {
        self.listener.metrics.on_finished(kind, Outcome::Served);
        let mut response = Response::new(Body::from(text.into()));
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response
    }
}

/// For whom another daemon asks, if one does.
fn via_of(head: &Head) -> Option<&str> {
    head.headers.get(&NARMESH_VIA)?.to_str().ok()
}

/// The path that sources may be asked for to answer this.
fn path_of(target: &Target) -> Option<HashPart> {
    match target {
        Target::NarInfo(part) => *part,
        Target::Nar(url) | Target::ZstdNar(url) => url.map(|url| url.hash_part),
        Target::OtherNar(part, _) => Some(*part),
        Target::CacheInfo
        | Target::Log(_)
        | Target::Realisation(_)
        | Target::Listing(_)
        | Target::Entry(_)
        | Target::Health
        | Target::Readiness
        | Target::Version
        | Target::Metrics
        | Target::Unknown => None,
    }
}

/// The user who asks, if the connection says so.
fn user_of(head: &Head) -> ClientUser {
    head.extensions.get().cloned().unwrap_or_else(ClientUser::unknown)
}

/// Whether the head announces a body. hyper has already refused contradicting lengths, and dropped
/// a length beside an encoding.
pub(crate) fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING) || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0")
}

fn kind(target: &Target) -> RequestKind {
    match target {
        Target::CacheInfo => RequestKind::CacheInfo,
        Target::NarInfo(_) => RequestKind::NarInfo,
        Target::Nar(_) | Target::ZstdNar(_) | Target::OtherNar(..) => RequestKind::Nar,
        Target::Log(_) => RequestKind::Log,
        Target::Realisation(_) => RequestKind::Realisation,
        Target::Listing(_) => RequestKind::Listing,
        Target::Entry(_) => RequestKind::Entry,
        Target::Health | Target::Readiness | Target::Version => RequestKind::Health,
        Target::Metrics => RequestKind::Metrics,
        Target::Unknown => RequestKind::Unknown,
    }
}

fn outcome(error: GatewayError) -> Outcome {
    match error {
        GatewayError::NotFound | GatewayError::Circle => Outcome::Absent,
        GatewayError::ForeignHost
        | GatewayError::WebPage
        | GatewayError::NoToken
        | GatewayError::TooManyTries
        | GatewayError::MethodNotAllowed
        | GatewayError::UnexpectedBody
        | GatewayError::RangeNotSatisfiable { .. }
        | GatewayError::Busy
        | GatewayError::NotNow => Outcome::Refused,
    }
}

/// The first bytes of a body. If it fails before them, the path counts as absent, because 404 can still be sent.
async fn read_first_chunk(stream: &mut NarBody) -> Result<Bytes, BodyAborted> {
    loop {
        match stream.next().await {
            // An empty piece proves nothing, and a 404 is still possible after it.
            Some(Ok(chunk)) if chunk.is_empty() => {}
            Some(Ok(chunk)) => return Ok(chunk),
            Some(Err(BodyAborted)) | None => return Err(BodyAborted),
        }
    }
}

fn nar_response(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, NAR_TYPE);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    response
}

pub(crate) fn set(response: &mut Response, name: HeaderName, value: impl Display) {
    let value = HeaderValue::try_from(value.to_string()).expect("digits and ASCII words are a header value");
    response.headers_mut().insert(name, value);
}
