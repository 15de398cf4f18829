//! The answers that are not success, and what a client sees of them.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::{ALLOW, CONNECTION, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue};

static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Why a request was not served. There is no variant that becomes a 5xx: one of those makes Nix drop the cache for a
/// minute or abort the build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GatewayError {
    /// No such path, no such endpoint on this listener, or a name that does not parse.
    #[error("nothing is known under this path")]
    NotFound,
    /// `Host` names someone else: a web page that had its name rebound to a loopback address.
    #[error("the host named is not this gateway")]
    ForeignHost,
    /// `Origin` or `Sec-Fetch-Site` says that a web page of another origin asks.
    #[error("the request comes from a web page")]
    WebPage,
    /// Not GET or HEAD.
    #[error("only GET and HEAD are served")]
    MethodNotAllowed,
    /// A GET or HEAD with a body, or with a framing that two readers could understand differently.
    #[error("a request body or transfer encoding is not accepted")]
    UnexpectedBody,
    /// No byte of the range exists.
    #[error("the range begins beyond the {size} bytes there are")]
    RangeNotSatisfiable {
        /// Bytes of the whole NAR.
        size: u64,
    },
}

impl GatewayError {
    /// The status that Nix or a browser sees.
    pub fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::ForeignHost | Self::WebPage => StatusCode::FORBIDDEN,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::UnexpectedBody => StatusCode::BAD_REQUEST,
            Self::RangeNotSatisfiable { .. } => StatusCode::RANGE_NOT_SATISFIABLE,
        }
    }

    /// The response: the status phrase and the request id, by which the log has the detail.
    ///
    /// After a request `with_body` the connection is closed: what follows may be anything, and is not read as a request.
    pub(crate) fn into_response(self, id: RequestId, with_body: bool) -> Response {
        let status = self.status();
        let mut response = Response::new(Body::from(format!("{status}\nrequest {id}\n")));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if let Ok(value) = HeaderValue::try_from(id.to_string()) {
            headers.insert(&X_REQUEST_ID, value);
        }
        if with_body {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        match self {
            Self::MethodNotAllowed => {
                headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            }
            Self::RangeNotSatisfiable { size } => {
                if let Ok(value) = HeaderValue::try_from(format!("bytes */{size}")) {
                    headers.insert(CONTENT_RANGE, value);
                }
            }
            Self::NotFound | Self::ForeignHost | Self::WebPage | Self::UnexpectedBody => {}
        }
        response
    }
}

/// Names one refused request in the answer and in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestId {
    process: u32,
    number: u64,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{}", self.process, self.number)
    }
}

/// Makes request ids that do not repeat within a process and hardly between two.
#[derive(Debug)]
pub(crate) struct RequestIds {
    process: u32,
    issued: AtomicU64,
}

impl RequestIds {
    pub(crate) fn new() -> Self {
        let random = RandomState::new().hash_one(std::process::id());
        Self { process: u32::try_from(random >> 32).unwrap_or(0), issued: AtomicU64::new(0) }
    }

    pub(crate) fn next(&self) -> RequestId {
        RequestId { process: self.process, number: self.issued.fetch_add(1, Ordering::Relaxed) }
    }
}
