//! The protocols of a node, composed.

use super::bulk::{Bulk, ControlWatch};
use super::codec::BytesCodec;
use super::connection_rates::ConnectionRates;
use super::connection_rule::Ruled;
use super::dead_connections::DeadConnections;
use super::handshake_limits::HandshakeLimits;
use super::message_limits::MessageLimits;
use super::shut_out::ShutOut;
use libp2p::allow_block_list::{self, AllowedPeers};
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::NetworkBehaviour;
use libp2p::{PeerId, StreamProtocol, connection_limits, gossipsub, ping};
use narmesh_protocol::wire::{
    ANNOUNCE_TOPIC, CIRCUIT_PROTOCOL, CircuitReply, CircuitRequest, DIAL_PROTOCOL, DialReply, DialRequest,
    GOSSIP_PROTOCOL, GossipReply, GossipRequest, LOG_PROTOCOL, LogReply, LogRequest, NARINFO_PROTOCOL, NarInfoReply,
    NarInfoRequest, REALISATION_PROTOCOL, ROSTER_PROTOCOL, RealisationReply, RealisationRequest, RosterReply,
    RosterRequest, TREE_PROTOCOL, TreeReply, TreeRequest,
};
use narmesh_quorum::wire::{QUORUM_PROTOCOL, QuorumReply, QuorumRequest};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::time::Duration;

/// Gossipsub for announcements. Nobody can subscribe to another topic than ours.
pub(super) type Announcements =
    gossipsub::Behaviour<gossipsub::IdentityTransform, gossipsub::WhitelistSubscriptionFilter>;

/// The order of the fields is the order of polling and of admission. Before any protocol hears of a connection it
/// passes the handshake limits, the allowlist, the limit on connections, the list of who is shut out, how often the peer
/// connects, and what we know of its other connections.
#[derive(NetworkBehaviour)]
pub(super) struct MeshBehaviour {
    pub(super) handshake_limits: Ruled<HandshakeLimits>,
    pub(super) allowlist: allow_block_list::Behaviour<AllowedPeers>,
    pub(super) limits: connection_limits::Behaviour,
    pub(super) shut_out: Ruled<ShutOut>,
    pub(super) connection_rates: Ruled<ConnectionRates>,
    pub(super) dead_connections: Ruled<DeadConnections>,
    pub(super) announcements: MessageLimits<Announcements>,
    pub(super) gossip: request_response::Behaviour<BytesCodec>,
    pub(super) narinfo: request_response::Behaviour<BytesCodec>,
    pub(super) tree: request_response::Behaviour<BytesCodec>,
    pub(super) log: request_response::Behaviour<BytesCodec>,
    pub(super) realisation: request_response::Behaviour<BytesCodec>,
    pub(super) quorum: request_response::Behaviour<BytesCodec>,
    pub(super) roster: request_response::Behaviour<BytesCodec>,
    pub(super) dial: request_response::Behaviour<BytesCodec>,
    pub(super) circuit: request_response::Behaviour<BytesCodec>,
    pub(super) control_watch: ControlWatch,
    pub(super) ping: ping::Behaviour,
}

impl MeshBehaviour {
    /// All protocols for `keypair`, admitting `allowed` only.
    pub(super) fn new(
        keypair: &libp2p::identity::Keypair,
        allowed: impl IntoIterator<Item = PeerId>,
        connections_max: u32,
        bulk: Bulk,
    ) -> Self {
        let mut allowlist = allow_block_list::Behaviour::<AllowedPeers>::default();
        for peer in allowed {
            allowlist.allow_peer(peer);
        }
        let limits = connection_limits::ConnectionLimits::default().with_max_established(Some(connections_max));
        Self {
            handshake_limits: Ruled::default(),
            allowlist,
            limits: connection_limits::Behaviour::new(limits),
            shut_out: Ruled::default(),
            connection_rates: Ruled::default(),
            dead_connections: Ruled::default(),
            announcements: MessageLimits::new(announcements(keypair)),
            gossip: request_response(
                BytesCodec::new(GossipRequest::BYTES_MAX, GossipReply::BYTES_MAX),
                GOSSIP_PROTOCOL,
                GOSSIP_STREAMS_MAX,
            ),
            narinfo: request_response(
                BytesCodec::new(NarInfoRequest::BYTES_MAX, NarInfoReply::BYTES_MAX),
                NARINFO_PROTOCOL,
                NARINFO_STREAMS_MAX,
            ),
            tree: request_response(
                BytesCodec::new(TreeRequest::BYTES_MAX, TreeReply::BYTES_MAX),
                TREE_PROTOCOL,
                TREE_STREAMS_MAX,
            ),
            log: request_response(
                BytesCodec::new(LogRequest::BYTES_MAX, LogReply::BYTES_MAX),
                LOG_PROTOCOL,
                LOG_STREAMS_MAX,
            ),
            realisation: request_response(
                BytesCodec::new(RealisationRequest::BYTES_MAX, RealisationReply::BYTES_MAX),
                REALISATION_PROTOCOL,
                REALISATION_STREAMS_MAX,
            ),
            quorum: request_response(
                BytesCodec::new(QuorumRequest::BYTES_MAX, QuorumReply::BYTES_MAX),
                QUORUM_PROTOCOL,
                QUORUM_STREAMS_MAX,
            ),
            roster: request_response(
                BytesCodec::new(RosterRequest::BYTES_MAX, RosterReply::BYTES_MAX),
                ROSTER_PROTOCOL,
                ROSTER_STREAMS_MAX,
            ),
            dial: request_response(BytesCodec::new(DialRequest::BYTES_MAX, DialReply::BYTES_MAX), DIAL_PROTOCOL, 4),
            circuit: request_response(
                BytesCodec::new(CircuitRequest::BYTES_MAX, CircuitReply::BYTES_MAX),
                CIRCUIT_PROTOCOL,
                CIRCUIT_STREAMS_MAX,
            ),
            control_watch: ControlWatch::new(bulk),
            // The default of 15 s alone costs 2.6 kB/s at 49 connections; stalls are found by request deadlines.
            ping: ping::Behaviour::new(ping::Config::new().with_interval(Duration::from_secs(120))),
        }
    }
}

