//! What the gossip core reports, in the log and in the statistics.

use crate::statistics::PeerStatistics;
use libp2p::PeerId;
use narmesh_gossip::Event;
use std::time::Instant;

/// Logs what the core reports, and notes it in the statistics.
pub(super) fn note(statistics: &PeerStatistics, event: &Event) {
    match event {
        Event::AddressesLearned { .. } => {}
        Event::Greeted { peer, software } => statistics.update(peer, |stats| {
            stats.allowed_there = Some(true);
            stats.store_dir_differs = None;
            stats.software = Some(software.clone());
        }),
        Event::StoreDirDiffers { peer, store_dir } => {
            tracing::warn!(%peer, store_dir, "peer has another store directory: nothing can be shared with it");
            statistics.update(peer, |stats| stats.store_dir_differs = Some(store_dir.clone()));
        }
        Event::Published { generation, paths, body_bytes } => {
            tracing::info!(epoch = generation.epoch, seq = generation.seq, paths, body_bytes, "summary announced");
        }
        Event::Overtaken { generation } => {
            let (epoch, seq) = (generation.epoch, generation.seq);
            tracing::warn!(epoch, seq, "peers hold a newer summary of ours: our state was lost; going on above it");
        }
        Event::Announced { peer, generation, path_count } => {
            tracing::debug!(%peer, epoch = generation.epoch, seq = generation.seq, path_count, "peer announced");
        }
        Event::BodyPulled { owner, from, generation, bytes, delta } => {
            let (epoch, seq) = (generation.epoch, generation.seq);
            tracing::info!(peer = %owner, %from, epoch, seq, bytes, delta, "summary pulled");
            statistics.update(owner, |stats| {
                (stats.summary_since, stats.summary_epoch) = (Some(Instant::now()), Some(epoch));
            });
        }
        Event::PullGivenUp { owner, generation } => {
            let (epoch, seq) = (generation.epoch, generation.seq);
            tracing::info!(peer = %owner, epoch, seq, "nobody had the announced summary; the next sync tries again");
        }
        Event::Expired { peer } => note_dropped(statistics, peer, "its lifetime ended"),
        Event::Departed { peer } => note_dropped(statistics, peer, "its owner said goodbye"),
        Event::UnknownVersion { peer, version } => {
            tracing::info!(%peer, version, "ignored an announcement of a newer protocol version");
        }
        Event::UnknownHashId { peer, hash_id } => {
            tracing::info!(%peer, hash_id, "ignored a summary with an unknown hash id");
        }
        Event::ClockDiffers { peer, issued_at_ms } => {
            tracing::warn!(%peer, issued_at_ms, "ignored an announcement: its date is more than a day off our clock");
        }
        Event::SetAside { peer, misdeed, until: _ } => {
            tracing::warn!(%peer, %misdeed, "peer set aside: it is asked nothing for a while");
        }
        Event::Demoted { peer, until: _ } => {
            tracing::warn!(%peer, "peer demoted: its filter claims far more than it holds; it is asked last");
        }
    }
}

fn note_dropped(statistics: &PeerStatistics, peer: &PeerId, why: &str) {
    tracing::info!(%peer, why, "summary dropped");
    statistics.update(peer, |stats| (stats.summary_since, stats.summary_epoch) = (None, None));
}
