//! Answers what is asked over the control socket.

use super::Daemon;
use super::advertised::{collect_advertised, tell_of_offer};
use super::status::assemble_status;
use crate::account::look_up_user_name;
use crate::attestations::{OwnBuilds, Part, Queries, Question};
use crate::control::{Asker, ControlHandler, ControlReply, ControlRequest};
use crate::describe::describe;
use crate::serving::{ServeState, ServeSwitch, minute_now};
use crate::settings::PeerSettings;
use crate::status::text::utc;
use crate::status::{AdvertisedReport, PeerProbe, WhyReport};
use crate::why::explain;
use anyhow::Context as _;
use libp2p::PeerId;
use narmesh_mesh::{PROBE_QUESTION, ProbeResult, probe};
use narmesh_protocol::{HashPart, StoreDir, StorePath};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

/// A connected peer that has not answered after this time is dialled like one that is not connected.
const PROBE_ANSWER_MAX: Duration = Duration::from_secs(2);

impl ControlHandler for Daemon {
    async fn handle(&self, request: ControlRequest) -> ControlReply {
        let reply = match request {
            ControlRequest::Status => assemble_status(self).await.map(|status| ControlReply::Status(Box::new(status))),
            ControlRequest::Advertised => self.collect_advertised().await.map(ControlReply::Advertised),
            ControlRequest::Why { path } => self.explain(path).await.map(|why| ControlReply::Why(Box::new(why))),
            ControlRequest::Log(query) => self.find_in_log(&query).map(ControlReply::Log),
            ControlRequest::Dashboard => {
                self.link_asker.ask().await.map(|link| ControlReply::Dashboard { link }).map_err(Into::into)
            }
            ControlRequest::Reload => self.reload().await.map(|()| ControlReply::Reloaded),
            ControlRequest::Serve(switch) => self.serve_peers(switch).map(ControlReply::Serve),
            ControlRequest::Probe { peer } => self.probe(peer).await.map(ControlReply::Probe),
            ControlRequest::Quorum(_) => Err(anyhow::anyhow!("`narmesh quorum` is answered part by part")),
        };
        reply.unwrap_or_else(|error| ControlReply::Refused { why: describe(&error) })
    }

    fn stream(&self, question: &Question, asker: &mut Asker) -> anyhow::Result<()> {
        match question {
            // Whoever may ask the socket may not yet have this machine sign or keep something.
            Question::Import => may_change(asker.uid(), "import attestations")?,
            Question::Attest { .. } => may_change(asker.uid(), "attest")?,
            Question::Report(_) | Question::Export { .. } => {}
        }
        let (input, output) = asker.both();
        if let (Question::Report(_) | Question::Import, Some(note)) = (question, self.not_in_force()) {
            output.tell(&Part::Note(note))?;
        }
        let (store, ledger) = (&self.store, self.attestations.ledger());
        let key = self.attestations.key();
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

    /// Sets the switch, if one is given, and says whether peers get anything.
    fn serve_peers(&self, switch: Option<ServeSwitch>) -> anyhow::Result<ServeState> {
        let kept = switch.map_or(Ok(()), |switch| self.serving.set(switch));
        self.apply_serving();
        kept.context("the switch counts from now on, but only until the daemon ends, because it cannot be kept")?;
        Ok(self.serving.decide(&self.settings(), minute_now()))
    }

    async fn collect_advertised(&self) -> anyhow::Result<AdvertisedReport> {
        let (offer, store) = (Arc::clone(&self.offer), Arc::clone(&self.store));
        tokio::task::spawn_blocking(move || collect_advertised(&offer, &store)).await.map_err(Into::into)
    }

    pub(super) async fn explain(&self, asked: String) -> anyhow::Result<WhyReport> {
        let settings = self.settings();
        let part = parse_path(&asked, &settings.store.store_dir)?;
        let names: BTreeMap<PeerId, String> =
            settings.peers.iter().map(|peer| (peer.peer_id, peer.name.clone())).collect();
        let (resolver, mesh, offer) = (Arc::clone(&self.resolver), self.mesh.clone(), Arc::clone(&self.offer));
        let upstreams = self.upstreams.all();
        let why = move || {
            let mut report = explain(&resolver, &mesh, asked, part, &names, &upstreams);
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
        // A dial would make the peer take the present connection for dead, so only those without one are dialled.
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

/// The hash part of what the user gave: a full store path, a base name, or a bare hash part.
pub(super) fn parse_path(asked: &str, store_dir: &StoreDir) -> anyhow::Result<HashPart> {
    let base = asked.strip_prefix(store_dir.as_str()).and_then(|rest| rest.strip_prefix('/')).unwrap_or(asked);
    let first = base.split('/').next().unwrap_or(base);
    StorePath::parse(first).map(|path| path.hash_part()).or_else(|_| HashPart::parse(first)).map_err(|_| {
        anyhow::anyhow!(
            "{asked:?} is not a store path; accepted: {}/<hash>-<name>, <hash>-<name>, or the hash part (32 characters)",
            store_dir.as_str()
        )
    })
}
