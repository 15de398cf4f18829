//! Opening the Nix store at the start.

use anyhow::Context as _;
use narmesh_store::{NixStore, StoreLocation};
use std::sync::Arc;
use std::time::Duration;

/// Time between two attempts; each waits up to 250 ms for a lock itself.
const PAUSE: Duration = Duration::from_millis(250);

/// Opens the store; waits while another process has locked its database.
///
/// # Errors
/// When the store cannot be read at all.
pub(super) async fn open(location: &StoreLocation) -> anyhow::Result<Arc<NixStore>> {
    let mut has_complained = false;
    loop {
        match NixStore::open(location.clone()) {
            Err(error) if error.passes_soon() => {
                if !std::mem::replace(&mut has_complained, true) {
                    tracing::warn!(%error, "the Nix store cannot be read now; waiting until it can");
                }
                tokio::time::sleep(PAUSE).await;
            }
            store => return store.context("the Nix store"),
        }
    }
}
