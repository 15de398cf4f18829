//! The core of the mesh: it tracks who holds what and decides what to say to whom, and when. It has no clock, no socket and
//! no thread of its own.
//!
//! **Purpose.** Every node tells the peers it trusts which store paths it has, as a Bloom filter, and keeps the filters of
//! those peers in one table that answers "who may have this path?" in under a microsecond.
//!
//! **Contract.** [`Gossip::handle`] takes one [`Input`] with the time at which it happened; it never fails and never
//! blocks. After it, call [`Gossip::poll`] until it returns `None` and perform each [`Output`] in order.
//! [`Gossip::deadline`] says when [`Input::Tick`] is due at the latest. Messages are plain bytes in both directions, so a
//! simulation can forge, drop, duplicate and reorder them. All randomness follows from [`GossipConfig::rng_seed`]; the same
//! inputs give the same outputs.
//!
//! **The protocol in plain words.**
//! - *Announce.* When its paths change, a node waits 100 ms for further changes and then signs an announcement: its name,
//!   an epoch and a sequence number, the number of paths, the digest and size of the body, and how long the body may be
//!   used. The announcement has less than 1,000 bytes and floods through gossipsub. It holds nothing that a stranger could
//!   use.
//! - *Pull.* A node that trusts the author and sees a newer `(epoch, seq)` asks for the body: first the author, then
//!   whoever forwarded the announcement, then others. The digest proves the body, so it does not matter who hands it over.
//!   A body names its *audience*; nobody hands it to anyone else. A puller that holds the same epoch gets only the added
//!   bits, from the owner or from any peer that applied them.
//! - *Epochs.* Within an epoch, bits are only ever set. A removed path waits a second for others and then starts a new
//!   epoch with a new filter. So does a peer that lost our trust, or a filter that has become too small. The epoch is
//!   persisted before it is used.
//! - *No replay, no amnesia.* An older `(epoch, seq)` is refused, even after a restart. On each new connection both sides
//!   show each other the newest announcement that carries the other's signature. A node that is shown an announcement of
//!   its own that it does not know has lost its state, and continues one epoch above it.
//! - *Anti-entropy.* The same exchange says what each side holds and brings announcements that gossip lost. It is repeated
//!   3 s later, and then with one peer after the other on a timer, so nothing relies on gossip for order or delivery.
//! - *Lifetime.* A body is used for the announced lifetime, counted from the first sight of its `(epoch, seq)`. An
//!   unchanged body is announced again well before that, under the next `seq`; nothing needs to be pulled then, as the
//!   digest is the same. A goodbye ends the lifetime at once.
//! - *Restarts.* The caller may keep a body ([`Gossip::assemble_kept_summary`]) and give it to the next core
//!   ([`Gossip::restore`]), which checks all of it again. It is used for the rest of its lifetime. When its owner is known
//!   to have announced something newer, the body is still our best guess, but it is told to nobody.
//! - *Lies.* An offence that the bytes prove is a [`Misdeed`]; three of them set a peer aside for 5 minutes. A
//!   filter that claims absent paths ranks lower with each measured false hit, and is left out when they go far
//!   beyond what its density predicts.
//!
//! **Walk.** [`Gossip`] hands each input to the part whose business it is: syncs, announcements or pulls, each of which may
//! call on the next. They work on a context that they share: the peers (what we know and hold of each, its conduct, the
//! [`FilterTable`]), the connections, the requests under way, and the publication (our paths -> delta or epoch -> envelope).
//!
//! **Invariants.** No state exists of a peer that is not on the allowlist. No body goes to a peer outside its audience. No
//! filter in the table is unsigned or half written. Foreign bytes cannot grow any map or queue beyond the allowlist: there
//! are at most 2,047 peers, one pull for each, 16 pulls under way, one sync per connection, 4 tellers per pull, 64 deltas
//! of our own history, 4 MiB of others' deltas, and a rate limit on the announcements and requests of each peer.

mod exchange;
mod gossip;
mod input;
mod io;
mod output;
mod peers;
mod publication;
mod table;

pub use exchange::pull::IN_FLIGHT_MAX as PULLS_IN_FLIGHT_MAX;
pub use gossip::{ALLOWLIST_MAX, Gossip, GossipConfig, Persisted};
pub use input::{Input, PathChange, ProbeOutcome};
pub use narmesh_machine::{Moment, Now};
pub use output::{Event, Forward, Output, Record};
pub use peers::announced::ANNOUNCEMENTS;
pub use peers::body::Flaw;
pub use peers::kept::{KeptSummary, Unfit};
pub use peers::misdeed::Misdeed;
pub use peers::view::{PeerView, SummaryView};
pub use publication::{PATHS_MAX, PublicationView};
pub use table::reader::{Candidate, FilterTable};
