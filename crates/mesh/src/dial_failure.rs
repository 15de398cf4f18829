//! Why there is no connection to a peer, as a kind: what is advised depends on it, and words change with the kernel and with
//! libp2p.

use super::transport::causes;
use libp2p::TransportError;
use libp2p::swarm::DialError;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::io;
use tokio::time::error::Elapsed;

/// The kind of failure. Where several addresses failed in several ways, the first of these counts, since it says the most.
/// The names are those of `narmesh status --json`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DialFailure {
    /// Another peer answers at its address.
    AnotherPeer,
    /// Its machine answers, and nothing listens there.
    Refused,
    /// Nothing came back in time.
    TimedOut,
    /// The network knows no way to it.
    Unreachable,
    /// A name of its addresses leads nowhere.
    Unresolved,
    /// The connection was made, and ended.
    Closed,
    /// Anything else, or what a newer daemon knows.
    #[serde(other)]
    Other,
}

impl DialFailure {
    /// What became of a dial.
    pub(super) fn of(error: &DialError) -> Self {
        match error {
            DialError::WrongPeerId { .. } => Self::AnotherPeer,
            DialError::Transport(tried) => {
                tried.iter().map(|(_, error)| Self::of_transport(error)).min().unwrap_or(Self::Other)
            }
            DialError::LocalPeerId { .. }
            | DialError::NoAddresses
            | DialError::DialPeerConditionFalse(_)
            | DialError::Aborted
            | DialError::Denied { .. } => Self::Other,
        }
    }

    fn of_transport(error: &TransportError<io::Error>) -> Self {
        match error {
            TransportError::MultiaddrNotSupported(_) => Self::Other,
            TransportError::Other(error) => Self::of_io(error),
        }
    }

    /// The first cause that says something.
    fn of_io(error: &io::Error) -> Self {
        let known = |cause: &(dyn Error + 'static)| {
            if cause.is::<Elapsed>() {
                return Some(Self::TimedOut);
            }
            match cause.downcast_ref::<io::Error>()?.kind() {
                io::ErrorKind::ConnectionRefused => Some(Self::Refused),
                io::ErrorKind::TimedOut => Some(Self::TimedOut),
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Some(Self::Unreachable),
                io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof => Some(Self::Closed),
                _ => None,
            }
        };
        causes(error).find_map(known).unwrap_or(Self::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::Multiaddr;

    fn kind(errors: Vec<io::Error>) -> DialFailure {
        let tried = |error| ("/ip4/192.0.2.1/tcp/1".parse::<Multiaddr>().unwrap(), TransportError::Other(error));
        DialFailure::of(&DialError::Transport(errors.into_iter().map(tried).collect()))
    }

    #[test]
    fn kinds_are_found_below_whatever_wraps_them() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(kind(vec![refused()]), DialFailure::Refused);
        assert_eq!(kind(vec![io::Error::other(io::Error::other(refused()))]), DialFailure::Refused);
        assert_eq!(kind(vec![io::Error::from_raw_os_error(113)]), DialFailure::Unreachable, "no route to host");
        assert_eq!(kind(vec![io::Error::from(io::ErrorKind::UnexpectedEof)]), DialFailure::Closed);
        assert_eq!(kind(vec![io::Error::other("refused, it says")]), DialFailure::Other, "words count for nothing");
        let timeout = || io::Error::from(io::ErrorKind::TimedOut);
        assert_eq!(kind(vec![timeout(), refused()]), DialFailure::Refused, "that says more");
    }
}
