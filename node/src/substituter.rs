//! The gateway's view of the resolver.

use bytes::Bytes;
use futures::StreamExt;
use narmesh_http_gateway::{BodyAborted, CacheInfo, ClientUser, Lookup, NarBody, Substituter};
use narmesh_protocol::{HashPart, NarUrl};
use narmesh_resolver::Resolver;
use std::sync::Arc;

/// The daemon's substituter: the resolver, with the store directory and the priority that Nix is told.
#[derive(Clone, Debug)]
pub(crate) struct MeshSubstituter(pub(crate) Arc<Resolver>);

impl Substituter for MeshSubstituter {
    fn cache_info(&self) -> CacheInfo {
        CacheInfo { store_dir: self.0.store().store_dir().clone(), priority: self.0.settings().priority }
    }

    fn look_up(&self, part: HashPart) -> Lookup {
        match self.0.look_up(part) {
            narmesh_resolver::Lookup::Absent => Lookup::Absent,
            narmesh_resolver::Lookup::Found(text) => Lookup::Found(text),
            narmesh_resolver::Lookup::Ask => Lookup::Ask,
        }
    }

    async fn find_narinfo(&self, part: HashPart) -> Option<Bytes> {
        Arc::clone(&self.0).find_narinfo(part).await
    }

    fn is_short_of_memory(&self) -> bool {
        self.0.is_short_of_memory()
    }

    async fn has_nar(&self, url: NarUrl) -> bool {
        Arc::clone(&self.0).has_nar(url).await
    }

    async fn fetch_nar(&self, url: NarUrl, first_byte: u64, resumed: bool, client: ClientUser) -> Option<NarBody> {
        let find_user = Arc::new(move || client.find());
        let body = Arc::clone(&self.0).fetch_nar(url, first_byte, resumed, find_user).await?;
        Some(Box::pin(body.map(|chunk| chunk.map_err(|narmesh_resolver::BodyAborted| BodyAborted))))
    }
}
