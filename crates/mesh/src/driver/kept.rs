//! Keeps peers' summaries over a restart: they are read before anything is asked, and written when they change, but not
//! at every change.

use super::context::Context;
use crate::clock::now;
use crate::state::SummaryStore;
use libp2p::PeerId;
use narmesh_gossip::{Gossip, KeptSummary, Moment, Unfit};
use std::collections::BTreeMap;
use std::io;
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// The least time between two writes of one owner's summary, milliseconds: removals alone ask for a new epoch every 5
/// s. A daemon that is killed forgets what it heard in that time.
const REST_MS: u64 = 5_000;
/// The most that is written of one owner's summaries, bytes per second: for a hostile one that is 1.4 GB a day,
/// whatever it announces.
const OWNER_BYTES_PER_S: u64 = 16 << 10;
/// The same for all owners together, bytes per second: a thousand summaries of 200 KB, all new, are written in three
/// minutes.
const BYTES_PER_S: u64 = 1 << 20;
/// How long to wait when the disk has not taken the last ones yet, milliseconds.
const BUSY_MS: u64 = 200;
/// Bodies on their way to the disk: 2 MB each at most.
const ORDERS_MAX: usize = 2;
/// How long a stop waits for what is not written yet.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// Says when each owner's summary is written.
#[derive(Debug, Default)]
struct WriteSchedule {
    /// Owners whose summary changed, and when it may be written.
    waiting: BTreeMap<PeerId, Moment>,
    /// Owners whose summary was written lately, and until when they rest.
    resting: BTreeMap<PeerId, Moment>,
    /// When the next summary of anyone may be written.
    next: Moment,
}

impl WriteSchedule {
    fn on_changed(&mut self, now: Moment, owner: PeerId) {
        let rested = self.resting.get(&owner).copied().unwrap_or(now);
        self.waiting.entry(owner).or_insert(rested.max(now));
    }

    fn deadline(&self) -> Option<Moment> {
        self.waiting.values().min().map(|due| (*due).max(self.next))
    }

    /// Takes the one that has been due for longest.
    fn take(&mut self, now: Moment) -> Option<PeerId> {
        let (owner, due) = self.waiting.iter().min_by_key(|(_, due)| **due).map(|(owner, due)| (*owner, *due))?;
        if due.max(self.next) > now {
            return None;
        }
        self.waiting.remove(&owner);
        Some(owner)
    }

    /// Notes that this much was written of an owner.
    fn on_written(&mut self, now: Moment, owner: PeerId, bytes: u64) {
        self.next = now + bytes * 1_000 / BYTES_PER_S;
        self.resting.retain(|_, until| *until > now);
        self.resting.insert(owner, now + REST_MS.max(bytes * 1_000 / OWNER_BYTES_PER_S));
    }
}

/// What the writing thread is to do.
enum Order {
    Write(PeerId, KeptSummary),
    Renew(PeerId, Vec<u8>, u64),
    Remove(PeerId),
    Finish(oneshot::Sender<()>),
}

/// What is known to be on disk of an owner's summary.
#[derive(Debug, PartialEq, Eq)]
struct Written {
    body_digest: [u8; 32],
    envelope: Vec<u8>,
}

/// Keeps summaries as they change; a thread of its own writes them.
#[derive(Debug)]
pub(super) struct SummaryWriter {
    schedule: WriteSchedule,
    written: BTreeMap<PeerId, Written>,
    orders: mpsc::Sender<Order>,
}

impl SummaryWriter {
    fn start(files: Box<dyn SummaryStore>) -> io::Result<Self> {
        let (orders, received) = mpsc::channel(ORDERS_MAX);
        thread::Builder::new().name("summaries".to_owned()).spawn(move || write_all(files, received))?;
        Ok(Self { schedule: WriteSchedule::default(), written: BTreeMap::new(), orders })
    }

    /// Notes that we may hold another summary of this owner than before, or none.
    pub(super) fn on_changed(&mut self, owner: PeerId) {
        self.schedule.on_changed(now().moment, owner);
    }

