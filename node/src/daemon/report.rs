//! The one place that assembles what the daemon says about itself.

use super::Daemon;
use crate::account::look_up_user_name;
use crate::control::{Asker, ControlHandler, ControlReply, ControlRequest};
use crate::describe::{describe, plainly};
use crate::quorum::{OwnBuilds, Part, Queries, Question};
use crate::settings::{PeerSettings, Settings};
use crate::status::text::utc;
use crate::status::{
    AdvertisedPath, AdvertisedReport, BuilderAudience, BuilderStatus, ByteStatus, ConfigStatus, OwnStatus,
    OwnStoreView, PeerProbe, PeerStatus, QuorumStatus, RequestStatus, RevokedStatus, Status, StoreStatus,
    SummarySource, SummaryStatus, WhyReport, WithheldPath,
};
use crate::why::explain;
use libp2p::{Multiaddr, PeerId};
use narmesh_mesh::{AudienceView, MeshView, PROBE_QUESTION, PeerStats, ProbeResult, now, probe};
use narmesh_protocol::{BuilderKey, HashPart, NarInfo, StoreDir, StorePath};
use narmesh_quorum::{Builder, Ledger, Mode};
use narmesh_store::{NixStore, Offer, Offering, StoreError, Withheld};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

/// Paths in conflict that `status` names.
const CONFLICTS_SHOWN_MAX: usize = 20;
/// A connected peer that has not answered after this time is dialled like one that is not connected.
const PROBE_ANSWER_MAX: Duration = Duration::from_secs(2);

impl ControlHandler for Daemon {
    async fn handle(&self, request: ControlRequest) -> ControlReply {
        let reply = match request {
            ControlRequest::Status => self.status().await.map(|status| ControlReply::Status(Box::new(status))),
            ControlRequest::Advertised => self.collect_advertised().await.map(ControlReply::Advertised),
            ControlRequest::Why { path } => self.explain(path).await.map(|why| ControlReply::Why(Box::new(why))),
            ControlRequest::Reload => self.reload().await.map(|()| ControlReply::Reloaded),
            ControlRequest::Probe { peer } => self.probe(peer).await.map(ControlReply::Probe),
            ControlRequest::Quorum(_) => Err(anyhow::anyhow!("`narmesh quorum` is answered part by part")),
        };
        reply.unwrap_or_else(|error| ControlReply::Refused { why: describe(&error) })
    }

    fn stream(&self, question: &Question, asker: &mut Asker) -> anyhow::Result<()> {
        match question {
            Question::Import => may_change(asker.uid(), "import attestations")?,
            Question::Attest { .. } => may_change(asker.uid(), "attest")?,
            Question::Report(_) | Question::Export { .. } => {}
        }
        let (input, output) = asker.both();
        if let (Question::Report(_) | Question::Import, Some(note)) = (question, self.not_in_force()) {
            output.tell(&Part::Note(note))?;
        }
        let (store, ledger) = (&self.store, &self.ledger);
        let key = self.attester.key();
        let own = key.as_ref().map(|key| OwnBuilds { store, offer: &self.offer, ledger, key });
        let queries = Queries { store, ledger, own };
        queries.answer(question, input, |part| output.tell(&part))
    }
}

/// Refuses users who may ask but not change the ledger: what is in it decides what Nix gets, here and wherever we count
/// as a builder.
fn may_change(uid: u32, what: &str) -> anyhow::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    anyhow::ensure!(
        uid == own || uid == 0,
        "the user {} may not {what}; only root and {}, who runs the daemon, may",
        look_up_user_name(uid),
        look_up_user_name(own)
    );
    Ok(())
}

impl Daemon {
    /// Why the settings in force may differ from the configuration file, for people.
    fn not_in_force(&self) -> Option<String> {
        let in_force = self.in_force.read();
        let read = utc(in_force.loaded_unix_s);
        if let Some(error) = &in_force.error {
            return Some(format!(
                "the daemon judges by the settings that it read at {read}; the last reload was refused: {error}"
            ));
        }
        let changed = std::fs::metadata(&self.config_file).and_then(|file| file.modified()).ok()?;
        let changed_s = changed.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let file = self.config_file.display();
        (changed_s > in_force.loaded_unix_s)
            .then(|| format!("the daemon judges by the settings that it read at {read}; {file} has changed since and takes effect after a reload (SIGHUP)"))
    }

