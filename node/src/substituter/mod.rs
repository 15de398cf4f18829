//! The gateway's view of the resolver, of our own store, and of what of it may leave.

mod files;
mod realisations;

use crate::sources::{PeerLogs, PeerRealisations, UpstreamSources};
use bytes::Bytes;
use files::LogPlaces;
use futures::StreamExt;
use narmesh_http_gateway::{
    BodyAborted, BuildLog, Busy, CacheInfo, ClientUser, EntryPath, Lookup, NarBody, NoNar, StoreEntry, Substituter,
    TreeListing,
};
use narmesh_mesh::MeshHandle;
use narmesh_protocol::{HashPart, NarUrl, RealisationId, StorePath};
use narmesh_resolver::{Caller, FindUser, Resolver, User};
use narmesh_store::{NixStore, Offer, OfferedPath, StoreContents, StoreError};
use std::sync::Arc;

/// What the clients of a listener get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scope {
    /// Our own store and the mesh: for our own Nix, which may read the store anyway.
    Local,
    /// What of our own store may leave this machine.
    Serve,
    /// The same, and the mesh for what our own store does not hold.
    Site,
}

/// Where the answer about a path comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Resolver,
    Offer,
    Nobody,
}

/// The daemon's substituter: what a listener gives, with the store directory and the priority that Nix is told.
#[derive(Clone, Debug)]
pub(crate) struct GatewaySubstituter {
    resolver: Arc<Resolver>,
    offer: Arc<Offer>,
    upstreams: Arc<UpstreamSources>,
    peer_logs: PeerLogs,
    peer_realisations: PeerRealisations,
    scope: Scope,
    log_places: LogPlaces,
}

impl GatewaySubstituter {
    pub(crate) fn new(
        resolver: Arc<Resolver>,
        offer: Arc<Offer>,
        upstreams: Arc<UpstreamSources>,
        mesh: MeshHandle,
        scope: Scope,
    ) -> Self {
        let (peer_logs, peer_realisations) = (PeerLogs::new(mesh.clone()), PeerRealisations::new(mesh));
        Self { resolver, offer, upstreams, peer_logs, peer_realisations, scope, log_places: LogPlaces::default() }
    }

    /// The same for another listener; what is bounded stays bounded for all together.
    pub(crate) fn with_scope(&self, scope: Scope) -> Self {
        Self { scope, ..self.clone() }
    }

    fn store(&self) -> &Arc<NixStore> {
        self.resolver.store()
    }

    /// Who decides about a path now. From memory.
    fn source(&self, part: &HashPart) -> Source {
        match self.scope {
            Scope::Local => Source::Resolver,
            // What our own store holds and does not offer is private, even if a peer would give it.
            Scope::Site if !self.store().contains(part) => Source::Resolver,
            // It is damaged here, and somebody else may have it whole.
            Scope::Site if self.offer.lacks_only_copy(part) => Source::Resolver,
            Scope::Serve | Scope::Site if self.offer.is_offered(part) => Source::Offer,
            Scope::Serve | Scope::Site => Source::Nobody,
        }
    }

    /// What the resolver gave, unless the path has become one of our own store meanwhile, which the resolver would have given
    /// without asking the offer.
    fn unless_private<T>(&self, part: &HashPart, given: Option<T>) -> Option<T> {
        given.filter(|_| self.source(part) != Source::Nobody)
    }

    async fn find_offered(&self, part: HashPart) -> Option<Arc<OfferedPath>> {
        let offer = Arc::clone(&self.offer);
        self.resolver.read_own(move || offer.find_offered(&part)).await.ok().flatten()
    }

    /// Finds the contents of a path that this listener gives. Nix's own users can read all of the store anyway; others get what
    /// may leave.
    fn find_contents(
        &self,
        part: HashPart,
    ) -> impl FnOnce() -> Result<Option<StoreContents>, StoreError> + Clone + Send + 'static {
        let (store, offer, scope) = (Arc::clone(self.store()), Arc::clone(&self.offer), self.scope);
        move || match scope {
            Scope::Local => store.find_contents(&part),
            Scope::Serve | Scope::Site => offer.find_contents(&part),
        }
    }
}

impl Substituter for GatewaySubstituter {
    fn cache_info(&self) -> CacheInfo {
        CacheInfo { store_dir: self.store().store_dir().clone(), priority: self.resolver.settings().priority }
    }