    /// When [`SummaryWriter::write_due`] has something to do.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.schedule.deadline()
    }

    /// Hands over what is due, as far as the disk takes it.
    pub(super) fn write_due(&mut self, gossip: &Gossip) {
        let at = now().moment;
        while let Some(owner) = self.schedule.take(at) {
            // Room first: a body is put together only when it can be handed over.
            let orders = self.orders.clone();
            let Ok(room) = orders.try_reserve() else {
                self.schedule.waiting.insert(owner, at + BUSY_MS);
                return;
            };
            if let Some(order) = self.make_order(at, owner, gossip) {
                room.send(order);
            }
        }
    }

    /// The order that brings the disk up to date with what we hold of this owner, if one is needed.
    fn make_order(&mut self, at: Moment, owner: PeerId, gossip: &Gossip) -> Option<Order> {
        let Some((proof, accepted_ms)) = gossip.held_proof(&owner) else {
            return self.written.remove(&owner).map(|_| Order::Remove(owner));
        };
        let envelope = proof.as_bytes().to_vec();
        let written = Written { body_digest: proof.announcement().body_digest, envelope: envelope.clone() };
        let before = self.written.get(&owner);
        // Nothing changed that the disk would not have.
        if before == Some(&written) {
            return None;
        }
        let is_renewal = before.is_some_and(|before| before.body_digest == written.body_digest);
        // A renewal leaves the body as it is on disk, and costs only an envelope.
        let order = if is_renewal {
            Order::Renew(owner, envelope, accepted_ms)
        } else {
            let kept = gossip.assemble_kept_summary(&owner)?;
            self.schedule.on_written(at, owner, kept.body.len() as u64);
            Order::Write(owner, kept)
        };
        self.written.insert(owner, written);
        Some(order)
    }

    /// Writes everything that waits, whatever the schedule, and returns when it is written or takes too long.
    pub(super) async fn finish(&mut self, gossip: &Gossip) {
        let at = now().moment;
        let all = async {
            // The schedule spares the disk in the long run. At the end all of it is due.
            while let Some((owner, _)) = self.schedule.waiting.pop_first() {
                if let Some(order) = self.make_order(at, owner, gossip)
                    && self.orders.send(order).await.is_err()
                {
                    return;
                }
            }
            // Orders are done one after the other, so whoever has this one has done all before it.
            let (finished, wait) = oneshot::channel();
            if self.orders.send(Order::Finish(finished)).await.is_ok() {
                // An error means that the thread is gone: there is nothing to wait for.
                drop(wait.await);
            }
        };
        if tokio::time::timeout(LAST_WRITES, all).await.is_err() {
            tracing::warn!(after = ?LAST_WRITES, "not all summaries of peers were written; the rest is pulled again");
        }
    }
}

fn write_all(mut files: Box<dyn SummaryStore>, mut orders: mpsc::Receiver<Order>) {
    let (mut is_failing, mut is_full) = (false, false);
    while let Some(order) = orders.blocking_recv() {
        let done = match order {
            Order::Write(owner, kept) => files.write(&owner, &kept).map(|has_room| {
                if !has_room && !is_full {
                    tracing::warn!(peer = %owner, "no room for this peer's summary: it is not kept over a restart");
                }
                is_full = !has_room;
            }),
            Order::Renew(owner, envelope, accepted_ms) => files.renew(&owner, &envelope, accepted_ms),
            Order::Remove(owner) => files.remove(&owner),
            Order::Finish(reply) => {
                // An error means that nobody waits any more.
                reply.send(()).unwrap_or(());
                Ok(())
            }
        };
        match done {
            // Once for each time that it begins to fail: a full disk must not fill the log.
            Err(error) if !is_failing => {
                is_failing = true;
                tracing::error!(%error, "summaries of peers cannot be written; after a restart they are pulled again");
            }
            Err(_) => {}
            Ok(()) => is_failing = false,
        }
    }
}

/// The summaries of the last run, once the core has those that it can use.
#[derive(Debug)]
pub(super) struct RestoredSummaries {
    files: Box<dyn SummaryStore>,
    written: BTreeMap<PeerId, Written>,
    dropped: usize,
    started: Instant,
}

impl RestoredSummaries {
    /// Fills the table with what is kept. A summary that is damaged, over, or of nobody on the allowlist is removed,
    /// with one line in the log.
    pub(super) fn read(context: &mut Context, mut files: Box<dyn SummaryStore>) -> Self {
        let (started, mut written, mut dropped) = (Instant::now(), BTreeMap::new(), 0);
        for owner in files.owners() {
            match restore(context, files.as_ref(), owner) {
                Ok(proof) => drop(written.insert(owner, proof)),
                Err(why) => {
                    dropped += 1;
                    tracing::warn!(peer = %owner, %why, "a kept summary is not used");
                    if let Err(error) = files.remove(&owner) {
                        tracing::error!(peer = %owner, %error, "a kept summary cannot be removed");
                    }
                }
            }
        }
        Self { files, written, dropped, started }
    }