    async fn status(&self) -> anyhow::Result<Status> {
        let view = self.mesh.ask_view().await?;
        let (config, settings) = {
            let in_force = self.in_force.read();
            let config = ConfigStatus {
                file: self.config_file.clone(),
                loaded_unix_s: in_force.loaded_unix_s,
                error: in_force.error.clone(),
            };
            (config, Arc::clone(&in_force.settings))
        };
        let statistics = self.mesh.statistics().all();
        let counts = self.gateway_metrics.counts();
        let peers: Vec<_> = settings.peers.iter().map(|peer| peer_status(peer, &statistics, &view)).collect();
        Ok(Status {
            peer_id: self.secrets.peer_id().to_string(),
            software: concat!("narmesh/", env!("CARGO_PKG_VERSION")).to_owned(),
            uptime_s: self.started.elapsed().as_secs(),
            pid: std::process::id(),
            config,
            listen: view.listen.iter().map(Multiaddr::to_string).collect(),
            gateway: self.gateway_address.to_string(),
            store: StoreStatus {
                dir: settings.store.store_dir.as_str().to_owned(),
                valid_paths: self.store.valid_paths() as u64,
                missing: self.store.gap().map(|gap| gap.to_string()),
                advertised_paths: view.publication.paths as u64,
            },
            own: OwnStatus {
                epoch: view.publication.generation.map_or(0, |generation| generation.epoch),
                seq: view.publication.generation.map_or(0, |generation| generation.seq),
                paths: view.publication.paths as u64,
                filter_bits: u64::from(view.publication.filter_bits),
            },
            requests: RequestStatus {
                narinfo: counts.narinfo_hits + counts.narinfo_misses,
                narinfo_hits: counts.narinfo_hits,
                narinfo_misses: counts.narinfo_misses,
                false_hits: self.resolver.counters().false_hits.get(),
                nar: counts.nar_served + counts.nar_absent + counts.nar_aborted + counts.nar_client_gone,
                nar_ok: counts.nar_served,
                nar_absent: counts.nar_absent,
                nar_aborted: counts.nar_aborted,
            },
            bytes: ByteStatus {
                received: peers.iter().map(|peer| peer.stats.bytes_in).sum(),
                sent: peers.iter().map(|peer| peer.stats.bytes_out).sum(),
                gateway_out: counts.body_bytes,
            },
            quorum: self.quorum_status(),
            builders: self.builder_statuses(&settings, &view),
            peers,
            rss_bytes: rss_bytes(),
        })
    }

    fn quorum_status(&self) -> Option<QuorumStatus> {
        let policy = self.ledger.policy();
        let mode = match policy.mode() {
            Mode::Off => return None,
            Mode::Observe => "observe",
            Mode::Prefer => "prefer",
            Mode::Require => "require",
        };
        let found = self.observer.verdicts().lock().clone().unwrap_or_default();
        Some(QuorumStatus {
            mode: mode.to_owned(),
            k: policy.k_default().map(|k| k as u64),
            of: policy.groups() as u64,
            gateway_public_key: self.resolver.gateway_public_key().map(|key| key.to_string()),
            attestations: self.ledger.read(|ledger| ledger.len() - ledger.bare_signatures()) as u64,
            bare_signatures: self.ledger.read(Ledger::bare_signatures) as u64,
            paths: found.by_state.iter().map(|(state, count)| (state.name().to_owned(), *count)).collect(),
            conflicts: found.conflicts.iter().take(CONFLICTS_SHOWN_MAX).map(StorePath::to_string).collect(),
            refused: self.resolver.refusal_counts(),
        })
    }

    fn builder_statuses(&self, settings: &Settings, view: &MeshView) -> Vec<BuilderStatus> {
        let policy = self.ledger.policy();
        let own = self.attester.public_key().map(|key| BuilderKey(key.bytes()));
        let status = |(builder, node): (&Builder, Option<PeerId>)| {
            let tally = self.ledger.read(|ledger| ledger.tally_of(&builder.key));
            let seen = node.and_then(|node| view.audiences.get(&node));
            let audience = match (own == Some(builder.key), node.is_some(), seen) {
                (true, _, _) => BuilderAudience::Own,
                (false, true, Some(AudienceView { is_known: true, is_present: true, .. })) => BuilderAudience::Summary,
                (false, true, Some(AudienceView { is_known: true, .. })) => BuilderAudience::LastSummary,
                (false, true, _) => BuilderAudience::Unknown,
                (false, false, _) => BuilderAudience::NoPeer,
            };
            // All peers may hear of our own attestations; of others, only the audience of the builder's node.
            let others = settings.peers.iter().filter(|peer| Some(peer.peer_id) != node);
            let (told, not_told) = others.partition::<Vec<_>, _>(|peer| {
                audience == BuilderAudience::Own || seen.is_some_and(|seen| seen.admitted.contains(&peer.peer_id))
            });
            let names = |peers: Vec<&PeerSettings>| peers.into_iter().map(|peer| peer.name.clone()).collect();
            let named = settings.quorum.public_key(&builder.key);
            BuilderStatus {
                name: builder.name.clone(),
                public_key: named.map(ToString::to_string).unwrap_or_default(),
                group: builder.group.clone(),
                attestations: tally.attestations as u64,
                last_unix_s: tally.last_stored_at.map(|at| at.0 / 1_000),
                peer: settings.peers.iter().find(|peer| Some(peer.peer_id) == node).map(|peer| peer.name.clone()),
                audience,
                told: names(told),
                not_told: names(not_told),
                revoked: policy
                    .revocation(&builder.key)
                    .map(|revoked| RevokedStatus { from_unix_s: revoked.from.0 / 1_000, why: revoked.why.clone() }),
            }
        };
        settings.quorum.builders().map(status).collect()
    }

