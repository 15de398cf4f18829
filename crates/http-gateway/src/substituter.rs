//! The interface to the component that knows where paths are.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use narmesh_protocol::{HashPart, NarUrl, RealisationId, StoreDir, StorePath};

use crate::nar_body::{NarBody, NoNar};
use crate::store_files::{BuildLog, Busy, EntryPath, StoreEntry, TreeListing};

/// Answers the questions behind Nix's HTTP requests. The node implements it over the mesh, tests over memory.
///
/// Nothing here can fail: an internal failure must be answered as an absent path, because any other answer makes Nix retry
/// for seconds and then, up to 2.31, abort the whole build. Only a NAR whose holder is there, and cannot be asked now, is to
/// be asked for again: a build would do for nothing what the next try brings.
pub trait Substituter: Send + Sync + 'static {
    /// The settings in `/nix-cache-info`.
    fn cache_info(&self) -> CacheInfo;

    /// Looks a path up in memory alone, without waiting and without disk access.
    fn look_up(&self, part: HashPart) -> Lookup;

    /// The narinfo of a path for which [`Self::look_up`] returned [`Lookup::Ask`]. The
    /// implementation must keep its own deadline. `client` tells which user asks, if that matters.
    fn find_narinfo(&self, part: HashPart, client: ClientUser) -> impl Future<Output = Option<Bytes>> + Send;

    /// Whether [`Self::fetch_nar`] would find a body now.
    fn has_nar(&self, url: NarUrl, client: ClientUser) -> impl Future<Output = bool> + Send;

    /// The bytes of a NAR from `first_byte` on.
    ///
    /// `resumed` says that the request had a `Range` header. After a body that was closed early, [`NoNar::Gone`] then tells
    /// Nix that the path is gone and that it should build it, [`NoNar::NotNow`] that it should ask again. `client` tells which user asks, if that matters.
    fn fetch_nar(
        &self,
        url: NarUrl,
        first_byte: u64,
        resumed: bool,
        client: ClientUser,
    ) -> impl Future<Output = Result<NarBody, NoNar>> + Send;

    /// Whether there is a store to answer from, and what may leave it is known. From memory.
    fn is_ready(&self) -> bool;

    /// The log of the build of this derivation. It may be compressed if the client `accepts_bzip2`.
    fn find_log(
        &self,
        derivation: StorePath,
        accepts_bzip2: bool,
    ) -> impl Future<Output = Result<Option<BuildLog>, Busy>> + Send;

    /// Which path this output of a derivation is, in Nix's JSON. The implementation must keep its own deadline. `client` tells
    /// which user asks, if that matters.
    fn find_realisation(&self, id: RealisationId, client: ClientUser) -> impl Future<Output = Option<Bytes>> + Send;

    /// The listing of a path.
    fn list_tree(&self, part: HashPart) -> impl Future<Output = Result<Option<TreeListing>, Busy>> + Send;

    /// The file or directory at `path` in a store path; `None` also for a link that leads out of the store path.
    fn find_entry(
        &self,
        part: HashPart,
        path: EntryPath,
    ) -> impl Future<Output = Result<Option<StoreEntry>, Busy>> + Send;

    /// The id of this process among daemons that are each other's caches; `None` if they have none here.
    fn process_id(&self) -> Option<String> {
        None
    }

    /// Hears that a request for the path `part` came with this [`VIA`](narmesh_protocol::circle::VIA). Returns whether nobody
    /// is to be asked for it, because it comes round in a circle. From memory.
    fn is_circle(&self, _part: &HashPart, _via: &str) -> bool {
        false
    }

    /// Whether bodies have to wait for memory. Then clients that do not read what waits for them lose their connections
    /// soon. From memory.
    fn is_short_of_memory(&self) -> bool;
}

/// Whoever asks, as far as turns are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caller {
    /// A user of this machine.
    User(u32),
    /// A client on the network: its address, of IPv6 the prefix behind which it can choose.
    Address(IpAddr),
}

/// Tells who a client is.
#[derive(Clone)]
pub struct ClientUser(Arc<dyn Fn() -> Option<Caller> + Send + Sync>);

impl ClientUser {
    /// A client of whom `find` finds who it is.
    pub fn new(find: impl Fn() -> Option<Caller> + Send + Sync + 'static) -> Self {
        Self(Arc::new(find))
    }

    /// A client of whom nothing is known.
    pub fn unknown() -> Self {
        Self::new(|| None)
    }

    /// Who it is. The kernel is asked for a user, once for each connection.
    pub fn find(&self) -> Option<Caller> {
        (self.0)()
    }
}

impl fmt::Debug for ClientUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientUser").finish_non_exhaustive()
    }
}

/// The settings in `/nix-cache-info`. `WantMassQuery` is always 1, because a failed lookup costs nothing here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheInfo {
    /// The logical store directory. Nix refuses a binary cache with another one than its own.
    pub store_dir: StoreDir,
    /// Priority of this substituter: Nix asks lower numbers first; cache.nixos.org has 40.
    pub priority: u32,
}

impl fmt::Display for CacheInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreDir: {}\nWantMassQuery: 1\nPriority: {}\n", self.store_dir.as_str(), self.priority)
    }
}

/// What is known about a path from memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Nobody can have the path: the answer is 404 at once.
    Absent,
    /// The rendered narinfo.
    Found(Bytes),
    /// Somebody may have the path: call [`Substituter::find_narinfo`].
    Ask,
}
