//! What it costs to know which builders agree on a path.

use crate::process::{Running, finish, tethered, wait_for};
use crate::row::{Beside, Planned, Target};
use crate::subject::{Bench, Report, Subject};
use anyhow::{Context as _, ensure};
use narmesh::attestations::{LiveLedger, import};
use narmesh_protocol::{
    Attestation, BuilderKey, HashPart, NarHash, NixSecretKey, Statement, StoreDir, StorePath, attestation_file,
};
use narmesh_quorum::reconcile::{Next, Session, Shared};
use narmesh_quorum::{
    Builder, Claim, FingerprintDigest, Ledger, LedgerLimits, Mode, NameDigest, Policy, PolicyRules, Require, State,
    VerifiedStatement, WallMs,
};
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Builders, each of which attests everything.
pub(super) const BUILDERS: u8 = 5;
/// How many of the builders have to agree.
pub(super) const K: usize = 3;
/// Paths that all builders attest, which makes a million attestations.
const PATHS: u32 = 200_000;
const LOOKUPS: u32 = 200_000;
/// Paths in the ledgers that two peers compare.
const SHARED_PATHS: u32 = 20_000;
const CLOSURE: u32 = 10_000;
const IMPORTED_PATHS: u32 = 20_000;
const DAEMON_START_MAX: Duration = Duration::from_secs(30);

/// Verdicts, reports, imports and comparisons.
#[derive(Debug)]
pub(super) struct Quorum;

impl Subject for Quorum {
    fn planned(&self) -> Vec<Planned> {
        let bytes = |name: &str, difference: &str| {
            let about =
                format!("both ways, 100,000 attestations on one side, {difference} of them lacking on the other");
            Planned::new(format!("quorum/reconcile-{name}"), "bytes", about)
        };
        vec![
            Planned::new("quorum/verdict-p99", "us", "a verdict, 1 million attestations of 200,000 paths known")
                .target(Target::AtMost(20.0)),
            Planned::new(
                "quorum/attestation-memory",
                "bytes",
                "memory for each of a million attestations in the ledger",
            ),
            Planned::new("quorum/attestation-disk", "bytes", "for each of 100,000 attestations in the database"),
            Planned::new(
                "quorum/closure-report",
                "ms",
                "`narmesh quorum report --closure --json` of 10,000 paths, 5 builders each, as a process",
            )
            .target(Target::AtMost(1_000.0)),
            Planned::new("quorum/closure-report-daemon", "ms", "the same, asked of a running daemon"),
            Planned::new("quorum/closure-report-growth", "MB", "what the daemon's memory grew by for those reports"),
            Planned::new(
                "quorum/import",
                "attestations/s",
                "100,000 attestations from a file into the database, beside their signatures verified and nothing else",
            )
            .target(Target::RatioAtLeast(0.7)),
            bytes("equal", "none").target(Target::AtMost(1_000.0)),
            bytes("1-percent", "1 %"),
            bytes("100-percent", "all"),
        ]
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        if report.wants("quorum/verdict-p99") || report.wants("quorum/attestation-memory") {
            verdicts(bench, report)?;
        }
        let names = ["equal", "1-percent", "100-percent"];
        for (name, missing_every) in names.into_iter().zip([None, Some(100), Some(1)]) {
            let (bytes, bodies) = reconcile(missing_every)?;
            let beside = (bodies > 0.0).then(|| Beside::new("the attestations that lack", vec![bodies]));
            report.figure(&format!("quorum/reconcile-{name}"), &[bytes], beside);
        }
        if report.wants("quorum/import") || report.wants("quorum/attestation-disk") {
            imports(bench, report)?;
        }
        let reports = ["quorum/closure-report", "quorum/closure-report-daemon", "quorum/closure-report-growth"];
        if reports.iter().any(|row| report.wants(row)) {
            closure_report(bench, report)?;
        }
        Ok(())
    }
}

/// The key of one of the builders.
pub(super) fn key(number: u8) -> anyhow::Result<NixSecretKey> {
    Ok(NixSecretKey::from_seed(&format!("builder-{number}"), &[number + 1; 32])?)
}