    async fn collect_advertised(&self) -> anyhow::Result<AdvertisedReport> {
        let (offer, store) = (Arc::clone(&self.offer), Arc::clone(&self.store));
        tokio::task::spawn_blocking(move || collect_advertised(&offer, &store)).await.map_err(Into::into)
    }

    async fn explain(&self, asked: String) -> anyhow::Result<WhyReport> {
        let settings = self.settings();
        let part = parse_path(&asked, &settings.store.store_dir)?;
        let names: BTreeMap<PeerId, String> =
            settings.peers.iter().map(|peer| (peer.peer_id, peer.name.clone())).collect();
        let (resolver, mesh, offer) = (Arc::clone(&self.resolver), self.mesh.clone(), Arc::clone(&self.offer));
        let why = move || {
            let mut report = explain(&resolver, &mesh, asked, part, &names);
            if report.own_store.held {
                tell_of_offer(&mut report.own_store, &offer, &part);
            }
            report
        };
        Ok(tokio::task::spawn_blocking(why).await?)
    }

    async fn probe(&self, only: Option<String>) -> anyhow::Result<Vec<PeerProbe>> {
        let settings = self.settings();
        let mut peers = settings.peer_addresses();
        let statistics = self.mesh.statistics().all();
        // A connected peer that answers proves that both sides allow each other, so it is not dialled.
        let connected = peers.keys().filter(|peer| statistics.get(peer).is_some_and(|stats| stats.connected));
        let asked = connected.map(|peer| async {
            let answer = self.mesh.ask_narinfo(*peer, PROBE_QUESTION);
            tokio::time::timeout(PROBE_ANSWER_MAX, answer).await.is_ok_and(|answer| answer.is_ok()).then_some(*peer)
        });
        let answered: Vec<_> = futures::future::join_all(asked).await.into_iter().flatten().collect();
        answered.iter().for_each(|peer| drop(peers.remove(peer)));
        let mut results = probe(&peers, &self.secrets.keypair).await?;
        results.extend(answered.into_iter().map(|peer| (peer, ProbeResult::AllowedBothWays)));
        let chosen = |peer: &&PeerSettings| {
            only.as_ref().is_none_or(|only| peer.name == *only || peer.peer_id.to_string() == *only)
        };
        let probes: Vec<_> = settings
            .peers
            .iter()
            .filter(chosen)
            .filter_map(|peer| {
                let result = results.get(&peer.peer_id)?.clone();
                Some(PeerProbe { name: peer.name.clone(), peer_id: peer.peer_id.to_string(), result })
            })
            .collect();
        anyhow::ensure!(
            only.is_none() || !probes.is_empty(),
            "no [[peer]] is named {:?}; accepted: a name or peer id from the configuration",
            only.unwrap_or_default()
        );
        Ok(probes)
    }
}

fn collect_advertised(offer: &Offer, store: &NixStore) -> AdvertisedReport {
    let (listed, store_dir) = (offer.list(), store.store_dir());
    // The list leaves derivations out, so every valid path that is not in it is a derivation.
    let derivations = store.valid_paths().saturating_sub(listed.len());
    let mut report = AdvertisedReport { never: derivations as u64, ..AdvertisedReport::default() };
    for (path, nar_size, standing) in listed {
        let full = store_dir.display(&path);
        match standing {
            Offering::Offered => {
                let offered = offer.find_offered(&path.hash_part());
                let signed_by = offered.map(|it| it.map(|offered| signers(&offered.narinfo_text, store_dir)));
                match why_kept(signed_by) {
                    Ok(signed_by) => report.paths.push(AdvertisedPath { path: full, nar_size, signed_by }),
                    Err(reason) => report.withheld.push(WithheldPath { path: full, reason }),
                }
            }
            Offering::Withheld(Withheld::Source) => report.never += 1,
            Offering::Withheld(why) => {
                report.withheld.push(WithheldPath { path: full, reason: why.sentence().to_owned() });
            }
        }
    }
    report.paths.sort();
    report.withheld.sort();
    report
}

