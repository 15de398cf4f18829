//! Requests for trees of NARs: ours under way, and those of peers, which blocking threads answer. A tree that is not known
//! is computed in the background, one at a time.

use super::context::Context;
use super::questions::{Asker, Dialogue, FoundAnswer};
use super::requests::Event;
use crate::request_rates::RequestRates;
use crate::unread::Protocol;
use libp2p::PeerId;
use libp2p::identity::Keypair;
use narmesh_protocol::wire::{TreeReply, TreeRequest};
use narmesh_store::{NarProgress, Offer, OfferedTree, PathInfo};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::mpsc;

/// Requests of peers answered at the same time; further ones are told *busy*. A reply has up to 256 KiB.
const ANSWERS_AT_ONCE_MAX: usize = 16;
/// Trees that may wait to be computed; further askers are told *busy*.
const WAITING_MAX: usize = 16;
/// Bytes read at a time to compute a tree.
const READ_BYTES: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Trees {
    offer: Arc<Offer>,
    keypair: Keypair,
    dialogue: Dialogue,
    computing: Computing,
}

impl Trees {
    /// `keypair` is the node key.
    pub(super) fn new(offer: Arc<Offer>, keypair: Keypair) -> Self {
        Self {
            computing: Computing::start(Arc::clone(&offer)),
            offer,
            keypair,
            dialogue: Dialogue::new(Protocol::Tree, RequestRates::of_trees(), ANSWERS_AT_ONCE_MAX),
        }
    }

    /// Asks a connected peer for the tree of a NAR.
    pub(super) fn ask(&mut self, context: &mut Context, peer: PeerId, request: TreeRequest, reply: Asker) {
        self.dialogue.ask(context, peer, request.encode(), reply);
    }

    pub(super) fn on_event(&mut self, context: &mut Context, event: Event) {
        let Some((request, bytes)) = self.dialogue.on_event(context, event) else { return };
        let asked = TreeRequest::decode(&bytes).ok();
        let Some((asked, request)) = self.dialogue.admit(context, request, asked) else { return };
        // From memory, and the same for all reasons for which a path is not given.
        if !self.offer.is_offered(&asked.hash_part) {
            return self.dialogue.respond(context, request, TreeReply::Absent.encode());
        }
        let (offer, keypair, computing) = (Arc::clone(&self.offer), self.keypair.clone(), self.computing.clone());
        self.dialogue.look_up(context, request, move || {
            let reply = match offer.find_tree(&asked.hash_part, &asked.nar_hash, asked.nar_size) {
                // A key that cannot sign has no trees.
                Ok(OfferedTree::Known(tree)) => match tree.bind(&keypair, &asked.nar_hash) {
                    Some(signature) => TreeReply::Tree { signature, leaves: tree.leaves().to_vec() },
                    None => TreeReply::Absent,
                },
                // To compute it takes a read of the whole NAR: the asker is told to come back, and reads without a tree
                // meanwhile.
                Ok(OfferedTree::NotComputed) if computing.begin(asked) => TreeReply::NotYet,
                Ok(OfferedTree::NotComputed) => TreeReply::Busy,
                Err(error) if error.may_pass() => TreeReply::Busy,
                Ok(OfferedTree::Absent) | Err(_) => TreeReply::Absent,
            };
            reply.encode()
        });
    }

    /// The next answer that a blocking thread looked up. Dropping the future loses nothing.
    pub(super) async fn next_answer(&mut self) -> Option<FoundAnswer> {
        self.dialogue.next_answer().await
    }

    /// Forgets a peer that left the allowlist.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.dialogue.forget(peer);
    }
}

impl Drop for Trees {
    fn drop(&mut self) {
        self.computing.is_stopping.store(true, Ordering::Relaxed);
    }
}

/// Computes trees, one after the other; cheap to clone.
#[derive(Clone, Debug)]
struct Computing {
    wanted: mpsc::Sender<TreeRequest>,
    /// Those that wait or are under way.
    begun: Arc<Mutex<HashSet<TreeRequest>>>,
    is_stopping: Arc<AtomicBool>,
}

impl Computing {
    fn start(offer: Arc<Offer>) -> Self {
        let (wanted, mut requests) = mpsc::channel(WAITING_MAX);
        let this = Self { wanted, begun: Arc::default(), is_stopping: Arc::default() };
        let (begun, is_stopping) = (Arc::clone(&this.begun), Arc::clone(&this.is_stopping));
        tokio::spawn(async move {
            while let Some(request) = requests.recv().await {
                let (offer, is_stopping) = (Arc::clone(&offer), Arc::clone(&is_stopping));
                let compute = move || compute(&offer, &request, &is_stopping);
                // It fails only when the runtime ends.
                tokio::task::spawn_blocking(compute).await.ok();
                begun.lock().remove(&request);
            }
        });
        this
    }

    /// Has the tree computed unless it is already; false if too many wait.
    fn begin(&self, request: TreeRequest) -> bool {
        let mut begun = self.begun.lock();
        let is_begun = begun.contains(&request) || self.wanted.try_send(request).is_ok();
        if is_begun {
            begun.insert(request);
        }
        is_begun
    }
}

/// Reads our copy to its end, and rests for as long as it reads: whoever asks for much may have half of a core.
fn compute(offer: &Offer, request: &TreeRequest, is_stopping: &AtomicBool) {
    let is_wanted = |info: &PathInfo| info.nar_hash == request.nar_hash && info.nar_size == request.nar_size;
    // Asked again now: the path may have been collected or withheld while this waited in the queue.
    let Ok(Some(nar)) = offer.find_nar(&request.hash_part, |info| is_wanted(info).then_some(0)) else { return };
    let (mut nar, mut buffer) = (nar.with_tree(), Vec::with_capacity(READ_BYTES));
    while !is_stopping.load(Ordering::Relaxed) {
        let since = Instant::now();
        buffer.clear();
        match nar.fill(&mut buffer, READ_BYTES) {
            Ok(NarProgress::More) => std::thread::sleep(since.elapsed()),
            Ok(NarProgress::Complete) => return,
            Err(error) => {
                tracing::debug!(hash_part = %request.hash_part, %error, "the tree of one of our NARs cannot be computed");
                return;
            }
        }
    }
}
