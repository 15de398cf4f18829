//! `narmesh demo`: three real daemons and three real Nix stores on this machine; the first builds, the others
//! substitute.
//!
//! **Purpose.** It shows whoever has just got narmesh the whole way of a path, from its build to its substitution on
//! other machines.
//! **Contract.** [`run`] is given the `narmesh` binary and returns once everything that it started has ended. A signal
//! (SIGINT, SIGTERM, SIGHUP) stops it early; while the mesh is merely kept up, that is how it ends, and no error.
//!
//! **Walk.** `packages.rs` makes sure that Nix is there, `scratch.rs` makes the directory, `stores.rs` makes three Nix stores
//! in it, and `daemons.rs` runs a daemon for each. `walk.rs` follows a path from one to the others.
//!
//! **Invariants.** It knows narmesh as a user does: by the commands of `command_line.rs`, the JSON that they print, and the
//! configuration file. It leaves nothing behind except a directory that the user chose.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the demo tells its user what happens by printing")]

mod command_line;
mod configuration;
mod daemons;
mod packages;
mod process;
mod progress;
mod scratch;
mod stop;
mod stores;
mod walk;

use daemons::DemoNode;
use scratch::Scratch;
use std::path::{Path, PathBuf};
use stop::Stop;
use stores::DemoStore;

/// How the demo is run.
#[derive(Debug)]
pub struct Options {
    /// Whether to install missing Debian packages, instead of naming them in an error.
    pub install: bool,
    /// Whether to stop when all steps are done, instead of keeping the mesh up.
    pub once: bool,
    /// The directory for stores, keys and configurations; by default a new temporary one that is removed at the end.
    pub dir: Option<PathBuf>,
}

/// The names of the three nodes; the first one builds.
const NAMES: [&str; 3] = ["a", "b", "c"];

/// Shows the whole way of a path, with `program` as the `narmesh` that is run. Returns an error if a step fails.
pub fn run(program: &Path, options: &Options) -> anyhow::Result<()> {
    packages::ensure(options.install)?;
    let stop = Stop::listen()?;
    let scratch = Scratch::new(options.dir.clone())?;
    println!("Everything below is real and stays on this machine: {}\n", scratch.dir().display());
    let stores = NAMES.map(|name| DemoStore::new(scratch.dir(), name, name == "a"));
    let [mut a, mut b, mut c] = daemons::prepare(program, scratch.dir(), &stores)?;
    a.start(&[], &stop)?;
    b.start(&[&a], &stop)?;
    // c is given only the address of b. It learns the address of a from a's signed summary, which it gets from b.
    c.start(&[&b], &stop)?;
    walk::walk(&a, &[&b, &c], &stores, &stop)?;
    if !options.once {
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
