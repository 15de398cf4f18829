//! Small NARs through the mesh, one after the other: how long each takes when nothing else is asked for.

use super::pair::{Pair, nar_target};
use crate::load::{End, Load};
use crate::nginx::TwoNginx;
use crate::row::{Beside, Planned, Target};
use crate::sample_cache::{SampleCache, SamplePath};
use crate::subject::{Bench, Report, Subject};
use std::net::SocketAddr;
use std::time::Duration;

/// A copy whose files changed less than three seconds ago is hashed each time it is read. Those of a machine in use are older.
const SETTLED: Duration = Duration::from_secs(4);

/// 200 NARs of 2 to 60 KB.
#[derive(Debug)]
pub(super) struct SmallNars;

impl Subject for SmallNars {
    fn planned(&self) -> Vec<Planned> {
        vec![
            Planned::new("nar/small/mesh", "ms", "a NAR of 2 to 60 KB through the mesh, one after the other, each"),
            Planned::new("nar/small/own-store", "ms", "the same from the gateway of the machine that holds them, each"),
            Planned::new(
                "nar/small/narinfo-asked",
                "ms",
                "their narinfos, each asked of the holder for the first time",
            ),
            Planned::new(
                "burst/16-at-once",
                "ms",
                "the NARs through the mesh, 16 at a time as Nix asks since 2.16, each",
            ),
            Planned::new("nar/small/beside-two-nginx", "ms", "nar/small/mesh beside two nginx with TLS between them"),
            Planned::new("burst/beside-two-nginx", "ms", "the burst beside two nginx with TLS between them")
                .target(Target::RatioAtMost(2.0)),
        ]
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        let pair = Pair::new(bench, SampleCache::add_small)?;
        let _holder = pair.start_holder()?;
        let narinfos = targets(&pair.cache, |sample| Ok(sample.narinfo_target()))?;
        let nars = targets(&pair.cache, |sample| nar_target(pair.holder.gateway, sample))?;
        let two_dirs = [bench.scratch.subdir("front-")?, bench.scratch.subdir("origin-")?];
        let two_nginx = TwoNginx::start(two_dirs, pair.cache.dir())?;
        let nars_of_nginx = targets(&pair.cache, |sample| Ok(sample.nar_target()))?;
        std::thread::sleep(SETTLED);
        each_ms(&nars, pair.holder.gateway)?;
        let (mut mesh, mut own_store, mut asked) = (Vec::new(), Vec::new(), Vec::new());
        let (mut nginx, mut nginx_narinfo) = (Vec::new(), Vec::new());
        let (mut burst, mut nginx_burst) = (Vec::new(), Vec::new());
        let (mut two, mut two_burst) = (Vec::new(), Vec::new());
        for round in 1..=bench.rounds {
            crate::progress(&format!("nar/small: round {round} of {}", bench.rounds));
            let _gateway = pair.start_gateway()?;
            asked.push(each_ms(&narinfos, pair.gateway.gateway)?);
            nginx_narinfo.push(each_ms(&narinfos, pair.nginx.address)?);
            mesh.push(each_ms(&nars, pair.gateway.gateway)?);
            nginx.push(each_ms(&nars_of_nginx, pair.nginx.address)?);
            two.push(each_ms(&nars_of_nginx, two_nginx.address())?);
            own_store.push(each_ms(&nars, pair.holder.gateway)?);
            burst.push(each_ms(&at_once(&nars), pair.gateway.gateway)?);
            nginx_burst.push(each_ms(&at_once(&nars_of_nginx), pair.nginx.address)?);
            two_burst.push(each_ms(&at_once(&nars_of_nginx), two_nginx.address())?);
        }
        report.figure("nar/small/beside-two-nginx", &mesh, Some(Beside::new("two nginx", two)));
        report.figure("burst/beside-two-nginx", &burst, Some(Beside::new("two nginx", two_burst)));
        report.figure("nar/small/mesh", &mesh, Some(Beside::new("nginx", nginx.clone())));
        report.figure("nar/small/own-store", &own_store, Some(Beside::new("nginx", nginx)));
        report.figure("burst/16-at-once", &burst, Some(Beside::new("nginx", nginx_burst)));
        report.figure("nar/small/narinfo-asked", &asked, Some(Beside::new("nginx", nginx_narinfo)));
        Ok(())
    }
}

/// A load that asks for the target of each sample, one after the other.
pub(super) fn targets(
    cache: &SampleCache,
    target: impl Fn(&SamplePath) -> anyhow::Result<String>,
) -> anyhow::Result<Load> {
    let targets = cache.paths().iter().map(target).collect::<anyhow::Result<_>>()?;
    Ok(Load { targets, status: 200, connections: 1, end: End::OncePerTarget })
}

/// The same load over 16 connections.
fn at_once(load: &Load) -> Load {
    Load { targets: load.targets.clone(), status: load.status, connections: 16, end: End::OncePerTarget }
}

/// Milliseconds that each answer took, of all that the load's connections were kept waiting together.
pub(super) fn each_ms(load: &Load, address: SocketAddr) -> anyhow::Result<f64> {
    let seen = load.run(address)?;
    Ok(seen.seconds * 1e3 / seen.requests() as f64)
}
