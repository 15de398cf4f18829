//! The ways to lie.

use serde::{Deserialize, Serialize};

/// One kind of lie.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trick {
    /// Its filter has all bits set.
    AllOnes,
    /// Its filter has random bits set, as many as receivers let through.
    DenseAsAllowed,
    /// Its filter claims the paths of everyone else.
    ClaimEverything,
    /// Its filter is empty, as if it had nothing.
    ClaimNothing,
    /// It announces epochs that are a week ahead.
    FutureEpoch,
    /// It announces its own older states again.
    StaleEpoch,
    /// It publishes and passes on old envelopes of others, as from a stolen disk.
    ReplayStolen,
    /// It signs two summaries for one generation and publishes both.
    Equivocate,
    /// It announces bodies that it does not have.
    NoBody,
    /// It answers pulls of others' bodies with bodies of its own making.
    WrongBody,
    /// It hands the bodies of others to whoever asks, whatever their audience.
    Leak,
    /// It publishes two hundred announcements at once.
    FloodAnnouncements,
    /// It sends two hundred requests at once.
    FloodRequests,
    /// It passes nothing on: no message, no news, no body.
    Withhold,
    /// It sends bytes that mean nothing.
    Garbage,
}

/// All tricks.
pub const TRICKS: [Trick; 15] = [
    Trick::AllOnes,
    Trick::DenseAsAllowed,
    Trick::ClaimEverything,
    Trick::ClaimNothing,
    Trick::FutureEpoch,
    Trick::StaleEpoch,
    Trick::ReplayStolen,
    Trick::Equivocate,
    Trick::NoBody,
    Trick::WrongBody,
    Trick::Leak,
    Trick::FloodAnnouncements,
    Trick::FloodRequests,
    Trick::Withhold,
    Trick::Garbage,
];