/// A store path whose hash part is spread like real ones; the paths are in no meaningful order.
fn path(number: u32) -> anyhow::Result<StorePath> {
    let mut bytes = [0; 20];
    let mut state = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for byte in &mut bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = state.to_be_bytes()[0];
    }
    let [first, second, third, fourth, ..] = &mut bytes;
    [*first, *second, *third, *fourth] = number.to_le_bytes();
    Ok(StorePath::new(HashPart(bytes), &format!("package-{number}-1.0"))?)
}

fn claim(number: u32) -> Claim {
    let mut digest = [7; 32];
    digest[..4].copy_from_slice(&number.to_le_bytes());
    Claim {
        fingerprint: FingerprintDigest(digest),
        nar_hash: NarHash(digest),
        nar_size: 4_096,
        name: NameDigest::of("x"),
    }
}

fn policy() -> anyhow::Result<Policy> {
    let builder = |number| {
        let key = BuilderKey(key(number)?.public().bytes());
        anyhow::Ok(Builder { name: format!("builder-{number}"), key, group: None, signs_only_own_builds: false })
    };
    let rules = PolicyRules {
        builders: (0..BUILDERS).map(builder).collect::<Result<_, _>>()?,
        mode: Mode::Observe,
        require: Some(Require { k: K, overrides: Vec::new(), grace: None, veto: false }),
        ..PolicyRules::default()
    };
    Ok(Policy::new(rules)?.0)
}

/// A ledger of recorded attestations, as if read back from the database: nothing is signed for it.
fn filled(paths: u32, missing: impl Fn(u32) -> bool) -> anyhow::Result<Ledger> {
    let mut ledger = Ledger::new(LedgerLimits { per_builder: usize::MAX, bytes_per_builder: u64::MAX });
    let keys: Vec<BuilderKey> = policy()?.keys().collect();
    let mut number = 0;
    for at in 0..paths {
        let (hash_part, claim) = (path(at)?.hash_part(), claim(at));
        for builder in &keys {
            number += 1;
            if !missing(number) {
                let verified = VerifiedStatement::from_record(*builder, hash_part, claim, Some(WallMs(1)), 500);
                ledger.insert(&verified, Some(WallMs(1)));
            }
        }
    }
    Ok(ledger)
}

fn verdicts(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let policy = policy()?;
    let before = own_memory_bytes()?;
    let ledger = filled(PATHS, |_| false)?;
    let held = own_memory_bytes()?.saturating_sub(before) as f64 / ledger.len() as f64;
    report.figure("quorum/attestation-memory", &[held], None);
    let paths = (0..LOOKUPS).map(|at| path(at.wrapping_mul(2_654_435_761) % PATHS)).collect::<Result<Vec<_>, _>>()?;
    let mut p99s = Vec::new();
    for _ in 0..bench.rounds {
        let mut times_ns = Vec::with_capacity(paths.len());
        for path in &paths {
            let started = Instant::now();
            let verdict = black_box(policy.judge(&ledger, path));
            times_ns.push(started.elapsed().as_nanos());
            ensure!(verdict.state == State::Agreed, "five builders agree");
        }
        times_ns.sort_unstable();
        let p99 = times_ns.get(times_ns.len() * 99 / 100).context("some lookups")?;
        p99s.push(*p99 as f64 / 1e3);
    }
    report.figure("quorum/verdict-p99", &p99s, None);
    Ok(())
}

/// Bytes of all messages of a comparison, and bytes of the attestations that one side lacks.
fn reconcile(missing_every: Option<u32>) -> anyhow::Result<(f64, f64)> {
    let lacks = |number: u32| missing_every.is_some_and(|every| number.is_multiple_of(every));
    let (ours, theirs) = (filled(SHARED_PATHS, lacks)?, filled(SHARED_PATHS, |_| false)?);
    let shared = Shared::new(policy()?.keys());
    let (mut session, mut query) = Session::start(&ours, shared.clone());
    let mut bytes = 0;
    let found = loop {
        let answer = theirs.answer(&shared, &query);
        bytes += query.encode()?.len() + answer.encode()?.len();
        match session.on_answer(&ours, &answer) {
            Next::Ask(next) => query = next,
            Next::Done(found) => break found,
        }
    };
    let expected = theirs.len() - ours.len();
    ensure!(found.complete && found.theirs.len() == expected, "{} of {expected} found", found.theirs.len());
    let body = signed(0, &key(0)?, 5)?.encode()?.len();
    Ok((bytes as f64, (expected * body) as f64))
}