    fn look_up(&self, part: HashPart) -> Lookup {
        match self.source(&part) {
            Source::Nobody => Lookup::Absent,
            Source::Offer => Lookup::Ask,
            Source::Resolver => match self.resolver.look_up(part) {
                narmesh_resolver::Lookup::Absent => Lookup::Absent,
                narmesh_resolver::Lookup::Found(text) => {
                    self.unless_private(&part, Some(text)).map_or(Lookup::Absent, Lookup::Found)
                }
                narmesh_resolver::Lookup::Ask => Lookup::Ask,
            },
        }
    }

    async fn find_narinfo(&self, part: HashPart, client: ClientUser) -> Option<Bytes> {
        match self.source(&part) {
            Source::Nobody => None,
            Source::Offer => self.find_offered(part).await.map(|path| with_deriver(&path)),
            Source::Resolver => {
                let given = self.resolver.find_narinfo(part, &user_finder(client)).await;
                self.unless_private(&part, given)
            }
        }
    }

    fn process_id(&self) -> Option<String> {
        Some(self.upstreams.chains().own_id())
    }

    fn is_circle(&self, part: &HashPart, via: &str) -> bool {
        // What our own store has is given to everybody whom this listener gives it.
        let asks_others = self.source(part) == Source::Resolver && !self.store().contains(part);
        asks_others && self.upstreams.chains().is_circle(part, via)
    }

    fn is_short_of_memory(&self) -> bool {
        self.resolver.is_short_of_memory() || self.upstreams.is_short_of_memory()
    }

    fn is_ready(&self) -> bool {
        self.store().gap().is_none() && self.offer.has_looked()
    }

    async fn find_log(&self, derivation: StorePath, accepts_bzip2: bool) -> Result<Option<BuildLog>, Busy> {
        let (store, offer, scope) = (Arc::clone(self.store()), Arc::clone(&self.offer), self.scope);
        let asked = derivation.clone();
        let find = move || match scope {
            Scope::Local => store.find_log(&asked),
            Scope::Serve | Scope::Site => offer.find_log(&asked),
        };
        let own = files::find_log(&self.resolver, find, accepts_bzip2, &self.log_places).await?;
        match (own, scope) {
            (Some(own), _) => Ok(Some(own)),
            // What peers say is for this machine: those who ask the other listeners ask nobody through us.
            (None, Scope::Serve | Scope::Site) => Ok(None),
            (None, Scope::Local) => {
                let (store, asked) = (Arc::clone(self.store()), derivation.clone());
                // The filters of peers know outputs, and no derivations.
                let find_outputs = move || store.find_outputs(&asked).map(Some);
                let outputs = files::ask(&self.resolver, find_outputs).await?.unwrap_or_default();
                let found = self.peer_logs.find(derivation.hash_part(), &outputs).await.map_err(|_| Busy)?;
                match found {
                    Some(log) => files::show_log(log, &self.log_places).await.map(Some),
                    None => Ok(None),
                }
            }
        }
    }

    async fn find_realisation(&self, id: RealisationId, client: ClientUser) -> Option<Bytes> {
        self.bring_realisation(id, move || find_caller(&client)).await
    }

    async fn list_tree(&self, part: HashPart) -> Result<Option<TreeListing>, Busy> {
        files::list_tree(&self.resolver, self.find_contents(part)).await
    }

    async fn find_entry(&self, part: HashPart, path: EntryPath) -> Result<Option<StoreEntry>, Busy> {
        files::find_entry(&self.resolver, self.find_contents(part), path).await
    }

    async fn has_nar(&self, url: NarUrl, client: ClientUser) -> bool {
        match self.source(&url.hash_part) {
            Source::Nobody => false,
            Source::Offer => self
                .find_offered(url.hash_part)
                .await
                .is_some_and(|path| path.info.nar_hash == url.nar_hash && path.info.nar_size == url.nar_size),
            Source::Resolver => {
                let has = self.resolver.has_nar(url, &user_finder(client)).await;
                self.unless_private(&url.hash_part, has.then_some(())).is_some()
            }
        }
    }

