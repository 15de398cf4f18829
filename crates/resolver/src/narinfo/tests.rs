//! Lookups of paths that one source claims, demoted or slow, and of paths whose sources fail, in virtual time.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
use crate::source::{
    Candidate, Candidates, Line, NarFeed, NoAnswer, Observation, SourceId, SourceTurn, Sources, UpstreamId,
};
use crate::tests::Nothing;
use crate::turns::{Caller, FindUser, User};

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
        Self::with_one(false, latency)
    }

    /// The same of a source that is awaited, or demoted.
    fn with_one(is_awaited: bool, latency: Duration) -> Self {
        let (source, observed) = (SourceId::random(), Arc::default());
        let sources = OneSource { source, is_awaited, latency, held: held(), observed: Arc::clone(&observed) };
        Self::with(sources, observed)
    }

    fn with(sources: impl Sources, observed: Arc<Mutex<Vec<Observation>>>) -> Self {
        let store_dir = StoreDir::parse("/nix/store").unwrap();
        let parts = held().into_keys().collect();
        let settings = ResolverSettings {
            trusted: TrustedKeys::new([key().public()]).unwrap(),
            builder_key: None,
            priority: 30,
            narinfo_deadline: Duration::from_secs(1),
            narinfo_deadline_max: Duration::from_secs(10),
            transfer: TransferSettings { stall_timeout: Duration::from_secs(5), compress: Compress::Auto },
            signers: vec![key().public()],
            gateway_key: None,
        };
        // What is not there reads as an empty store.
        let [real_dir, state_dir] = ["store", "var"].map(|name| format!("/nonexistent/{name}").into());
        let store =
            NixStore::open(StoreLocation { store_dir, real_dir, log_dir: state_dir.clone(), state_dir }).unwrap();
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

/// A client of whom nothing is known.
fn nobody() -> FindUser {
    of_user(None)
}

fn of_user(user: User) -> FindUser {
    Arc::new(move || user)
}

fn key() -> NixSecretKey {
    NixSecretKey::from_seed("b-1", &[1; 32]).unwrap()
}

/// The narinfos of 20 paths.
fn held() -> HashMap<HashPart, Vec<u8>> {
    let store_dir = StoreDir::parse("/nix/store").unwrap();
    (0..20).map(|number| narinfo(&store_dir, &key(), number)).collect()
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
                assert!(narinfos.find(absent(client << 16 | number), &nobody()).await.is_none());
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
        assert!(stage.narinfos.find(*part, &nobody()).await.is_some());
    }
    let unfounded = |observation: &&Observation| matches!(observation, Observation::TimedOut);
    assert_eq!(stage.observed.lock().iter().filter(unfounded).count(), 0, "it answered whatever it was asked");
    others.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn slow_liar_makes_few_lookups_wait() {
    let stage = Stage::new(Duration::from_millis(900));
    let nobody = nobody();
    let first = join_all((0..64).map(|number| stage.narinfos.find(absent(number), &nobody))).await;
    assert!(first.iter().all(Option::is_none));
    assert_eq!(stage.asked(), 64);
    let started = Instant::now();
    for number in 64..264 {
        assert!(stage.narinfos.find(absent(number), &nobody).await.is_none());
    }
    assert_eq!((stage.asked(), started.elapsed()), (64, Duration::ZERO));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(stage.narinfos.find(absent(264), &nobody).await.is_none());
    assert_eq!(stage.asked(), 65, "it is asked again");
}

#[tokio::test(start_paused = true)]
async fn answer_that_was_waited_for_has_time_to_be_judged() {
    let stage = Stage::with_one(true, Duration::from_secs(3));
    let asked_at = Instant::now();
    assert!(stage.narinfos.find(stage.held[0], &nobody()).await.is_some());
    assert_eq!(*stage.builders.deadlines.lock(), [asked_at + Duration::from_secs(10)]);
}

#[tokio::test(start_paused = true)]
async fn flood_of_one_user_makes_no_other_wait_for_long_or_in_vain() {
    let stage = Stage::with_one(true, Duration::from_secs(2));
    let flood: Vec<_> = (0..2_000_u32)
        .map(|number| {
            let narinfos = Arc::clone(&stage.narinfos);
            tokio::spawn(async move { narinfos.find(absent(number), &of_user(Some(Caller::User(1)))).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let asked_at = Instant::now();
    // Also what the other user asks for already.
    let shared = Arc::clone(&stage.narinfos);
    let joins = tokio::spawn(async move { shared.find(absent(1_999), &of_user(Some(Caller::User(3)))).await });
    assert!(stage.narinfos.find(stage.held[0], &of_user(Some(Caller::User(2)))).await.is_some());
    assert!(joins.await.unwrap().is_none());
    assert_eq!(asked_at.elapsed(), Duration::from_secs(2), "as long as the source takes");
    join_all(flood).await;
    let blamed = |observation: &&Observation| matches!(observation, Observation::TimedOut);
    assert_eq!(stage.observed.lock().iter().filter(blamed).count(), 0, "it answered whatever it was asked");
}

/// A cache that answers after a while, and says so, or lets wait for it.
struct Limited {
    opens_at: Instant,
    asked: Arc<Mutex<u32>>,
}

impl Sources for Limited {
    fn candidates(&self, _: &HashPart) -> Candidates {
        let all = vec![Candidate { source: SourceId::Upstream(UpstreamId(0)), summary_epoch: 0 }];
        Candidates { ranked: all, ..Candidates::default() }
    }

    fn is_claimed(&self, _: &HashPart) -> bool {
        true
    }

    fn summary_epoch(&self, _: &SourceId) -> Option<u64> {
        Some(0)
    }

    fn take_turn(&self, _: SourceId, _: User) -> BoxFuture<'static, Option<SourceTurn>> {
        // Who was not told yet that it is too early asks at once.
        let opens_at = if *self.asked.lock() == 0 { Instant::now() } else { self.opens_at };
        Box::pin(async move {
            tokio::time::sleep_until(opens_at).await;
            Some(Box::new(()) as SourceTurn)
        })
    }

    fn ask(&self, _: SourceId, part: HashPart) -> BoxFuture<'static, Result<NarInfoReply, NoAnswer>> {
        *self.asked.lock() += 1;
        let reply = match Instant::now() < self.opens_at {
            true => Err(NoAnswer::NotYet("status 429".to_owned())),
            false => Ok(NarInfoReply::Found(held().remove(&part).unwrap())),
        };
        Box::pin(std::future::ready(reply))
    }

    fn prepare(&self, _: SourceId) {}

    fn request(&self, _: SourceId, _: NarRequest) -> BoxFuture<'static, io::Result<Box<dyn NarFeed>>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::ConnectionRefused.into())))
    }

    fn line(&self, _: &SourceId) -> Line {
        Line { is_awaited: true, ..Line::default() }
    }

    fn observe(&self, _: SourceId, observation: Observation) {
        assert!(!matches!(observation, Observation::TimedOut), "it answered whatever it was asked");
    }
}

#[tokio::test(start_paused = true)]
async fn cache_that_answers_later_is_waited_for_and_not_blamed() {
    for (seconds, is_found) in [(7, true), (30, false)] {
        let (asked, started) = (Arc::default(), Instant::now());
        let opens_at = started + Duration::from_secs(seconds);
        let stage = Stage::with(Limited { opens_at, asked: Arc::clone(&asked) }, Arc::default());
        assert_eq!(stage.narinfos.find(stage.held[0], &nobody()).await.is_some(), is_found, "{seconds} s");
        assert_eq!(started.elapsed(), Duration::from_secs(seconds.min(10)));
        assert_eq!(*asked.lock(), if is_found { 2 } else { 1 }, "{seconds} s");
    }
}

/// Upstream caches, the first of which fails a number of times before it answers. Those in `silent` never answer.
struct Failing {
    failures_left: Arc<Mutex<u32>>,
    silent: HashSet<UpstreamId>,
    others_hold: bool,
    /// The others are configured only after the first one was asked.
    others_come_later: bool,
    was_asked: AtomicBool,
    observed: Arc<Mutex<Vec<Observation>>>,
}

impl Failing {
    const CACHES: u16 = 3;

    /// A stage on which the first cache fails so often, and the others have nothing.
    fn stage(failures: u32) -> (Stage, Arc<Mutex<u32>>) {
        let (observed, failures_left) = (Arc::default(), Arc::new(Mutex::new(failures)));
        let source = Self {
            failures_left: Arc::clone(&failures_left),
            silent: HashSet::new(),
            others_hold: false,
            ..Self::holding(Arc::clone(&observed))
        };
        (Stage::with(source, observed), failures_left)
    }

    /// All others hold it, and the first one does not fail.
    fn holding(observed: Arc<Mutex<Vec<Observation>>>) -> Self {
        let (failures_left, silent, was_asked) = (Arc::default(), HashSet::new(), AtomicBool::new(false));
        Self { failures_left, silent, others_hold: true, others_come_later: false, was_asked, observed }
    }
}

impl Sources for Failing {
    fn candidates(&self, _: &HashPart) -> Candidates {
        let candidate = |number| Candidate { source: SourceId::Upstream(UpstreamId(number)), summary_epoch: 0 };
        let is_first_alone = self.others_come_later && !self.was_asked.load(Ordering::Relaxed);
        let caches = if is_first_alone { 1 } else { Self::CACHES };
        Candidates { ranked: (0..caches).map(candidate).collect(), ..Candidates::default() }
    }

    fn is_claimed(&self, _: &HashPart) -> bool {
        true
    }

    fn summary_epoch(&self, _: &SourceId) -> Option<u64> {
        Some(0)
    }

    fn ask(&self, source: SourceId, part: HashPart) -> BoxFuture<'static, Result<NarInfoReply, NoAnswer>> {
        self.was_asked.store(true, Ordering::Relaxed);
        let text = held().remove(&part).map_or(NarInfoReply::Absent, NarInfoReply::Found);
        let SourceId::Upstream(id) = source else { unreachable!("only caches are here") };
        if self.silent.contains(&id) {
            return Box::pin(std::future::pending());
        }
        let reply = match id {
            UpstreamId(0) => match &mut *self.failures_left.lock() {
                0 => Ok(text),
                failures => {
                    *failures -= 1;
                    Err(NoAnswer::FailedForNow("status 500".to_owned()))
                }
            },
            UpstreamId(_) if self.others_hold => Ok(text),
            UpstreamId(_) => Ok(NarInfoReply::Absent),
        };
        Box::pin(std::future::ready(reply))
    }

    fn prepare(&self, _: SourceId) {}

    fn request(&self, _: SourceId, _: NarRequest) -> BoxFuture<'static, io::Result<Box<dyn NarFeed>>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::ConnectionRefused.into())))
    }

    fn line(&self, _: &SourceId) -> Line {
        Line { is_awaited: true, ..Line::default() }
    }

    fn observe(&self, _: SourceId, observation: Observation) {
        self.observed.lock().push(observation);
    }
}

