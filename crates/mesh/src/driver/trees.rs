//! Requests for trees of NARs: ours under way, and those of peers, which blocking threads answer. A tree that is not known
//! is computed in the background, one at a time.

use super::context::Context;
use super::questions::{Answers, Asker, FoundAnswer, Questions, is_admitted};
use super::requests::Event;
use crate::request_rates::RequestRates;
use crate::unread::Protocol;
use libp2p::PeerId;
use libp2p::identity::Keypair;
use libp2p::request_response::{InboundRequestId, Message, ResponseChannel};
use narmesh_gossip::Misdeed;
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
    questions: Questions,
    rates: RequestRates,
    answers: Answers,
    computing: Computing,
}

impl Trees {
    /// `keypair` is the node key.
    pub(super) fn new(offer: Arc<Offer>, keypair: Keypair) -> Self {
        Self {
            computing: Computing::start(Arc::clone(&offer)),
            offer,
            keypair,
            questions: Questions::new(Protocol::Tree),
            rates: RequestRates::of_trees(),
            answers: Answers::new(Protocol::Tree, ANSWERS_AT_ONCE_MAX),
        }
    }

    /// Asks a connected peer for the tree of a NAR.
    pub(super) fn ask(&mut self, context: &mut Context, peer: PeerId, request: TreeRequest, reply: Asker) {
        self.questions.ask(context, peer, request.encode(), reply);
    }

    pub(super) fn on_request(&mut self, context: &mut Context, event: Event) {
        match event {
            Event::Message { peer, message: Message::Request { request_id, request, channel }, .. } => {
                self.answer(context, (peer, request_id), &request, channel);
            }
            Event::Message { peer, message: Message::Response { request_id, response }, .. } => {
                context.statistics.on_responsive(&peer);
                self.questions.on_answered(request_id, response);
            }
            Event::OutboundFailure { request_id, error, .. } => self.questions.on_failed(request_id, &error),
            Event::InboundFailure { request_id, .. } | Event::ResponseSent { request_id, .. } => {
                context.unread.end(&(Protocol::Tree, request_id));
            }
        }
    }

    fn answer(
        &mut self,
        context: &mut Context,
        (peer, asked): (PeerId, InboundRequestId),
        request: &[u8],
        channel: ResponseChannel<Vec<u8>>,
    ) {
        let Ok(request) = TreeRequest::decode(request) else {
            return context.report_misdeed(peer, Misdeed::MalformedRequest);
        };
        if !is_admitted(context, &mut self.rates, peer) {
            return respond(context, channel, &TreeReply::Busy);
        }
        if !self.offer.is_offered(&request.hash_part) {
            return respond(context, channel, &TreeReply::Absent);
        }
        let (offer, keypair, computing) = (Arc::clone(&self.offer), self.keypair.clone(), self.computing.clone());
        let look_up = move || {
            let reply = match offer.find_tree(&request.hash_part, &request.nar_hash, request.nar_size) {
                // A key that cannot sign has no trees.
                Ok(OfferedTree::Known(tree)) => match tree.bind(&keypair, &request.nar_hash) {
                    Some(signature) => TreeReply::Tree { signature, leaves: tree.leaves().to_vec() },
                    None => TreeReply::Absent,
                },
                Ok(OfferedTree::NotComputed) if computing.begin(request) => TreeReply::NotYet,
                Ok(OfferedTree::NotComputed) => TreeReply::Busy,
                Err(error) if error.may_pass() => TreeReply::Busy,
                Ok(OfferedTree::Absent) | Err(_) => TreeReply::Absent,
            };
            reply.encode()
        };
        if let Err((_, _, channel)) = self.answers.look_up((peer, asked, channel), look_up) {
            respond(context, channel, &TreeReply::Busy);
        }
    }

    /// The next answer that a blocking thread looked up. Dropping the future loses nothing.
    pub(super) async fn next_answer(&mut self) -> Option<FoundAnswer> {
        self.answers.next().await
    }

    /// Forgets a peer that left the allowlist.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.rates.forget(peer);
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

fn respond(context: &mut Context, channel: ResponseChannel<Vec<u8>>, reply: &TreeReply) {
    if let Ok(bytes) = reply.encode() {
        // The channel is closed if the asker left.
        drop(context.requests_of(Protocol::Tree).send_response(channel, bytes));
    }
}