    /// Those whose summaries the core has.
    pub(super) fn owners(&self) -> impl Iterator<Item = &PeerId> {
        self.written.keys()
    }

    /// Keeps summaries from now on.
    pub(super) fn keep(self) -> io::Result<SummaryWriter> {
        let Self { files, written, dropped, started } = self;
        tracing::info!(summaries = written.len(), dropped, took = ?started.elapsed(), "summaries of peers remembered");
        let mut writer = SummaryWriter::start(files)?;
        // One that was announced again in this run is renewed on disk, too.
        written.keys().for_each(|owner| writer.on_changed(*owner));
        writer.written = written;
        Ok(writer)
    }
}

fn restore(context: &mut Context, files: &dyn SummaryStore, owner: PeerId) -> Result<Written, Forgotten> {
    // Checked before the file is read: it may be large, and of somebody who was removed.
    if !context.config.peers.contains_key(&owner) {
        return Err(Unfit::NotTrusted.into());
    }
    let kept = files.read(&owner)?;
    let at = now();
    context.gossip.restore(at, owner, &kept)?;
    // The date is by the wall clock, and the statistics count by the monotonic one.
    let age = Duration::from_millis(at.wall_ms.saturating_sub(kept.accepted_ms));
    // On a machine that has run for less than that, the age is counted from now.
    let since = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
    let held = context.gossip.held_proof(&owner).map(|(proof, _)| *proof.announcement());
    context.statistics.update(&owner, |stats| {
        (stats.summary_since, stats.summary_epoch) = (Some(since), held.map(|held| held.generation.epoch));
    });
    let body_digest = held.map(|held| held.body_digest);
    Ok(Written { body_digest: body_digest.unwrap_or_default(), envelope: kept.envelope })
}

/// Why a kept summary is not used.
#[derive(Debug, thiserror::Error)]
enum Forgotten {
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error(transparent)]
    Unreadable(#[from] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_that_changes_without_end_is_written_at_its_pace() {
        let (mut schedule, owner) = (WriteSchedule::default(), PeerId::random());
        let (mut bytes, mut writes) = (0, Vec::new());
        for now in (0..3_600_000).step_by(100).map(Moment) {
            schedule.on_changed(now, owner);
            if schedule.take(now).is_some() {
                schedule.on_written(now, owner, 2 << 20);
                bytes += 2 << 20;
                writes.push(now);
            }
        }
        assert_eq!(writes.first(), Some(&Moment(0)), "the first at once");
        assert!(bytes <= OWNER_BYTES_PER_S * 3_600 + (2 << 20), "{bytes}");
        assert!(writes.len() > 25, "{}", writes.len());
        // A small one rests for as long as removals do.
        let mut schedule = WriteSchedule::default();
        schedule.on_written(Moment(0), owner, 1_100);
        schedule.on_changed(Moment(10), owner);
        assert_eq!(schedule.deadline(), Some(Moment(REST_MS)));
        assert_eq!((schedule.take(Moment(REST_MS - 1)), schedule.take(Moment(REST_MS))), (None, Some(owner)));
        assert_eq!(schedule.deadline(), None);
    }

    #[test]
    fn summaries_that_change_at_once_are_written_one_after_the_other_in_order() {
        let mut schedule = WriteSchedule::default();
        let owners: Vec<_> = (0..100).map(|_| PeerId::random()).collect();
        for (at, owner) in (0..).zip(&owners) {
            schedule.on_changed(Moment(at), *owner);
        }
        let mut now = Moment(1_000);
        let mut order = Vec::new();
        while let Some(deadline) = schedule.deadline() {
            now = now.max(deadline);
            let owner = schedule.take(now).unwrap();
            schedule.on_written(now, owner, 200 << 10);
            assert_eq!(schedule.take(now), None);
            order.push(owner);
        }
        assert_eq!(order, owners);
        assert!(now.since(Moment(1_000)) >= 99 * ((200 << 10) * 1_000 / BYTES_PER_S));
    }
}
