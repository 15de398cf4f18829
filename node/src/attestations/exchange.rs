//! Exchanges attestations with peers: a thread drives the exchange core, reads the attestations that are handed over,
//! and verifies those that arrive.
//!
//! The mesh tells the thread who is connected and which builders may be spoken of there, and passes requests and replies
//! on; the ledger tells it of changes. The link between them has the bounds.

use super::ledger::{LiveLedger, StoredStatement};
use super::now;
use super::verification::verify_all;
use libp2p::PeerId;
use narmesh_gossip::Misdeed;
use narmesh_mesh::{DriverEnd, ExchangeMessage, ExchangeOrder, ThreadEnd, link_exchange};
use narmesh_protocol::{Attestation, BuilderKey, HashPart, NixPublicKey};
use narmesh_quorum::exchange::{Exchange, Fault, HandOver, Input, Moment, Output, Taken};
use narmesh_store::Offer;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use rand::RngExt;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc;

/// The thread looks at the clock at least this often.
const TICK_MAX: Duration = Duration::from_secs(60);

/// For `/metrics`.
#[derive(Clone, Debug, Default)]
pub(crate) struct ExchangeCounters {
    /// Comparisons that were completed.
    pub(crate) compared: Counter,
    /// Attestations from peers that were new here.
    pub(crate) pulled: Counter,
    /// Attestations handed to peers.
    pub(crate) handed_over: Counter,
    /// Attestations from peers that were not kept, by reason.
    pub(crate) refused: Family<Vec<(&'static str, &'static str)>, Counter>,
}

/// Starts the thread. It ends when the driver is gone.
pub(crate) fn start(
    ledger: &Arc<LiveLedger>,
    offer: &Arc<Offer>,
    on_withheld: impl Fn(&[HashPart]) + Send + 'static,
    counters: ExchangeCounters,
) -> io::Result<DriverEnd> {
    let (driver, ThreadEnd { messages, orders }) = link_exchange();
    let (mut changes, link) = (ledger.changes(), driver.link.clone());
    // A change of the ledger wakes the exchange, which sleeps until its next deadline.
    tokio::spawn(async move { while changes.changed().await.is_ok() && link.tell_changed() {} });
    let worker = Worker {
        exchange: Exchange::new(moment(), rand::rng().random()),
        ledger: Arc::clone(ledger),
        offer: Arc::clone(offer),
        keys: BTreeMap::new(),
        own: None,
        waiting: HashMap::new(),
        next_wanted: 0,
        orders,
        on_withheld: Box::new(on_withheld),
        counters,
    };
    thread::Builder::new().name("attestations".to_owned()).spawn(move || worker.run(&messages))?;
    Ok(driver)
}

fn moment() -> Moment {
    narmesh_mesh::now().moment
}

/// What is called with store paths.
type OnPaths = Box<dyn Fn(&[HashPart]) + Send>;

struct Worker {
    exchange: Exchange,
    ledger: Arc<LiveLedger>,
    /// Says which of our own builds may be told.
    offer: Arc<Offer>,
    keys: BTreeMap<BuilderKey, NixPublicKey>,
    own: Option<BuilderKey>,
    waiting: HashMap<u64, mpsc::Sender<()>>,
    next_wanted: u64,
    orders: mpsc::Sender<ExchangeOrder>,
    /// Called with paths of which an attestation was kept back.
    on_withheld: OnPaths,
    counters: ExchangeCounters,
}

/// The driver is gone, so the thread ends.
struct Stopping;