#[tokio::test(start_paused = true)]
async fn cache_that_fails_and_is_not_down_is_asked_again_before_a_404() {
    let (stage, _) = Failing::stage(9);
    assert!(stage.narinfos.find(stage.held[0], &nobody()).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn cache_that_always_fails_costs_a_lookup_some_seconds() {
    let (stage, failures_left) = Failing::stage(100);
    let started = Instant::now();
    assert!(stage.narinfos.find(stage.held[0], &nobody()).await.is_none());
    assert_eq!(*failures_left.lock(), 86, "it was asked fourteen times");
    assert_eq!(started.elapsed(), Duration::from_millis(9_550));
}

#[tokio::test(start_paused = true)]
async fn cache_that_fails_keeps_no_other_one_waiting() {
    let observed = Arc::default();
    let failures_left = Arc::new(Mutex::new(100));
    let source = Failing { failures_left, ..Failing::holding(Arc::clone(&observed)) };
    let (stage, started) = (Stage::with(source, observed), Instant::now());
    assert!(stage.narinfos.find(stage.held[0], &nobody()).await.is_some());
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn caches_of_which_nothing_is_known_are_asked_soon_after_each_other() {
    let observed = Arc::default();
    let silent = HashSet::from([UpstreamId(0), UpstreamId(1)]);
    let source = Failing { silent, ..Failing::holding(Arc::clone(&observed)) };
    let (stage, started) = (Stage::with(source, observed), Instant::now());
    assert!(stage.narinfos.find(stage.held[0], &nobody()).await.is_some());
    assert!(started.elapsed() <= Duration::from_millis(50), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn cache_that_is_configured_while_a_lookup_is_under_way_is_asked_before_a_404() {
    let observed = Arc::default();
    let (failures_left, others_come_later) = (Arc::new(Mutex::new(100)), true);
    let source = Failing { failures_left, others_come_later, ..Failing::holding(Arc::clone(&observed)) };
    let stage = Stage::with(source, observed);
    assert!(stage.narinfos.find(stage.held[0], &nobody()).await.is_some());
}
