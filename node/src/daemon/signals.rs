//! The signals by which an operator or systemd stops the daemon, or has it read its configuration again.

use super::Daemon;
use crate::describe::describe;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals of an operator or of systemd.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From now on they do not end the process.
    pub(super) fn listen() -> std::io::Result<Self> {
        let [terminate, interrupt, hangup] =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        Ok(Self { terminate: terminate?, interrupt: interrupt?, hangup: hangup? })
    }
}

impl Daemon {
    /// Handles signals until one says stop, and returns its name.
    pub(super) async fn handle_signals(
        &self,
        Signals { mut terminate, mut interrupt, mut hangup }: Signals,
    ) -> &'static str {
        loop {
            tokio::select! {
                _ = terminate.recv() => return "SIGTERM",
                _ = interrupt.recv() => return "SIGINT",
                _ = hangup.recv() => {
                    // In turn: a second signal waits until the first reload has ended.
                    if let Err(error) = self.reload().await {
                        tracing::error!(
                            error = describe(&error),
                            "configuration not reloaded: the previous settings stay in force"
                        );
                    }
                }
            }
        }
    }
}
