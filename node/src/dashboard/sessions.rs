//! Who may see the dashboard: a link is good once and for a minute, and what it opens is a session.
//!
//! A session has two secrets: one in the path of its pages, and one in a cookie for that path. The browser keeps cookies for a
//! host whatever its port, so another user of this machine, who opens a port of their own, could be sent the cookie; but
//! only by a request for that path, which they do not know. Somebody who reads the path over a shoulder has no cookie.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq as _;

/// How long a link can be opened.
const LINK_MAX: Duration = Duration::from_secs(60);
/// Links that wait to be opened; a further one takes the place of the oldest.
const LINKS_MAX: usize = 16;
/// A session ends when nothing was asked in it for so long.
const IDLE_MAX: Duration = Duration::from_secs(60 * 60);
/// A session ends after this in any case.
const SESSION_MAX: Duration = Duration::from_secs(12 * 60 * 60);
/// Sessions at a time; a further one takes the place of the one that was used least recently.
const SESSIONS_MAX: usize = 16;
/// Streams of one session at a time.
const STREAMS_MAX: usize = 8;

/// The first part of the path of everything here.
pub(super) const PREFIX: &str = "/dashboard/";
/// The name of the cookie.
pub(super) const COOKIE: &str = "narmesh";

/// All links and sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    links: VecDeque<Link>,
    sessions: Vec<Session>,
}

#[derive(Debug)]
struct Link {
    secret: Secret,
    until: Instant,
}

#[derive(Debug)]
struct Session {
    path: Secret,
    cookie: Secret,
    since: Instant,
    used: Instant,
    streams: usize,
}

/// What a new session is known by.
#[derive(Debug)]
pub(super) struct NewSession {
    /// The part of the path of its pages.
    pub(super) path: String,
    /// The value of its cookie.
    pub(super) cookie: String,
}

/// 192 random bits as text.
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    fn make() -> Self {
        Self(BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 24]>()))
    }

    fn is(&self, given: &str) -> bool {
        self.0.as_bytes().ct_eq(given.as_bytes()).into()
    }
}

impl Sessions {
    /// A link to the server at this address.
    pub(super) fn make_link(&mut self, address: SocketAddr, now: Instant) -> String {
        if self.links.len() >= LINKS_MAX {
            self.links.pop_front();
        }
        let secret = Secret::make();
        let link = format!("http://{address}{PREFIX}{}", secret.0);
        self.links.push_back(Link { secret, until: now + LINK_MAX });
        link
    }

    /// Makes a session of a link, if there is such a one, which is used up by that.
    pub(super) fn open(&mut self, link: &str, now: Instant) -> Option<NewSession> {
        self.expire(now);
        let at = self.links.iter().position(|known| known.secret.is(link))?;
        self.links.remove(at);
        if self.sessions.len() >= SESSIONS_MAX
            && let Some(oldest) = (0..self.sessions.len()).min_by_key(|at| self.sessions.get(*at).map(|it| it.used))
        {
            self.sessions.swap_remove(oldest);
        }
        let (path, cookie) = (Secret::make(), Secret::make());
        let opened = NewSession { path: path.0.clone(), cookie: cookie.0.clone() };
        self.sessions.push(Session { path, cookie, since: now, used: now, streams: 0 });
        Some(opened)
    }

    /// Whether there is such a session. If so, it counts as used now.
    pub(super) fn admit(&mut self, path: &str, cookies: &[&str], now: Instant) -> bool {
        self.expire(now);
        let of_path = self.sessions.iter_mut().find(|session| session.path.is(path));
        let admitted = of_path.filter(|session| cookies.iter().any(|cookie| session.cookie.is(cookie)));
        admitted.map(|session| session.used = now).is_some()
    }

    /// Begins a stream of this session, unless it has too many.
    pub(super) fn begin_stream(&mut self, path: &str) -> bool {
        let session = self.sessions.iter_mut().find(|session| session.path.is(path));
        session.filter(|session| session.streams < STREAMS_MAX).map(|session| session.streams += 1).is_some()
    }

    /// Ends a stream of this session.
    pub(super) fn end_stream(&mut self, path: &str) {
        let session = self.sessions.iter_mut().find(|session| session.path.is(path));
        session.into_iter().for_each(|session| session.streams = session.streams.saturating_sub(1));
    }

    /// Whether this session goes on; a stream of it counts as use.
    pub(super) fn goes_on(&mut self, path: &str, now: Instant) -> bool {
        self.expire(now);
        let session = self.sessions.iter_mut().find(|session| session.path.is(path));
        session.map(|session| session.used = now).is_some()
    }

    /// Forgets what has ended. Returns whether anything is left.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        self.links.retain(|link| link.until > now);
        self.sessions.retain(|session| session.used + IDLE_MAX > now && session.since + SESSION_MAX > now);
        !self.links.is_empty() || !self.sessions.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8_000);

    fn token(link: &str) -> &str {
        link.strip_prefix("http://127.0.0.1:8000/dashboard/").unwrap()
    }

    #[test]
    fn link_is_good_once_and_for_a_minute() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        let link = sessions.make_link(ADDRESS, now);
        assert!(sessions.open("", now).is_none() && sessions.open(&token(&link)[1..], now).is_none());
        assert!(sessions.open(token(&link), now).is_some());
        assert!(sessions.open(token(&link), now).is_none(), "once");
        let late = sessions.make_link(ADDRESS, now);
        assert!(sessions.open(token(&late), now + LINK_MAX).is_none(), "too late");
    }

    #[test]
    fn session_needs_its_path_and_its_cookie_and_ends() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        let mut begin = || {
            let link = sessions.make_link(ADDRESS, now);
            sessions.open(token(&link), now).unwrap()
        };
        let (one, other) = (begin(), begin());
        assert!(sessions.admit(&one.path, &["x", &one.cookie], now));
        for (path, cookies) in
            [(&one.path, vec![]), (&one.path, vec![&*other.cookie]), (&one.cookie, vec![&*one.cookie])]
        {
            assert!(!sessions.admit(path, &cookies, now));
        }
        let mut used = now;
        while used + IDLE_MAX / 2 < now + SESSION_MAX {
            used += IDLE_MAX / 2;
            assert!(sessions.admit(&other.path, &[&other.cookie], used));
        }
        assert!(!sessions.admit(&one.path, &[&one.cookie], used), "nobody used it");
        assert!(!sessions.admit(&other.path, &[&other.cookie], now + SESSION_MAX), "it has lasted long enough");
        assert!(!sessions.expire(now + SESSION_MAX));
    }

    #[test]
    fn links_sessions_and_streams_are_bounded() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        let links: Vec<_> = (0..100).map(|_| sessions.make_link(ADDRESS, now)).collect();
        assert_eq!(sessions.links.len(), LINKS_MAX);
        assert!(sessions.open(token(&links[0]), now).is_none());
        let last = sessions.open(token(links.last().unwrap()), now).unwrap();
        assert_eq!((0..100).filter(|_| sessions.begin_stream(&last.path)).count(), STREAMS_MAX);
        sessions.end_stream(&last.path);
        assert!(sessions.begin_stream(&last.path) && !sessions.begin_stream("x"));
        for _ in 0..100 {
            let link = sessions.make_link(ADDRESS, now);
            assert!(sessions.open(token(&link), now + Duration::from_secs(1)).is_some());
        }
        assert_eq!(sessions.sessions.len(), SESSIONS_MAX);
        assert!(!sessions.admit(&last.path, &[&last.cookie], now), "it was used least recently");
    }
}
