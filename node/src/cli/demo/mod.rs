//! `narmesh demo`: three real daemons and three real Nix stores on this machine; built on the first, substituted by the others.

mod daemons;
mod packages;
mod progress;
mod scratch;
mod stop;
mod stores;
mod walk;

use daemons::DemoNode;
use scratch::Scratch;
use std::path::PathBuf;
use stop::Stop;
use stores::DemoStore;

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Install the Debian packages that are missing (with apt-get, through sudo unless root)
    #[arg(long)]
    install: bool,
    /// End after the walk, with exit code 0 when all of it succeeded, instead of keeping the mesh up
    #[arg(long)]
    once: bool,
    /// Where stores, keys and configurations go; a new directory below the temporary one, removed at the end, if absent
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// The names of the three nodes; the first one builds.
const NAMES: [&str; 3] = ["a", "b", "c"];

/// Shows the main job from beginning to end.
pub(super) fn demo(arguments: &Arguments) -> anyhow::Result<()> {
    packages::ensure(arguments.install)?;
    let stop = Stop::listen()?;
    let scratch = Scratch::new(arguments.dir.clone())?;
    println!("Everything below is real and stays on this machine: {}\n", scratch.dir().display());
    let stores = NAMES.map(|name| DemoStore::new(scratch.dir(), name, name == "a"));
    let [mut a, mut b, mut c] = daemons::prepare(scratch.dir(), &stores)?;
    a.start(&[], &stop)?;
    b.start(&[&a], &stop)?;
    // c is given one address only: that of b. Where a listens it learns from a's signed summary, by way of b.
    c.start(&[&b], &stop)?;
    walk::walk(&a, &[&b, &c], &stores, &stop)?;
    if !arguments.once {
        what_next(&[&a, &b, &c], &stores);
        while !stop.is_requested() {
            std::thread::sleep(daemons::POLL);
        }
    }
    println!("\nstopping the daemons");
    for node in [a, b, c] {
        node.stop()?;
    }
    println!("done");
    Ok(())
}

fn what_next(nodes: &[&DemoNode], stores: &[DemoStore]) {
    println!("\nThe mesh stays up until Ctrl-C. In another terminal:");
    for node in nodes {
        println!("  {} status", node.command());
    }
    if let ([.., last], [.., store]) = (nodes, stores) {
        println!("  {} advertised", last.command());
        println!("  curl -s http://{}/metrics", last.gateway());
        println!("\nBuild something of your own on a, then fetch it on c:");
        if let Some(first) = stores.first() {
            println!("  {}", first.build_example());
        }
        println!("  {}", store.realise_example(&last.gateway(), "PATH"));
        println!("  {} why PATH", last.command());
    }
}
