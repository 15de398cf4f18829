//! The ways in which a cache fails, told apart because each has its own consequence.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

/// Most bytes of a failure's detail: some are kept for each path.
const DETAIL_BYTES_MAX: usize = 300;

/// A kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    /// The host name has no address, or the resolver does not answer.
    Dns,
    /// No TCP connection: refused, unreachable, or not there in time.
    Connect,
    /// The TLS handshake failed, mostly because of the certificate.
    Tls,
    /// Connected, but nothing came for as long as the settings allow.
    Timeout,
    /// The connection broke before the answer was complete.
    Interrupted,
    /// A status of 500 or more.
    ServerError,
    /// Status 429, or 503 with `Retry-After`.
    RateLimited,
    /// Status 401 or 407: credentials are missing or wrong.
    Unauthorized,
    /// Any other status that is neither an answer nor one of the above.
    UnexpectedStatus,
    /// A redirect that is not followed.
    Redirect,
    /// Who answers is this very process.
    LeadsBack,
    /// Another daemon, which asks us for this path itself, so that nobody would answer.
    Circle,
    /// A file of a directory that is there and cannot be read.
    Unreadable,
    /// The narinfo or realisation is not one, or is about another path, or is longer than one may be.
    BadNarInfo,
    /// No key that counts for this cache signed the narinfo.
    Untrusted,
    /// A NAR that ended before its size.
    Truncated,
    /// A file whose size is not the `FileSize` of the narinfo.
    WrongLength,
    /// A compressed file whose hash is not the `FileHash` of the narinfo: it is not the file that the cache once had.
    WrongFileHash,
    /// A file that cannot be unpacked, or whose NAR is not the one promised.
    BadNar,
}

impl FailureKind {
    /// All kinds, in the order of the enum.
    pub const ALL: [Self; 19] = [
        Self::Dns,
        Self::Connect,
        Self::Tls,
        Self::Timeout,
        Self::Interrupted,
        Self::ServerError,
        Self::RateLimited,
        Self::Unauthorized,
        Self::UnexpectedStatus,
        Self::Redirect,
        Self::LeadsBack,
        Self::Circle,
        Self::Unreadable,
        Self::BadNarInfo,
        Self::Untrusted,
        Self::Truncated,
        Self::WrongLength,
        Self::WrongFileHash,
        Self::BadNar,
    ];

