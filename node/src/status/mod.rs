//! What the daemon says about itself: the JSON of `narmesh status`, `advertised`, `why` and `check-config --probe`.
//!
//! These types are the interface: scripts read the JSON, so fields are added, never renamed. [`text`] renders them for people.

use crate::mesh::{PeerStats, ProbeResult};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

pub mod text;

/// `narmesh status --json`. All counters count since the start of the daemon.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Ours.
    pub peer_id: String,
    /// `narmesh/<version>`.
    pub software: String,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Process id.
    pub pid: u32,
    /// The configuration in force.
    pub config: ConfigStatus,
    /// Multiaddrs with the real ports.
    pub listen: Vec<String>,
    /// `ip:port` with the real port.
    pub gateway: String,
    /// The Nix store.
    pub store: StoreStatus,
    /// Our own summary, once there is one.
    pub own: OwnStatus,
    /// The allowlist, in the order of the configuration.
    pub peers: Vec<PeerStatus>,
    /// What our Nix asked.
    pub requests: RequestStatus,
    /// What moved.
    pub bytes: ByteStatus,
    /// Who built the same thing, and what of it Nix may have; absent with mode `off`.
    #[serde(default)]
    pub quorum: Option<QuorumStatus>,
    /// The `[[builder]]`s, in the order of the configuration.
    #[serde(default)]
    pub builders: Vec<BuilderStatus>,
    /// Resident memory, bytes.
    pub rss_bytes: u64,
}

/// Which configuration is in force.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// The file.
    pub file: PathBuf,
    /// When the settings in force were read, seconds since 1970.
    pub loaded_unix_s: u64,
    /// Why the last reload was refused, if it was.
    pub error: Option<String>,
}

/// The Nix store served.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Logical directory.
    pub dir: String,
    /// Valid paths, derivations and sources included.
    pub valid_paths: u64,
    /// Those that peers may see.
    pub advertised_paths: u64,
    /// What its place lacks, if that is why nothing is found.
    #[serde(default)]
    pub missing: Option<String>,
}

/// Our own summary.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct OwnStatus {
    /// Its epoch.
    pub epoch: u64,
    /// Its number within the epoch.
    pub seq: u64,
    /// Paths in it.
    pub paths: u64,
    /// Size of its filter, bits.
    pub filter_bits: u64,
}

/// One peer of the allowlist.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PeerStatus {
    /// From the configuration.
    pub name: String,
    /// Its identity.
    pub peer_id: String,
    /// Connection, counters, misdeeds: beside the other fields in the JSON.
    #[serde(flatten)]
    pub stats: PeerStats,
    /// Its newest summary.
    pub summary: Option<SummaryStatus>,
    /// Moving average of its narinfo answers, or the first ping, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Not asked for so many more seconds, because it misbehaved.
    pub set_aside_s: Option<u64>,
}

/// A summary of a peer.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct SummaryStatus {
    /// Its epoch.
    pub epoch: u64,
    /// Its number within the epoch.
    pub seq: u64,
    /// Seconds since it was accepted first.
    pub age_s: u64,
    /// Paths in it.
    pub paths: u64,
    /// Size of its filter, bits.
    pub filter_bits: u64,
    /// Where it comes from.
    #[serde(default)]
    pub source: SummarySource,
}

/// Where a summary comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SummarySource {
    /// It, or that it is still the newest, was heard since the start.
    #[default]
    Heard,
    /// It was kept over the last restart, and its owner was not heard of since.
    Remembered,
}

/// Requests of our own Nix.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct RequestStatus {
    /// Narinfos asked for.
    pub narinfo: u64,
    /// Of these, found.
    pub narinfo_hits: u64,
    /// Of these, not found.
    pub narinfo_misses: u64,
    /// Times a peer's filter promised what the peer did not have.
    pub false_hits: u64,
    /// NARs asked for.
    pub nar: u64,
    /// Of these, delivered whole.
    pub nar_ok: u64,
    /// Of these, not found.
    pub nar_absent: u64,
    /// Of these, closed short.
    pub nar_aborted: u64,
}

/// Bytes moved.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ByteStatus {
    /// NAR bytes from peers.
    #[serde(rename = "in")]
    pub received: u64,
    /// NAR bytes to peers.
    #[serde(rename = "out")]
    pub sent: u64,
    /// NAR bytes to our Nix.
    pub gateway_out: u64,
}

