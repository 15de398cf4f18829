//! The harness of the acceptance stories: the built `narmesh` binary, seen only from outside.
//!
//! Nothing here links the daemon. A [`TestNode`] is the real binary with a configuration file, a control socket, a
//! gateway port and a process id; a [`NixStoreFixture`] is a real Nix store driven by the real Nix client. What the
//! harness knows about a node it reads where a person would: `narmesh status --json`, the gateway, `/proc`.
//!
//! Walk of a story: [`TestMesh::new`] makes a temporary directory and builds the release binary, once per process;
//! [`TestMesh::node`] runs `narmesh init` and makes an empty store; the story says who allows whom, starts the nodes,
//! builds paths with [`NixStoreFixture::build`], and asks for them elsewhere with [`NixStoreFixture::realise`] or
//! [`NixStoreFixture::nix_build`].
//!
//! [`TestNode::live_on`] gives a daemon a network of its own, on a machine of a [`Network`]: on a bridge, or in sites with
//! an [`Emulator`] between them.
//!
//! Invariants:
//! - Only processes that the harness started are ever signalled, by their id, and all of them end with their node.
//! - Nothing waits for a fixed time: [`wait_for`] is the only place that waits, and it waits for a condition.
//! - A bound is ten times what users are promised ([`PROMISE_FACTOR`]); no story asserts an absolute speed.
//! - The harness panics with what it saw; it never reports a failure as a missing value.

mod asked;
mod binary;
mod certificate;
#[cfg(test)]
mod circles;
mod config;
#[cfg(test)]
mod documents;
mod emulator;
mod failing_cache;
mod faketime;
mod fleet;
mod free_address;
mod gate;
mod handed_socket;
mod http;
mod mesh;
mod network;
mod nix;
mod node;
mod over_a_kill;
mod pair;
mod plain_cache;
mod prober;
mod process;
mod rules;
mod shipment;
mod shown;
mod status;
mod terminal;
mod wait;

pub use asked::{Fetched, fetch_all, missing};
pub use binary::{narmesh_binary, repository_root, target_directory};
pub use certificate::{Certified, TestCa};
pub use config::{NodeConfig, PeerEntry, StorePlace};
pub use emulator::{Emulator, LineCounts, Link, Site};
pub use failing_cache::{FailingCache, FailsAt, Way};
pub use faketime::{faketime, faketime_library};
pub use fleet::{Fleet, assert_unblamed, build_and_tell, others, wait_tables};
pub use free_address::free_address;
pub use gate::GatedProxy;
pub use handed_socket::HandedSocket;
pub use http::{HttpAnswer, HttpBody, get, head, request};
pub use mesh::{TestMesh, scratch_dir};
pub use network::{BareMachine, Namespace, Nat, Network, Place, Traffic, Wall};
pub use nix::{
    CHROOT_NIX_CONF, NarInfoText, NixStoreFixture, NixVersion, PathRow, hash_part, nix_client_environment, nix_homes,
    with_gateway,
};
pub use node::{PeerCard, TestNode};
pub use over_a_kill::build_over_a_kill;
pub use pair::{Pair, get_from, nar_url, narinfo_url};
pub use plain_cache::{LoggingProxy, PlainCache, second_store};
pub use prober::{ProbeReport, Prober};
pub use process::{Costs, Finished, MemoryPeak, finish, sha256_hex};
pub use rules::{Jury, Rules};
pub use shipment::{LookupsBesideBulk, Shipment, Shipped};
pub use shown::{Shown, shown_commands};
pub use status::Status;
pub use terminal::InTerminal;
pub use wait::{PROMISE_FACTOR, poll, promised, wait_for, wait_until};
