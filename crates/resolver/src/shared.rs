//! What both walks use: our own store, the sources, the settings in force, the log and the counters.

use std::sync::Arc;

use narmesh_protocol::{HashPart, StoreDir};
use narmesh_store::{NixStore, PathInfo, StoreError};
use parking_lot::RwLock;

use crate::lookup_log::LookupLog;
use crate::own_reads::OwnReads;
use crate::request_log::RequestLog;
use crate::source::Sources;
use crate::{ResolverCounters, ResolverSettings};

/// The state that narinfo and NAR requests share; one for each resolver.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Our own store.
    pub(crate) store: Arc<NixStore>,
    /// Reads of it that wait while it is locked.
    pub(crate) own_reads: OwnReads,
    /// The logical store directory, which narinfos name.
    pub(crate) store_dir: StoreDir,
    /// The sources of paths that our own store lacks.
    pub(crate) sources: Arc<dyn Sources>,
    /// What happened to each path, for `why`.
    pub(crate) lookup_log: Arc<LookupLog>,
    /// The NARs that Nix asked for.
    pub(crate) request_log: Arc<RequestLog>,
    /// The counters for `status` and `/metrics`.
    pub(crate) counters: ResolverCounters,
    settings: RwLock<Arc<ResolverSettings>>,
}

impl Shared {
    pub(crate) fn new(store: Arc<NixStore>, sources: Arc<dyn Sources>, settings: ResolverSettings) -> Self {
        Self {
            store_dir: store.store_dir().clone(),
            store,
            own_reads: OwnReads::default(),
            sources,
            lookup_log: Arc::default(),
            request_log: Arc::default(),
            counters: ResolverCounters::default(),
            settings: RwLock::new(Arc::new(settings)),
        }
    }

    /// The settings in force.
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

    /// The registration of this path in our own store. Reads the disk.
    pub(crate) fn read_own_info(&self, part: &HashPart) -> Result<Option<PathInfo>, StoreError> {
        self.store.read_path_info(part).inspect_err(|error| self.warn_if_unreadable(part, error))
    }

    /// Logs that our own store cannot be read. A copy that failed its hash is not logged again: that is known already.
    pub(crate) fn warn_if_unreadable(&self, part: &HashPart, error: &StoreError) {
        if !matches!(error, StoreError::CopyFailed { .. }) {
            tracing::warn!(%part, %error, "our own store cannot be read");
        }
    }
}
