//! Upstream caches: nginx asked through a daemon, beside nginx asked directly. [`small`] has narinfos and small NARs,
//! [`large`] one large NAR, [`copies`] whole closures that Nix copies.

pub(super) mod copies;
pub(super) mod large;
pub(super) mod small;

use crate::daemon::{Daemon, Node};
use crate::nginx::Nginx;
use crate::nix::Nix;
use crate::sample_cache::{SampleCache, SamplePath};
use crate::scratch::Subdir;
use crate::subject::Bench;
use std::net::SocketAddr;

/// A cache behind nginx, and a node without peers that may ask it.
#[derive(Debug)]
struct Behind {
    nix: Nix,
    cache: SampleCache,
    root: SamplePath,
    nginx: Nginx,
    /// The node whose only upstream that nginx is.
    node: Node,
    dir: Subdir,
}

impl Behind {
    /// Makes the cache with `fill`, which returns the root of a closure.
    fn new(bench: &Bench, fill: impl FnOnce(&mut SampleCache) -> anyhow::Result<SamplePath>) -> anyhow::Result<Self> {
        Nix::need()?;
        Nginx::need()?;
        let dir = bench.scratch.subdir("upstream-")?;
        let nix = Nix::new(&dir.join("client"))?;
        crate::progress("making sample paths");
        let mut cache = SampleCache::new(&dir.join("cache"))?;
        let root = fill(&mut cache)?;
        nix.make_store(&dir.join("empty-store"))?;
        let nginx = Nginx::start(bench.scratch.subdir("nginx-")?, cache.dir())?;
        let node = Node::init(bench.binaries.narmesh()?, &dir.join("node"), "node", &dir.join("empty-store"))?;
        let mut behind = Self { nix, cache, root, nginx, node, dir };
        let only = behind.entry("only", behind.nginx.address);
        behind.node.follow(&only);
        Ok(behind)
    }

    /// Another node with an empty store, and these upstreams.
    fn another(&self, bench: &Bench, name: &str, upstreams: &str) -> anyhow::Result<Node> {
        let mut node =
            Node::init(bench.binaries.narmesh()?, &self.dir.join(name), name, &self.dir.join("empty-store"))?;
        node.follow(upstreams);
        Ok(node)
    }

    /// The `[[upstream]]` of a server of this cache.
    fn entry(&self, name: &str, address: SocketAddr) -> String {
        let key = self.cache.public_key();
        format!("[[upstream]]\nname = \"{name}\"\nurl = \"http://{address}\"\npublic_keys = [\"{key}\"]\n")
    }
}

/// Starts the daemon of a node without anything from earlier runs.
fn start_anew(node: &Node) -> anyhow::Result<Daemon<'_>> {
    node.forget_everything();
    node.start()
}
