//! A second implementation of the protocol, written from `docs/protocol.md` on raw libp2p. It attacks real daemons that
//! serve a real Nix. Neither the node's crates nor `narmesh-protocol` are linked.
//!
//! In all tests: every `nix-build` exits 0 with the right contents, with the gateway as its only substituter; nothing wrong
//! is in the store; the gateway answers 200 or 404; the daemon uses at most 64 MiB more memory than idle; an honest peer
//! beside the liar is unharmed; and whoever lied is named with the reason in `status`, in the log and in `/metrics`.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "an attack fails by panicking")]
#![expect(unreachable_pub, reason = "nobody links a test")]

mod addresses;
mod announcements;
mod attestations;
mod bulk;
mod disk_floods;
mod disk_repeats;
mod filter;
mod formats;
mod gossipsub;
mod honest;
mod impostors;
mod log_floods;
mod log_wire;
mod logs;
mod narinfos;
mod nars;
mod peer;
mod protocols;
mod quorum_wire;
mod realisations;
mod referrals;
mod relays;
mod removals;
mod report;
mod rosters;
mod serving;
mod stage;
mod strangers;
mod summaries;
mod swarm;
mod table;
mod together;
mod tree_wire;
mod trees;
mod uploads;
mod wire;
mod wire_examples;
