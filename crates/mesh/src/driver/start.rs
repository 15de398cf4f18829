//! Puts the driver together, before its loop runs.

use super::attestations::Attestations;
use super::bulk_dials::BulkDials;
use super::circuits::CircuitRequests;
use super::context::Context;
use super::dials::Dials;
use super::gossip_link::GossipLink;
use super::kept::RestoredSummaries;
use super::logs::Logs;
use super::narinfos::NarInfos;
use super::realisations::Realisations;
use super::removal_asks::RemovalAsks;
use super::rosters::Rosters;
use super::trees::Trees;
use super::{COMMANDS_MAX, CONNECTIONS_MAX, LISTEN_TIMEOUT, Mesh, MeshParts, StartError};
use crate::bulk::Surroundings;
use crate::clock::now;
use crate::config::MeshConfig;
use crate::connection_rates::ConnectionRates;
use crate::first_words::FirstWords;
use crate::handle::{Blame, MeshHandle};
use crate::join::answer_joins;
use crate::listeners::Listeners;
use crate::nar_client::NarPool;
use crate::state::SummaryStore;
use crate::swarm::{self, Built};
use crate::transport::Tls;
use crate::unread::UnreadReplies;
use futures::StreamExt;
use libp2p::identity::Keypair;
use narmesh_gossip::{Gossip, GossipConfig, PATHS_MAX};
use narmesh_protocol::StoreDir;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc;

impl Mesh {
    /// Builds swarm and core, starts listening, and takes bulk connections; the caller spawns [`Mesh::run`].
    pub fn start(
        keypair: &Keypair,
        store_dir: StoreDir,
        config: MeshConfig,
        parts: MeshParts,
    ) -> Result<(Self, MeshHandle), StartError> {
        let MeshParts { offer, uploads, statistics, state, summaries, exchange, news, join_handler } = parts;
        let built = swarm::build(keypair, config.peers.keys().copied(), CONNECTIONS_MAX)?;
        let Built { mut swarm, bulk, bulk_arrivals, joins, is_open, removals: told, circuits } = built;
        let listeners = Listeners::open(&mut swarm, &config.listen)?;
        let mut rng = StdRng::from_rng(&mut rand::rng());
        let software = concat!("narmesh/", env!("CARGO_PKG_VERSION"));
        let mut gossip_config = GossipConfig::new(keypair.clone(), store_dir, software, rng.random());
        // The offer keeps to the number of the settings, which a reload may change.
        gossip_config.path_count_max = PATHS_MAX;
        let gossip = Gossip::new(now(), gossip_config, state.read()?);
        let (commands_sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (asks_to_dial, asks) = mpsc::channel(COMMANDS_MAX);
        let nars = NarPool::new(bulk.clone());
        let first_words = Arc::new(FirstWords::new());
        let handle = MeshHandle::new(
            commands_sender.clone(),
            gossip.table(),
            Arc::clone(&statistics),
            nars.clone(),
            exchange.link.clone(),
            Arc::clone(&first_words),
            listeners.follow(),
        )
        .with_relay(circuits.relay.clone());
        // Uploads run as tasks of their own, and reach the driver by its commands alone.
        let blame = Blame(commands_sender);
        let connection_rates = ConnectionRates::clone(&swarm.behaviour().connection_rates);
        let surroundings = Surroundings {
            statistics: Arc::clone(&statistics),
            asks_to_dial,
            connection_rates,
            incoming: Box::new(move |stream| uploads.accept(stream, blame.clone())),
        };
        tokio::spawn(bulk.clone().run(surroundings, bulk_arrivals));
        let unread = UnreadReplies::default();
        tokio::spawn(answer_joins(joins, join_handler));
        let removal_asks = RemovalAsks::new(Tls::new(keypair)?, news.clone());
        let mut mesh = Self {
            context: Context { swarm, gossip, statistics, config: config.clone(), state, unread },
            listeners,
            commands,
            gossip_link: GossipLink::new(),
            dials: Dials::new(config.connections_gossip, rng, removal_asks),
            bulk_dials: BulkDials::new(bulk, asks),
            narinfos: NarInfos::new(Arc::clone(&offer)),
            trees: Trees::new(Arc::clone(&offer), keypair.clone()),
            logs: Logs::new(Arc::clone(&offer)),
            realisations: Realisations::new(Arc::clone(&offer)),
            nars,
            attestations: Attestations::new(exchange, offer),
            rosters: Rosters::new(news, told),
            circuits: CircuitRequests::new(circuits),
            is_open,
            summaries: None,
            first_words,
        };
        // The same way as at a reload, so that both come to the same.
        mesh.reconfigure(config);
        // Before anybody can ask, so that the table answers from the first question on.
        if let Some(files) = summaries {
            mesh.restore_summaries(files)?;
        }
        Ok((mesh, handle))
    }

    /// Fills the table with the summaries of the last run, and keeps them from now on.
    fn restore_summaries(&mut self, files: Box<dyn SummaryStore>) -> io::Result<()> {
        let restored = RestoredSummaries::read(&mut self.context, files);
        for owner in restored.owners() {
            self.dials.mark_remembered(owner);
            self.attestations.on_audience_changed(&self.context, owner);
        }
        // What the core says of the restored ones comes before anything of this run.
        self.perform();
        self.summaries = Some(restored.keep()?);
        Ok(())
    }

    /// Waits, at most 2 s, until an address is known of each listener that can have one.
    pub async fn wait_until_listening(&mut self) {
        let all = async {
            while !self.listeners.are_known() {
                let event = self.context.swarm.select_next_some().await;
                self.on_swarm_event(event);
            }
        };
        if tokio::time::timeout(LISTEN_TIMEOUT, all).await.is_err() {
            tracing::warn!(after = ?LISTEN_TIMEOUT, "not all addresses of node.listen are listened on yet");
        }
    }
}
