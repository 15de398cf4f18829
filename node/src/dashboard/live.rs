//! What changes in an open page, as server-sent events: the part of the page that changes is rendered again, and sent if it
//! is another one.

use super::answers::{Body, Site, with_headers};
use super::pages::{self, View};
use super::{DashboardSource, Sessions};
use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::{Response, StatusCode};
use parking_lot::Mutex;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a page is rendered again.
const EVERY: Duration = Duration::from_secs(1);
/// After so long without a change a comment is sent, so that it shows whether anybody is there.
const QUIET_MAX: u32 = 15;

/// A stream of a session; the session may open another one when it is dropped.
struct Open<S> {
    site: Site<S>,
    session: String,
    base: String,
    view: View,
    last: String,
    quiet: u32,
}

impl<S> Drop for Open<S> {
    fn drop(&mut self) {
        let sessions: &Mutex<Sessions> = &self.site.sessions;
        sessions.lock().end_stream(&self.session);
    }
}

/// The changes of this view; `None` if the session has too many streams.
pub(super) fn stream<S: DashboardSource>(
    site: &Site<S>,
    session: &str,
    base: String,
    view: View,
) -> Option<Response<Body>> {
    if !site.sessions.lock().begin_stream(session) {
        return None;
    }
    let open = Open { site: site.clone(), session: session.to_owned(), base, view, last: String::new(), quiet: 0 };
    let events = futures::stream::unfold(open, |mut open| async move {
        let event = open.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(event))), open))
    });
    Some(with_headers(StatusCode::OK, "text/event-stream", StreamBody::new(events).boxed_unsync()))
}

impl<S: DashboardSource> Open<S> {
    /// The next event; `None` when the session has ended.
    async fn next(&mut self) -> Option<String> {
        loop {
            tokio::time::sleep(EVERY).await;
            // Asked each time: who has ended the session must not go on to see what happens here.
            if !self.site.sessions.lock().goes_on(&self.session, Instant::now()) {
                return None;
            }
            let source = Arc::clone(&self.site.source);
            // A page that cannot be rendered now stays as it is.
            let part = pages::render_part(&*source, &self.view, &self.base).await.unwrap_or_default();
            if !part.is_empty() && part != self.last {
                let lines: String = part.lines().map(|line| format!("data: {line}\n")).collect();
                (self.last, self.quiet) = (part, 0);
                return Some(format!("{lines}\n"));
            }
            self.quiet += 1;
            if self.quiet >= QUIET_MAX {
                self.quiet = 0;
                return Some(": nothing new\n\n".to_owned());
            }
        }
    }
}