/// Requests of each kind that one connection has under way, in both directions together.
pub(super) const GOSSIP_STREAMS_MAX: usize = 32;
pub(super) const NARINFO_STREAMS_MAX: usize = 256;
pub(super) const TREE_STREAMS_MAX: usize = 32;
pub(super) const LOG_STREAMS_MAX: usize = 16;
pub(super) const REALISATION_STREAMS_MAX: usize = 32;
pub(super) const QUORUM_STREAMS_MAX: usize = 32;
pub(super) const ROSTER_STREAMS_MAX: usize = 8;
pub(super) const CIRCUIT_STREAMS_MAX: usize = 16;

/// The longest gossipsub message, with what it carries beside announcements: above all the ids of those seen lately
/// (IHAVE).
const RPC_BYTES_MAX: usize = 64 << 10;
/// The longest announcement; an envelope has at most 1,000 bytes.
const ANNOUNCEMENT_BYTES_MAX: usize = 4_096;
/// Ids in one IHAVE or IWANT: 34 bytes each, and gossipsub refuses more than 16 KiB of them. A longer list closes the
/// stream; the fifth time, gossip with this peer is over for as long as it is connected. gossipsub's default of 5,000
/// ids would be 170 KB.
const CONTROL_IDS_MAX: usize = 400;

/// The one topic of this mesh.
pub(super) fn announce_topic() -> gossipsub::IdentTopic {
    gossipsub::IdentTopic::new(ANNOUNCE_TOPIC)
}

fn announcements(keypair: &libp2p::identity::Keypair) -> Announcements {
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(gossipsub::ValidationMode::Strict)
        .validate_messages()
        .max_transmit_size(RPC_BYTES_MAX)
        .max_transmit_size_for_topic(ANNOUNCEMENT_BYTES_MAX, announce_topic().hash())
        .max_control_messages_sent(CONTROL_IDS_MAX)
        // The first heartbeat fills the forwarding mesh; the default of 5 s would delay it on a fresh start.
        .heartbeat_initial_delay(Duration::from_millis(500))
        .message_id_fn(|message: &gossipsub::Message| {
            let source = message.source.map(PeerId::to_bytes).unwrap_or_default();
            let digest = Sha256::new().chain_update(source).chain_update(&message.data).finalize();
            gossipsub::MessageId::from(digest.to_vec())
        })
        .build()
        .expect("these parameters fit together, whatever the key");
    let filter = gossipsub::WhitelistSubscriptionFilter(HashSet::from([announce_topic().hash()]));
    let mut announcements = Announcements::new_with_subscription_filter(
        gossipsub::MessageAuthenticity::Signed(keypair.clone()),
        config,
        filter,
    )
    .expect("a key signs, which is what strict validation asks for");
    announcements.subscribe(&announce_topic()).expect("the filter lets our topic pass");
    announcements
}

fn request_response(
    codec: BytesCodec,
    protocol: &'static str,
    streams_max: usize,
) -> request_response::Behaviour<BytesCodec> {
    let config = request_response::Config::default()
        .with_max_concurrent_streams(streams_max)
        .with_request_timeout(Duration::from_secs(10));
    request_response::Behaviour::with_codec(codec, [(StreamProtocol::new(protocol), ProtocolSupport::Full)], config)
}
