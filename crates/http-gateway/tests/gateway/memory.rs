//! A substituter in memory that can fail in every way that the gateway must handle.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use narmesh_http_gateway::{BodyAborted, CacheInfo, ClientUser, Lookup, NarBody, Substituter};
use narmesh_protocol::{HashPart, NarUrl, StoreDir};

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
    /// The users who made these calls.
    pub(crate) nar_users: Mutex<Vec<Option<u32>>>,
    /// Whether bodies have to wait for memory.
    pub(crate) is_short: bool,
}

/// How a NAR is delivered.
#[derive(Clone, Debug)]
pub(crate) struct Nar {
    pub(crate) bytes: Bytes,
    pub(crate) chunk_bytes: usize,
    /// The fault that happens after this many bytes of the NAR; it does not happen for a request with a range.
    pub(crate) fault: Option<(u64, Fault)>,
    /// Whether a request with a range is answered as if the path were gone.
    pub(crate) gone_when_resumed: bool,
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
        Self { bytes: bytes.into(), chunk_bytes: 64 * 1024, fault: None, gone_when_resumed: false }
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

    async fn find_narinfo(&self, part: HashPart) -> Option<Bytes> {
        tokio::task::yield_now().await;
        self.asked.get(&part).cloned().flatten()
    }

    async fn has_nar(&self, url: NarUrl) -> bool {
        self.nars.contains_key(&url)
    }

    fn is_short_of_memory(&self) -> bool {
        self.is_short
    }

    async fn fetch_nar(&self, url: NarUrl, first_byte: u64, resumed: bool, client: ClientUser) -> Option<NarBody> {
        self.nar_users.lock().unwrap().push(client.find());
        self.nar_calls.lock().unwrap().push((first_byte, resumed));
        let nar = self.nars.get(&url)?;
        if resumed && nar.gone_when_resumed {
            return None;
        }
        let fault = nar.fault.filter(|_| !resumed);
        Some(Nar { fault, ..nar.clone() }.stream(first_byte))
    }
}
