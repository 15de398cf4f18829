//! The gateway's view of the resolver and of our own store.

mod files;

use bytes::Bytes;
use files::LogPlaces;
use futures::StreamExt;
use narmesh_http_gateway::{
    BodyAborted, BuildLog, Busy, CacheInfo, ClientUser, EntryPath, Lookup, NarBody, StoreEntry, Substituter,
    TreeListing,
};
use narmesh_protocol::{HashPart, NarUrl, StorePath};
use narmesh_resolver::Resolver;
use narmesh_store::{NixStore, Offer};
use std::sync::Arc;

/// The daemon's substituter: the resolver, with the store directory and the priority that Nix is told, and the files of our own
/// store.
#[derive(Clone, Debug)]
pub(crate) struct MeshSubstituter {
    resolver: Arc<Resolver>,
    offer: Arc<Offer>,
    log_places: LogPlaces,
}

impl MeshSubstituter {
    pub(crate) fn new(resolver: Arc<Resolver>, offer: Arc<Offer>) -> Self {
        Self { resolver, offer, log_places: LogPlaces::default() }
    }

    /// The store, for a question that is asked on a thread.
    fn store(&self) -> Arc<NixStore> {
        Arc::clone(self.resolver.store())
    }
}

impl Substituter for MeshSubstituter {
    fn cache_info(&self) -> CacheInfo {
        CacheInfo { store_dir: self.resolver.store().store_dir().clone(), priority: self.resolver.settings().priority }
    }

    fn look_up(&self, part: HashPart) -> Lookup {
        match self.resolver.look_up(part) {
            narmesh_resolver::Lookup::Absent => Lookup::Absent,
            narmesh_resolver::Lookup::Found(text) => Lookup::Found(text),
            narmesh_resolver::Lookup::Ask => Lookup::Ask,
        }
    }

    async fn find_narinfo(&self, part: HashPart) -> Option<Bytes> {
        Arc::clone(&self.resolver).find_narinfo(part).await
    }

    fn is_short_of_memory(&self) -> bool {
        self.resolver.is_short_of_memory()
    }

    fn is_ready(&self) -> bool {
        self.resolver.store().gap().is_none() && self.offer.has_looked()
    }

    // Nix's own users can read the store and the logs anyway.
    async fn find_log(&self, derivation: StorePath, accepts_bzip2: bool) -> Result<Option<BuildLog>, Busy> {
        let store = self.store();
        files::find_log(move || store.find_log(&derivation), accepts_bzip2, &self.log_places).await
    }

    async fn list_tree(&self, part: HashPart) -> Result<Option<TreeListing>, Busy> {
        let store = self.store();
        files::list_tree(move || store.find_contents(&part)).await
    }

    async fn find_entry(&self, part: HashPart, path: EntryPath) -> Result<Option<StoreEntry>, Busy> {
        let store = self.store();
        files::find_entry(move || store.find_contents(&part), path).await
    }

    async fn has_nar(&self, url: NarUrl) -> bool {
        Arc::clone(&self.resolver).has_nar(url).await
    }

    async fn fetch_nar(&self, url: NarUrl, first_byte: u64, resumed: bool, client: ClientUser) -> Option<NarBody> {
        let find_user = Arc::new(move || client.find());
        let body = Arc::clone(&self.resolver).fetch_nar(url, first_byte, resumed, find_user).await?;
        Some(Box::pin(body.map(|chunk| chunk.map_err(|narmesh_resolver::BodyAborted| BodyAborted))))
    }
}
