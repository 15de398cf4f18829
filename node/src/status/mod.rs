//! What the daemon says about itself: the JSON of `narmesh status`, `advertised`, `why` and `check-config --probe`.
//!
//! Scripts read this JSON, so fields are added, never renamed. [`text`] renders it for people.

use crate::serving::ServeState;
use narmesh_mesh::{PeerStats, ProbeResult};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

pub mod given;
pub mod log;
mod mesh;
pub mod text;
pub mod warnings;

pub use mesh::{MeshStatus, RosterStatus};

/// `narmesh status --json`. All counters count since the start of the daemon.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The PeerId of this node.
    pub peer_id: String,
    /// `narmesh/<version>`.
    pub software: String,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Process id.
    pub pid: u32,
    /// The configuration in force.
    pub config: ConfigStatus,
    /// The multiaddrs that the daemon listens on, with the actual ports.
    pub listen: Vec<String>,
    /// `ip:port` of the gateway, with the actual port.
    pub gateway: String,
    /// `[[gateway.listener]]`, in the order of the configuration.
    #[serde(default)]
    pub listeners: Vec<ListenerStatus>,
    /// Whether peers get anything of this machine, and why.
    pub serve: ServeState,
    /// The key that signs all narinfos of the gateway: the only one that Nix has to trust, if there is one.
    pub gateway_public_key: Option<String>,
    /// The Nix store.
    pub store: StoreStatus,
    /// Our own summary, once there is one.
    pub own: OwnStatus,
    /// The mesh of the configuration; absent without one.
    #[serde(default)]
    pub mesh: Option<MeshStatus>,
    /// The allowlist, in the order of the configuration.
    pub peers: Vec<PeerStatus>,
    /// The upstream caches, in the order of the configuration.
    #[serde(default)]
    pub upstreams: Vec<UpstreamStatus>,
    /// Requests of our own Nix.
    pub requests: RequestStatus,
    /// NAR bytes received and sent.
    pub bytes: ByteStatus,
    /// What Nix got from whom.
    #[serde(default)]
    pub given: given::GivenStatus,
    /// The quorum's policy and its results; absent with mode `off`.
    #[serde(default)]
    pub quorum: Option<QuorumStatus>,
    /// The `[[builder]]`s, in the order of the configuration.
    #[serde(default)]
    pub builders: Vec<BuilderStatus>,
    /// This node as a relay, if it is one.
    #[serde(default)]
    pub relay: Option<RelayStatus>,
    /// Resident memory, bytes.
    pub rss_bytes: u64,
}

/// What a relay does for its peers.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Circuits that are open or being opened.
    pub circuits: u64,
    /// Bytes passed on since the start, both directions together.
    pub bytes: u64,
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

/// One `[[gateway.listener]]`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// `ip:port` with the actual port, or the path of a Unix socket.
    pub address: String,
    /// `local`, `serve` or `site`.
    pub role: String,
    /// Whether its clients need a token.
    pub needs_token: bool,
    /// Its certificate; absent if its clients speak plain HTTP.
    pub tls: Option<TlsStatus>,
    /// Number of connections now.
    pub connections: u64,
}

/// The certificate of a listener.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TlsStatus {
    /// From when on it counts, seconds since 1970.
    pub from_unix_s: u64,
    /// Until when it counts, seconds since 1970.
    pub until_unix_s: u64,
    /// Whether it counts now.
    pub is_valid: bool,
    /// Whether its clients need a certificate, too.
    pub clients_need_certificate: bool,
    /// Why the files that lie there now cannot be used, if they cannot; then what was read before is shown to clients.
    pub error: Option<String>,
}

/// The Nix store that is served.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct StoreStatus {
    /// The logical store directory.
    pub dir: String,
    /// Number of valid paths, derivations and sources included.
    pub valid_paths: u64,
    /// Number of paths that peers may see.
    pub advertised_paths: u64,
    /// What is missing where the store should be, if nothing is found because of that.
    #[serde(default)]
    pub missing: Option<String>,
}

/// Our own summary.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct OwnStatus {
    /// The epoch of its generation.
    pub epoch: u64,
    /// Its number within the epoch.
    pub seq: u64,
    /// Number of paths in it.
    pub paths: u64,
    /// Size of its filter, bits.
    pub filter_bits: u64,
}

