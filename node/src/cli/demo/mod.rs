//! `narmesh demo`: three real daemons and three real Nix stores on this machine; the first builds, the others
//! substitute.

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
    /// Install missing Debian packages (with apt-get, and with sudo unless run as root)
    #[arg(long)]
    install: bool,
    /// Stop when all steps are done, with exit code 0 if all succeeded, instead of keeping the mesh up
    #[arg(long)]
    once: bool,
    /// The directory for stores, keys and configurations; by default a new temporary one that is removed at the end
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// The names of the three nodes; the first one builds.
const NAMES: [&str; 3] = ["a", "b", "c"];

/// Shows the whole way of a path, from its build to its substitution on other machines.
pub(super) fn demo(arguments: &Arguments) -> anyhow::Result<()> {
    packages::ensure(arguments.install)?;
    let stop = Stop::listen()?;
    let scratch = Scratch::new(arguments.dir.clone())?;
    println!("Everything below is real and stays on this machine: {}\n", scratch.dir().display());
    let stores = NAMES.map(|name| DemoStore::new(scratch.dir(), name, name == "a"));
    let [mut a, mut b, mut c] = daemons::prepare(scratch.dir(), &stores)?;
    a.start(&[], &stop)?;
    b.start(&[&a], &stop)?;
    // c is given only the address of b. It learns the address of a from a's signed summary, which it gets from b.
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
