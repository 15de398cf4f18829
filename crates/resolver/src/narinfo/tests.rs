//! Lookups of paths that one source claims, demoted or slow, in virtual time.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use narmesh_protocol::wire::{NarInfoReply, NarRequest};
use narmesh_protocol::{HashPart, NarHash, NixSecretKey, StoreDir, TrustedKeys};
use narmesh_store::{NixStore, StoreLocation};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::NarInfos;
use crate::ResolverSettings;
use crate::builders::Builders;
use crate::nar::{Compress, ContentsCheck, NarContext, TransferSettings};
use crate::shared::Shared;
use crate::source::{Candidate, Candidates, Line, NarFeed, NoAnswer, Observation, SourceId, Sources};
use crate::tests::Nothing;

/// One source that claims every path: one that is demoted, or one that is awaited.
struct OneSource {
    source: SourceId,
    is_awaited: bool,
    /// The time until each of its answers.
    latency: Duration,
    held: HashMap<HashPart, Vec<u8>>,
    observed: Arc<Mutex<Vec<Observation>>>,
}

impl Sources for OneSource {
    fn candidates(&self, _: &HashPart) -> Candidates {
        let all = vec![Candidate { source: self.source, summary_epoch: 1 }];
        match self.is_awaited {
            true => Candidates { ranked: all, ..Candidates::default() },
            false => Candidates { demoted: all, ..Candidates::default() },
        }
    }

    fn is_claimed(&self, _: &HashPart) -> bool {
        true
    }

    fn summary_epoch(&self, _: &SourceId) -> Option<u64> {
        Some(1)
    }

    fn ask(&self, _: SourceId, part: HashPart) -> BoxFuture<'static, Result<NarInfoReply, NoAnswer>> {
        let (latency, held) = (self.latency, self.held.get(&part).cloned());
        Box::pin(async move {
            tokio::time::sleep(latency).await;
            Ok(held.map_or(NarInfoReply::Absent, NarInfoReply::Found))
        })
    }

    fn prepare(&self, _: SourceId) {}

    fn request(&self, _: SourceId, _: NarRequest) -> BoxFuture<'static, io::Result<Box<dyn NarFeed>>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::ConnectionRefused.into())))
    }

    fn line(&self, _: &SourceId) -> Line {
        Line { is_awaited: self.is_awaited, ..Line::default() }
    }

    fn observe(&self, _: SourceId, observation: Observation) {
        self.observed.lock().push(observation);
    }
}

struct Stage {
    narinfos: Arc<NarInfos>,
    held: Vec<HashPart>,
    observed: Arc<Mutex<Vec<Observation>>>,
    builders: Arc<Nothing>,
}

impl Stage {
    /// A demoted source that answers after `latency`, and holds 20 paths.
    fn new(latency: Duration) -> Self {
        Self::with(false, latency)
    }

    fn with(is_awaited: bool, latency: Duration) -> Self {
        let store_dir = StoreDir::parse("/nix/store").unwrap();
        let key = NixSecretKey::from_seed("b-1", &[1; 32]).unwrap();
        let held: HashMap<_, _> = (0..20).map(|number| narinfo(&store_dir, &key, number)).collect();
        let (parts, observed) = (held.keys().copied().collect(), Arc::default());
        let source = SourceId::random();
        let sources = OneSource { source, is_awaited, latency, held, observed: Arc::clone(&observed) };
        let settings = ResolverSettings {
            trusted: TrustedKeys::new([key.public()]).unwrap(),
            builder_key: None,
            priority: 30,
            narinfo_deadline: Duration::from_secs(1),
            narinfo_deadline_max: Duration::from_secs(10),
            transfer: TransferSettings { stall_timeout: Duration::from_secs(5), compress: Compress::Auto },
            signers: vec![key.public()],
            gateway_key: None,
        };
        // What is not there reads as an empty store.
        let [real_dir, state_dir] = ["store", "var"].map(|name| format!("/nonexistent/{name}").into());
        let store = NixStore::open(StoreLocation { store_dir, real_dir, state_dir }).unwrap();
        let shared = Arc::new(Shared::new(store, Arc::new(sources), settings));
        let context = Arc::new(NarContext::new(&shared, 1 << 20));
        let contents = ContentsCheck::new(Arc::clone(&shared), context);
        let nothing = Arc::new(Nothing::default());
        let builders = Arc::clone(&nothing);
        let narinfos = NarInfos::new(shared, Arc::clone(&nothing) as Arc<dyn Builders>, nothing, contents);
        Self { narinfos: Arc::new(narinfos), held: parts, observed, builders }
    }

