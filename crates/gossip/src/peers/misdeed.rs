//! What a peer can do wrong. Most misdeeds are proven by the peer's bytes alone.

/// Why a peer is blamed. Displayed in `status` and in the log; [`Misdeed::label`] names it in metrics.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, thiserror::Error)]
pub enum Misdeed {
    /// It published bytes that are not a signed announcement.
    #[error("published a malformed announcement")]
    MalformedAnnouncement,
    /// It published an announcement that another peer signed.
    #[error("published an announcement of another peer")]
    ForeignAnnouncement,
    /// It signed an epoch more than a day ahead of our clock, under a date that is not ahead.
    #[error("announced an epoch more than a day ahead")]
    FutureEpoch,
    /// It signed two different announcements for one `(epoch, seq)`.
    #[error("announced two summaries under one epoch and seq")]
    Equivocation,
    /// It signed an announcement whose sizes are over the limits.
    #[error("announced a body or a path count over the limit")]
    OversizedAnnouncement,
    /// It publishes faster than any honest node does.
    #[error("published announcements too fast")]
    AnnouncementFlood,
    /// It asks for narinfos or attestations faster than any honest node does (told by the caller).
    #[error("asked too fast")]
    RequestFlood,
    /// It connects again and again, faster than any honest node does (told by the caller).
    #[error("connected too often")]
    ConnectionFlood,
    /// It answered with bytes that are not a reply, or with a reply to another question.
    #[error("sent a malformed reply")]
    MalformedReply,
    /// It asked with bytes that are not a request, or that exceed a limit.
    #[error("sent a malformed request")]
    MalformedRequest,
    /// It handed on an envelope that does not verify.
    #[error("handed on a forged envelope")]
    ForgedNews,
    /// It sent a body that is not the one that the owner's signature names.
    #[error("sent a body with another digest than announced")]
    WrongBody,
    /// It sent a delta that does not lead to the body that the owner's signature names.
    #[error("sent a delta that does not lead to the announced body")]
    WrongDelta,
    /// Its signed body breaks a bound or an order.
    #[error("announced a body that breaks its bounds")]
    InvalidBody,
    /// Its signed body holds another number of paths than its announcement says.
    #[error("announced another path count than its body has")]
    PathCountDiffers,
    /// Its filter claims nearly everything.
    #[error("announced a filter that is too dense")]
    DenseFilter,
    /// While connected it claimed to have the body that it had announced, was asked for it, and did not have
    /// it, again and again.
    #[error("announced a body and did not deliver it")]
    Undelivered,
    /// Its filter claimed absent paths far more often than its density explains.
    #[error("its filter claims paths that it does not hold")]
    FalseClaims,
    /// It answered a narinfo request with something that did not verify (told by the caller).
    #[error("sent a false narinfo")]
    FalseNarInfo,
    /// It sent a NAR with another NarHash, size or shape than promised (told by the caller).
    #[error("sent a false NAR")]
    FalseNar,
    /// It sent an attestation that does not verify, or that was not asked for (told by the caller).
    #[error("sent a false attestation")]
    FalseAttestation,
    /// It repeatedly named attestations that it never handed over (told by the caller).
    #[error("named attestations that it did not hand over")]
    FalseComparison,
}

impl Misdeed {
    /// A stable name in snake case.
    pub fn label(self) -> &'static str {
        match self {
            Self::MalformedAnnouncement => "malformed_announcement",
            Self::ForeignAnnouncement => "foreign_announcement",
            Self::FutureEpoch => "future_epoch",
            Self::Equivocation => "equivocation",
            Self::OversizedAnnouncement => "oversized_announcement",
            Self::AnnouncementFlood => "announcement_flood",
            Self::RequestFlood => "request_flood",
            Self::ConnectionFlood => "connection_flood",
            Self::MalformedReply => "malformed_reply",
            Self::MalformedRequest => "malformed_request",
            Self::ForgedNews => "forged_news",
            Self::WrongBody => "wrong_body",
            Self::WrongDelta => "wrong_delta",
            Self::InvalidBody => "invalid_body",
            Self::PathCountDiffers => "path_count_differs",
            Self::DenseFilter => "dense_filter",
            Self::Undelivered => "undelivered",
            Self::FalseClaims => "false_claims",
            Self::FalseNarInfo => "false_narinfo",
            Self::FalseNar => "false_nar",
            Self::FalseAttestation => "false_attestation",
            Self::FalseComparison => "false_comparison",
        }
    }
}
