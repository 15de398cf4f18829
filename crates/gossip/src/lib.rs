//! Who holds what, what to say to whom, and when: the core of the mesh, without a clock, a socket or a thread.
//!
//! **Purpose.** Every node tells the peers it trusts which store paths it has, as a Bloom filter, and keeps the filters of
//! those peers in one table that answers "who may have this path?" in under a microsecond.
//!
//! **Contract.** [`Gossip::handle`] takes one [`Input`] with the time at which it happened; it never fails and never blocks.
//! Then [`Gossip::poll`] is called until it is empty and each [`Output`] performed in order, and [`Gossip::deadline`] says
//! when to come back with [`Input::Tick`] at the latest. Bytes come in and go out, so a simulation can forge, drop,
//! duplicate and reorder them. All randomness follows from [`GossipConfig::rng_seed`]; the same inputs give the same outputs.
//!
//! **The protocol in plain words.**
//! - *Announce.* When its paths change, a node waits 100 ms for more of it, then signs an announcement: its name, an epoch
//!   and a sequence number, how many paths, the digest and size of the body, how long it may be used. That is less than
//!   1,000 bytes and floods through gossipsub. It holds nothing that a stranger could use.
//! - *Pull.* Who trusts the author and sees a newer `(epoch, seq)` asks for the body: first the author, then whoever
//!   forwarded the announcement, then others. The digest proves it, so it does not matter who hands it over. A body names
//!   its *audience*; nobody hands it to anyone else. A puller that holds the same epoch gets the added bits alone, from
//!   the owner or from whoever applied them.
//! - *Epochs.* Bits are only ever set within an epoch. A removal waits a second for others and then starts a new epoch with
//!   a filter made anew; so does a peer that lost our trust, and a filter that has become too small. The epoch is
//!   written down before it is used.
//! - *Never heard twice, always heard again.* An older `(epoch, seq)` is refused, also after a restart. On each new
//!   connection both sides show the other the newest announcement with the other's signature: who sees one of its own that
//!   it does not know of has lost its state, and goes on one epoch above.
//! - *Anti-entropy.* The same exchange carries what each side holds, and brings announcements that gossip lost. It is
//!   repeated 3 s later and then with one peer after the other on a timer, so nothing relies on gossip for order or delivery.
//! - *Lifetime.* A body is used for the announced lifetime from the first sight of its `(epoch, seq)`. An unchanged one is
//!   announced again well before that, under the next `seq`; then nothing needs to be pulled, as the digest is the same.
//!   A goodbye ends it at once.
//! - *Restarts.* A body may be kept outside ([`Gossip::kept`]) and given back to the next core ([`Gossip::restore`]), which
//!   checks all of it again. It is used for what is left of its lifetime. When its owner is known to have announced something
//!   newer, it is still our best guess, and told to nobody.
//! - *Lies.* What bytes prove against a peer is a [`Misdeed`]; three of them set it aside for 5 minutes. A filter that
//!   claims what is not there loses its rank by measured false hits, and is left out when they are far beyond its density.
//!
//! **Walk.** [`Gossip`] (the state machine) drives the publication (our paths -> delta or epoch -> envelope), the directory
//! (what we hold of each peer), the pulls, the sync, the standing (misdeeds, false hits) and the [`FilterTable`].
//!
//! **Invariants: what is never there.** No state of a peer that is not on the allowlist. No body given to someone outside its
//! audience. No filter in the table that its owner did not sign, or that is half written. No map or queue that foreign bytes
//! can grow beyond the allowlist: at most 2,047 peers, one pull each, 16 pulls under way, one sync per connection, 4 tellers
//! per pull, 64 deltas of our own history and 4 MiB of others' deltas, and a rate limit on announcements and requests of each peer.

#[cfg(test)]
mod bounds;
mod directory;
mod gossip;
mod history;
mod input;
mod kept;
mod latest;
mod matrix;
mod misdeed;
mod mutation;
mod output;
mod publication;
mod pull;
mod relay;
mod sliced;
mod standing;
mod sync;
mod table;
mod table_writer;
mod time;
mod timers;
mod view;

pub use gossip::{ALLOWLIST_MAX, Gossip, GossipConfig, OpenEnvelope, Persisted};
pub use input::{Input, PathChange, ProbeOutcome};
pub use kept::{Flaw, KeptSummary, Unfit};
pub use misdeed::Misdeed;
#[cfg(feature = "mutants")]
pub use mutation::{MUTATIONS, Mutation, mutate};
pub use output::{Event, Output, Record, Verdict};
pub use publication::{PATHS_MAX, PublicationView};
pub use table::{Candidate, FilterTable};
pub use time::{Moment, Now};
pub use view::{PeerView, SummaryView};
