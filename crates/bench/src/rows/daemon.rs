//! What a daemon costs when nothing happens, and how soon it answers after a start.

use crate::daemon::{Daemon, Node};
use crate::nix::Nix;
use crate::row::{Planned, Target};
use crate::sample_cache::SampleCache;
use crate::subject::{Bench, Report, Subject};
use std::time::{Duration, Instant};

/// How long many daemons may take to start and meet on few cores.
const MEETING_MAX: Duration = Duration::from_secs(120);
/// How long the daemon is idle before its memory counts.
const SETTLING: Duration = Duration::from_secs(3);
/// Starts in one round; each takes milliseconds.
const STARTS_PER_ROUND: usize = 3;

/// Resident memory of a daemon that is connected to `peers` others.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) peers: usize,
}

impl Subject for Memory {
    fn planned(&self) -> Vec<Planned> {
        let noun = if self.peers == 1 { "peer" } else { "peers" };
        let about = format!("resident memory of an idle daemon connected to {} other daemons", self.peers);
        vec![Planned::new(format!("daemon/rss/{}-{noun}", self.peers), "MB", about).target(Target::AtMost(40.0))]
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        let dir = bench.scratch.subdir("memory-")?;
        let (nix, store) = (Nix::new(&dir.join("client"))?, dir.join("store"));
        nix.make_store(&store)?;
        let binary = bench.binaries.narmesh()?;
        let mut hub = Node::init(binary, &dir.join("hub"), "hub", &store)?;
        // All peers are to be connected, even when a daemon would keep fewer connections by default.
        hub.limit(&format!("connections_gossip = {}", self.peers.max(32)));
        let mut others = Vec::new();
        for number in 0..self.peers {
            let name = format!("peer-{number}");
            let mut other = Node::init(binary, &dir.join(&name), &name, &store)?;
            Node::introduce(&mut hub, &mut other)?;
            others.push(other);
        }
        crate::progress(&format!("starting {} daemons", self.peers + 1));
        let mut daemon = hub.start()?;
        let running = others.iter().map(Node::spawn).collect::<anyhow::Result<Vec<_>>>()?;
        let names: Vec<_> = others.iter().map(Node::name).collect();
        daemon.wait_for_summaries(&names, 0, MEETING_MAX)?;
        let mut samples = Vec::new();
        for _ in 0..bench.rounds {
            std::thread::sleep(SETTLING);
            samples.push(daemon.process.rss_mb()?);
        }
        running.iter().for_each(Daemon::tell_to_end);
        for planned in self.planned() {
            report.figure(&planned.name, &samples, None);
        }
        Ok(())
    }
}

/// The time from `exec` to the first narinfo.
#[derive(Debug)]
pub(super) struct Start;

impl Subject for Start {
    fn planned(&self) -> Vec<Planned> {
        let about = "from starting the daemon to its first narinfo of a path in its store, which has 200";
        vec![Planned::new("daemon/start", "ms", about)]
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        let dir = bench.scratch.subdir("start-")?;
        let nix = Nix::new(&dir.join("client"))?;
        let mut cache = SampleCache::new(&dir.join("cache"))?;
        let root = cache.add_small()?;
        let key = cache.public_key().to_string();
        nix.copy(&cache.url(), &dir.join("store"), &root.full(), &key)?;
        let mut node = Node::init(bench.binaries.narmesh()?, &dir.join("node"), "node", &dir.join("store"))?;
        node.trust(&key);
        let mut samples = Vec::new();
        for _ in 0..bench.rounds * STARTS_PER_ROUND {
            let started = Instant::now();
            let mut daemon = node.spawn()?;
            samples.push(daemon.time_to_answer_ms(started, &root.narinfo_target())?);
        }
        report.figure("daemon/start", &samples, None);
        Ok(())
    }
}

/// A restart of a daemon that knew what a peer holds: the time from `exec` to the first right answer about one of the
/// peer's paths.
#[derive(Debug)]
pub(super) struct Restart;

/// How long each connection lasts: a peer whose connections are shorter is dialled after ever longer pauses.
const CONNECTED: Duration = Duration::from_secs(6);

impl Restart {
    const TARGET_MS: f64 = 50.0;
}

impl Subject for Restart {
    fn planned(&self) -> Vec<Planned> {
        let row = |last: &str, who: &str| {
            let about =
                format!("from starting the daemon again to its first narinfo of a path that a peer holds; {who} dials");
            Planned::new(format!("restart/first-answer/{last}"), "ms", about).target(Target::AtMost(Self::TARGET_MS))
        };
        vec![row("dialling", "the daemon"), row("dialled", "the peer")]
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        let dir = bench.scratch.subdir("restart-")?;
        let nix = Nix::new(&dir.join("client"))?;
        let (held_in, empty) = (dir.join("store"), dir.join("empty-store"));
        let mut cache = SampleCache::new(&dir.join("cache"))?;
        let root = cache.add_small()?;
        let key = cache.public_key().to_string();
        nix.copy(&cache.url(), &held_in, &root.full(), &key)?;
        nix.make_store(&empty)?;
        for dialling in [true, false] {
            let group = if dialling { "dialling" } else { "dialled" };
            let binary = bench.binaries.narmesh()?;
            let mut holder = Node::init(binary, &dir.join(&format!("holder-{group}")), "holder", &held_in)?;
            let mut asker = Node::init(binary, &dir.join(&format!("asker-{group}")), "asker", &empty)?;
            let (first, second) = if dialling { (&mut holder, &mut asker) } else { (&mut asker, &mut holder) };
            Node::introduce(first, second)?;
            holder.trust(&key);
            asker.trust(&key);
            if !dialling {
                // Otherwise the asker would learn the address from others, and dial.
                holder.keep_address();
            }
            let _holder = holder.start()?;
            asker.start()?.wait_for_summaries(&["holder"], cache.paths().len(), MEETING_MAX)?;
            let mut samples = Vec::new();
            // Each round asks for another path, because answers are remembered.
            for sample in cache.paths().iter().take(bench.rounds) {
                let started = Instant::now();
                let mut daemon = asker.spawn()?;
                let waited = daemon.time_to_first_answer_ms(started, &sample.narinfo_target())?;
                samples.push(waited);
                // By then the asker has written the holder's summary to disk.
                daemon.wait_for_summaries(&["holder"], cache.paths().len(), MEETING_MAX)?;
                std::thread::sleep(CONNECTED);
            }
            report.figure(&format!("restart/first-answer/{group}"), &samples, None);
        }
        Ok(())
    }
}
