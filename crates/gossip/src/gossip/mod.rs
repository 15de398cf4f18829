//! The state machine: inputs in, outputs out. It hands each input to the part whose business it is.

#[cfg(test)]
mod tests;

use crate::exchange::Context;
use crate::exchange::announcement::receive_announcement;
use crate::exchange::connections::Connections;
use crate::exchange::pull::Pulls;
use crate::exchange::requests::{Purpose, Requests};
use crate::exchange::sync::Syncs;
use crate::input::Input;
use crate::io::{Io, Timer};
use crate::output::{Event, Output};
use crate::peers::Peers;
use crate::peers::entry::Entry;
use crate::peers::kept::{KeptSummary, Unfit};
use crate::peers::misdeed::Misdeed;
use crate::peers::view::PeerView;
use crate::publication::{Publication, PublicationTimes, PublicationView};
use crate::table::reader::{Candidate, FilterTable};
use libp2p_identity::{Keypair, PeerId};
use narmesh_machine::{Moment, Now};
use narmesh_protocol::wire::GossipReply;
use narmesh_protocol::{AudienceDigest, Envelope, HashPart, StoreDir, Summary};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The most peers that can be trusted: the limit of an audience, less ourselves.
pub const ALLOWLIST_MAX: usize = Summary::AUDIENCE_MAX - 1;

/// The configuration of a core, fixed for its whole life.
#[derive(Clone, Debug)]
pub struct GossipConfig {
    /// The node key. Must be Ed25519: [`Gossip::new`] panics otherwise.
    pub keypair: Keypair,
    /// Our logical store directory; peers with another one are left alone.
    pub store_dir: StoreDir,
    /// Name and version, shown to peers; the first 64 bytes count.
    pub software: String,
    /// The seed of every random choice.
    pub rng_seed: [u8; 32],
    /// How long others may use our summary after they first heard of it, seconds. At least twice `reannounce_ms`.
    pub lifetime_s: u32,
    /// An unchanged summary is announced again after this, less up to a tenth, milliseconds.
    pub reannounce_ms: u64,
    /// A change waits this long for others, milliseconds.
    pub debounce_ms: u64,
    /// Time between two syncs, each with another connected peer, plus or minus a tenth, milliseconds.
    pub sync_interval_ms: u64,
    /// The most paths advertised; those that come later are withheld.
    pub path_count_max: usize,
}

impl GossipConfig {
    /// The defaults: a lifetime of 4 h, announced again every 30 min (chosen by what gossipsub costs when idle);
    /// 100 ms to debounce and 60 s between syncs (guesses, not measured); 200,000 paths (twice the most that an ordinary
    /// store has).
    pub fn new(keypair: Keypair, store_dir: StoreDir, software: &str, rng_seed: [u8; 32]) -> Self {
        Self {
            keypair,
            store_dir,
            software: software.to_owned(),
            rng_seed,
            lifetime_s: 14_400,
            reannounce_ms: 1_800_000,
            debounce_ms: 100,
            sync_interval_ms: 60_000,
            path_count_max: 200_000,
        }
    }
}

/// What the last run persisted: the last [`crate::Record`] of each kind.
#[derive(Clone, Debug, Default)]
pub struct Persisted {
    /// The last [`crate::Record::OwnEpoch`].
    pub own_epoch: Option<u64>,
    /// The last [`crate::Record::Newest`] of each peer; those that do not verify are skipped.
    pub newest: Vec<Vec<u8>>,
    /// [`Gossip::audience`] of the peers for which the caller keeps it; an invalid audience is skipped.
    pub audiences: Vec<(PeerId, Vec<AudienceDigest>)>,
}

/// One node's part in the gossip. See the crate's documentation for the protocol.
#[derive(Debug)]
pub struct Gossip {
    me: PeerId,
    context: Context,
    pulls: Pulls,
    syncs: Syncs,
}

impl Gossip {
    /// A core that knows nobody: it speaks after the first [`Input::Allowlist`] and [`Input::Paths`].
    ///
    /// # Panics
    /// When the keypair is not Ed25519.
    pub fn new(now: Now, config: GossipConfig, persisted: Persisted) -> Self {
        assert!(config.keypair.clone().try_into_ed25519().is_ok(), "the node key must be Ed25519");
        let me = config.keypair.public().to_peer_id();
        let times = PublicationTimes {
            lifetime_s: config.lifetime_s,
            reannounce_ms: config.reannounce_ms,
            debounce_ms: config.debounce_ms,
        };
        let mut io = Io::new(now, config.rng_seed);
        let peers = Peers::new(me, io.chance.draw(), &persisted.newest, persisted.audiences);
        let syncs = Syncs::new(me, config.store_dir.as_str(), &config.software, config.sync_interval_ms);
        syncs.schedule(&mut io);
        Self {
            me,
            context: Context {
                io,
                peers,
                connections: Connections::default(),
                requests: Requests::default(),
                publication: Publication::new(config.keypair, times, config.path_count_max, persisted.own_epoch),
            },
            pulls: Pulls::default(),
            syncs,
        }
    }

