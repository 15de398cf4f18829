//! What both walks use: the own store, the sources, the settings in force, and where it is noted what happened.

use std::sync::Arc;

use narmesh_protocol::{HashPart, StoreDir};
use narmesh_store::{NixStore, PathInfo, Store, StoreError};
use parking_lot::RwLock;

use crate::lookup_log::LookupLog;
use crate::source::Sources;
use crate::{ResolverCounters, ResolverSettings};

/// One of it, for as long as the resolver lives.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Our own.
    pub(crate) store: Arc<NixStore>,
    /// As it is named in narinfos.
    pub(crate) store_dir: StoreDir,
    /// Who may have what we lack.
    pub(crate) sources: Arc<dyn Sources>,
    /// For `why`.
    pub(crate) lookup_log: Arc<LookupLog>,
    /// For `status` and `/metrics`.
    pub(crate) counters: ResolverCounters,
    settings: RwLock<Arc<ResolverSettings>>,
}

impl Shared {
    pub(crate) fn new(store: Arc<NixStore>, sources: Arc<dyn Sources>, settings: ResolverSettings) -> Self {
        Self {
            store_dir: store.store_dir().clone(),
            store,
            sources,
            lookup_log: Arc::default(),
            counters: ResolverCounters::default(),
            settings: RwLock::new(Arc::new(settings)),
        }
    }

    /// Those in force.
    pub(crate) fn settings(&self) -> Arc<ResolverSettings> {
        Arc::clone(&self.settings.read())
    }

    pub(crate) fn set_settings(&self, settings: ResolverSettings) {
        *self.settings.write() = Arc::new(settings);
    }

    /// Whether our own store has this path. From memory.
    pub(crate) fn has(&self, part: &HashPart) -> bool {
        self.store.contains(part)
    }

    /// What our own store says of this path. Reads the disk.
    pub(crate) fn own_info(&self, part: &HashPart) -> Option<PathInfo> {
        let read = self.store.path_info(part);
        read.inspect_err(|error| self.warn_if_unreadable(part, error)).ok().flatten()
    }

    /// Says so when the store cannot be read; a copy that failed its hash is known by then.
    pub(crate) fn warn_if_unreadable(&self, part: &HashPart, error: &StoreError) {
        if !matches!(error, StoreError::CopyFailed { .. }) {
            tracing::warn!(%part, %error, "own store cannot be read");
        }
    }
}