fn store_dir() -> anyhow::Result<StoreDir> {
    Ok(StoreDir::parse("/nix/store")?)
}

/// An attestation of path `number` with as many references as asked for. They are the numbers after `number * references`,
/// so that path 0 needs all others.
fn signed(number: u32, key: &NixSecretKey, references: u32) -> anyhow::Result<Attestation> {
    let needed = (1..=references).map(|at| path(number * references + at)).collect::<Result<_, _>>()?;
    let claim = claim(number);
    let statement =
        Statement { path: path(number)?, nar_hash: claim.nar_hash, nar_size: claim.nar_size, references: needed };
    Ok(Attestation::sign(key, &store_dir()?, statement, 1_790_000_000_000))
}

fn text_of(attestations: &[(NixSecretKey, Attestation)]) -> anyhow::Result<String> {
    let store_dir = store_dir()?;
    let mut text = attestation_file::header(&store_dir);
    for (key, attestation) in attestations {
        text += &attestation_file::line(&store_dir, &key.public(), attestation);
    }
    Ok(text)
}

fn all_signed(paths: u32, references_of: impl Fn(u32) -> u32) -> anyhow::Result<Vec<(NixSecretKey, Attestation)>> {
    let mut attestations = Vec::new();
    for number in 0..paths {
        for builder in 0..BUILDERS {
            let key = key(builder)?;
            let attestation = signed(number, &key, references_of(number))?;
            attestations.push((key, attestation));
        }
    }
    Ok(attestations)
}

fn imports(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    crate::progress("quorum: signing 100,000 attestations");
    let attestations = all_signed(IMPORTED_PATHS, |_| 5)?;
    let text = text_of(&attestations)?;
    let policy = policy()?;
    let (mut ours, mut bare, mut on_disk) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=bench.rounds {
        crate::progress(&format!("quorum/import: round {round} of {}", bench.rounds));
        let dir = bench.scratch.subdir("quorum")?;
        let ledger = LiveLedger::new(dir.path(), &store_dir()?, policy.clone(), Box::new(|_| false));
        ledger.catch_up()?;
        let started = Instant::now();
        let imported = import(text.as_bytes(), &ledger, |_| Ok(()))?;
        ours.push(attestations.len() as f64 / started.elapsed().as_secs_f64());
        ensure!(imported.new == attestations.len(), "{imported:?}");
        drop(ledger);
        let size = fs::metadata(dir.join("quorum.sqlite"))?.len();
        on_disk.push(size as f64 / attestations.len() as f64);
        let started = Instant::now();
        verify_all(&attestations)?;
        bare.push(attestations.len() as f64 / started.elapsed().as_secs_f64());
    }
    report.figure("quorum/import", &ours, Some(Beside::new("the signatures alone, all cores", bare)));
    report.figure("quorum/attestation-disk", &on_disk, None);
    Ok(())
}

/// Verifies both signatures of each attestation on all cores, and does nothing else.
fn verify_all(attestations: &[(NixSecretKey, Attestation)]) -> anyhow::Result<()> {
    let cores = thread::available_parallelism()?.get();
    let store_dir = store_dir()?;
    let keys = (0..BUILDERS).map(|number| Ok(key(number)?.public())).collect::<anyhow::Result<Vec<_>>>()?;
    let verified: usize = thread::scope(|scope| {
        let (store_dir, keys) = (&store_dir, &keys);
        let good = move |attestation: &Attestation| {
            let key = keys.iter().find(|key| key.bytes() == attestation.builder.0);
            key.is_some_and(|key| attestation.verify(store_dir, key))
        };
        let workers: Vec<_> = attestations
            .chunks(attestations.len().div_ceil(cores))
            .map(|part| scope.spawn(move || part.iter().filter(|(_, attestation)| good(attestation)).count()))
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or(0)).sum()
    });
    ensure!(verified == attestations.len(), "{verified} verified");
    Ok(())
}

