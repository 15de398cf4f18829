//! Why a request is not served, and what a client sees then.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::{
    ALLOW, CONNECTION, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};

use narmesh_protocol::circle;

use crate::nar_body::NoNar;
use crate::store_files::Busy;

static NARMESH_CIRCLE: HeaderName = HeaderName::from_static(circle::CIRCLE);
static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Why a request was not served. No variant becomes a 5xx, because that makes Nix drop the substituter for
/// a minute or abort the build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GatewayError {
    /// There is no such path or no such endpoint on this listener, or the name does not parse.
    #[error("there is nothing at this path")]
    NotFound,
    /// Nobody is asked for it, because the request comes round in a circle of daemons: this one, or one that asks it.
    #[error("the request comes round in a circle of daemons")]
    Circle,
    /// `Host` is not one of our names: a web page may have rebound its name to a loopback address.
    #[error("the host named is not this gateway")]
    ForeignHost,
    /// `Origin` or `Sec-Fetch-Site` shows that a web page of another origin makes the request.
    #[error("the request comes from a web page")]
    WebPage,
    /// This listener needs a token, and the request has none that counts.
    #[error("the request has no token that counts here")]
    NoToken,
    /// The client has sent too many wrong tokens lately.
    #[error("the client has sent too many wrong tokens")]
    TooManyTries,
    /// The method is not GET or HEAD.
    #[error("only GET and HEAD are served")]
    MethodNotAllowed,
    /// A GET or HEAD has a body, or a framing that two readers could understand differently.
    #[error("a request body or transfer encoding is not accepted")]
    UnexpectedBody,
    /// No byte of the requested range exists.
    #[error("the range begins after the last of {size} bytes")]
    RangeNotSatisfiable {
        /// Size of the whole NAR or file, bytes.
        size: u64,
    },
    /// Too many answers of this kind are under way.
    #[error("too many such answers are under way")]
    Busy,
    /// The NAR cannot be had now, and may be had by whoever asks again.
    #[error("who holds the NAR is there, and could not be asked")]
    NotNow,
}

/// The beginning of a path or method, escaped for the log: the text is a stranger's and can be as long as a head.
pub(crate) fn shown(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 200;
    text.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_default).collect()
}

impl From<NoNar> for GatewayError {
    fn from(why: NoNar) -> Self {
        match why {
            NoNar::Gone => Self::NotFound,
            NoNar::NotNow => Self::NotNow,
        }
    }
}

impl From<Busy> for GatewayError {
    fn from(Busy: Busy) -> Self {
        Self::Busy
    }
}

impl GatewayError {
    /// The HTTP status of the response.
    pub fn status(self) -> StatusCode {
        match self {
            Self::NotFound | Self::Circle => StatusCode::NOT_FOUND,
            Self::ForeignHost | Self::WebPage => StatusCode::FORBIDDEN,
            Self::NoToken => StatusCode::UNAUTHORIZED,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::UnexpectedBody => StatusCode::BAD_REQUEST,
            Self::RangeNotSatisfiable { .. } => StatusCode::RANGE_NOT_SATISFIABLE,
            // The one client error besides 408 after which every Nix asks again.
            Self::Busy | Self::NotNow | Self::TooManyTries => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// The response: the status phrase and the request id, under which the log has the details.
    ///
    /// After a request `with_body` the connection is closed, because the bytes that follow must not be read as a request.
    pub(crate) fn into_response(self, id: RequestId, with_body: bool) -> Response {
        let status = self.status();
        // Nothing of the reason: the client sees a number, under which the log has it.
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
            Self::NoToken => {
                // Of Basic alone: curl, which Nix uses, takes the password from a netrc file for it.
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"narmesh\""));
            }
            Self::Busy | Self::NotNow | Self::TooManyTries => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::Circle => {
                headers.insert(&NARMESH_CIRCLE, HeaderValue::from_static("1"));
            }
            Self::NotFound | Self::ForeignHost | Self::WebPage | Self::UnexpectedBody => {}
        }
        response
    }
}

/// Identifies one refused request in the response and in the log.
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

/// Makes request ids that never repeat within a process, and hardly ever between two processes.
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
