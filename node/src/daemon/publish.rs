//! From the store to the mesh: what the offer says may leave is told to the gossip core, and stale answers are dropped.

use crate::mesh::MeshHandle;
use crate::quorum::LiveLedger;
use narmesh_gossip::PathChange;
use narmesh_protocol::HashPart;
use narmesh_resolver::Resolver;
use narmesh_store::{NixStore, Offer, OfferChange, OfferPolicy, StoreError, Watcher};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Changes that may wait for the mesh; the offer's own thread then waits, nothing is lost.
const CHANGES_MAX: usize = 16;

/// The first summary waits so long for the offer's first look at the store: one of less than there is would replace the whole one
/// that peers may still have from before a restart. A look that takes longer (some 5,000 paths a second) is told in parts.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// Each further part waits twice as long, and after this what changes is told as it comes.
const FIRST_LOOK_PART_MAX: Duration = Duration::from_secs(80);
/// How often it is asked whether the look has ended.
const LOOK_POLL: Duration = Duration::from_millis(20);

/// Starts judging the store; what may leave arrives on the receiver, beginning with everything.
pub(super) fn offer(
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

/// Tells the mesh what the offer says, until the offer ends: first all there is, then the changes. `on_dropped` hears what is
/// offered no longer.
pub(super) async fn tell_mesh(
    offer: Arc<Offer>,
    mut changes: mpsc::Receiver<OfferChange>,
    mesh: MeshHandle,
    on_dropped: impl Fn(&[HashPart]),
) {
    let mut part = FIRST_LOOK;
    loop {
        let is_whole = first_look(&offer, &mut changes, part, &on_dropped).await;
        mesh.paths_changed(PathChange::Replace(offer.hash_parts())).await;
        part *= 2;
        if is_whole || part > FIRST_LOOK_PART_MAX {
            break;
        }
    }
    drop(offer);
    while let Some(OfferChange { added, removed }) = changes.recv().await {
        tracing::debug!(added = added.len(), removed = removed.len(), "offer changed");
        on_dropped(&removed);
        mesh.paths_changed(PathChange::Update { added, removed }).await;
    }
}

/// Passes on what peers asked for of what is withheld now.
pub(super) async fn take_back(mut kept_back: mpsc::Receiver<Vec<HashPart>>, on_dropped: impl Fn(&[HashPart])) {
    while let Some(parts) = kept_back.recv().await {
        on_dropped(&parts);
    }
}

/// Waits until the offer has looked at everything, at most `longest`; whether it has, or ended. What it says meanwhile is part of
/// the whole that is told then.
async fn first_look(
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

/// Drops rendered answers of paths that changed, and keeps what is attested of those held, as long as the watcher lives.
pub(super) fn follow_store(
    store: &Arc<NixStore>,
    resolver: &Arc<Resolver>,
    ledger: &Arc<LiveLedger>,
) -> Result<Watcher, StoreError> {
    let (resolver, ledger) = (Arc::clone(resolver), Arc::clone(ledger));
    store.watch(Box::new(move |change| {
        ledger.store_changed(&change.added, &change.removed);
        for parts in [&change.added, &change.removed, &change.failed, &change.mended] {
            resolver.store_changed(parts);
        }
    }))
}