/// One peer of the allowlist.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Its PeerId.
    pub peer_id: String,
    /// Its connection, counters and misdeeds; in the JSON on the same level as the other fields.
    #[serde(flatten)]
    pub stats: PeerStats,
    /// The name of the relay of a relayed connection.
    #[serde(default)]
    pub relay_name: Option<String>,
    /// Its newest summary.
    pub summary: Option<SummaryStatus>,
    /// Moving average of its narinfo answers, or the first ping, milliseconds.
    pub rtt_ms: Option<f64>,
    /// How far away it is: the quickest of its last pings, milliseconds.
    #[serde(default)]
    pub distance_ms: Option<f64>,
    /// For how many more seconds it is asked nothing because it misbehaved.
    pub set_aside_s: Option<u64>,
}

/// One upstream cache.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// Its tier: lower ones are asked first.
    pub tier: u8,
    /// `up`, `degraded` (its last requests failed) or `down` (it is left alone for a while).
    pub state: String,
    /// If it is down: seconds until it is tried again.
    pub down_s: Option<u64>,
    /// Its last failure, in words.
    pub last_failure: Option<String>,
    /// Seconds since then.
    pub last_failure_age_s: Option<u64>,
    /// Failures by kind, such as `timeout` or `server_error`.
    pub failures: BTreeMap<String, u64>,
    /// Number of answers; "has it not" is one.
    pub answers: u64,
    /// How long its narinfos usually take, milliseconds.
    pub latency_ms: Option<f64>,
    /// Bytes of NARs that came from it, compressed as they came.
    pub bytes_in: u64,
}

/// A summary of a peer.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct SummaryStatus {
    /// The epoch of its generation.
    pub epoch: u64,
    /// Its number within the epoch.
    pub seq: u64,
    /// Seconds since it was first accepted.
    pub age_s: u64,
    /// Number of paths in it.
    pub paths: u64,
    /// Size of its filter, bits.
    pub filter_bits: u64,
    /// Whether it was heard since the start, or kept from before.
    #[serde(default)]
    pub source: SummarySource,
}

/// Where a summary comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SummarySource {
    /// Since the start the summary came, or word that it is still the newest.
    #[default]
    Heard,
    /// It was kept over the last restart, and nothing was heard from its owner since.
    Remembered,
}

/// Requests of our own Nix.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct RequestStatus {
    /// Narinfos asked for.
    pub narinfo: u64,
    /// Narinfos found.
    pub narinfo_hits: u64,
    /// Narinfos not found.
    pub narinfo_misses: u64,
    /// How often a peer's filter promised a path that the peer did not have.
    pub false_hits: u64,
    /// NARs asked for.
    pub nar: u64,
    /// NARs delivered whole.
    pub nar_ok: u64,
    /// NARs not found.
    pub nar_absent: u64,
    /// NARs cut short: the body ended before the whole NAR was sent.
    pub nar_aborted: u64,
}

/// NAR bytes received and sent.
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

/// The quorum's policy, and its results.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct QuorumStatus {
    /// `observe`, `prefer` or `require`.
    pub mode: String,
    /// How many groups of builders must have got the same result.
    pub k: Option<u64>,
    /// Number of groups of builders.
    pub of: u64,
    /// Number of attestations that are known.
    pub attestations: u64,
    /// Number of known bare signatures of builders that sign only their own builds.
    #[serde(default)]
    pub bare_signatures: u64,
    /// Number of paths by verdict, when all were last judged.
    pub paths: BTreeMap<String, u64>,
    /// The first few paths on which builders disagree, sorted.
    pub conflicts: Vec<String>,
    /// Number of narinfos and NARs that Nix asked for and was not given because of the policy, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// One builder of the configuration.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct BuilderStatus {
    /// Its name in the configuration or the roster.
    pub name: String,
    /// Its public key.
    pub public_key: String,
    /// The group that it belongs to, whose builders count as one.
    pub group: Option<String>,
    /// Whether it counts because the roster of the mesh names it; otherwise it stands in the configuration.
    #[serde(default)]
    pub from_roster: bool,
    /// Number of its attestations that are known here.
    pub attestations: u64,
    /// When the last one of these came, seconds since 1970.
    pub last_unix_s: Option<u64>,
    /// Name of the peer that is its node.
    pub peer: Option<String>,
    /// What decides which peers may be told of its attestations.
    pub audience: BuilderAudience,
    /// Names of the peers that may be told of its attestations.
    pub told: Vec<String>,
    /// Names of the peers that may not.
    pub not_told: Vec<String>,
    /// From when on it is not believed, and why, if its key is revoked.
    pub revoked: Option<RevokedStatus>,
}

