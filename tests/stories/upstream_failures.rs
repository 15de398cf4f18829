//! Every way in which a cache fails, at the narinfo and at the NAR, for each of Nix's commands: the build succeeds as
//! long as another cache has the path. What it costs is printed as a table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use narmesh_tests::{
    FailingCache, FailsAt, Finished, NixVersion, PlainCache, TestMesh, TestNode, Way, hash_part, promised, wait_until,
};

/// Runs that go on side by side: most of them wait.
const AT_ONCE: usize = 6;

/// What a user does to get a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Client {
    Realise,
    Copy,
}

impl Client {
    const ALL: [Self; 2] = [Self::Realise, Self::Copy];

    fn name(self) -> &'static str {
        match self {
            Self::Realise => "nix-store --realise",
            Self::Copy => "nix copy",
        }
    }

    fn get(self, node: &TestNode, path: &str) -> Finished {
        match self {
            Self::Realise => node.realise(&[path.to_owned()]),
            Self::Copy => node.copy(&[path.to_owned()]),
        }
    }
}

/// A run: `None` is the undisturbed one.
type Case = (Option<(Way, FailsAt)>, Client);

#[derive(Debug)]
struct Seen {
    took: Duration,
    /// The kinds of failure that `status` counts.
    told: BTreeSet<String>,
    /// What should not have happened. The other runs go on, and the table shows them.
    wrong: Option<String>,
}

struct Stage<'m> {
    mesh: &'m TestMesh,
    holder: &'m TestNode,
    good: &'m PlainCache,
    path: &'m str,
    /// The NarHash of the path.
    nar_hash: &'m str,
}

#[test]
fn no_way_in_which_a_cache_fails_fails_a_build_that_another_cache_can_serve() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let path = holder.store.build_one("small");
    let other = holder.store.build_one("lib");
    let good = PlainCache::on_loopback(&holder, &[path.clone(), other], "none");
    let nar_hash = holder.store.row(&path).unwrap().nar_hash;
    let stage = Stage { mesh: &mesh, holder: &holder, good: &good, path: &path, nar_hash: &nar_hash };
    let failing = Way::ALL.into_iter().flat_map(|way| [FailsAt::NarInfo, FailsAt::Nar].map(|place| (way, place)));
    let ways = failing.filter(|(way, place)| way.is_possible_at(*place)).map(Some).chain([None; 3]);
    let cases: Vec<Case> = ways.flat_map(|way| Client::ALL.map(|client| (way, client))).collect();
    let (left, seen) = (Mutex::new(cases.into_iter().enumerate()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = left.lock().unwrap().next();
                    let Some((number, case)) = next else { return };
                    let run = run(&stage, number, case);
                    seen.lock().unwrap().push((case, run));
                }
            });
        }
    });
    let seen = seen.into_inner().unwrap();
    let text = table(&seen);
    writeln!(std::io::stdout(), "{text}").unwrap();
    // Only a report: the story does not fail because it cannot be written.
    fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("upstream-failures.md"), text).ok();
    let wrong: Vec<_> = seen.iter().filter_map(|(case, seen)| Some((case, seen.wrong.as_ref()?))).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn run(stage: &Stage<'_>, number: usize, (way, client): Case) -> Seen {
    let mut node = stage.mesh.node(&format!("client-{number}"));
    let (key, good) = (stage.holder.builder_key(), stage.good.upstream("good", stage.holder));
    node.config.trusted_public_keys = vec![key.clone()];
    let failing = way.map(|(way, place)| FailingCache::start(stage.good.dir(), way, place));
    let lines = failing.as_ref().map(|failing| failing.upstream("failing", &key, node.dir())).unwrap_or_default();
    // It is asked first, whatever the other one did.
    node.config.more = format!("{lines}{good}tier = 1\n");
    node.start();
    let started = Instant::now();
    let got = client.get(&node, stage.path);
    let took = started.elapsed();
    let has_right_nar = node.store.row(stage.path).is_some_and(|copy| copy.nar_hash == stage.nar_hash);
    let status = node.status();
    let upstreams = status.0.pointer("/upstreams").and_then(|upstreams| upstreams.as_array()).unwrap();
    let failures = upstreams.iter().filter_map(|upstream| upstream["failures"].as_object());
    let told: BTreeSet<_> = failures.flat_map(|kinds| kinds.keys().cloned()).collect();
    // Nobody of ours is there who could count.
    let is_elsewhere = matches!(way, Some((Way::Refused | Way::BlackHole | Way::Dns | Way::Tls, FailsAt::NarInfo)));
    let was_asked = is_elsewhere || failing.is_none_or(|failing| failing.failures() > 0);
    let is_silent = matches!(way, Some((Way::BlackHole | Way::Frozen | Way::SlowHeaders | Way::Crawling, _)));
    let wrong = match (got.status.success() && has_right_nar, was_asked) {
        (true, true) if !is_silent && told.contains("timeout") => {
            Some("what failed at once counts as silent".to_owned())
        }
        (false, _) => Some(format!("{}\n{}", got.stderr, node.log())),
        (true, false) => Some(format!("the failing cache was not asked\n{}", node.log())),
        (true, true) => None,
    };
    Seen { took, told, wrong }
}

