//! Members that lie about rosters.

use narmesh_protocol::RosterVersion;
use narmesh_protocol::wire::RosterReply;

/// What a liar says. None of it may hold up anybody for long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lie {
    /// Everybody has the same one as it: who hears only of it stays where he is.
    NothingNew,
    /// It has the newest one, of which it never says anything.
    Silence,
    /// It has the newest one, which it signed itself.
    Forgery,
    /// The first roster of all is the newest one.
    Replay,
}

/// What liars can hand out.
#[derive(Debug)]
pub(super) struct Lies {
    pub(super) forged: Vec<u8>,
    pub(super) first: Vec<u8>,
}

impl Lie {
    /// What the liar with this number says.
    pub(super) fn of(number: usize) -> Self {
        match number % 4 {
            0 => Self::Silence,
            1 => Self::NothingNew,
            2 => Self::Forgery,
            _ => Self::Replay,
        }
    }

    /// What it claims to have when a connection is new; `None` if it asks nothing.
    pub(super) fn claim(self) -> Option<RosterVersion> {
        (self != Self::NothingNew).then_some(RosterVersion { version: u64::MAX, digest: [9; 32] })
    }

    /// How it answers; `None` if it does not.
    pub(super) fn reply(self, lies: &Lies) -> Option<RosterReply> {
        match self {
            Self::NothingNew => Some(RosterReply::Same),
            Self::Silence => None,
            Self::Forgery => Some(RosterReply::Newer(lies.forged.clone())),
            Self::Replay => Some(RosterReply::Newer(lies.first.clone())),
        }
    }
}
