//! The certificate of a listener, kept up to date while the daemon runs.

use super::follow::{Stamp, stamp};
use crate::settings::{SecretError, TlsFiles, TlsInForce};
use crate::status::TlsStatus;
use jiff::Timestamp;
use narmesh_http_gateway::TlsSettings;
use parking_lot::RwLock;
use rustls::ServerConfig;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// How often the files are looked at. They are read when they have been the same for two looks, because a certificate and its
/// key are replaced one after the other.
const LOOK: Duration = Duration::from_secs(1);

/// The certificate of one listener.
#[derive(Debug)]
pub(super) struct LiveCertificate {
    /// Which `[[gateway.listener]]` it belongs to.
    index: usize,
    files: TlsFiles,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    in_force: TlsInForce,
    /// Why the files could not be used when they were read last, if they could not.
    error: Option<String>,
}

impl LiveCertificate {
    /// Reads the files, and follows their changes on a task of its own, until this is dropped. Needs a tokio runtime.
    pub(super) fn open(index: usize, files: &TlsFiles) -> Result<Arc<Self>, SecretError> {
        // Before they are read: what is written meanwhile is then seen as a change.
        let first = stamps(files);
        let in_force = files.read(index)?;
        let state = RwLock::new(State { in_force, error: None });
        let live = Arc::new(Self { index, files: files.clone(), state });
        live.warn_if_not_valid();
        let (weak, mut is_valid) = (Arc::downgrade(&live), live.why_not_valid().is_none());
        tokio::spawn(async move {
            let (mut seen, mut is_new) = (first, false);
            let mut look = tokio::time::interval(LOOK);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                look.tick().await;
                let Some(live) = weak.upgrade() else { return };
                let looked = tokio::task::spawn_blocking(move || {
                    let now = stamps(&live.files);
                    // Only once they stand still for a round: certificate and key are two files, written one after the
                    // other.
                    if now == seen && is_new {
                        live.read_again();
                    }
                    let was_valid = std::mem::replace(&mut is_valid, live.why_not_valid().is_none());
                    if was_valid && !is_valid && !is_new {
                        live.warn_if_not_valid();
                    }
                    (now != seen, now, is_valid)
                });
                let Ok(found) = looked.await else { return };
                (is_new, seen, is_valid) = found;
            }
        });
        Ok(live)
    }

    /// What the files hold now, if it can be used.
    pub(super) fn read(&self) -> Result<TlsInForce, SecretError> {
        self.files.read(self.index)
    }

    /// Answers the connections that come from now on.
    pub(super) fn put_in_force(&self, in_force: TlsInForce) {
        *self.state.write() = State { in_force, error: None };
        self.warn_if_not_valid();
    }

    /// Takes what is in the files now. If it cannot be used, what was read before counts on.
    fn read_again(&self) {
        match self.read() {
            Ok(in_force) => {
                tracing::info!(file = %self.files.certificate.display(), "certificate read again");
                self.put_in_force(in_force);
            }
            Err(error) => {
                tracing::warn!(%error, "the certificate of before is shown on");
                self.state.write().error = Some(error.to_string());
            }
        }
    }

    fn why_not_valid(&self) -> Option<&'static str> {
        self.state.read().in_force.why_not_valid(Timestamp::now())
    }

    fn warn_if_not_valid(&self) {
        if let Some(why) = self.why_not_valid() {
            tracing::warn!(
                file = %self.files.certificate.display(),
                "the certificate of gateway.listener[{}] {why}: clients refuse it",
                self.index
            );
        }
    }

    /// What `status` says of it.
    pub(super) fn status(&self) -> TlsStatus {
        let state = self.state.read();
        TlsStatus {
            from_unix_s: state.in_force.from_unix_s,
            until_unix_s: state.in_force.until_unix_s,
            is_valid: state.in_force.why_not_valid(Timestamp::now()).is_none(),
            clients_need_certificate: self.files.client_ca.is_some(),
            error: state.error.clone(),
        }
    }
}

impl TlsSettings for LiveCertificate {
    fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.state.read().in_force.config)
    }
}

fn stamps(files: &TlsFiles) -> Vec<Stamp> {
    files.all().map(stamp).collect()
}