/// One line of the table.
#[derive(Default)]
struct Row<'s> {
    added_s: BTreeMap<Client, f64>,
    told: BTreeSet<&'s str>,
}

/// Seconds that each way adds to the median of the undisturbed runs of the same client.
fn table(seen: &[(Case, Seen)]) -> String {
    let undisturbed = |client: Client| {
        let runs = seen.iter().filter(|((way, by), _)| way.is_none() && *by == client);
        let mut runs: Vec<_> = runs.map(|(_, seen)| seen.took).collect();
        runs.sort_unstable();
        runs[runs.len() / 2]
    };
    let mut rows: BTreeMap<(Way, FailsAt), Row<'_>> = BTreeMap::new();
    for ((way, client), seen) in seen {
        let Some(way) = way else { continue };
        let row = rows.entry(*way).or_default();
        row.added_s.insert(*client, seen.took.as_secs_f64() - undisturbed(*client).as_secs_f64());
        row.told.extend(seen.told.iter().map(String::as_str));
    }
    let clients = Client::ALL.map(|client| format!(" {}, {:.2} s |", client.name(), undisturbed(client).as_secs_f64()));
    let mut text = format!("| way | at |{} counted as |\n|---|---|---|---|---|\n", clients.concat());
    for ((way, place), Row { added_s, told }) in rows {
        let added: String = added_s.values().map(|seconds| format!(" {seconds:+.2} s |")).collect();
        let told = Vec::from_iter(told).join(", ");
        text += &format!("| {way:?} | {place:?} |{added} {told} |\n");
    }
    text
}

/// In front of a good cache of a higher tier.
fn client_behind(mesh: &TestMesh, holder: &TestNode, good: &PlainCache, failing: &FailingCache) -> TestNode {
    let mut client = mesh.node("client");
    let key = holder.builder_key();
    client.config.trusted_public_keys = vec![key.clone()];
    client.config.more =
        failing.upstream("failing", &key, client.dir()) + &good.upstream("good", holder) + "tier = 1\n";
    client.start();
    client
}

/// Of 15 requests, a cache that keeps somebody waiting gets at most so many: those that find it out, and some that are
/// under way meanwhile.
const ASKED_MAX: usize = 8;

#[test]
fn frozen_cache_of_a_lower_tier_costs_a_few_lookups_a_moment_and_the_others_nothing() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let paths = holder.store.build("everything");
    let good = PlainCache::on_loopback(&holder, &paths, "none");
    let failing = FailingCache::start(good.dir(), Way::Frozen, FailsAt::NarInfo);
    let client = client_behind(&mesh, &holder, &good, &failing);
    paths.iter().for_each(|path| assert_eq!(client.get_narinfo(path).status, 200));
    assert!((1..=ASKED_MAX).contains(&failing.failures()), "{} of {}", failing.failures(), paths.len());
    assert_eq!(client.status().text("/upstreams/0/state"), Some("up"), "it may only be slow");
}

