//! `nix copy` of a closure out of an upstream cache, through a daemon and directly.

use super::{Behind, start_anew};
use crate::nginx::Nginx;
use crate::row::{Beside, Planned, Target};
use crate::sample_cache::SampleCache;
use crate::subject::{Bench, Report, Subject};

/// A closure of this many paths: 200 small ones, or 2,000 with 2.9 GB.
#[derive(Debug)]
pub(crate) struct Copies {
    pub(crate) paths: usize,
}

impl Subject for Copies {
    fn planned(&self) -> Vec<Planned> {
        let about = format!("nix copy of {} paths through one upstream into an empty store", self.paths);
        let planned = Planned::new(format!("upstream/copy/{}-paths", self.paths), "s", about);
        let planned = planned.target(Target::RatioAtMost(1.3));
        vec![if self.paths == 200 { planned } else { planned.heavy("about 2 minutes and 7 GB of memory") }]
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        let fill = if self.paths == 200 {
            SampleCache::add_small
        } else {
            bench.scratch.need(7_000_000_000)?;
            SampleCache::add_whole
        };
        let behind = Behind::new(bench, fill)?;
        let key = behind.cache.public_key().to_string();
        let copy = |from| behind.nix.copy_fresh(&format!("http://{from}"), &behind.root.full(), &key, self.paths);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 1..=bench.rounds {
            crate::progress(&format!("upstream/copy/{}-paths: round {round} of {}", self.paths, bench.rounds));
            theirs.push(copy(behind.nginx.address)?);
            let _daemon = start_anew(&behind.node)?;
            ours.push(copy(behind.node.gateway)?);
        }
        let row = format!("upstream/copy/{}-paths", self.paths);
        report.figure(&row, &ours, Some(Beside::new("nginx", theirs)));
        Ok(())
    }
}

/// A path in a cache that packs with xz, as cache.nixos.org did for most of its life.
#[derive(Debug)]
pub(crate) struct Xz;

/// Unpacked size of the path.
const XZ_BYTES: usize = 20_000_000;

impl Subject for Xz {
    fn planned(&self) -> Vec<Planned> {
        let about = "nix copy of one path of 20 MB out of a cache that packs with xz, through one upstream";
        vec![Planned::new("upstream/copy/xz", "s", about).target(Target::RatioAtMost(1.1))]
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        let behind = Behind::new(bench, |cache| cache.add_large(XZ_BYTES))?;
        let key = behind.cache.public_key().to_string();
        let packed = behind.dir.join("packed");
        crate::progress("packing it with xz");
        behind.nix.copy_to_cache(&behind.cache.url(), &packed, "xz", &behind.root.full(), &key)?;
        let nginx = Nginx::start(bench.scratch.subdir("nginx-")?, &packed)?;
        let node = behind.another(bench, "of-xz", &behind.entry("xz", nginx.address))?;
        let copy = |from| behind.nix.copy_fresh(&format!("http://{from}"), &behind.root.full(), &key, 1);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..bench.rounds {
            theirs.push(copy(nginx.address)?);
            let _daemon = start_anew(&node)?;
            ours.push(copy(node.gateway)?);
        }
        report.figure("upstream/copy/xz", &ours, Some(Beside::new("nginx", theirs)));
        Ok(())
    }
}
