//! What the gateway asks of whoever knows where paths are.

use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use narmesh_protocol::{HashPart, NarUrl, StoreDir};

/// Answers the questions behind Nix's HTTP dialect. The node implements it over the mesh, tests over memory.
///
/// Nothing here can fail: whatever goes wrong inside is an absent path, because any other answer makes Nix retry for
/// seconds and then, up to 2.31, abort the whole build.
pub trait Substituter: Send + Sync + 'static {
    /// What `/nix-cache-info` says.
    fn cache_info(&self) -> CacheInfo;

    /// Answers from memory alone, without waiting and without touching a disk.
    fn lookup(&self, part: HashPart) -> Lookup;

    /// The narinfo of a path for which [`Self::lookup`] said [`Lookup::Ask`]; the implementation keeps its own deadline.
    fn narinfo(&self, part: HashPart) -> impl Future<Output = Option<Bytes>> + Send;

    /// Whether [`Self::nar`] would find a body now.
    fn has_nar(&self, url: NarUrl) -> impl Future<Output = bool> + Send;

    /// The bytes of a NAR from `first_byte` on, or `None` for a path that is gone.
    ///
    /// `resumed` says that the request carried a `Range` header: `None` is then how Nix is told, after a body that was
    /// closed short, to take the path as gone and build it.
    fn nar(&self, url: NarUrl, first_byte: u64, resumed: bool) -> impl Future<Output = Option<NarBody>> + Send;
}

/// The settings that `/nix-cache-info` tells; `WantMassQuery` is always 1, because a miss costs nothing here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheInfo {
    /// The logical store directory. Nix refuses a cache whose directory is not its own.
    pub store_dir: StoreDir,
    /// Lower is asked first; cache.nixos.org has 40.
    pub priority: u32,
}

impl fmt::Display for CacheInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreDir: {}\nWantMassQuery: 1\nPriority: {}\n", self.store_dir.as_str(), self.priority)
    }
}

/// What memory knows about a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Nobody can have it: 404 at once.
    Absent,
    /// The rendered narinfo.
    Found(Bytes),
    /// Somebody may have it: ask [`Substituter::narinfo`].
    Ask,
}

/// A NAR on its way: yields exactly the bytes from the first one asked for to the end, or [`BodyAborted`] as its last item.
pub type NarBody = Pin<Box<dyn Stream<Item = Result<Bytes, BodyAborted>> + Send>>;

/// The body cannot be finished. The gateway then closes the connection short of Content-Length, which makes Nix resume
/// with a `Range` request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body of a NAR cannot be finished")]
pub struct BodyAborted;
