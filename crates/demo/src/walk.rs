//! Follows a path step by step, with a line for each: built, announced, pulled, candidate, holder, bytes, rate, NarHash
//! verified.

use crate::command_line::{Candidate, Status};
use crate::daemons::{DemoNode, POLL};
use crate::progress::Progress;
use crate::stop::Stop;
use crate::stores::DemoStore;
use anyhow::Context;
use indicatif::HumanBytes;
use std::io::Read;
use std::time::{Duration, Instant};

/// Ten times the promised time: a path built on one node is known to the others within 2 s.
const SPREAD_TIMEOUT: Duration = Duration::from_secs(20);

/// Builds on `builder` and substitutes on each of `receivers`; the stores are in the order of the nodes.
pub(crate) fn walk(
    builder: &DemoNode,
    receivers: &[&DemoNode],
    stores: &[DemoStore; 3],
    stop: &Stop,
) -> anyhow::Result<()> {
    let [source, copies @ ..] = stores;
    println!("\n{}  builds three paths with the real Nix …", builder.name());
    let since = Instant::now();
    let closure = source.build()?;
    let root = closure.last().context("a build has a result")?;
    println!(
        "{}  built {root} and what it needs, {} paths, in {:.1} s",
        builder.name(),
        closure.len(),
        since.elapsed().as_secs_f64()
    );
    let built = Instant::now();
    wait_until_announced(builder, closure.len(), stop)?;
    for receiver in receivers {
        wait_until_pulled(builder, receiver, closure.len(), built, stop)?;
    }
    for (receiver, store) in receivers.iter().zip(copies) {
        substitute(receiver, store, root, builder.builder_key(), stop)?;
        for path in &closure {
            explain(receiver, path)?;
            compare(source, receiver, store, path)?;
        }
    }
    println!("\nEvery path arrived straight from its holder, and its NarHash is the same in all three stores.");
    Ok(())
}

fn wait_until_announced(builder: &DemoNode, paths: usize, stop: &Stop) -> anyhow::Result<()> {
    let own = wait(builder, "announces what it built", stop, |status| {
        (status.own.paths >= paths as u64).then(|| status.own.clone())
    })?;
    println!(
        "{}  announced: epoch {}, seq {}, {} paths in a filter of {}",
        builder.name(),
        own.epoch,
        own.seq,
        own.paths,
        HumanBytes(own.filter_bits / 8)
    );
    Ok(())
}

fn wait_until_pulled(
    builder: &DemoNode,
    receiver: &DemoNode,
    paths: usize,
    built: Instant,
    stop: &Stop,
) -> anyhow::Result<()> {
    let (summary, addresses) = wait(receiver, "holds the summary", stop, |status| {
        let peer = status.peers.iter().find(|peer| peer.name == builder.name())?;
        let summary = peer.summary.as_ref().filter(|summary| summary.paths >= paths as u64)?;
        Some((summary.clone(), peer.addresses.clone()))
    })?;
    println!(
        "{}  pulled summary {}.{} of {}: {} paths, {} ms after the build; {} listens on {}",
        receiver.name(),
        summary.epoch,
        summary.seq,
        builder.name(),
        summary.paths,
        built.elapsed().as_millis(),
        builder.name(),
        addresses.join(" ")
    );
    Ok(())
}

/// Substitutes `root` with the real Nix client, which asks only the receiver's gateway.
fn substitute(receiver: &DemoNode, store: &DemoStore, root: &str, key: &str, stop: &Stop) -> anyhow::Result<()> {
    let why = receiver.ask_why(root)?;
    let candidates: Vec<_> =
        why.peers.iter().filter(|peer| peer.would_ask).map(|peer| format!("{} ({})", peer.name, peer.reason)).collect();
    println!("\n{}  candidates for {root}: {}", receiver.name(), candidates.join(", "));
    anyhow::ensure!(!candidates.is_empty(), "{} knows no candidate", receiver.name());
    println!("{}  nix-store --realise, with http://{} as the only substituter …", receiver.name(), receiver.gateway());
    let before = receiver.ask_status()?.bytes.gateway_out;
    let since = Instant::now();
    let mut nix = store.realise(root, &receiver.gateway(), key)?;
    let mut progress = Progress::new(receiver.name(), 39_000_000);
    let ended = loop {
        if let Some(ended) = nix.try_wait()? {
            break ended;
        }
        if stop.is_requested() {
            nix.kill()?;
            nix.wait()?;
        }
        stop.check()?;
        progress.advance_to(receiver.ask_status()?.bytes.gateway_out.saturating_sub(before));
        std::thread::sleep(POLL);
    };
    drop(progress);
    let mut complaint = String::new();
    if let Some(mut stderr) = nix.stderr.take() {
        stderr.read_to_string(&mut complaint)?;
    }
    anyhow::ensure!(ended.success(), "nix-store --realise failed on {}: {ended}\n{complaint}", receiver.name());
    let bytes = receiver.ask_status()?.bytes.gateway_out.saturating_sub(before);
    let elapsed = since.elapsed().as_secs_f64();
    let rate = bytes as f64 / 1e6 / elapsed.max(1e-3);
    println!("{}  Nix has it: {} in {elapsed:.2} s, {rate:.0} MB/s", receiver.name(), HumanBytes(bytes));
    Ok(())
}

/// Prints how the path was found, with the sentences that `narmesh why` shows.
fn explain(receiver: &DemoNode, path: &str) -> anyhow::Result<()> {
    let report = receiver.ask_why(path)?;
    println!("{}  {path}", receiver.name());
    for decision in &report.decisions {
        println!("     {}", name_peers(&decision.sentence, &report.peers));
    }
    Ok(())
}

fn name_peers(sentence: &str, peers: &[Candidate]) -> String {
    peers.iter().fold(sentence.to_owned(), |sentence, peer| sentence.replace(&peer.peer_id, &peer.name))
}

fn compare(source: &DemoStore, receiver: &DemoNode, store: &DemoStore, path: &str) -> anyhow::Result<()> {
    let (promised, arrived) = (source.ask_nar_hash(path)?, store.ask_nar_hash(path)?);
    anyhow::ensure!(promised == arrived, "{}: {path} has {arrived}, but the build gave {promised}", receiver.name());
    store.verify(path)?;
    println!("     {arrived}, as built; its files were read again and match it");
    Ok(())
}

fn wait<T>(node: &DemoNode, what: &str, stop: &Stop, found: impl Fn(&Status) -> Option<T>) -> anyhow::Result<T> {
    let since = Instant::now();
    loop {
        if let Some(found) = found(&node.ask_status()?) {
            return Ok(found);
        }
        stop.check()?;
        anyhow::ensure!(since.elapsed() < SPREAD_TIMEOUT, "not within {SPREAD_TIMEOUT:?}: {} {what}", node.name());
        std::thread::sleep(POLL);
    }
}