impl Worker {
    fn run(mut self, messages: &Receiver<ExchangeMessage>) {
        loop {
            let wait =
                self.exchange.deadline().map_or(TICK_MAX, |at| Duration::from_millis(at.0 - moment().0.min(at.0)));
            let input = match messages.recv_timeout(wait.min(TICK_MAX)) {
                Ok(ExchangeMessage::Input(input)) => input,
                Ok(ExchangeMessage::Request { from, id, bytes, permit }) => {
                    // The place in the queue is free once the request is taken from it.
                    drop(permit);
                    Input::Request { from, id, bytes }
                }
                Ok(ExchangeMessage::Changed) => Input::Grew,
                Ok(ExchangeMessage::Builders(builders, own)) => {
                    self.own = own;
                    self.keys = builders.into_iter().map(|it| (BuilderKey(it.key.bytes()), it.key)).collect();
                    continue;
                }
                Ok(ExchangeMessage::Wanted(hash_part, lasting, answers)) => {
                    self.next_wanted += 1;
                    self.waiting.insert(self.next_wanted, answers);
                    let lasting_ms = u64::try_from(lasting.as_millis()).unwrap_or(u64::MAX);
                    Input::Wanted { id: self.next_wanted, hash_part, lasting_ms }
                }
                Err(RecvTimeoutError::Timeout) => Input::Tick,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // The driver is gone, and nobody could be answered.
            if self.handle(input).is_err() {
                return;
            }
        }
    }

    fn handle(&mut self, input: Input) -> Result<(), Stopping> {
        self.ledger.read(|ledger| self.exchange.handle(moment(), ledger, input));
        while let Some(output) = self.exchange.poll() {
            self.perform(output)?;
        }
        Ok(())
    }

    fn perform(&mut self, output: Output) -> Result<(), Stopping> {
        match output {
            Output::Request { to, id, bytes } => self.send_order(ExchangeOrder::Request { to, id, bytes }),
            Output::Respond { to: _, id, bytes } => self.send_order(ExchangeOrder::Respond { id, bytes }),
            Output::HandOver(hand_over) => {
                let bytes = self.read(&hand_over);
                self.send_order(ExchangeOrder::Respond { id: hand_over.id, bytes })
            }
            Output::Verify { from, id, attestations } => {
                let taken = self.take(from, attestations);
                self.handle(Input::Taken { id, taken })
            }
            Output::Answered { id, last } => {
                if let Some(waiting) = self.waiting.get(&id) {
                    // Full: the lookup has not looked at the last answer yet. Closed: its deadline is over.
                    waiting.try_send(()).unwrap_or(());
                }
                if last {
                    self.waiting.remove(&id);
                }
                Ok(())
            }
            Output::Misbehaved { peer, fault } => self.send_order(ExchangeOrder::ReportMisdeed(peer, misdeed(fault))),
            Output::Compared { peer, new } => {
                self.counters.compared.inc();
                if new > 0 {
                    tracing::info!(%peer, new, "attestations pulled");
                }
                Ok(())
            }
        }
    }

    fn send_order(&self, order: ExchangeOrder) -> Result<(), Stopping> {
        self.orders.blocking_send(order).map_err(|_| Stopping)
    }

    /// The bytes of the reply. What cannot be read is left out: the peer asks others, and us again. Paths that have
    /// been withheld since they were attested are reported to the attester, which takes their attestations back, so that
    /// comparisons stop promising them, while a locked ledger does not hold up this thread.
    fn read(&self, hand_over: &HandOver) -> Vec<u8> {
        let (mut handed_over, mut withheld) = (0, Vec::new());
        let bytes = hand_over.encode_reply(|key, path| {
            let said = self.read_attestations(path)?.into_iter().map(|it| it.attestation);
            // Asked again now: a path may have been withheld since it was attested.
            let (told, kept): (Vec<_>, Vec<_>) =
                said.filter(|it| it.builder == *key).partition(|it| self.may_be_told(it));
            handed_over += told.len();
            withheld.extend(kept.first().map(|_| *path));
            (!told.is_empty()).then_some(told)
        });
        self.counters.handed_over.inc_by(u64::try_from(handed_over).unwrap_or(0));
        if !withheld.is_empty() {
            tracing::debug!(peer = %hand_over.to, paths = withheld.len(), "kept back: withheld since it was attested");
            (self.on_withheld)(&withheld);
        }
        bytes
    }

    /// Whether a peer may be told of this attestation. For our own builder this depends on what is offered now, not on
    /// what was offered when the attestation was made.
    fn may_be_told(&self, attestation: &Attestation) -> bool {
        let statement = &attestation.statement;
        self.own != Some(attestation.builder)
            || self.offer.why_withheld(&statement.path, &statement.references).is_none()
    }

    fn read_attestations(&self, path: &HashPart) -> Option<Vec<StoredStatement>> {
        let read = self.ledger.read_attestations(path);
        read.inspect_err(|error| tracing::warn!(%error, "attestations cannot be read and are not handed over")).ok()
    }

    fn take(&self, from: PeerId, attestations: Vec<Attestation>) -> Taken {
        let came = attestations.len();
        let keyed = attestations.into_iter().filter_map(|it| Some((self.keys.get(&it.builder)?.clone(), it)));
        let keyed: Vec<_> = keyed.collect();
        let known = keyed.len();
        // All of them at once, on all cores.
        let mut verified = verify_all(self.ledger.store_dir(), keyed);
        let refused = known - verified.len();
        self.count_refused("unknown_builder", came - known);
        self.count_refused("bad_signature", refused);
        if refused > 0 {
            tracing::warn!(peer = %from, refused, "attestations from this peer do not verify");
        }
        let mut taken = Taken { verified: verified.len(), new: 0, refused, full: BTreeSet::new() };
        // Peers may still know what our own builder has taken back.
        verified.retain(|(stored, _)| self.may_be_told(&stored.attestation));
        let withheld = taken.verified - verified.len();
        self.count_refused("withheld", withheld);
        match self.ledger.take(&verified, now()) {
            Ok(result) => {
                taken.new = result.new + result.upgraded;
                self.counters.pulled.inc_by(u64::try_from(taken.new).unwrap_or(0));
                self.count_refused("enough_statements", result.enough_statements);
                self.count_refused("too_many_builders", result.too_many_builders);
                taken.full = result.full;
                if withheld > 0 {
                    // Otherwise the same attestations would be pulled again every minute.
                    taken.full.extend(self.own);
                }
            }
            Err(error) => tracing::warn!(%error, "attestations from peers cannot be kept now"),
        }
        taken
    }

    fn count_refused(&self, reason: &'static str, count: usize) {
        if count > 0 {
            let count = u64::try_from(count).unwrap_or(0);
            self.counters.refused.get_or_create(&vec![("reason", reason)]).inc_by(count);
        }
    }
}

fn misdeed(fault: Fault) -> Misdeed {
    match fault {
        Fault::MalformedRequest => Misdeed::MalformedRequest,
        Fault::MalformedReply => Misdeed::MalformedReply,
        Fault::FalseComparison => Misdeed::FalseComparison,
        Fault::FalseAttestation => Misdeed::FalseAttestation,
        Fault::RequestFlood => Misdeed::RequestFlood,
    }
}