/// The attestations of all builders for a closure of 10,000 paths, as the text of a file. Each path needs two more.
pub(super) fn closure_text() -> anyhow::Result<String> {
    text_of(&all_signed(CLOSURE, |number| if number * 2 + 2 < CLOSURE { 2 } else { 0 })?)
}

fn closure_report(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let narmesh = bench.binaries.narmesh()?;
    crate::progress("quorum: signing a closure of 10,000 paths");
    let dir = bench.scratch.subdir("closure")?;
    fs::write(dir.join("attestations"), closure_text()?)?;
    run_init(narmesh, dir.path())?;
    write_config(dir.path())?;
    run(narmesh, dir.path(), &["import", &dir.join("attestations").to_string_lossy()])?;
    let without = report_times_ms(narmesh, dir.path(), bench.rounds)?;
    let mut command = tethered(narmesh);
    command.arg("--config").arg(dir.join("narmesh.toml")).arg("run").stdout(Stdio::null()).stderr(Stdio::null());
    let daemon = Running::spawn("narmesh", &mut command)?;
    let root = path(0)?.to_string();
    wait_for("the daemon answers", DAEMON_START_MAX, || {
        // While no daemon answers, the command reads the files instead, and says so on standard error.
        let output = quorum(narmesh, dir.path(), &["why", &root]).output()?;
        Ok((output.status.success() && output.stderr.is_empty()).then_some(()))
    })?;
    let idle_mb = daemon.rss_mb()?;
    let asked = report_times_ms(narmesh, dir.path(), bench.rounds)?;
    report.figure("quorum/closure-report-growth", &[daemon.rss_mb()? - idle_mb], None);
    report.figure("quorum/closure-report-daemon", &asked, Some(Beside::new("without a daemon", without.clone())));
    report.figure("quorum/closure-report", &without, None);
    Ok(())
}

/// Milliseconds of the whole command, once for each round.
fn report_times_ms(narmesh: &Path, dir: &Path, rounds: usize) -> anyhow::Result<Vec<f64>> {
    let root = path(0)?.to_string();
    let mut times_ms = Vec::new();
    for _ in 0..rounds {
        let started = Instant::now();
        let json = run(narmesh, dir, &["report", "--closure", &root, "--json"])?;
        times_ms.push(started.elapsed().as_secs_f64() * 1e3);
        let report: serde_json::Value = serde_json::from_slice(&json)?;
        let agreed = report.pointer("/totals/agreed").and_then(serde_json::Value::as_u64);
        ensure!(
            agreed.is_some_and(|agreed| u32::try_from(agreed).is_ok_and(|agreed| CLOSURE - agreed < 3)),
            "{agreed:?} agreed"
        );
    }
    Ok(times_ms)
}

/// Makes the keys that a daemon needs.
fn run_init(narmesh: &Path, dir: &Path) -> anyhow::Result<()> {
    finish("narmesh init", Command::new(narmesh).args(["init", "--name", "reporter", "--dir"]).arg(dir)).map(drop)
}

fn write_config(dir: &Path) -> anyhow::Result<()> {
    let mut text = format!(
        "[node]\nlisten = [\"/ip4/127.0.0.1/tcp/0\"]\n[gateway]\nlisten = \"127.0.0.1:0\"\n[store]\nroot = \"{}\"\n[quorum]\nmode = \"observe\"\nk = {K}\n",
        dir.join("empty").display()
    );
    for number in 0..BUILDERS {
        text += &format!("[[builder]]\nname = \"b{number}\"\npublic_key = \"{}\"\n", key(number)?.public());
    }
    Ok(fs::write(dir.join("narmesh.toml"), text)?)
}

fn quorum(narmesh: &Path, dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(narmesh);
    command.arg("--config").arg(dir.join("narmesh.toml")).arg("quorum").args(arguments);
    command
}

fn run(narmesh: &Path, dir: &Path, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    let output = quorum(narmesh, dir, arguments).output()?;
    ensure!(output.status.success(), "narmesh quorum {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// Resident memory of this process, bytes.
fn own_memory_bytes() -> anyhow::Result<u64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("the second field of statm")?.parse()?;
    Ok(pages * u64::try_from(rustix::param::page_size())?)
}
