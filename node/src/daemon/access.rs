//! The tokens of a listener, kept up to date while the daemon runs.

use super::follow::stamp;
use crate::tokens::{Tokens, TokensError};
use jiff::Timestamp;
use narmesh_http_gateway::{Access, Reads};
use parking_lot::RwLock;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// How often the file is looked at: a token that was revoked counts no longer than this.
const LOOK: Duration = Duration::from_secs(1);

/// The tokens of one file.
#[derive(Debug)]
pub(super) struct LiveTokens {
    path: PathBuf,
    tokens: RwLock<Tokens>,
}

impl LiveTokens {
    /// Reads the file, and follows its changes on a task of its own, until this is dropped. Needs a tokio runtime.
    pub(super) fn open(path: &Path) -> Result<Arc<Self>, TokensError> {
        // Before it is read: what is written while it is read is then seen as a change.
        let first = stamp(path);
        let tokens = Tokens::read(path)?;
        if tokens.iter().next().is_none() {
            tracing::warn!(file = %path.display(), "there is no token: nobody may ask; `narmesh token add NAME` makes one");
        }
        let live = Arc::new(Self { path: path.to_owned(), tokens: RwLock::new(tokens) });
        let (weak, path) = (Arc::downgrade(&live), path.to_owned());
        tokio::spawn(async move {
            let (mut seen, mut look) = (first, tokio::time::interval(LOOK));
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                look.tick().await;
                // The task must not keep alive what it follows, or it would never end.
                let Some(live) = weak.upgrade() else { return };
                let path = path.clone();
                let looked = tokio::task::spawn_blocking(move || {
                    let now = stamp(&path);
                    if now != seen {
                        live.read_again();
                    }
                    now
                });
                let Ok(now) = looked.await else { return };
                seen = now;
            }
        });
        Ok(live)
    }

    /// Takes what is in the file now. If it cannot be read, what was read before counts on, except when the file is gone.
    fn read_again(&self) {
        match Tokens::read(&self.path) {
            Ok(tokens) => {
                tracing::info!(file = %self.path.display(), tokens = tokens.iter().count(), "tokens read again");
                *self.tokens.write() = tokens;
            }
            Err(error) => tracing::warn!(%error, "the tokens of before go on counting"),
        }
    }
}

impl Access for LiveTokens {
    fn admit(&self, token: &[u8]) -> Option<Reads> {
        self.tokens.read().admit(token, Timestamp::now())
    }
}
