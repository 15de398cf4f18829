//! One large NAR through the whole product, beside what its parts could do alone.

use super::pair::{Pair, nar_target};
use crate::fetch;
use crate::plain_tcp::{CHUNK_BYTES, PlainTcp};
use crate::process::{Running, own_cpu_s};
use crate::raw_stream::{RawStream, Security};
use crate::row::{Beside, Planned, Target};
use crate::subject::{Bench, Report, Subject};
use sha2::{Digest as _, Sha256};

/// Ranges that are asked for in one round.
const RANGES_A_ROUND: usize = 15;
/// Where the ranges begin, bytes.
const RANGE_AT: u64 = 900_000_000;

/// A NAR of this size.
#[derive(Debug)]
pub(super) struct LargeNar {
    pub(super) megabytes: usize,
}

impl LargeNar {
    fn group(&self) -> String {
        match self.megabytes {
            1_000 => "nar/1GB".to_owned(),
            megabytes => format!("nar/{megabytes}MB"),
        }
    }
}

impl Subject for LargeNar {
    fn planned(&self) -> Vec<Planned> {
        let group = self.group();
        let row = |last: &str, unit, about: &str| Planned::new(format!("{group}/{last}"), unit, about);
        let mesh = "one NAR, client <- gateway <- libp2p <- holder, hashed twice on the way";
        let all = vec![
            row("mesh/beside-raw-stream", "MB/s", mesh).target(Target::RatioAtLeast(0.6)),
            row("mesh/beside-plain-tcp", "MB/s", mesh),
            row("mesh/beside-nginx", "MB/s", mesh),
            row("mesh/cpu-holder", "s/GB", "CPU time of the holder's daemon: file system, NAR, SHA-256, TLS"),
            row("mesh/cpu-gateway", "s/GB", "CPU time of the gateway's daemon: TLS, SHA-256, HTTP"),
            row("mesh/cpu-client", "s/GB", "CPU time of the client, which throws the bytes away"),
            row(
                "mesh/cpu-beside-parts",
                "s/GB",
                "CPU time of all three, beside that of the parts alone: raw stream, own store, one more SHA-256",
            ),
            row("own-store", "MB/s", "the same NAR from the gateway of the machine that holds it"),
            row("own-store-cpu", "s/GB", "CPU time of that daemon, beside that of nginx"),
        ];
        if self.megabytes < 1_000 {
            return all;
        }
        let range = Planned::new(
            "range/900MB/first-byte",
            "ms",
            "from the request for a range at 900 MB to its first byte, own store",
        );
        let all = all.into_iter().chain([range.target(Target::RatioAtMost(2.0))]);
        all.map(|planned| planned.heavy("about 1 minute and 3 GB of memory")).collect()
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        let bytes = self.megabytes * 1_000_000;
        bench.scratch.need(2 * bytes as u64 + 200_000_000)?;
        let pair = Pair::new(bench, |cache| cache.add_large(bytes))?;
        let (holder, gateway) = (pair.start_holder()?, pair.start_gateway()?);
        let large = &pair.root;
        let target = nar_target(pair.gateway.gateway, large)?;
        fetch::verify(pair.gateway.gateway, &target, large.nar_hash)?;
        fetch::verify(pair.nginx.address, &large.nar_target(), large.nar_hash)?;
        let (raw_stream, plain_tcp) = (RawStream::start(Security::Daemon)?, PlainTcp::start()?);
        let mut seen = Seen::default();
        let gb = large.nar_size as f64 / 1e9;
        for round in 1..=bench.rounds {
            crate::progress(&format!("{}: round {round} of {}", self.group(), bench.rounds));
            let size = large.nar_size;
            seen.plain_tcp.push(gb * 1e3 / plain_tcp.pull(size)?);
            let before = own_cpu_s() + raw_stream.process().cpu_s()?;
            seen.raw_stream.push(gb * 1e3 / raw_stream.pull(size)?);
            let raw_stream_cpu = (own_cpu_s() + raw_stream.process().cpu_s()? - before) / gb;
            let (rate, cpu) =
                timed(&[&pair.nginx.process], || fetch::fetch(pair.nginx.address, &large.nar_target(), size), gb)?;
            seen.nginx.push(rate);
            seen.nginx_cpu.extend(cpu.first());
            let (rate, cpu) = timed(&[&holder.process], || fetch::fetch(pair.holder.gateway, &target, size), gb)?;
            seen.own_store.push(rate);
            seen.own_store_cpu.extend(cpu.first());
            // The own store's times include the client.
            seen.parts_cpu.push(raw_stream_cpu + cpu.iter().sum::<f64>() + sha256_cpu_s(size) / gb);
            if self.megabytes >= 1_000 {
                let first_byte = |address, target: &str| fetch::first_byte_ms(address, target, RANGE_AT);
                // One range alone would tell how long threads sleep on this machine, which is more than what a range costs.
                for _ in 0..RANGES_A_ROUND {
                    seen.range.push(first_byte(pair.holder.gateway, &target)?);
                    seen.nginx_range.push(first_byte(pair.nginx.address, &large.nar_target())?);
                }
            }
            let servers = [&holder.process, &gateway.process];
            let (rate, cpu) = timed(&servers, || fetch::fetch(pair.gateway.gateway, &target, size), gb)?;
            seen.mesh.push(rate);
            seen.mesh_cpu.push(cpu.iter().sum());
            for (samples, cpu) in
                [&mut seen.holder_cpu, &mut seen.gateway_cpu, &mut seen.client_cpu].into_iter().zip(cpu)
            {
                samples.push(cpu);
            }
        }
        seen.report(&self.group(), report);
        Ok(())
    }
}