#[test]
fn cache_of_a_lower_tier_whose_nars_freeze_delays_a_few_of_them() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let paths = holder.store.build("everything");
    let good = PlainCache::on_loopback(&holder, &paths, "none");
    let failing = FailingCache::start(good.dir(), Way::Frozen, FailsAt::Nar);
    let client = client_behind(&mesh, &holder, &good, &failing);
    // One after the other, so that the cache answers each at once, whatever else the machine does.
    paths.iter().for_each(|path| assert_eq!(client.get_narinfo(path).status, 200));
    client.realise(&paths).expect_success("nix-store --realise");
    // Who asks for all at once does so before the first wait tells anything; those waits pass at the same time.
    let asked_max = if NixVersion::from_environment() == NixVersion::V2_8 { ASKED_MAX } else { paths.len() };
    assert!((1..=asked_max).contains(&failing.failures()), "{} of {}", failing.failures(), paths.len());
}

#[test]
fn file_that_is_not_the_one_of_its_narinfo_is_counted_and_a_right_nar_is_taken() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let path = holder.store.build_one("lib");
    let cache = PlainCache::on_loopback(&holder, std::slice::from_ref(&path), "xz");
    let file = cache.dir().join(format!("{}.narinfo", hash_part(&path)));
    let text = fs::read_to_string(&file).unwrap();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
    // Any hash that is not that of the file.
    fs::write(&file, text.replace(&field("FileHash: "), &field("NarHash: "))).unwrap();
    let mut client = mesh.node("client");
    client.config.trusted_public_keys = vec![holder.builder_key()];
    client.config.more = cache.upstream("lying", &holder);
    client.start();
    client.realise(std::slice::from_ref(&path)).expect_success("nix-store --realise");
    let nar_hash = |node: &TestNode| node.store.row(&path).unwrap().nar_hash;
    assert_eq!(nar_hash(&client), nar_hash(&holder));
    let status = client.status();
    let failures = status.0.pointer("/upstreams/0/failures").and_then(|failures| failures.as_object()).unwrap();
    assert_eq!(failures.keys().collect::<Vec<_>>(), ["wrong_file_hash"]);
}

/// For how long a cache is away that restarts; Nix itself would go on asking it for some 4 s.
const RESTART: Duration = Duration::from_secs(1);

#[test]
fn only_cache_that_restarts_fails_no_build() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let paths = holder.store.build("everything");
    let mut cache = PlainCache::on_loopback(&holder, &paths, "none");
    let mut client = mesh.node("client");
    client.config.trusted_public_keys = vec![holder.builder_key()];
    client.config.more = cache.upstream("only", &holder);
    client.start();
    cache.kill();
    thread::scope(|scope| {
        let realised = scope.spawn(|| client.realise(&paths));
        wait_until("it is asked", promised(RESTART), || {
            client.status().0.pointer("/upstreams/0/failures/connect").is_some()
        });
        thread::sleep(RESTART);
        cache.start_again();
        realised.join().unwrap().expect_success("nix-store --realise over a restart of the cache");
    });
}

#[test]
fn only_cache_that_fails_twice_is_asked_again() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let path = holder.store.build_one("small");
    let good = PlainCache::on_loopback(&holder, std::slice::from_ref(&path), "none");
    for (way, place) in [
        (Way::ServerError, FailsAt::NarInfo),
        (Way::ServerError, FailsAt::Nar),
        (Way::Reset, FailsAt::NarInfo),
        (Way::KilledAtHalf, FailsAt::Nar),
        (Way::RateLimited, FailsAt::NarInfo),
        (Way::RateLimited, FailsAt::Nar),
    ] {
        let failing = FailingCache::start_failing(good.dir(), way, place, 2);
        let mut client = mesh.node(&format!("client-{way:?}-{place:?}"));
        client.config.trusted_public_keys = vec![holder.builder_key()];
        client.config.more = failing.upstream("failing", &holder.builder_key(), client.dir());
        client.start();
        client.realise(std::slice::from_ref(&path)).expect_success(&format!("{way:?} at {place:?}"));
        assert_eq!(failing.failures(), 2, "{way:?} at {place:?}");
    }
}
