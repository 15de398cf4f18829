//! Two daemons and nginx around one sample cache: a holder with the paths in its store, and a gateway whose store is empty.

use crate::daemon::{Daemon, Node};
use crate::fetch;
use crate::nginx::Nginx;
use crate::nix::Nix;
use crate::sample_cache::{SampleCache, SamplePath, store_dir};
use crate::scratch::Subdir;
use crate::subject::Bench;
use anyhow::Context as _;
use narmesh_protocol::NarInfo;
use std::net::SocketAddr;
use std::time::Duration;

/// How long two daemons may take to meet.
const MEETING_MAX: Duration = Duration::from_secs(30);

/// The files and keys of both daemons. Only nginx runs.
#[derive(Debug)]
pub(super) struct Pair {
    /// The client that fills stores.
    pub(super) nix: Nix,
    /// The cache that the holder was filled from, and that nginx serves.
    pub(super) cache: SampleCache,
    /// The root of the closure in the holder's store.
    pub(super) root: SamplePath,
    /// The node whose store has every path.
    pub(super) holder: Node,
    /// The node whose store is empty.
    pub(super) gateway: Node,
    /// nginx, which serves the files of the cache.
    pub(super) nginx: Nginx,
    _dir: Subdir,
}

impl Pair {
    /// Makes the cache with `fill`, which returns the root of the closure to hold.
    pub(super) fn new(
        bench: &Bench,
        fill: impl FnOnce(&mut SampleCache) -> anyhow::Result<SamplePath>,
    ) -> anyhow::Result<Self> {
        Nix::need()?;
        Nginx::need()?;
        let binary = bench.binaries.narmesh()?;
        let dir = bench.scratch.subdir("pair-")?;
        let nix = Nix::new(&dir.join("client"))?;
        crate::progress("making sample paths");
        let mut cache = SampleCache::new(&dir.join("cache"))?;
        let root = fill(&mut cache)?;
        let key = cache.public_key().to_string();
        crate::progress("importing them into the holder's store");
        nix.copy(&cache.url(), &dir.join("holder-store"), &root.full(), &key)?;
        nix.make_store(&dir.join("gateway-store"))?;
        let mut holder = Node::init(binary, &dir.join("holder"), "holder", &dir.join("holder-store"))?;
        let mut gateway = Node::init(binary, &dir.join("gateway"), "gateway", &dir.join("gateway-store"))?;
        Node::introduce(&mut holder, &mut gateway)?;
        holder.trust(&key);
        gateway.trust(&key);
        let nginx = Nginx::start(bench.scratch.subdir("nginx-")?, cache.dir())?;
        Ok(Self { nix, cache, root, holder, gateway, nginx, _dir: dir })
    }

    /// Starts the holder and returns when it serves its paths.
    pub(super) fn start_holder(&self) -> anyhow::Result<Daemon<'_>> {
        let mut daemon = self.holder.start()?;
        daemon.wait_for_answer(&self.root.narinfo_target())?;
        Ok(daemon)
    }

    /// Starts the gateway without anything from earlier runs, and returns when it has the holder's summary.
    pub(super) fn start_gateway(&self) -> anyhow::Result<Daemon<'_>> {
        self.gateway.forget_everything();
        let mut daemon = self.gateway.start()?;
        daemon.wait_for_summaries(&[self.holder.name()], self.cache.paths().len(), MEETING_MAX)?;
        Ok(daemon)
    }
}

/// The target of this path's NAR at `address`, according to its narinfo.
pub(super) fn nar_target(address: SocketAddr, sample: &SamplePath) -> anyhow::Result<String> {
    let text = fetch::text(address, &sample.narinfo_target())?;
    let text = text.with_context(|| format!("{address} has no {}", sample.full()))?;
    NarInfo::parse(&store_dir(), text.as_bytes())?;
    let url = text.lines().find_map(|line| line.strip_prefix("URL: ")).context("no URL in the narinfo")?;
    Ok(format!("/{url}"))
}