    /// How many questions were asked so far.
    fn asked(&self) -> usize {
        self.observed.lock().iter().filter(|observation| **observation == Observation::Asked).count()
    }
}

/// The hash part and the narinfo of one path.
fn narinfo(store_dir: &StoreDir, key: &NixSecretKey, number: u8) -> (HashPart, Vec<u8>) {
    let path = format!("/nix/store/{}-x", HashPart([number; 20]));
    let part = store_dir.parse_path(&path).unwrap().hash_part();
    let nar_hash = NarHash([number; 32]);
    let text = format!(
        "StorePath: {path}\nURL: nar/x.nar\nCompression: none\nNarHash: {nar_hash}\nNarSize: 120\nReferences: \n"
    );
    let signature = key.sign(&super::trust::parse(text.as_bytes(), &part, store_dir).unwrap().fingerprint(store_dir));
    (part, format!("{text}Sig: {signature}\n").into_bytes())
}

/// A hash part that the source claims and does not hold.
fn absent(number: u32) -> HashPart {
    let mut part = [0xff; 20];
    part[..4].copy_from_slice(&number.to_be_bytes());
    HashPart(part)
}

/// Another user asks for what the source claims by chance, as fast as it is answered.
#[tokio::test(start_paused = true)]
async fn no_false_hits_of_others_make_a_held_path_absent() {
    let stage = Stage::new(Duration::from_millis(10));
    let others = (0..200_u32).map(|client| {
        let narinfos = Arc::clone(&stage.narinfos);
        tokio::spawn(async move {
            for number in 0.. {
                assert!(narinfos.find(absent(client << 16 | number)).await.is_none());
                // Lets time go on even if everything is answered at once.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    });
    let others: Vec<_> = others.collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    for part in &stage.held {
        // A moment at which all places are taken.
        tokio::time::sleep(Duration::from_millis(7)).await;
        assert!(stage.narinfos.find(*part).await.is_some());
    }
    let unfounded = |observation: &&Observation| matches!(observation, Observation::TimedOut);
    assert_eq!(stage.observed.lock().iter().filter(unfounded).count(), 0, "it answered whatever it was asked");
    others.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn slow_liar_makes_few_lookups_wait() {
    let stage = Stage::new(Duration::from_millis(900));
    let first = join_all((0..64).map(|number| stage.narinfos.find(absent(number)))).await;
    assert!(first.iter().all(Option::is_none));
    assert_eq!(stage.asked(), 64);
    let started = Instant::now();
    for number in 64..264 {
        assert!(stage.narinfos.find(absent(number)).await.is_none());
    }
    assert_eq!((stage.asked(), started.elapsed()), (64, Duration::ZERO));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(stage.narinfos.find(absent(264)).await.is_none());
    assert_eq!(stage.asked(), 65, "it is asked again");
}

#[tokio::test(start_paused = true)]
async fn answer_that_was_waited_for_has_time_to_be_judged() {
    let stage = Stage::with(true, Duration::from_secs(3));
    let asked_at = Instant::now();
    assert!(stage.narinfos.find(stage.held[0]).await.is_some());
    assert_eq!(*stage.builders.deadlines.lock(), [asked_at + Duration::from_secs(10)]);
}