/// MB/s of a fetch, and the CPU seconds per GB of `servers` and then of the client.
fn timed(
    servers: &[&Running],
    fetch: impl FnOnce() -> anyhow::Result<fetch::Fetched>,
    gb: f64,
) -> anyhow::Result<(f64, Vec<f64>)> {
    let before = servers.iter().map(|server| server.cpu_s()).collect::<anyhow::Result<Vec<_>>>()?;
    let fetched = fetch()?;
    let mut cpu = Vec::new();
    for (server, before) in servers.iter().zip(before) {
        cpu.push((server.cpu_s()? - before) / gb);
    }
    cpu.push(fetched.cpu_s / gb);
    Ok((gb * 1e3 / fetched.seconds, cpu))
}

/// CPU seconds that SHA-256 takes for this many bytes.
fn sha256_cpu_s(bytes: u64) -> f64 {
    let chunk = vec![0x5a; CHUNK_BYTES];
    let before = own_cpu_s();
    let mut hasher = Sha256::new();
    for _ in 0..bytes / CHUNK_BYTES as u64 {
        hasher.update(&chunk);
    }
    std::hint::black_box(hasher.finalize());
    own_cpu_s() - before
}

/// Samples, one a round (of ranges, several): MB/s, and CPU seconds per GB.
#[derive(Debug, Default)]
struct Seen {
    plain_tcp: Vec<f64>,
    raw_stream: Vec<f64>,
    nginx: Vec<f64>,
    nginx_cpu: Vec<f64>,
    own_store: Vec<f64>,
    own_store_cpu: Vec<f64>,
    mesh: Vec<f64>,
    holder_cpu: Vec<f64>,
    gateway_cpu: Vec<f64>,
    client_cpu: Vec<f64>,
    mesh_cpu: Vec<f64>,
    parts_cpu: Vec<f64>,
    range: Vec<f64>,
    nginx_range: Vec<f64>,
}

impl Seen {
    fn report(self, group: &str, report: &mut Report) {
        let plain_tcp = Beside::new("plain TCP", self.plain_tcp);
        let raw_stream = Beside::new("raw stream", self.raw_stream);
        let nginx = Beside::new("nginx", self.nginx);
        let nginx_cpu = Beside::new("nginx", self.nginx_cpu);
        if !self.range.is_empty() {
            report.figure("range/900MB/first-byte", &self.range, Some(Beside::new("nginx", self.nginx_range)));
        }
        for (last, samples, beside) in [
            ("mesh/beside-raw-stream", &self.mesh, Some(raw_stream)),
            ("mesh/beside-plain-tcp", &self.mesh, Some(plain_tcp)),
            ("mesh/beside-nginx", &self.mesh, Some(nginx.clone())),
            ("mesh/cpu-holder", &self.holder_cpu, None),
            ("mesh/cpu-gateway", &self.gateway_cpu, None),
            ("mesh/cpu-client", &self.client_cpu, None),
            ("mesh/cpu-beside-parts", &self.mesh_cpu, Some(Beside::new("the parts", self.parts_cpu))),
            ("own-store", &self.own_store, Some(nginx)),
            ("own-store-cpu", &self.own_store_cpu, Some(nginx_cpu)),
        ] {
            report.figure(&format!("{group}/{last}"), samples, beside);
        }
    }
}
