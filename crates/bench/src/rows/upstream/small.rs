//! Narinfos and small NARs of an upstream cache: what asking through a daemon adds.

use super::{Behind, start_anew};
use crate::fetch;
use crate::load::{End, Load};
use crate::nginx::free_address;
use crate::row::{Beside, Planned, Target};
use crate::rows::nar_small::{each_ms, targets};
use crate::rows::pair::nar_target;
use crate::sample_cache::SampleCache;
use crate::subject::{Bench, Report, Subject};
use std::net::TcpListener;
use std::time::Instant;

/// 200 paths of 2 to 60 KB.
#[derive(Debug)]
pub(crate) struct Small;

/// Connections of a Nix since 2.16.
const CONNECTIONS: usize = 16;

impl Subject for Small {
    fn planned(&self) -> Vec<Planned> {
        let row = |last: &str, unit: &'static str, about: &str| {
            Planned::new(format!("upstream/{last}"), unit, format!("through one upstream: {about}"))
        };
        let beside_bad = "with three upstreams, of which one refuses and one never answers";
        vec![
            row("narinfo/cold", "ms", "a narinfo that is asked for the first time, one after the other, each"),
            row("narinfo/cold-added", "ms", "that time less that of nginx, which is the round trip")
                .target(Target::AtMost(0.3)),
            row("narinfo/warm", "us", "a narinfo that was asked for before, median").target(Target::RatioAtMost(1.1)),
            row("narinfo/dead-and-frozen", "ms", &format!("first narinfos {beside_bad}, after one lookup, each"))
                .target(Target::RatioAtMost(1.05)),
            row("narinfo/dead-and-frozen-first", "ms", &format!("the first lookup of a daemon {beside_bad}")),
            row("nar/small", "ms", "a NAR of 2 to 60 KB, one after the other, each").target(Target::RatioAtMost(1.3)),
            row("nar/small-16-at-once", "ms", "the same NARs over 16 connections, each")
                .target(Target::RatioAtMost(1.3)),
        ]
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        let behind = Behind::new(bench, SampleCache::add_small)?;
        let good = behind.entry("good", behind.nginx.address);
        let frozen = TcpListener::bind("127.0.0.1:0")?;
        let bad =
            format!("{}{}{good}", behind.entry("dead", free_address()?), behind.entry("frozen", frozen.local_addr()?),);
        let beside_bad = behind.another(bench, "beside-bad", &bad)?;
        let mut own = behind.another(bench, "own", "")?;
        own.serve(&behind.dir.join("full-store"));
        let key = behind.cache.public_key().to_string();
        own.trust(&key);
        behind.nix.copy(&behind.cache.url(), &behind.dir.join("full-store"), &behind.root.full(), &key)?;
        let mut own_daemon = own.start()?;
        own_daemon.wait_for_answer(&behind.root.narinfo_target())?;

        let narinfos = targets(&behind.cache, |sample| Ok(sample.narinfo_target()))?;
        let first = behind.cache.paths().first().map(|sample| sample.narinfo_target()).unwrap_or_default();
        let nars_of_nginx = targets(&behind.cache, |sample| Ok(sample.nar_target()))?;
        let at_once = |load: &Load| Load { connections: CONNECTIONS, end: End::Shared, ..load.clone() };
        let warm = Load { end: End::After(bench.load_duration), ..narinfos.clone() };
        let mut seen = Seen::default();
        for round in 1..=bench.rounds {
            crate::progress(&format!("upstream: round {round} of {}", bench.rounds));
            let (direct, gateway) = (behind.nginx.address, behind.node.gateway);
            seen.direct.push(each_ms(&narinfos, direct)?);
            let daemon = start_anew(&behind.node)?;
            seen.first_alone.push(first_ms(gateway, &first)?);
            seen.cold.push(each_ms(&narinfos, gateway)?);
            seen.warm.push(warm.run(gateway)?.percentile_us(50));
            seen.hit.push(warm.run(own.gateway)?.percentile_us(50));
            let nars = targets(&behind.cache, |sample| nar_target(gateway, sample))?;
            seen.nars.push(each_ms(&nars, gateway)?);
            seen.direct_nars.push(each_ms(&nars_of_nginx, direct)?);
            seen.nars_at_once.push(each_ms(&at_once(&nars), gateway)?);
            seen.direct_nars_at_once.push(each_ms(&at_once(&nars_of_nginx), direct)?);
            drop(daemon);
            let _beside_bad = start_anew(&beside_bad)?;
            seen.first_beside_bad.push(first_ms(beside_bad.gateway, &first)?);
            seen.beside_bad.push(each_ms(&narinfos, beside_bad.gateway)?);
        }
        seen.report(report);
        Ok(())
    }
}

fn first_ms(gateway: std::net::SocketAddr, target: &str) -> anyhow::Result<f64> {
    let since = Instant::now();
    fetch::text(gateway, target)?;
    Ok(since.elapsed().as_secs_f64() * 1e3)
}

/// One sample a round.
#[derive(Debug, Default)]
struct Seen {
    direct: Vec<f64>,
    first_alone: Vec<f64>,
    cold: Vec<f64>,
    warm: Vec<f64>,
    hit: Vec<f64>,
    nars: Vec<f64>,
    direct_nars: Vec<f64>,
    nars_at_once: Vec<f64>,
    direct_nars_at_once: Vec<f64>,
    first_beside_bad: Vec<f64>,
    beside_bad: Vec<f64>,
}

impl Seen {
    fn report(self, report: &mut Report) {
        let added: Vec<_> = self.cold.iter().zip(&self.direct).map(|(ours, theirs)| ours - theirs).collect();
        let alone = |samples: &[f64]| Beside::new("the good one alone", samples.to_vec());
        for (last, samples, beside) in [
            ("narinfo/cold", &self.cold, Some(Beside::new("nginx", self.direct))),
            ("narinfo/cold-added", &added, None),
            ("narinfo/warm", &self.warm, Some(Beside::new("own store", self.hit))),
            ("narinfo/dead-and-frozen", &self.beside_bad, Some(alone(&self.cold))),
            ("narinfo/dead-and-frozen-first", &self.first_beside_bad, Some(alone(&self.first_alone))),
            ("nar/small", &self.nars, Some(Beside::new("nginx", self.direct_nars))),
            ("nar/small-16-at-once", &self.nars_at_once, Some(Beside::new("nginx", self.direct_nars_at_once))),
        ] {
            report.figure(&format!("upstream/{last}"), samples, beside);
        }
    }
}
