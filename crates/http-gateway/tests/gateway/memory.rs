//! A substituter in memory that can fail in every way that the gateway must handle.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use narmesh_http_gateway::{
    BodyAborted, BuildLog, Busy, CacheInfo, Caller, ClientUser, DirectoryRow, EntryPath, Lookup, NarBody, NoNar,
    RowKind, StoreDirectory, StoreEntry, StoreFile, Substituter, TreeListing,
};
use narmesh_protocol::{HashPart, NarHash, NarUrl, RealisationId, StoreDir, StorePath};

/// Narinfos by hash part and NARs by URL; everything else is absent.
#[derive(Debug, Default)]
pub(crate) struct MemorySubstituter {
    /// Narinfos that `look_up` finds.
    pub(crate) narinfos: HashMap<HashPart, Bytes>,
    /// Paths for which `look_up` returns `Ask`, with the result of `find_narinfo`.
    pub(crate) asked: HashMap<HashPart, Option<Bytes>>,
    pub(crate) nars: HashMap<NarUrl, Nar>,
    /// All calls of `fetch_nar` in order: the first byte, and whether the request had a range.
    pub(crate) nar_calls: Mutex<Vec<(u64, bool)>>,
    /// Who made these calls, and those of `find_narinfo`.
    pub(crate) callers: Mutex<Vec<Option<Caller>>>,
    /// Whether bodies have to wait for memory.
    pub(crate) is_short: bool,
    /// Files by the path under which they are asked for: `log/…`, `<hash part>.ls` or `serve/<hash part>/…`.
    pub(crate) files: HashMap<String, Nar>,
    /// Whether it is not ready yet.
    pub(crate) is_starting: bool,
    /// Whether listings are refused for a while.
    pub(crate) is_busy: bool,
}

/// How a NAR is delivered.
#[derive(Clone, Debug)]
pub(crate) struct Nar {
    pub(crate) bytes: Bytes,
    pub(crate) chunk_bytes: usize,
    /// The fault that happens after this many bytes of the NAR; it does not happen for a request with a range.
    pub(crate) fault: Option<(u64, Fault)>,
    /// Why a request with a range gets nothing.
    pub(crate) none_when_resumed: Option<NoNar>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The stream yields `BodyAborted`.
    Abort,
    /// The stream ends without an error.
    End,
    /// The stream pauses for this long, then yields the rest.
    Pause(Duration),
}

impl Nar {
    pub(crate) fn good(bytes: impl Into<Bytes>) -> Self {
        Self { bytes: bytes.into(), chunk_bytes: 64 * 1024, fault: None, none_when_resumed: None }
    }

    fn stream(self, first_byte: u64) -> NarBody {
        let steps = stream::unfold((self, first_byte), |(mut nar, at)| async move {
            let size = nar.bytes.len() as u64;
            let mut until = size.min(at + nar.chunk_bytes as u64);
            if let Some((fault_at, fault)) = nar.fault {
                if at == fault_at {
                    match fault {
                        Fault::Abort => {
                            nar.fault = None;
                            return Some((Err(BodyAborted), (nar, size)));
                        }
                        Fault::End => return None,
                        Fault::Pause(pause) => tokio::time::sleep(pause).await,
                    }
                } else if at < fault_at {
                    until = until.min(fault_at);
                }
            }
            if at >= size {
                return None;
            }
            let chunk = nar.bytes.slice(usize::try_from(at).unwrap()..usize::try_from(until).unwrap());
            Some((Ok(chunk), (nar, until)))
        });
        steps.boxed()
    }
}

impl Substituter for MemorySubstituter {
    fn cache_info(&self) -> CacheInfo {
        CacheInfo { store_dir: StoreDir::parse("/nix/store").unwrap(), priority: 30 }
    }

    fn look_up(&self, part: HashPart) -> Lookup {
        if let Some(text) = self.narinfos.get(&part) {
            Lookup::Found(text.clone())
        } else if self.asked.contains_key(&part) {
            Lookup::Ask
        } else {
            Lookup::Absent
        }
    }

    async fn find_narinfo(&self, part: HashPart, client: ClientUser) -> Option<Bytes> {
        self.callers.lock().unwrap().push(client.find());
        tokio::task::yield_now().await;
        self.asked.get(&part).cloned().flatten()
    }

    async fn has_nar(&self, url: NarUrl, _: ClientUser) -> bool {
        self.nars.contains_key(&url)
    }

    fn is_short_of_memory(&self) -> bool {
        self.is_short
    }

    fn is_ready(&self) -> bool {
        !self.is_starting
    }

    async fn find_log(&self, derivation: StorePath, accepts_bzip2: bool) -> Result<Option<BuildLog>, Busy> {
        let log = self.files.get(&format!("log/{derivation}")).cloned();
        Ok(log.map(|log| BuildLog {
            is_compressed: accepts_bzip2,
            size_bytes: accepts_bzip2.then_some(log.bytes.len() as u64),
            body: log.stream(0),
        }))
    }

    async fn find_realisation(&self, id: RealisationId, _: ClientUser) -> Option<Bytes> {
        self.files.get(&id.file()).map(|file| file.bytes.clone())
    }

    async fn list_tree(&self, part: HashPart) -> Result<Option<TreeListing>, Busy> {
        if self.is_busy {
            return Err(Busy);
        }
        let listing = self.files.get(&format!("{part}.ls")).cloned();
        Ok(listing.map(|listing| TreeListing { nar_hash: NarHash([7; 32]), body: listing.stream(0) }))
    }

    async fn find_entry(&self, part: HashPart, path: EntryPath) -> Result<Option<StoreEntry>, Busy> {
        let names: Vec<_> = path.names().iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        let Some(file) = self.files.get(&format!("serve/{part}/{}", names.join("/"))).cloned() else { return Ok(None) };
        if file.bytes.is_empty() && names.is_empty() {
            let row = DirectoryRow { name: b"<b>".to_vec(), kind: RowKind::Directory };
            return Ok(Some(StoreEntry::Directory(StoreDirectory {
                path: StorePath::new(part, "name").unwrap(),
                rows: stream::iter([Ok(vec![row])]).boxed(),
            })));
        }
        Ok(Some(StoreEntry::File(StoreFile {
            nar_hash: NarHash([7; 32]),
            name: path.names().last().cloned().unwrap_or_default(),
            size_bytes: file.bytes.len() as u64,
            read_from: Box::new(move |first_byte| file.stream(first_byte)),
        })))
    }

    async fn fetch_nar(
        &self,
        url: NarUrl,
        first_byte: u64,
        resumed: bool,
        client: ClientUser,
    ) -> Result<NarBody, NoNar> {
        self.callers.lock().unwrap().push(client.find());
        self.nar_calls.lock().unwrap().push((first_byte, resumed));
        let nar = self.nars.get(&url).ok_or(NoNar::Gone)?;
        if let Some(why) = nar.none_when_resumed.filter(|_| resumed) {
            return Err(why);
        }
        let fault = nar.fault.filter(|_| !resumed);
        Ok(Nar { fault, ..nar.clone() }.stream(first_byte))
    }
}
