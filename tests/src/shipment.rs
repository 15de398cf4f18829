//! NARs over a slow line, by the mesh and by plain HTTP, and lookups over the same line meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::{NixVersion, Pair, PlainCache, get_from, nar_url, narinfo_url, promised, second_store, wait_until};

/// What is sent, and the rate of the line.
#[derive(Debug, Clone, Copy)]
pub struct Shipment {
    /// Number of NARs.
    pub nars: usize,
    /// Size of each NAR, bytes.
    pub nar_bytes: u64,
    /// Rate of the holder's uplink.
    pub kilobits_per_s: u32,
}

/// The result of a [`Shipment`].
#[derive(Debug, Clone, Copy)]
pub struct Shipped {
    /// How many of the NARs are in the client's store.
    pub arrived: usize,
    /// Bytes of contents that left the holder, retransmissions included.
    pub bytes: u64,
    /// Time from the start of Nix to its end.
    pub took: Duration,
}

impl Shipment {
    /// Size of all NARs together.
    #[must_use]
    pub fn all_bytes(self) -> u64 {
        self.nars as u64 * self.nar_bytes
    }

    fn paths(self, pair: &Pair) -> Vec<String> {
        pair.holder.store.hold_noise(self.nars, self.nar_bytes, 1)
    }

    /// Ships the NARs by `nix-store --realise` through the client's gateway.
    ///
    /// # Panics
    /// As [`Pair::over_a_line`] and [`Pair::start`].
    #[must_use]
    pub fn by_mesh(self, version: NixVersion) -> Shipped {
        let mut pair = Pair::over_a_line(self.kilobits_per_s);
        let paths = self.paths(&pair);
        pair.use_nix(version);
        pair.start();
        let (before, since) = (pair.holder_traffic(), Instant::now());
        pair.client.realise(&paths);
        let took = since.elapsed();
        let bytes = pair.holder_traffic().contents_sent_since(before);
        Shipped { arrived: pair.arrived(&paths), bytes, took }
    }

    /// Ships the NARs from an nginx on the holder's machine, on a line of its own.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn by_plain_http(self, version: NixVersion) -> Shipped {
        let mut pair = Pair::over_a_line(self.kilobits_per_s);
        let paths = self.paths(&pair);
        pair.use_nix(version);
        let cache = PlainCache::beside(&pair.holder, &paths);
        let store = second_store(&pair.client, pair.mesh.path());
        let (before, since) = (pair.holder_traffic(), Instant::now());
        let said = store.realise(&paths, cache.address, &[pair.holder.builder_key()]);
        let took = since.elapsed();
        said.expect_success("plain HTTP on the same line");
        let bytes = pair.holder_traffic().contents_sent_since(before);
        Shipped { arrived: self.nars, bytes, took }
    }
}

/// What five clients that look up narinfos see while sixteen NARs fill the holder's uplink.
#[derive(Debug)]
pub struct LookupsBesideBulk {
    /// How long each lookup took, sorted.
    pub times: Vec<Duration>,
    /// How many lookups were not answered 200.
    pub refused: usize,
}

impl LookupsBesideBulk {
    /// Runs the lookups beside NARs of `bulk_bytes` each.
    ///
    /// # Panics
    /// When a NAR does not arrive, and as [`Pair::over_a_line`] and [`Pair::start`].
    #[must_use]
    pub fn run(kilobits_per_s: u32, bulk_bytes: u64) -> Self {
        const BULK: usize = 16;
        const AT_ONCE: usize = 5;
        let mut pair = Pair::over_a_line(kilobits_per_s);
        let bulk = pair.holder.store.hold_noise(BULK, bulk_bytes, 1);
        // More than can be looked up while the NARs are on their way.
        let small = pair.holder.store.hold_noise(1_000, 128, 2);
        pair.start();
        let narinfo = |path: &String| nar_url(&get_from(&pair.client, &narinfo_url(path))).expect("a narinfo");
        let urls: Vec<_> = bulk.iter().map(narinfo).collect();
        let idle = pair.holder_traffic();
        let ended = AtomicBool::new(false);
        let ask = |paths: &[String]| {
            let mut seen = Vec::new();
            for path in paths {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                let since = Instant::now();
                seen.push((get_from(&pair.client, &narinfo_url(path)).status, since.elapsed()));
            }
            seen
        };
        let probe = || {
            wait_until("the line is in use", promised(Duration::from_secs(2)), || {
                pair.holder_traffic().sent_bytes - idle.sent_bytes > bulk_bytes / 10
            });
            thread::scope(|scope| {
                let some = small.chunks(small.len() / AT_ONCE);
                let threads: Vec<_> = some.map(|paths| scope.spawn(|| ask(paths))).collect();
                threads.into_iter().flat_map(|thread| thread.join().expect("a prober")).collect::<Vec<_>>()
            })
        };
        let seen = thread::scope(|scope| {
            let bulk: Vec<_> = urls.iter().map(|url| scope.spawn(|| get_from(&pair.client, url))).collect();
            let probers = scope.spawn(probe);
            let bulk = bulk.into_iter().map(|thread| thread.join().expect("a fetch"));
            let arrived = bulk.filter(|nar| nar.status == 200 && nar.complete).count();
            ended.store(true, Ordering::Relaxed);
            assert_eq!(arrived, BULK, "what fills the line arrives");
            probers.join().expect("the probers")
        });
        let refused = seen.iter().filter(|(status, _)| *status != 200).count();
        let mut times: Vec<_> = seen.into_iter().map(|(_, took)| took).collect();
        times.sort_unstable();
        Self { times, refused }
    }

    /// The time that 99 of 100 lookups did not exceed.
    ///
    /// # Panics
    /// When there were no lookups.
    #[must_use]
    pub fn p99(&self) -> Duration {
        let at = (self.times.len() * 99 / 100).min(self.times.len().saturating_sub(1));
        *self.times.get(at).expect("lookups beside the bulk")
    }
}
