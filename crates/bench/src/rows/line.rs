//! Slow links between namespaces: what arrives over them, at what cost, and what is answered meanwhile.
//!
//! The links and the machines on them are those of the stories in `tests/`.

use super::real::run_harness;
use crate::load::{End, Load};
use crate::row::{Beside, Planned, Target};
use crate::subject::{Bench, Report, Subject};
use narmesh_tests::{
    LookupsBesideBulk, Namespace, NixVersion, Pair, PlainCache, Shipment, get_from, nar_url, narinfo_url,
};
use std::sync::Arc;
use std::time::Duration;

const MB: f64 = 1e6;

/// 16 NARs of 6 MB over an uplink of `megabits_per_s`, beside plain HTTP.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) megabits_per_s: u32,
    pub(super) heavy: &'static str,
}

impl Line {
    const SHIPPED: (usize, u64) = (16, 6_000_000);

    fn group(&self) -> String {
        format!("line/{}Mbit/16x6MB", self.megabits_per_s)
    }
}

impl Subject for Line {
    fn planned(&self) -> Vec<Planned> {
        let of = format!("16 NARs of 6 MB over {} Mbit/s, with Nix 2.34: ", self.megabits_per_s);
        let row = |last: &str, unit, about: &str| {
            let planned = Planned::new(format!("{}/{last}", self.group()), unit, format!("{of}{about}"));
            planned.target(Target::RatioAtMost(1.05)).heavy(self.heavy)
        };
        vec![
            row("bytes", "MB", "contents that left the holder, what was sent again included"),
            row("time", "s", "until all are in the client's store"),
        ]
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        let (nars, nar_bytes) = Self::SHIPPED;
        let shipment = Shipment { nars, nar_bytes, kilobits_per_s: 1_000 * self.megabits_per_s };
        // A link does not vary as a processor does, so a slow one is measured once.
        let rounds = if self.megabits_per_s < 100 { 1 } else { bench.rounds };
        run_harness(|| {
            let (mut bytes, mut time) = (Vec::new(), Vec::new());
            let (mut plain_bytes, mut plain_time) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                let (mesh, plain) = if self.megabits_per_s < 100 {
                    // Both at the same time, each on a link of its own: the links are far slower than the processors.
                    std::thread::scope(|scope| {
                        let plain = scope.spawn(|| shipment.by_plain_http(NixVersion::V2_34));
                        (shipment.by_mesh(NixVersion::V2_34), plain.join().expect("plain HTTP on the same line"))
                    })
                } else {
                    (shipment.by_mesh(NixVersion::V2_34), shipment.by_plain_http(NixVersion::V2_34))
                };
                assert_eq!(mesh.arrived, nars, "not all arrived");
                bytes.push(mesh.bytes as f64 / MB);
                time.push(mesh.took.as_secs_f64());
                plain_bytes.push(plain.bytes as f64 / MB);
                plain_time.push(plain.took.as_secs_f64());
            }
            let group = self.group();
            report.figure(&format!("{group}/bytes"), &bytes, Some(Beside::new("plain HTTP", plain_bytes)));
            report.figure(&format!("{group}/time"), &time, Some(Beside::new("plain HTTP", plain_time)));
        })
    }
}

/// Narinfo lookups while NARs fill the link.
#[derive(Debug)]
pub(super) struct Lookups;

impl Lookups {
    const KILOBITS_PER_S: u32 = 10_000;
    const BULK_BYTES: u64 = 1_500_000;
    /// The link's own queue of 121 ms, two round trips that take next to nothing, and an allowance.
    const P99_MS_MAX: f64 = 171.0;
}

impl Subject for Lookups {
    fn planned(&self) -> Vec<Planned> {
        let about = "five lookups at once while 16 NARs fill 10 Mbit/s: what 99 of 100 take at most";
        let planned = Planned::new("line/10Mbit/narinfo-beside-bulk/p99", "ms", about);
        vec![planned.target(Target::AtMost(Self::P99_MS_MAX)).heavy("half a minute and root")]
    }

    fn measure(&self, _: &Bench, report: &mut Report) -> anyhow::Result<()> {
        run_harness(|| {
            let seen = LookupsBesideBulk::run(Self::KILOBITS_PER_S, Self::BULK_BYTES);
            assert_eq!(seen.refused, 0, "some were answered 404");
            let queue = Namespace::full_queue(Self::KILOBITS_PER_S).as_secs_f64() * 1e3;
            let beside = Beside::new("the line's queue", vec![queue]);
            report.figure("line/10Mbit/narinfo-beside-bulk/p99", &[seen.p99().as_secs_f64() * 1e3], Some(beside));
        })
    }
}

/// Many small NARs from far away, 16 in flight.
#[derive(Debug)]
pub(super) struct FromAfar;

impl FromAfar {
    const NARS: usize = 2_000;
    const NAR_BYTES: u64 = 100_000;
    const ONE_WAY: Duration = Duration::from_millis(40);
    const IN_FLIGHT: usize = 16;
    const TARGET_S: f64 = 10.0;

    /// The targets of the NARs at the client's gateway. It is asked for them before the time counts.
    fn targets(pair: &Pair, paths: &[String]) -> Vec<String> {
        let ask = |path: &String| nar_url(&get_from(&pair.client, &narinfo_url(path))).expect("a narinfo");
        std::thread::scope(|scope| {
            let shares = paths.chunks(paths.len().div_ceil(Self::IN_FLIGHT));
            let threads: Vec<_> =
                shares.map(|share| scope.spawn(|| share.iter().map(ask).collect::<Vec<_>>())).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("the gateway answers")).collect()
        })
    }

    /// Seconds to fetch all `targets` from the server at `address`, from the client's machine.
    fn fetch(client: &Namespace, address: std::net::SocketAddr, targets: &[String]) -> f64 {
        let end = End::Shared;
        let load = Load { targets: Arc::from(targets), status: 200, connections: Self::IN_FLIGHT, end };
        client.enter(|| load.run(address)).expect("all are answered").seconds
    }
}

impl Subject for FromAfar {
    fn planned(&self) -> Vec<Planned> {
        let about = "2,000 NARs of 100 KB over a round trip of 80 ms, 16 in flight, beside 16 connections with nginx";
        let planned = Planned::new("wan/80ms/2000x100KB", "s", about);
        vec![planned.target(Target::AtMost(Self::TARGET_S)).heavy("four minutes and root")]
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        run_harness(|| {
            let mut pair = Pair::apart(Self::ONE_WAY);
            let paths = pair.holder.store.hold_noise(Self::NARS, Self::NAR_BYTES, 1);
            let cache = PlainCache::beside(&pair.holder, &paths);
            pair.start();
            let client = pair.client.network().expect("a machine of its own");
            let plain_targets: Vec<_> = paths.iter().map(|path| cache.target(path)).collect();
            let mesh_targets = Self::targets(&pair, &paths);
            let (mut mesh, mut plain) = (Vec::new(), Vec::new());
            for round in 0..bench.rounds {
                // The two take turns at being first.
                for is_mesh in [round % 2 == 0, round % 2 != 0] {
                    if is_mesh {
                        mesh.push(Self::fetch(client, pair.client.gateway(), &mesh_targets));
                    } else {
                        plain.push(Self::fetch(client, cache.address, &plain_targets));
                    }
                }
            }
            report.figure("wan/80ms/2000x100KB", &mesh, Some(Beside::new("nginx", plain)));
        })
    }
}
