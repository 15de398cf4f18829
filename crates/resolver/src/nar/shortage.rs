//! Whether memory for NARs is short: some NAR has waited for it for more than a moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Who waits for less long waits for a client that is reading (a guess).
const MOMENT: Duration = Duration::from_secs(2);

/// The NARs that have waited for memory for more than a moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Shortage(Arc<AtomicUsize>);

/// Counts one of them until it is dropped.
struct Felt(Arc<AtomicUsize>);

impl Drop for Felt {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shortage {
    /// Whether any NAR has waited so long that slow clients are closed.
    pub(super) fn is_felt(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// Waits for memory with `take`.
    pub(super) async fn watch<T>(&self, take: impl Future<Output = T>) -> T {
        let mut take = std::pin::pin!(take);
        if let Ok(taken) = tokio::time::timeout(MOMENT, &mut take).await {
            return taken;
        }
        self.0.fetch_add(1, Ordering::Relaxed);
        let _felt = Felt(Arc::clone(&self.0));
        take.await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn shortage_is_felt_after_a_moment_and_until_the_wait_ends() {
        let shortage = Shortage::default();
        let mut wait = Box::pin(shortage.watch(std::future::pending::<()>()));
        assert!((&mut wait).now_or_never().is_none());
        assert!(!shortage.is_felt());
        tokio::time::sleep(2 * MOMENT).await;
        assert!((&mut wait).now_or_never().is_none());
        assert!(shortage.is_felt());
        drop(wait);
        assert!(!shortage.is_felt());
        shortage.watch(std::future::ready(())).await;
    }
}