    /// The name in metrics and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Interrupted => "interrupted",
            Self::ServerError => "server_error",
            Self::RateLimited => "rate_limited",
            Self::Unauthorized => "unauthorized",
            Self::UnexpectedStatus => "unexpected_status",
            Self::Redirect => "redirect",
            Self::LeadsBack => "leads_back",
            Self::Circle => "circle",
            Self::Unreadable => "unreadable",
            Self::BadNarInfo => "bad_narinfo",
            Self::Untrusted => "untrusted",
            Self::Truncated => "truncated",
            Self::WrongLength => "wrong_length",
            Self::WrongFileHash => "wrong_file_hash",
            Self::BadNar => "bad_nar",
        }
    }

    /// Whether it says something about the cache or the line to it, and not only about one path.
    pub fn is_of_cache(self) -> bool {
        match self {
            Self::Dns
            | Self::Connect
            | Self::Tls
            | Self::Timeout
            | Self::Interrupted
            | Self::ServerError
            | Self::RateLimited
            | Self::Unauthorized
            | Self::UnexpectedStatus
            | Self::LeadsBack => true,
            Self::Redirect
            | Self::Circle
            | Self::Unreadable
            | Self::BadNarInfo
            | Self::Untrusted
            | Self::Truncated
            | Self::WrongLength
            | Self::WrongFileHash
            | Self::BadNar => false,
        }
    }

    /// Whether it may be over in a moment, as a restart is. A name that is not found means that there is no network, and a
    /// timeout took long enough.
    pub(crate) fn may_be_a_moment(self) -> bool {
        !matches!(self, Self::Dns | Self::Timeout | Self::LeadsBack)
    }

    /// Whether the next request would end the same way, so that one is enough to take the cache as down.
    pub(crate) fn is_lasting(self) -> bool {
        matches!(self, Self::Tls | Self::Unauthorized | Self::LeadsBack)
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One failure of a cache.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct Failure {
    /// What kind of failure it is.
    pub kind: FailureKind,
    /// What happened, for people; without credentials.
    pub detail: String,
    /// When the cache asks to be left alone, for how long.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure without `Retry-After`. Of a longer detail, the beginning is kept: what a cache sends may be in it.
    pub fn new(kind: FailureKind, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        if detail.len() > DETAIL_BYTES_MAX {
            // What a cache sends may end in the middle of a character there.
            detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
            detail.push('…');
            detail.shrink_to_fit();
        }
        Self { kind, detail, retry_after: None }
    }

    /// The kind of an error that the HTTP client or a body gave.
    pub(crate) fn of_error(error: &(dyn Error + 'static)) -> Self {
        let mut kind = None;
        let mut detail = String::new();
        let mut next = Some(error);
        while let Some(error) = next {
            // Our own failures come wrapped in errors of the HTTP client, and know best what happened.
            if let Some(failure) = find_in_io::<Self>(error) {
                return failure.clone();
            }
            kind = kind.or_else(|| kind_of(error));
            let text = error.to_string();
            // Each layer of these libraries repeats the text of the one below.
            if !detail.contains(&text) {
                detail = if detail.is_empty() { text } else { format!("{detail}: {text}") };
            }
            next = error.source();
        }
        Self::new(kind.unwrap_or(FailureKind::Interrupted), detail)
    }
}

/// An error of type `T`, which may be wrapped in an [`io::Error`]; the wrapper hides it from [`Error::source`].
fn find_in_io<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    if let Some(found) = error.downcast_ref() {
        return Some(found);
    }
    error.downcast_ref::<io::Error>().and_then(io::Error::get_ref).and_then(|inner| find_in_io(inner))
}

fn kind_of(error: &(dyn Error + 'static)) -> Option<FailureKind> {
    if find_in_io::<rustls::Error>(error).is_some() {
        return Some(FailureKind::Tls);
    }
    if let Some(error) = error.downcast_ref::<reqwest::Error>() {
        // What is inside decides first: a connector reports DNS and TLS as connecting, too.
        let inside =
            std::iter::successors(error.source(), |&inner: &&(dyn Error + 'static)| inner.source()).find_map(kind_of);
        return inside.or_else(|| match () {
            () if error.is_timeout() && error.is_connect() => Some(FailureKind::Connect),
            () if error.is_timeout() => Some(FailureKind::Timeout),
            () if error.is_connect() => Some(FailureKind::Connect),
            () => None,
        });
    }
    match error.downcast_ref::<io::Error>()?.kind() {
        io::ErrorKind::TimedOut => Some(FailureKind::Timeout),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Some(FailureKind::Connect)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_through_wrappers() {
        let dns = io::Error::other(Failure::new(FailureKind::Dns, "no such host"));
        assert_eq!(Failure::of_error(&dns).kind, FailureKind::Dns);
        let tls = io::Error::other(rustls::Error::HandshakeNotComplete);
        assert_eq!(Failure::of_error(&tls).kind, FailureKind::Tls);
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(Failure::of_error(&reset).kind, FailureKind::Interrupted);
    }

    #[test]
    fn what_a_cache_sends_does_not_make_a_failure_long() {
        let failure = Failure::new(FailureKind::Redirect, "ö".repeat(400_000));
        assert!((280..310).contains(&failure.detail.len()), "{}", failure.detail.len());
        let kept = failure.clone();
        assert!(kept.detail.capacity() <= 310, "the rest is not kept in memory");
    }

    #[test]
    fn each_kind_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = FailureKind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), FailureKind::ALL.len());
    }
}
