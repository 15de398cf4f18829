//! What every answer has in common, and what an answer is made from.

use super::sessions::Sessions;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use parking_lot::Mutex;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

/// Nothing comes from anywhere but this server, nothing of a page is run, and no other page shows one of these.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What a connection needs to be answered.
#[derive(Debug)]
pub(super) struct Site<S> {
    pub(super) source: Arc<S>,
    pub(super) sessions: Arc<Mutex<Sessions>>,
    /// The address that the server listens on.
    pub(super) address: SocketAddr,
}

impl<S> Clone for Site<S> {
    fn clone(&self) -> Self {
        Self { source: Arc::clone(&self.source), sessions: Arc::clone(&self.sessions), address: self.address }
    }
}

/// The response with what every response says.
pub(super) fn with_headers(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let said: [(HeaderName, &'static str); 8] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("x-frame-options"), "DENY"),
    ];
    response.headers_mut().extend(said.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}