    /// Takes one input. Call [`Gossip::poll`] until it returns `None`, then look at [`Gossip::deadline`].
    pub fn handle(&mut self, now: Now, input: Input) {
        let Self { context: cx, pulls, syncs, .. } = self;
        cx.io.set_time(now);
        // What was restored at the start settles into matrices with the first input, in one pass for all.
        cx.peers.shape_table();
        let now = cx.io.now;
        match input {
            Input::Allowlist(peers) => self.set_allowlist(peers),
            Input::Addresses(addresses) => cx.publication.set_addresses(now.moment, addresses),
            Input::Connected(peer) => {
                // A second connection with a peer brings no new greeting. One with nobody of the allowlist says
                // nothing.
                if cx.peers.contains(&peer) && !cx.connections.contains(&peer) {
                    syncs.greet(cx, peer);
                    pulls.resume_with(cx, peer);
                }
            }
            Input::Disconnected(peer) => self.disconnect(peer),
            Input::Announcement { id, author, from, bytes } => {
                let verdict = receive_announcement(cx, pulls, author, from, &bytes);
                cx.io.push(Output::Judge { id, verdict });
            }
            Input::Request { from, id, bytes } => syncs.on_request(cx, pulls, from, id, &bytes),
            Input::Response { from, id, bytes } => self.on_response(from, id, Some(&bytes)),
            Input::RequestFailed { to, id } => self.on_response(to, id, None),
            Input::Paths(change) => cx.publication.apply_change(now.moment, change),
            Input::Probe { peer, outcome } => cx.peers.count_probe(&mut cx.io, peer, outcome),
            Input::Misbehaved { peer, misdeed } => cx.penalize(pulls, peer, misdeed),
            Input::Tick => {}
            Input::Goodbye => cx.publication.depart(&mut cx.io),
        }
        // With each input, so that a clock that was set is noticed at once and not with the next announcement.
        self.context.publication.watch_clock(now);
        self.run_due_timers();
    }

    /// The next thing to do. One input causes at most a handful of outputs, but a new allowlist causes one for each peer.
    /// No output is ever dropped, so the queue is bounded only if the caller empties it after each input.
    pub fn poll(&mut self) -> Option<Output> {
        self.context.io.pop()
    }

    /// When to call [`Gossip::handle`] with [`Input::Tick`] at the latest: exactly the next moment at
    /// which that does something.
    pub fn deadline(&self) -> Option<Moment> {
        self.context.io.timers.deadline()
    }

    /// The filters of all peers, to be read from any thread.
    pub fn table(&self) -> Arc<FilterTable> {
        Arc::clone(self.context.peers.table())
    }

    /// Peers whose filter claims this path, best first; see [`FilterTable::find_candidates`].
    pub fn find_candidates(&self, part: &HashPart) -> Vec<Candidate> {
        self.context.peers.table().find_candidates(part)
    }

    /// The audience of the last summary that we held of `owner`, in this run or (from [`Persisted::audiences`]) in an
    /// earlier one.
    pub fn audience(&self, owner: &PeerId) -> Option<&Arc<[AudienceDigest]>> {
        self.context.peers.get(owner).map(Entry::audience).filter(|audience| !audience.is_empty())
    }

    /// Whether `peer` may be told what `owner` has: it is the owner, or is in the owner's [`Gossip::audience`].
    pub fn admits(&self, owner: &PeerId, peer: &PeerId) -> bool {
        owner == peer || self.context.peers.get(owner).is_some_and(|entry| entry.admits(peer))
    }

    /// Our own summary, for status.
    pub fn publication(&self) -> PublicationView {
        self.context.publication.view()
    }

    /// The peers of the allowlist, ordered by id.
    pub fn peers(&self) -> impl Iterator<Item = PeerView> {
        let Context { peers, connections, .. } = &self.context;
        peers.iter().map(|(peer, entry)| entry.view(*peer, connections.contains(peer)))
    }

    /// Whether every peer of the allowlist was heard of in this run, as far as it can be: there is nobody whose summary is
    /// missing, or is only remembered from before a restart.
    pub fn has_heard_all(&self) -> bool {
        self.context.peers.iter().all(|(_, entry)| entry.is_heard())
    }

    /// The announcement that proves the summary that we hold of this peer, and when it was first accepted (wall clock,
    /// milliseconds since 1970). `None` when we hold none.
    pub fn held_proof(&self, owner: &PeerId) -> Option<(&Arc<Envelope>, u64)> {
        let held = self.context.peers.get(owner)?.held()?;
        Some((&held.envelope, held.accepted.wall_ms))
    }

    /// The summary that we hold of this peer, to be kept over a restart. This assembles up to 2 MB; for a peer that shares
    /// a matrix with many others it takes a few milliseconds.
    pub fn assemble_kept_summary(&self, owner: &PeerId) -> Option<KeptSummary> {
        let (envelope, accepted_ms) = self.held_proof(owner)?;
        let body = self.context.peers.assemble_body(owner)?.1.encode().ok()?;
        Some(KeptSummary { envelope: envelope.as_bytes().to_vec(), accepted_ms, body })
    }