/// Looks again at a path that is in the summary. If a peer that asks would not get it, the error says why, in words.
fn why_kept<T>(looked: Result<Option<T>, StoreError>) -> Result<T, String> {
    match looked {
        Ok(Some(offered)) => Ok(offered),
        Ok(None) => Err("it was offered until a moment ago, but no peer gets it any more".to_owned()),
        Err(error) => Err(format!("it is offered, but no peer gets it as long as this lasts: {error}")),
    }
}

/// Names of the keys whose signatures a path leaves with, read from the very text that peers get.
fn signers(narinfo_text: &[u8], store_dir: &StoreDir) -> Vec<String> {
    let info = NarInfo::parse(store_dir, narinfo_text);
    info.map_or_else(|_| Vec::new(), |info| info.signatures.into_iter().map(|signature| signature.key_name).collect())
}

/// Adds to the report whether peers may see a path that we hold, and if not, why.
fn tell_of_offer(view: &mut OwnStoreView, offer: &Offer, part: &HashPart) {
    let Err(kept) = why_kept(offer.find_offered(part)) else {
        view.advertised = true;
        return;
    };
    let standing =
        offer.list().into_iter().find(|(path, ..)| path.hash_part() == *part).map(|(_, _, standing)| standing);
    view.reason = Some(match standing {
        Some(Offering::Offered) => kept,
        Some(Offering::Withheld(why)) => why.sentence().to_owned(),
        None => "it was not looked at yet, or it is a derivation".to_owned(),
    });
}

/// The hash part of what the user gave: a full store path, a base name, or a bare hash part.
fn parse_path(asked: &str, store_dir: &StoreDir) -> anyhow::Result<HashPart> {
    let base = asked.strip_prefix(store_dir.as_str()).and_then(|rest| rest.strip_prefix('/')).unwrap_or(asked);
    let first = base.split('/').next().unwrap_or(base);
    StorePath::parse(first).map(|path| path.hash_part()).or_else(|_| HashPart::parse(first)).map_err(|_| {
        anyhow::anyhow!(
            "{asked:?} is not a store path; accepted: {}/<hash>-<name>, <hash>-<name>, or the hash part (32 characters)",
            store_dir.as_str()
        )
    })
}

fn peer_status(peer: &PeerSettings, statistics: &BTreeMap<PeerId, PeerStats>, view: &MeshView) -> PeerStatus {
    let mut stats = statistics.get(&peer.peer_id).cloned().unwrap_or_default();
    stats.why = stats.why.map(|why| plainly(&why).into_owned());
    let seen = view.peers.iter().find(|seen| seen.peer == peer.peer_id);
    let summary = seen.and_then(|seen| seen.summary.as_ref()).map(|summary| SummaryStatus {
        epoch: summary.generation.epoch,
        seq: summary.generation.seq,
        age_s: match summary.remembered {
            // It may be older than this machine's uptime, so only the wall clock knows its age.
            true => (now().wall_ms / 1_000).saturating_sub(summary.accepted_ms / 1_000),
            false => stats.summary_since.map_or(0, |since| since.elapsed().as_secs()),
        },
        paths: summary.paths,
        filter_bits: u64::from(summary.filter_bits),
        source: if summary.remembered { SummarySource::Remembered } else { SummarySource::Heard },
    });
    PeerStatus {
        name: peer.name.clone(),
        peer_id: peer.peer_id.to_string(),
        summary,
        rtt_ms: stats.latency.map(|latency| latency.as_secs_f64() * 1e3),
        set_aside_s: stats.set_aside_left().map(|left| left.as_secs()),
        stats,
    }
}

/// Resident memory from `/proc/self/statm`, 0 where there is none.
fn rss_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_cannot_be_read_is_not_reported_as_offered() {
        assert_eq!(why_kept(Ok(Some(["one-1"]))), Ok(["one-1"]));
        assert!(why_kept::<()>(Ok(None)).unwrap_err().contains("no peer gets it"));
        let unreadable = StoreError::Row { row: 7, path: "/nix/store/x".to_owned(), column: "narSize" };
        let told = why_kept::<()>(Err(unreadable)).unwrap_err();
        assert!(told.contains("no peer gets it") && told.contains("narSize of row 7"), "{told}");
    }
}
