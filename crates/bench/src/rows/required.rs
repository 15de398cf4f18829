//! The time of a narinfo under a policy that demands agreement, beside that without a policy, and while the daemon makes a
//! long report.

use super::pair::Pair;
use super::quorum::{BUILDERS, K, closure_text, key};
use crate::daemon::{Daemon, Node};
use crate::fetch;
use crate::load::{End, Load};
use crate::row::{Beside, Planned, Target};
use crate::sample_cache::{SampleCache, store_dir};
use crate::subject::{Bench, Report, Subject};
use anyhow::Context as _;
use narmesh_protocol::{Attestation, NarInfo, Statement, attestation_file};
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Short loads in turn, so that whatever else the machine does affects both sides alike.
const SLICES_PER_ROUND: usize = 3;
const CONNECTIONS: [(usize, &str); 2] = [(1, "1-connection"), (64, "64-connections")];
/// How long two daemons may take to meet.
const MEETING_MAX: Duration = Duration::from_secs(30);
const BESIDE_REPORT: &str = "quorum/narinfo-beside-report/p99";

/// Two gateways with the same holder behind them. One demands that three of five builders agree, the other demands nothing.
#[derive(Debug)]
pub(super) struct Required;

impl Subject for Required {
    fn planned(&self) -> Vec<Planned> {
        let row = |(count, name): (usize, &str)| {
            let about = format!(
                "a narinfo of another machine's path, known already, with `require`, {count} at a time: time a request"
            );
            Planned::new(format!("quorum/narinfo-warm/{name}"), "us", about).target(Target::RatioAtMost(1.1))
        };
        let about = "the same, one at a time, while the daemon reports on 50,000 attestations without a pause, beside no report";
        CONNECTIONS.into_iter().map(row).chain([Planned::new(BESIDE_REPORT, "us", about)]).collect()
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        let mut pair = Pair::new(bench, SampleCache::add_small)?;
        let dir = bench.scratch.subdir("strict-")?;
        pair.nix.make_store(&dir.join("store"))?;
        let mut strict = Node::init(bench.binaries.narmesh()?, &dir.join("node"), "strict", &dir.join("store"))?;
        Node::introduce(&mut pair.holder, &mut strict)?;
        strict.follow(&rules()?);
        let _holder = pair.start_holder()?;
        let mut plain = pair.start_gateway()?;
        let mut strict_daemon = strict.start()?;
        strict_daemon.wait_for_summaries(&[pair.holder.name()], pair.cache.paths().len(), MEETING_MAX)?;
        let file = dir.join("attestations");
        fs::write(&file, attestations(&pair)?)?;
        strict_daemon.import(&file)?;
        let targets: Arc<[String]> = pair.cache.paths().iter().map(|sample| sample.narinfo_target()).collect();
        for daemon in [&mut strict_daemon, &mut plain] {
            targets.iter().try_for_each(|target| daemon.wait_for_answer(target).map(drop))?;
        }
        for (connections, name) in CONNECTIONS {
            let row = format!("quorum/narinfo-warm/{name}");
            if report.wants(&row) {
                crate::progress(&row);
                let end = End::After(bench.load_duration);
                let load = Load { targets: Arc::clone(&targets), status: 200, connections, end };
                let [ours, theirs] = rounds(bench, &load, [strict.gateway, pair.gateway.gateway])?;
                report.figure(&row, &ours, Some(Beside::new("mode = \"off\"", theirs)));
            }
        }
        if report.wants(BESIDE_REPORT) {
            crate::progress(BESIDE_REPORT);
            fs::write(&file, closure_text()?)?;
            strict_daemon.import(&file)?;
            let load = Load { targets, status: 200, connections: 1, end: End::After(bench.load_duration) };
            let [ours, alone] = beside_reports(bench, &load, &strict_daemon, strict.gateway)?;
            report.figure(BESIDE_REPORT, &ours, Some(Beside::new("no report", alone)));
        }
        Ok(())
    }
}

/// p99 of each load in microseconds: first while reports are made one after the other, then without a report.
fn beside_reports(
    bench: &Bench,
    load: &Load,
    daemon: &Daemon<'_>,
    gateway: SocketAddr,
) -> anyhow::Result<[Vec<f64>; 2]> {
    let (mut beside, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds * SLICES_PER_ROUND {
        alone.push(load.run(gateway)?.percentile_us(99));
        let enough = AtomicBool::new(false);
        let seen = thread::scope(|scope| {
            let reports = scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    daemon.report_all()?;
                }
                anyhow::Ok(())
            });
            let seen = load.run(gateway);
            enough.store(true, Ordering::Relaxed);
            reports.join().map_err(|_| anyhow::anyhow!("the thread that asks for reports panicked"))??;
            seen
        })?;
        beside.push(seen.percentile_us(99));
    }
    Ok([beside, alone])
}

/// Microseconds for each request at each of the two gateways, one sample a slice.
fn rounds(bench: &Bench, load: &Load, gateways: [SocketAddr; 2]) -> anyhow::Result<[Vec<f64>; 2]> {
    let mut samples = [Vec::new(), Vec::new()];
    let warm_up = Load { end: End::After(bench.load_duration / 2), ..load.clone() };
    for gateway in gateways {
        warm_up.run(gateway)?;
    }
    for _ in 0..bench.rounds * SLICES_PER_ROUND {
        for (gateway, samples) in gateways.into_iter().zip(&mut samples) {
            samples.push(1e6 / load.run(gateway)?.rate());
        }
    }
    Ok(samples)
}

fn rules() -> anyhow::Result<String> {
    let mut text = format!("[quorum]\nmode = \"require\"\nk = {K}\n");
    for number in 0..BUILDERS {
        text += &format!("[[builder]]\nname = \"b{number}\"\npublic_key = \"{}\"\n", key(number)?.public());
    }
    Ok(text)
}

/// The attestations of all builders for all paths of the holder, as the text of a file.
fn attestations(pair: &Pair) -> anyhow::Result<String> {
    let store_dir = store_dir();
    let mut text = attestation_file::header(&store_dir);
    for sample in pair.cache.paths() {
        let narinfo = fetch::text(pair.holder.gateway, &sample.narinfo_target())?.context("the holder has it")?;
        let statement = Statement::of(&NarInfo::parse(&store_dir, narinfo.as_bytes())?);
        for number in 0..BUILDERS {
            let key = key(number)?;
            let attestation = Attestation::sign(&key, &store_dir, statement.clone(), 1_790_000_000_000);
            text += &attestation_file::line(&store_dir, &key.public(), &attestation);
        }
    }
    Ok(text)
}
