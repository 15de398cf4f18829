//! `nix copy` of a closure into an empty store: through the mesh, and from everything else that it could come from.

use super::pair::Pair;
use crate::process::ended_children_cpu_s;
use crate::row::{Beside, Planned, Target};
use crate::sample_cache::SampleCache;
use crate::subject::{Bench, Report, Subject};

/// A closure of this many paths: 200 small ones, or 2,000 with 2.9 GB.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) paths: usize,
}

impl Subject for Copy {
    fn planned(&self) -> Vec<Planned> {
        let row = |last: &str, about: &str| {
            let about = format!("nix copy of {} paths into an empty store {about}", self.paths);
            Planned::new(format!("copy/{}-paths/{last}", self.paths), "s", about)
        };
        let target = Target::RatioAtMost(if self.paths == 200 { 2.0 } else { 1.5 });
        let all = vec![
            row("mesh", "through the mesh, the gateway knowing nothing but the holder's summary").target(target),
            row("mesh-cpu-holder", "through the mesh: CPU time of the holder's daemon"),
            row("mesh-cpu-gateway", "through the mesh: CPU time of the gateway's daemon"),
            row("mesh-cpu-nix", "through the mesh: CPU time of Nix itself"),
            row("own-store", "from the gateway of the machine that holds them"),
            row("file", "from a directory, without any server"),
        ];
        if self.paths == 200 {
            return all;
        }
        all.into_iter().map(|planned| planned.heavy("about 3 minutes and 11 GB of memory")).collect()
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        let fill = if self.paths == 200 {
            SampleCache::add_small
        } else {
            bench.scratch.need(11_000_000_000)?;
            SampleCache::add_whole
        };
        let pair = Pair::new(bench, fill)?;
        let holder = pair.start_holder()?;
        let key = pair.cache.public_key().to_string();
        let copy = |from: &str| pair.nix.copy_fresh(from, &pair.root.full(), &key, self.paths);
        let (mut mesh, mut own_store, mut nginx, mut file) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut holder_cpu, mut gateway_cpu, mut nginx_cpu) = (Vec::new(), Vec::new(), Vec::new());
        let (mut nix_cpu, mut nix_cpu_beside_nginx) = (Vec::new(), Vec::new());
        for round in 1..=bench.rounds {
            crate::progress(&format!("copy/{}-paths: round {round} of {}", self.paths, bench.rounds));
            let cpu = pair.nginx.process.cpu_s()?;
            let nix = ended_children_cpu_s()?;
            nginx.push(copy(&format!("http://{}", pair.nginx.address))?);
            nginx_cpu.push(pair.nginx.process.cpu_s()? - cpu);
            nix_cpu_beside_nginx.push(ended_children_cpu_s()? - nix);
            let gateway = pair.start_gateway()?;
            let nix = ended_children_cpu_s()?;
            let cpu = (holder.process.cpu_s()?, gateway.process.cpu_s()?);
            mesh.push(copy(&format!("http://{}", pair.gateway.gateway))?);
            holder_cpu.push(holder.process.cpu_s()? - cpu.0);
            nix_cpu.push(ended_children_cpu_s()? - nix);
            gateway_cpu.push(gateway.process.cpu_s()? - cpu.1);
            drop(gateway);
            own_store.push(copy(&format!("http://{}", pair.holder.gateway))?);
            file.push(copy(&pair.cache.url())?);
        }
        let group = format!("copy/{}-paths", self.paths);
        for (last, samples) in [("mesh", mesh), ("own-store", own_store), ("file", file)] {
            report.figure(&format!("{group}/{last}"), &samples, Some(Beside::new("nginx", nginx.clone())));
        }
        for (last, samples) in [("mesh-cpu-holder", holder_cpu), ("mesh-cpu-gateway", gateway_cpu)] {
            report.figure(&format!("{group}/{last}"), &samples, Some(Beside::new("nginx", nginx_cpu.clone())));
        }
        let beside_nginx = Beside::new("Nix with nginx", nix_cpu_beside_nginx);
        report.figure(&format!("{group}/mesh-cpu-nix"), &nix_cpu, Some(beside_nginx));
        Ok(())
    }
}
