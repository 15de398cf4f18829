//! From the store to the mesh: the gossip core is told which paths are offered, and stale answers are dropped.

use crate::attestations::LiveLedger;
use crate::state_db::SharedStateDb;
use narmesh_gossip::PathChange;
use narmesh_mesh::MeshHandle;
use narmesh_protocol::HashPart;
use narmesh_resolver::Resolver;
use narmesh_store::{NixStore, Offer, OfferChange, OfferPolicy, StoreError, Watcher};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How many changes may wait for the mesh. When there are more, the offer's own thread waits, so nothing is lost.
const CHANGES_MAX: usize = 16;

/// How long the first summary waits until the offer has checked the whole store. An incomplete summary would replace
/// the complete one that peers may still have from before a restart. A check that takes longer (it does some 5,000
/// paths a second) is told in parts.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// Each further part waits twice as long, up to this; after that, changes are told as they come.
const FIRST_LOOK_PART_MAX: Duration = Duration::from_secs(80);
/// How often the offer is asked whether it has checked everything.
const LOOK_POLL: Duration = Duration::from_millis(20);

/// Starts the offer, which checks what of the store peers may have. Its changes arrive on the receiver, beginning with
/// every offered path.
pub(super) fn start_offer(
    store: &Arc<NixStore>,
    policy: OfferPolicy,
) -> Result<(Arc<Offer>, mpsc::Receiver<OfferChange>), StoreError> {
    let (sender, receiver) = mpsc::channel(CHANGES_MAX);
    let tell = move |change| {
        // Fails only when the daemon is stopping.
        drop(sender.blocking_send(change));
    };
    let offer = Offer::start(Arc::clone(store), policy, Box::new(tell))?;
    Ok((Arc::new(offer), receiver))
}

/// Tells the mesh which paths are offered, until the offer ends: first all of them, then the changes. `on_dropped` is
/// called with paths that are no longer offered.
pub(super) async fn tell_mesh(
    offer: Arc<Offer>,
    mut changes: mpsc::Receiver<OfferChange>,
    mesh: MeshHandle,
    on_dropped: impl Fn(&[HashPart]),
) {
    let mut part = FIRST_LOOK;
    loop {
        let is_whole = await_first_look(&offer, &mut changes, part, &on_dropped).await;
        // As a whole: the changes before it were not told one by one.
        mesh.report_paths(PathChange::Replace(offer.hash_parts())).await;
        part *= 2;
        if is_whole || part > FIRST_LOOK_PART_MAX {
            break;
        }
    }
    // The channel ends only when the offer is dropped, so this task must not hold it.
    drop(offer);
    while let Some(OfferChange { added, removed }) = changes.recv().await {
        tracing::debug!(added = added.len(), removed = removed.len(), "offer changed");
        // First those that are withheld now: their attestations must not be told meanwhile.
        on_dropped(&removed);
        mesh.report_paths(PathChange::Update { added, removed }).await;
    }
}

/// Waits at most `longest` until the offer has checked everything, and returns whether it has, or has ended. Changes in
/// the meantime are not told to the mesh one by one: they are part of the whole that is told afterwards.
async fn await_first_look(
    offer: &Offer,
    changes: &mut mpsc::Receiver<OfferChange>,
    longest: Duration,
    on_dropped: &impl Fn(&[HashPart]),
) -> bool {
    let started = Instant::now();
    while offer.is_busy() {
        if started.elapsed() >= longest {
            return false;
        }
        match tokio::time::timeout(LOOK_POLL, changes.recv()).await {
            Ok(None) => break,
            Ok(Some(change)) => on_dropped(&change.removed),
            Err(_) => {}
        }
    }
    true
}

/// As long as the watcher lives, drops rendered answers of paths that changed, keeps the attestations of paths in the
/// store, and keeps which copies failed.
pub(super) fn follow_store(
    store: &Arc<NixStore>,
    resolver: &Arc<Resolver>,
    ledger: &Arc<LiveLedger>,
    state: SharedStateDb,
) -> Result<Watcher, StoreError> {
    let (resolver, ledger) = (Arc::clone(resolver), Arc::clone(ledger));
    // Weak, because the store holds the watcher.
    let watched = Arc::downgrade(store);
    store.watch(Box::new(move |change| {
        if let Some(store) = watched.upgrade() {
            state.keep_failed_copies(&store, &change);
        }
        ledger.on_store_changed(&change.added, &change.removed);
        for parts in [&change.added, &change.removed, &change.failed, &change.mended] {
            resolver.on_store_changed(parts);
        }
    }))
}