/// The policy, and what it came to.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct QuorumStatus {
    /// `observe`, `prefer` or `require`.
    pub mode: String,
    /// Groups that must have got the same.
    pub k: Option<u64>,
    /// Groups of builders.
    pub of: u64,
    /// With `require`: what Nix has to trust, and needs to trust nobody else.
    pub gateway_public_key: Option<String>,
    /// Attestations known.
    pub attestations: u64,
    /// Bare Nix signatures known of builders that sign only their own builds.
    #[serde(default)]
    pub bare_signatures: u64,
    /// Paths by verdict, as of the last look at all of them.
    pub paths: BTreeMap<String, u64>,
    /// Paths on which builders disagree: the first few, in their order.
    pub conflicts: Vec<String>,
    /// Narinfos and NARs that Nix asked for and the policy kept from it, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// One builder of the configuration.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct BuilderStatus {
    /// From the configuration.
    pub name: String,
    /// Its key.
    pub public_key: String,
    /// Whom it counts together with.
    pub group: Option<String>,
    /// Attestations held.
    pub attestations: u64,
    /// When the last one of these came, seconds since 1970.
    pub last_unix_s: Option<u64>,
    /// Name of the peer that is its node.
    pub peer: Option<String>,
    /// What decides who may be told of it.
    pub audience: BuilderAudience,
    /// Names of the peers that may be told of it.
    pub told: Vec<String>,
    /// Names of those that may not.
    pub not_told: Vec<String>,
    /// Since when it is not believed, and why.
    pub revoked: Option<RevokedStatus>,
}

/// What decides who may be told of a builder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuilderAudience {
    /// It is this machine: all of the allowlist may.
    Own,
    /// Whom its node tells its summary.
    Summary,
    /// The same, but its node is away: whom it told last.
    LastSummary,
    /// No summary of its node was ever here: nobody.
    Unknown,
    /// It has no `peer`: nobody, and what it attests comes as files alone.
    #[default]
    NoPeer,
}

/// A key that is not believed.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct RevokedStatus {
    /// From then on, seconds since 1970.
    pub from_unix_s: u64,
    /// As configured.
    pub why: String,
}

/// `narmesh advertised --json`: exactly what leaves this machine.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct AdvertisedReport {
    /// What peers may see, by path.
    pub paths: Vec<AdvertisedPath>,
    /// What they may not, with the reason; derivations and sources are only counted.
    pub withheld: Vec<WithheldPath>,
    /// Derivations and sources, never advertised.
    pub never: u64,
}

/// One path that peers may see.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct AdvertisedPath {
    /// Full store path.
    pub path: String,
    /// NAR size, bytes.
    pub nar_size: u64,
    /// Names of the keys whose signatures it leaves with.
    pub signed_by: Vec<String>,
}

/// One path that peers may not see.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct WithheldPath {
    /// Full store path.
    pub path: String,
    /// Why, in words.
    pub reason: String,
}

/// `narmesh why PATH --json`: what the resolver would do now, and did last.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct WhyReport {
    /// As asked.
    pub asked: String,
    /// Its hash part.
    pub hash_part: String,
    /// Our own store.
    pub own_store: OwnStoreView,
    /// What is remembered from an earlier answer.
    pub remembered: Option<RememberedView>,
    /// Every peer of the allowlist: whether it would be asked, and why; in the order of asking.
    pub peers: Vec<CandidateView>,
    /// What the gateway would answer now.
    pub answer: WouldAnswer,
    /// The last decisions about this path, oldest first; bounded.
    pub decisions: Vec<LookedUp>,
    /// Whether decisions about some paths are forgotten, so that none does not say that nobody asked.
    #[serde(default)]
    pub decisions_forgotten: bool,
}

/// The path in our own store.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct OwnStoreView {
    /// Whether it is a valid path here.
    pub held: bool,
    /// Whether peers may see it.
    pub advertised: bool,
    /// If held and not advertised: why, in words.
    pub reason: Option<String>,
    /// If held and not given to Nix, here as in other stores on this machine: why, in words.
    #[serde(default)]
    pub not_given: Option<String>,
}

/// A remembered answer.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct RememberedView {
    /// Seconds since it was given.
    pub age_s: u64,
    /// Names of those who confirmed to hold it.
    pub holders: Vec<String>,
    /// As in the narinfo.
    pub nar_hash: Option<String>,
    /// NAR size, bytes.
    pub nar_size: Option<u64>,
}

/// A peer, seen by the resolver.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct CandidateView {
    /// From the configuration.
    pub name: String,
    /// Its identity.
    pub peer_id: String,
    /// Whether it would be asked.
    pub would_ask: bool,
    /// Why (not), in words: "its filter says maybe", "its filter says no", "no summary of it yet", …
    pub reason: String,
}

/// What the gateway would answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WouldAnswer {
    /// 200 from our own store.
    OwnStore,
    /// 200 from memory.
    Remembered,
    /// The candidates are asked; 200 if one has it.
    AskCandidates,
    /// 404 at once.
    #[default]
    Absent,
}

/// Something the resolver decided about a path.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct LookedUp {
    /// When, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// What, in words; peers by their ids.
    pub sentence: String,
}

/// One peer dialled by `check-config --probe`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PeerProbe {
    /// From the configuration.
    pub name: String,
    /// Its identity.
    pub peer_id: String,
    /// What came of it.
    #[serde(flatten)]
    pub result: ProbeResult,
}
