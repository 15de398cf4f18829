//! Narinfo hits and misses of one daemon under load, with few and with many peers in its table, beside nginx.

use crate::crowd::{Crowd, peer_id};
use crate::daemon::{Daemon, Node};
use crate::fetch;
use crate::load::{End, Load, Seen};
use crate::nginx::Nginx;
use crate::nix::Nix;
use crate::process::Running;
use crate::row::{Beside, Planned, Target};
use crate::sample_cache::SampleCache;
use crate::subject::{Bench, Report, Subject};
use anyhow::Context as _;
use narmesh_protocol::HashPart;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Different absent paths, so that remembering the last answer helps neither server.
const ABSENT_PATHS: usize = 20_000;
/// How long a daemon may take to pull a thousand summaries.
const LOADING_MAX: Duration = Duration::from_secs(300);

/// Short loads in turn, so that whatever else the machine does affects both sides alike.
const SLICES_PER_ROUND: usize = 3;

/// A daemon with the summaries of `peers` peers in its table.
#[derive(Debug)]
pub(super) struct Narinfo {
    pub(super) peers: usize,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Miss,
    Hit,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Miss, Self::Hit];

    fn name(self) -> &'static str {
        match self {
            Self::Miss => "miss",
            Self::Hit => "hit",
        }
    }

    fn status(self) -> u16 {
        match self {
            Self::Miss => 404,
            Self::Hit => 200,
        }
    }

    /// The share of nginx's rate that is to be reached at 64 connections.
    fn target(self) -> Target {
        match self {
            Self::Miss => Target::RatioAtLeast(0.6),
            Self::Hit => Target::RatioAtLeast(0.4),
        }
    }
}

const CONNECTIONS: [usize; 2] = [1, 64];

impl Narinfo {
    fn group(&self, kind: Kind, connections: usize) -> String {
        let number = |count: usize, noun: &str| format!("{count}-{noun}{}", if count == 1 { "" } else { "s" });
        format!("narinfo/{}/{}/{}", kind.name(), number(self.peers, "peer"), number(connections, "connection"))
    }
}

impl Subject for Narinfo {
    fn planned(&self) -> Vec<Planned> {
        let mut all = Vec::new();
        for kind in Kind::ALL {
            for connections in CONNECTIONS {
                let group = self.group(kind, connections);
                let what = format!("narinfo {} with {} peers loaded, {connections} at a time", kind.name(), self.peers);
                let row = |last: &str, unit: &'static str, about: &str| {
                    Planned::new(format!("{group}/{last}"), unit, format!("{what}: {about}"))
                };
                let rate = row("rate", "requests/s", "answers a second");
                all.push(if connections == 64 { rate.target(kind.target()) } else { rate });
                all.push(row("p50", "us", "latency, median"));
                all.push(row("p99", "us", "latency, 99th percentile"));
                all.push(row("cpu", "us", "CPU time of the server a request"));
            }
        }
        if self.peers > 100 {
            all = all.into_iter().map(|planned| planned.heavy("about 2 minutes and 2 GB of memory")).collect();
        }
        all
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        Nginx::need()?;
        let dir = bench.scratch.subdir("narinfo-")?;
        let nix = Nix::new(&dir.join("client"))?;
        let mut cache = SampleCache::new(&dir.join("cache"))?;
        let root = cache.add_small()?;
        let key = cache.public_key().to_string();
        nix.copy(&cache.url(), &dir.join("store"), &root.full(), &key)?;
        let mut node = Node::init(bench.binaries.narmesh()?, &dir.join("node"), "measured", &dir.join("store"))?;
        node.trust(&key);
        crate::progress(&format!("making the summaries of {} peers", self.peers));
        let crowd = Crowd::start(self.peers, &node.peer_id)?;
        let names: Vec<_> = (0..self.peers).map(|number| format!("peer-{number}")).collect();
        for (number, name) in names.iter().enumerate() {
            // Only the relay can be reached, and it speaks for all.
            let address = (number == 0).then_some(crowd.address.as_str());
            node.allow(name, &peer_id(number).to_base58(), address);
        }
        let mut daemon = node.start()?;
        crate::progress("waiting until the daemon has pulled them");
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        daemon.wait_for_summaries(&names, 1, LOADING_MAX)?;
        daemon.wait_for_answer(&root.narinfo_target())?;
        let files = dir.join("files");
        fs::create_dir(&files)?;
        let hits: Arc<[String]> = cache.paths().iter().map(|sample| sample.narinfo_target()).collect();
        for target in hits.iter() {
            let text = fetch::text(node.gateway, target)?.with_context(|| format!("{target} is not served"))?;
            fs::write(files.join(target.trim_start_matches('/')), text)?;
        }
        let nginx = Nginx::start(bench.scratch.subdir("nginx-")?, &files)?;
        let misses = absent();
        for kind in Kind::ALL {
            for connections in CONNECTIONS {
                let group = self.group(kind, connections);
                if report.wants(&group) {
                    let targets = match kind {
                        Kind::Miss => Arc::clone(&misses),
                        Kind::Hit => Arc::clone(&hits),
                    };
                    let end = End::After(bench.load_duration);
                    let load = Load { targets, status: kind.status(), connections, end };
                    crate::progress(&group);
                    self.rounds(bench, report, &group, &load, &daemon, (node.gateway, &nginx))?;
                }
            }
        }
        Ok(())
    }
}

impl Narinfo {
    fn rounds(
        &self,
        bench: &Bench,
        report: &mut Report,
        group: &str,
        load: &Load,
        daemon: &Daemon<'_>,
        (gateway, nginx): (SocketAddr, &Nginx),
    ) -> anyhow::Result<()> {
        let (mut ours, mut theirs) = (Samples::default(), Samples::default());
        // Warms up connections, caches and branch predictors of both sides before anything counts.
        let warm_up = Load { end: End::After(bench.load_duration / 2), ..load.clone() };
        warm_up.run(gateway)?;
        warm_up.run(nginx.address)?;
        for _ in 0..bench.rounds * SLICES_PER_ROUND {
            ours.take(load, gateway, &daemon.process)?;
            theirs.take(load, nginx.address, &nginx.process)?;
        }
        for (last, ours, theirs) in [
            ("rate", ours.rate, theirs.rate),
            ("p50", ours.p50_us, theirs.p50_us),
            ("p99", ours.p99_us, theirs.p99_us),
            ("cpu", ours.cpu_us, theirs.cpu_us),
        ] {
            report.figure(&format!("{group}/{last}"), &ours, Some(Beside::new("nginx", theirs)));
        }
        Ok(())
    }
}

/// The figures of one server, one sample of each a round.
#[derive(Debug, Default)]
struct Samples {
    rate: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    cpu_us: Vec<f64>,
}

impl Samples {
    fn take(&mut self, load: &Load, address: SocketAddr, server: &Running) -> anyhow::Result<()> {
        let cpu_before = server.cpu_s()?;
        let seen: Seen = load.run(address)?;
        let cpu_s = server.cpu_s()? - cpu_before;
        self.rate.push(seen.rate());
        self.p50_us.push(seen.percentile_us(50));
        self.p99_us.push(seen.percentile_us(99));
        self.cpu_us.push(cpu_s * 1e6 / seen.requests() as f64);
        Ok(())
    }
}

fn absent() -> Arc<[String]> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut target = || {
        let mut hash_part = HashPart([0; 20]);
        rng.fill_bytes(&mut hash_part.0);
        format!("/{hash_part}.narinfo")
    };
    (0..ABSENT_PATHS).map(|_| target()).collect()
}
