//! Answers one connection of a browser.

use super::answers::{Body, Site, with_headers};
use super::pages::{self, View};
use super::sessions::{COOKIE, PREFIX};
use super::{DashboardSource, guard, live};
use crate::describe::describe;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// A request has to be here within this; a connection that says nothing for so long is closed.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;

pub(super) async fn serve<S: DashboardSource>(stream: TcpStream, site: Site<S>) {
    let service = service_fn(move |request| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(answer(&site, &request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(REQUEST_MAX).max_buf_size(HEAD_BYTES_MAX);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection to the dashboard ended");
    }
}

async fn answer<S: DashboardSource>(site: &Site<S>, request: &Request<Incoming>) -> Response<Body> {
    // Before anything is looked up: another site or host name gets nothing, not even whether a link is good.
    if let Some((status, why)) = guard::refuse(request.method(), request.headers(), site.address) {
        return refusal(status, why);
    }
    let now = Instant::now();
    let Some(path) = request.uri().path().strip_prefix(PREFIX) else { return no_session() };
    let Some((session, page)) = path.split_once('/') else {
        // A link is used up only by who follows it.
        let opened = match *request.method() {
            Method::GET => site.sessions.lock().open(path, now),
            _ => None,
        };
        let Some(opened) = opened else { return no_session() };
        let base = format!("{PREFIX}{}/", opened.path);
        let wanted = pages::wanted_address(request.uri().query().unwrap_or_default());
        let cookie = format!("{COOKIE}={}; Path={base}; HttpOnly; SameSite=Strict", opened.cookie);
        let mut response = respond(StatusCode::SEE_OTHER, "text/plain; charset=utf-8", "opened\n".to_owned());
        for (name, text) in [(header::SET_COOKIE, cookie), (header::LOCATION, base + &wanted)] {
            response.headers_mut().extend(HeaderValue::try_from(text).ok().map(|value| (name, value)));
        }
        return response;
    };
    let cookies = guard::cookies(request.headers());
    // The path alone is not enough: it stands in the browser's history.
    if !site.sessions.lock().admit(session, &cookies, now) {
        return no_session();
    }
    let base = format!("{PREFIX}{session}/");
    let query = request.uri().query().unwrap_or_default();
    match page {
        "style.css" => respond(StatusCode::OK, "text/css; charset=utf-8", pages::STYLE.to_owned()),
        "script.js" => respond(StatusCode::OK, "text/javascript; charset=utf-8", pages::SCRIPT.to_owned()),
        "icon.svg" => respond(StatusCode::OK, "image/svg+xml", pages::ICON.to_owned()),
        page => {
            let (is_live, page) = page.strip_prefix("live/").map_or((false, page), |page| (true, page));
            let Some(view) = View::parse(page, query) else {
                return refusal(StatusCode::NOT_FOUND, "there is no such page");
            };
            if is_live {
                return live::stream(site, session, base, view).unwrap_or_else(|| {
                    refusal(StatusCode::TOO_MANY_REQUESTS, "too many pages of this session are open")
                });
            }
            match pages::render(&*site.source, &view, &base).await {
                Ok(page) => respond(StatusCode::OK, "text/html; charset=utf-8", page),
                Err(error) => {
                    let page = pages::render_error(&base, &describe(&error));
                    respond(StatusCode::BAD_REQUEST, "text/html; charset=utf-8", page)
                }
            }
        }
    }
}

fn no_session() -> Response<Body> {
    refusal(
        StatusCode::FORBIDDEN,
        "this link was used already, is older than a minute, or its session has ended; `narmesh dashboard` prints a new one",
    )
}

/// The connection of who is refused is closed, so that nobody without a session holds one for long.
fn refusal(status: StatusCode, why: &str) -> Response<Body> {
    let mut response = respond(status, "text/plain; charset=utf-8", format!("{why}\n"));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn respond(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    with_headers(status, kind, Full::new(Bytes::from(text)).boxed_unsync())
}