/// What decides which peers may be told of a builder's attestations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuilderAudience {
    /// The builder is this machine: all peers of the allowlist may.
    Own,
    /// The audience of its node's summary may.
    Summary,
    /// Its node is away: the audience of its last summary may.
    LastSummary,
    /// There was never a summary of its node here: nobody may.
    Unknown,
    /// It has no `peer`: nobody may, and its attestations come only as files.
    #[default]
    NoPeer,
}

/// The revocation of a key.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct RevokedStatus {
    /// From when on the key is not believed, seconds since 1970.
    pub from_unix_s: u64,
    /// The reason in the configuration.
    pub why: String,
}

/// `narmesh advertised --json`: exactly what leaves this machine.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct AdvertisedReport {
    /// Paths that peers may see, sorted.
    pub paths: Vec<AdvertisedPath>,
    /// Paths that peers may not see, with the reasons. Derivations and sources are only counted.
    pub withheld: Vec<WithheldPath>,
    /// Number of derivations and sources, which are never advertised.
    pub never: u64,
}

/// One path that peers may see.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct AdvertisedPath {
    /// Full store path.
    pub path: String,
    /// NAR size, bytes.
    pub nar_size: u64,
    /// Names of the keys whose signatures peers get with it.
    pub signed_by: Vec<String>,
    /// Whether these signatures come from attestations of `[[builder]]` alone.
    #[serde(default)]
    pub attested: bool,
}

/// One path that peers may not see.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct WithheldPath {
    /// Full store path.
    pub path: String,
    /// Why, in words.
    pub reason: String,
}

/// `narmesh why PATH --json`: what the resolver would do now, and what it did last.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct WhyReport {
    /// The path as the user gave it.
    pub asked: String,
    /// Its hash part.
    pub hash_part: String,
    /// The path in our own store.
    pub own_store: OwnStoreView,
    /// The earlier answer that is remembered, if there is one.
    pub remembered: Option<RememberedView>,
    /// Every peer of the allowlist: whether it would be asked, and why; in the order of asking.
    pub peers: Vec<CandidateView>,
    /// The upstream caches: whether each would be asked, and why.
    #[serde(default)]
    pub upstreams: Vec<CandidateView>,
    /// What the gateway would answer now.
    pub answer: WouldAnswer,
    /// The last decisions about this path, oldest first; their number is bounded.
    pub decisions: Vec<LookedUp>,
    /// Whether decisions about some paths were forgotten. Then an empty list does not mean that nobody asked.
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
    /// If it is held and not advertised: why, in words.
    pub reason: Option<String>,
    /// If it is held and not given to Nix, here or for other stores on this machine: why, in words.
    #[serde(default)]
    pub not_given: Option<String>,
}

/// A remembered answer.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct RememberedView {
    /// Seconds since it was given.
    pub age_s: u64,
    /// Names of the peers that confirmed that they hold it.
    pub holders: Vec<String>,
    /// NarHash of the remembered narinfo.
    pub nar_hash: Option<String>,
    /// NAR size, bytes.
    pub nar_size: Option<u64>,
}

/// A peer or an upstream cache as the resolver sees it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct CandidateView {
    /// Its name in the configuration.
    pub name: String,
    /// Its PeerId; for an upstream cache, how sentences of the resolver name it.
    pub peer_id: String,
    /// Whether it would be asked.
    pub would_ask: bool,
    /// Why it would be asked or not, in words: "its filter says maybe", "its filter says no", "no summary from it yet",
    /// …
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
    /// When it was decided, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// What was decided, in words; peers appear by their ids.
    pub sentence: String,
}

/// One peer dialled by `check-config --probe`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PeerProbe {
    /// Its name in the configuration.
    pub name: String,
    /// Its PeerId.
    pub peer_id: String,
    /// The result of dialling it.
    #[serde(flatten)]
    pub result: ProbeResult,
}