    /// Takes back what [`Gossip::assemble_kept_summary`] gave in an earlier run, with all checks of a body that was just
    /// pulled. Its owner is then a candidate for the rest of the lifetime. Call this after the first
    /// [`Input::Allowlist`], and poll for outputs after it.
    pub fn restore(&mut self, now: Now, owner: PeerId, kept: &KeptSummary) -> Result<(), Unfit> {
        let Context { io, peers, .. } = &mut self.context;
        io.set_time(now);
        peers.restore(io, owner, kept)
    }

    /// Does all that is due, including what becomes due meanwhile.
    fn run_due_timers(&mut self) {
        loop {
            let Self { context: cx, pulls, syncs, .. } = self;
            // What was done in the last turn may have moved it.
            cx.io.timers.set(Timer::Publish, cx.publication.due());
            match cx.io.timers.pop(cx.io.now.moment) {
                Some(Timer::Publish) => cx.publication.publish(&mut cx.io),
                Some(Timer::Sync) => syncs.sync_with_anyone(cx),
                Some(Timer::Greet(peer)) => syncs.sync_with(cx, peer),
                Some(Timer::Pull(owner)) => pulls.pull_again(cx, owner),
                Some(Timer::Requests) => {
                    if let Some((id, to)) = cx.requests.find_overdue(cx.io.now.moment) {
                        // Like a connection that broke: nobody is blamed for a deadline.
                        self.on_response(to, id, None);
                    }
                }
                Some(Timer::Expire(peer)) => self.expire(peer),
                Some(Timer::Conduct(peer)) => {
                    if cx.peers.lift_expired_penalties(&mut cx.io, &peer) {
                        // While it was set aside, nothing was pulled from it, and it may have announced something
                        // since.
                        pulls.pull_if_wanted(cx, peer, None);
                        cx.connections.schedule_sync(&mut cx.io, peer, 0);
                    }
                }
                None => break,
            }
        }
    }

    fn set_allowlist(&mut self, mut peers: BTreeSet<PeerId>) {
        // An allowlist that is copied to all machines names each machine itself.
        peers.remove(&self.me);
        // The audience of a summary has a bound; of too many, the same ones are left out at each start.
        while peers.len() > ALLOWLIST_MAX {
            peers.pop_last();
        }
        let mut audience: Vec<_> = peers.iter().chain([&self.me]).map(AudienceDigest::of).collect();
        audience.sort_unstable();
        audience.dedup();
        // Taking a peer out of the audience makes a new epoch due, which that peer cannot get.
        self.context.publication.set_audience(self.context.io.now.moment, audience, peers.len());
        let known = self.context.peers.iter().map(|(peer, _)| *peer);
        let gone: Vec<_> = known.filter(|peer| !peers.contains(peer)).collect();
        // Its requests end first, so that nothing waits for an answer of a peer that is forgotten.
        for peer in gone {
            self.disconnect(peer);
            self.pulls.forget(&mut self.context, &peer);
            self.context.peers.forget(&mut self.context.io, &peer);
        }
        self.context.peers.add_all(&mut self.context.io, peers);
    }

    /// The last connection to a peer is gone, and with it the answers that it owes us.
    fn disconnect(&mut self, peer: PeerId) {
        let cx = &mut self.context;
        if !cx.connections.remove(&mut cx.io, &peer) {
            return;
        }
        // The next process of this owner may not have the body yet; it says anew what it has.
        if let Some(entry) = cx.peers.get_mut(&peer) {
            entry.set_claimed(None);
        }
        // Ends them at once. The pulls behind them go to another peer without waiting for the deadline.
        for id in cx.requests.ids_to(peer) {
            self.on_response(peer, id, None);
        }
    }

    /// Takes the answer to one of our requests, or `None` when there was none.
    fn on_response(&mut self, from: PeerId, id: u64, bytes: Option<&[u8]>) {
        let Self { context: cx, pulls, syncs, .. } = self;
        let Some(purpose) = cx.requests.take_answered(&mut cx.io, from, id) else { return };
        let reply = bytes.map(GossipReply::decode);
        // The purpose is served as if nothing had come, so that the pull or sync is tried elsewhere. A reply that was cut
        // short may be the connection's fault: a large body is on its way for seconds, and its sender may lose power.
        if matches!(&reply, Some(Err(error)) if !error.is_truncated()) {
            cx.penalize(pulls, from, Misdeed::MalformedReply);
        }
        let reply = reply.and_then(Result::ok);
        match purpose {
            Purpose::Sync => syncs.on_reply(cx, pulls, from, reply),
            Purpose::Pull { owner, have_seq } => pulls.on_reply(cx, owner, from, have_seq, reply),
        }
    }

    /// The lifetime of a peer's summary has ended.
    fn expire(&mut self, peer: PeerId) {
        let cx = &mut self.context;
        self.pulls.drop_body(cx, &peer);
        cx.io.push_event(Event::Expired { peer });
        self.pulls.pull_if_wanted(cx, peer, None);
    }
}