    async fn fetch_nar(
        &self,
        url: NarUrl,
        first_byte: u64,
        resumed: bool,
        client: ClientUser,
    ) -> Result<NarBody, NoNar> {
        let body = match self.source(&url.hash_part) {
            Source::Nobody => None,
            Source::Offer => {
                let offer = Arc::clone(&self.offer);
                self.resolver.fetch_offered_nar(offer, url, first_byte, resumed).await
            }
            Source::Resolver => {
                let body = Arc::clone(&self.resolver).fetch_nar(url, first_byte, resumed, user_finder(client)).await;
                let body = body.map_err(|why| match why {
                    narmesh_resolver::NoNar::Gone => NoNar::Gone,
                    narmesh_resolver::NoNar::NotNow => NoNar::NotNow,
                });
                // The path may have come into our own store meanwhile, and be private there.
                self.unless_private(&url.hash_part, Some(body?))
            }
        };
        Ok(Box::pin(body.ok_or(NoNar::Gone)?.map(|chunk| chunk.map_err(|narmesh_resolver::BodyAborted| BodyAborted))))
    }
}

fn user_finder(client: ClientUser) -> FindUser {
    Arc::new(move || find_caller(&client))
}

fn find_caller(client: &ClientUser) -> User {
    client.find().map(|caller| match caller {
        narmesh_http_gateway::Caller::User(user) => Caller::User(user),
        narmesh_http_gateway::Caller::Address(address) => Caller::Address(address),
    })
}

/// The narinfo of an offered path, with the deriver that our own store knows, by which `nix log` finds the log of a path. Peers
/// are told none without the signature of its builder, because narmesh believes nothing of that kind; to Nix it is a hint.
fn with_deriver(path: &OfferedPath) -> Bytes {
    const REFERENCES: &[u8] = b"\nReferences:";
    const DERIVER: &[u8] = b"\nDeriver: ";
    let text = &*path.narinfo_text;
    // With the builder's signature it is there already.
    if text.windows(DERIVER.len()).any(|window| window == DERIVER) {
        return Bytes::copy_from_slice(text);
    }
    let line = text.windows(REFERENCES.len()).position(|window| window == REFERENCES);
    let line_end = line.and_then(|at| Some(at + 1 + text.get(at + 1..)?.iter().position(|byte| *byte == b'\n')? + 1));
    match (&path.info.deriver, line_end.and_then(|end| text.split_at_checked(end))) {
        (Some(deriver), Some((before, after))) => {
            [before, format!("Deriver: {deriver}\n").as_bytes(), after].concat().into()
        }
        (None, _) | (_, None) => Bytes::copy_from_slice(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::{NarHash, NarInfo, NixSecretKey, StoreDir};
    use narmesh_store::PathInfo;

    #[test]
    fn deriver_is_in_its_place_in_the_narinfo() {
        let path = |name: &str| StorePath::parse(&format!("0c0yaa1b2d3f4g5h6i7j8k9l0m1n2p3q-{name}")).unwrap();
        let store_dir = StoreDir::parse("/nix/store").unwrap();
        for references in [vec![], vec![path("x"), path("y")]] {
            let info = PathInfo {
                path: path("x"),
                nar_hash: NarHash([7; 32]),
                nar_size: 120,
                references,
                deriver: Some(path("x.drv")),
                signatures: Vec::new(),
                content_address: None,
                ultimate: true,
                registration_time_s: 1,
            };
            let key = NixSecretKey::from_seed("k", &[1; 32]).unwrap();
            let narinfo = info.narinfo(vec![key.sign(&info.fingerprint(&store_dir))]);
            let expected = narinfo.render(&store_dir, "nar/x");
            let narinfo_text = narinfo.without_hearsay().render(&store_dir, "nar/x").into_bytes().into();
            let offered = OfferedPath { info, narinfo_text, is_attested: false };
            assert_eq!(with_deriver(&offered), expected.as_bytes());
            assert!(NarInfo::parse(&store_dir, expected.as_bytes()).unwrap().deriver.is_some());
            let signed = OfferedPath { narinfo_text: expected.as_bytes().into(), ..offered.clone() };
            assert_eq!(with_deriver(&signed), expected.as_bytes(), "once");
            let unknown = OfferedPath { info: PathInfo { deriver: None, ..offered.info.clone() }, ..offered.clone() };
            assert_eq!(with_deriver(&unknown), *offered.narinfo_text);
        }
    }
}
