//! One large NAR of an upstream cache: its rate, and what it costs when the cache is killed in the middle of it.

use super::{Behind, start_anew};
use crate::fetch;
use crate::nginx::Nginx;
use crate::row::{Beside, Planned, Target};
use crate::rows::pair::nar_target;
use crate::subject::{Bench, Report, Subject};
use std::time::Instant;

/// A NAR of this size.
#[derive(Debug)]
pub(crate) struct Large {
    pub(crate) megabytes: usize,
}

impl Large {
    fn group(&self) -> String {
        match self.megabytes {
            1_000 => "upstream/nar/1GB".to_owned(),
            megabytes => format!("upstream/nar/{megabytes}MB"),
        }
    }
}

impl Subject for Large {
    fn planned(&self) -> Vec<Planned> {
        let group = self.group();
        let row = |last: &str, unit, about: &str| {
            Planned::new(format!("{group}/{last}"), unit, format!("one NAR through one upstream: {about}"))
        };
        let all = vec![
            row("rate", "MB/s", "client <- gateway <- nginx").target(Target::RatioAtLeast(0.7)),
            row("cpu-gateway", "s/GB", "CPU time of the daemon: HTTP, SHA-256, HTTP"),
            row(
                "killed-added",
                "s",
                "its nginx is killed at half of it, and another one has it: time beyond undisturbed",
            )
            .target(Target::AtMost(0.3)),
        ];
        if self.megabytes < 1_000 {
            return all;
        }
        all.into_iter().map(|planned| planned.heavy("about 1 minute and 2 GB of memory")).collect()
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        let bytes = self.megabytes * 1_000_000;
        bench.scratch.need(bytes as u64 + 200_000_000)?;
        let behind = Behind::new(bench, |cache| cache.add_large(bytes))?;
        let large = &behind.root;
        let (mut ours, mut theirs, mut cpu, mut added) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let gb = large.nar_size as f64 / 1e9;
        for round in 1..=bench.rounds {
            crate::progress(&format!("{}: round {round} of {}", self.group(), bench.rounds));
            let direct = fetch::fetch(behind.nginx.address, &large.nar_target(), large.nar_size)?;
            theirs.push(gb * 1e3 / direct.seconds);
            let daemon = start_anew(&behind.node)?;
            let target = nar_target(behind.node.gateway, large)?;
            let before = daemon.process.cpu_s()?;
            let through = fetch::fetch(behind.node.gateway, &target, large.nar_size)?;
            cpu.push((daemon.process.cpu_s()? - before) / gb);
            ours.push(gb * 1e3 / through.seconds);
            drop(daemon);
            let [undisturbed, killed] = [false, true].map(|kill| seconds_over_a_kill(bench, &behind, kill));
            added.push(killed? - undisturbed?);
        }
        let group = self.group();
        report.figure(&format!("{group}/rate"), &ours, Some(Beside::new("nginx", theirs)));
        report.figure(&format!("{group}/cpu-gateway"), &cpu, None);
        report.figure(&format!("{group}/killed-added"), &added, None);
        Ok(())
    }
}

/// Seconds of the NAR, whose hash is checked, through a daemon with two upstreams, the first of which may be killed.
fn seconds_over_a_kill(bench: &Bench, behind: &Behind, kill: bool) -> anyhow::Result<f64> {
    let doomed = Nginx::start(bench.scratch.subdir("nginx-")?, behind.cache.dir())?;
    let entries = behind.entry("doomed", doomed.address) + &behind.entry("other", behind.nginx.address);
    let node = behind.another(bench, &format!("beside-{}", doomed.address.port()), &entries)?;
    let _daemon = start_anew(&node)?;
    let target = nar_target(node.gateway, &behind.root)?;
    let started = Instant::now();
    let half = behind.root.nar_size / 2;
    fetch::verify_and(node.gateway, &target, behind.root.nar_hash, half, || if kill { doomed.kill() } else { Ok(()) })?;
    Ok(started.elapsed().as_secs_f64())
}
