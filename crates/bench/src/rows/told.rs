//! How long it takes until a machine knows what another one built, with a third machine between them: that it has the path,
//! and that its builder attests it.

use crate::daemon::{Daemon, Node};
use crate::nix::Nix;
use crate::row::{Beside, Planned};
use crate::subject::{Bench, Report, Subject};
use anyhow::{Context as _, bail, ensure};
use std::time::{Duration, Instant};

/// Builds in one round.
const BUILDS_PER_ROUND: usize = 5;
const MEETING_MAX: Duration = Duration::from_secs(30);
const TOLD_MAX: Duration = Duration::from_secs(30);
const NAME: &str = "quorum/attestation-over-relay";

/// A builder, a relay that both others know, and a machine without a connection to the builder.
#[derive(Debug)]
pub(super) struct Told;

impl Subject for Told {
    fn planned(&self) -> Vec<Planned> {
        let about = "from the end of a real build to its attestation in the ledger of a machine behind a relay, beside the \
                     announcement of the path over the same way";
        vec![Planned::new(NAME, "ms", about)]
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        Nix::need_builds()?;
        let dir = bench.scratch.subdir("told-")?;
        let nix = Nix::new(&dir.join("client"))?;
        let binary = bench.binaries.narmesh()?;
        let node = |name: &str| {
            let store = dir.join(&format!("{name}-store"));
            nix.make_store(&store)?;
            Node::init(binary, &dir.join(name), name, &store)
        };
        let (mut builder, mut relay, mut judge) = (node("builder")?, node("relay")?, node("judge")?);
        for far in [&mut builder, &mut judge] {
            // Only the relay's address is known.
            far.keep_address();
            Node::introduce(&mut relay, far)?;
        }
        builder.allow("judge", &judge.peer_id, None);
        judge.allow("builder", &builder.peer_id, None);
        for counting in [&mut relay, &mut judge] {
            counting.count(&builder)?;
        }
        let store = dir.join("builder-store");
        let _relay = relay.start()?;
        let _builder = builder.start()?;
        let mut daemon = judge.start()?;
        daemon.wait_for_summaries(&["builder", "relay"], 0, MEETING_MAX)?;
        let (mut announced, mut attested) = (Vec::new(), Vec::new());
        for number in 0..bench.rounds * BUILDS_PER_ROUND {
            let derivation = nix.instantiate_fresh(&store, &number.to_string())?;
            let before = Known::by(&daemon)?;
            nix.build(&store, &derivation)?;
            let (announced_ms, attested_ms) = until_told(&daemon, before)?;
            announced.push(announced_ms);
            attested.push(attested_ms);
        }
        report.figure(NAME, &attested, Some(Beside::new("announcement of the path", announced)));
        Ok(())
    }
}

/// What the judge's status says about the builder.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Known {
    paths: u64,
    attestations: u64,
}

impl Known {
    fn by(daemon: &Daemon<'_>) -> anyhow::Result<Self> {
        let status = daemon.status()?;
        let peers = status.get("peers").and_then(serde_json::Value::as_array).context("peers in the status")?;
        let builder = peers.iter().find(|peer| peer.get("name").is_some_and(|name| name == "builder"));
        let connected = builder.and_then(|peer| peer.get("connected")?.as_bool());
        ensure!(connected == Some(false), "the builder is connected: there is no relay between");
        let paths = builder.and_then(|peer| peer.pointer("/summary/paths")?.as_u64());
        let attestations = status.pointer("/quorum/attestations").and_then(serde_json::Value::as_u64);
        Ok(Self { paths: paths.unwrap_or(0), attestations: attestations.context("attestations in the status")? })
    }
}

/// Milliseconds from now until the path is known, and until its attestation is. One status is asked for both.
fn until_told(daemon: &Daemon<'_>, before: Known) -> anyhow::Result<(f64, f64)> {
    let started = Instant::now();
    let (mut announced_ms, mut attested_ms) = (None, None);
    while started.elapsed() < TOLD_MAX {
        let known = Known::by(daemon)?;
        let elapsed_ms = started.elapsed().as_secs_f64() * 1e3;
        if known.paths > before.paths {
            announced_ms.get_or_insert(elapsed_ms);
        }
        if known.attestations > before.attestations {
            attested_ms.get_or_insert(elapsed_ms);
        }
        if let Some(both) = announced_ms.zip(attested_ms) {
            return Ok(both);
        }
    }
    bail!("after {TOLD_MAX:?} the path is known after {announced_ms:?} ms, its attestation after {attested_ms:?} ms")
}
