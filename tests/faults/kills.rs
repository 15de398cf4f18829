//! Power cuts at random moments, under load.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use narmesh_tests::{Finished, TestMesh, TestNode, finish};

use crate::clock::frozen_clock;
use crate::load::{Clients, Known, ask_nar};

/// How often the daemon is killed.
const KILLS: usize = 200;
/// A daemon lives up to this long, milliseconds: from the middle of its start to well after the first announcement.
const LIFE_MS: u64 = 300;
/// How many different paths the changing store builds in turn.
const TAGS: u32 = 6;
/// A node that starts again is promised to be heard within this.
const HEARD: Duration = Duration::from_secs(5);

/// Pseudo-random numbers (SplitMix64), always the same for the same seed.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// The seed: `NARMESH_FAULTS_SEED`, or a different one each time.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("NARMESH_FAULTS_SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| u64::from(std::process::id()) ^ std::time::UNIX_EPOCH.elapsed().unwrap().as_secs())
}

/// The epoch in the state file after a kill. It is read from a copy, because opening the original would repair it.
fn dead_state(node: &TestNode, scratch: &Path) -> Option<u64> {
    let copy = scratch.join("state.sqlite");
    for (file, suffix) in node.state_files().iter().zip(["", "-wal", "-shm"]) {
        let to = scratch.join(format!("state.sqlite{suffix}"));
        drop(fs::remove_file(&to));
        if suffix != "-shm" && file.exists() {
            fs::copy(file, to).unwrap();
        }
    }
    if !copy.exists() {
        return None;
    }
    let query = "PRAGMA integrity_check; SELECT epoch FROM own;";
    let Finished { status, stdout, stderr } = finish(Command::new("sqlite3").arg(&copy).arg(query));
    assert!(status.success() && stdout.starts_with("ok\n"), "the state file is damaged: {stdout}{stderr}");
    stdout.lines().nth(1).map(|epoch| epoch.parse().unwrap())
}

#[test]
fn two_hundred_kills_under_load_cause_no_wrong_answer_and_no_repeated_epoch() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let (seed, scratch) = (seed(), mesh.path().join("copy"));
    fs::create_dir(&scratch).unwrap();
    // With a clock that stands still, an epoch can only be new if the old one was written down.
    a.run_under(&frozen_clock().each_ref().map(String::as_str));
    let ours = ["app", "small", "middle"].map(|attribute| a.store.build_one(attribute));
    let theirs = ["files", "shapes"].map(|attribute| b.store.build_one(attribute));
    TestMesh::start_all(&mut [&mut a, &mut b]);
    // From its second start on, it dials b at once.
    a.learn_address("b", &b.p2p_address());
    a.wait_all_advertised(&[&b]);
    b.wait_all_advertised(&[&a]);
    let known: Vec<_> = ours.iter().map(|path| Known::new(&a, &b, path)).collect();
    let known: Vec<_> = known.into_iter().chain(theirs.iter().map(|path| Known::new(&b, &a, path))).collect();
    let clients = Clients::start(&[a.gateway(), b.gateway(), a.gateway()], &known);
    let stop = AtomicBool::new(false);
    let changing = a.store.clone();
    let epochs = thread::scope(|scope| {
        scope.spawn(|| {
            let mut paths: Vec<String> = Vec::new();
            for tag in (0..TAGS).cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let path = changing.build_fresh(&format!("kill-{tag}"));
                paths.retain(|known| *known != path);
                paths.push(path);
                if paths.len() > 3 {
                    changing.delete(&[paths.remove(0)]);
                }
            }
        });
        let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| kill_often(&mut a, &b, seed, &scratch)));
        stop.store(true, Ordering::Relaxed);
        killed.unwrap_or_else(|_| panic!("with NARMESH_FAULTS_SEED={seed}"))
    });
    let counts = clients.finish();
    println!("seed {seed}: {KILLS} kills, {} epochs; answers of a, b, a: {counts:?}", epochs.len());
    assert!(epochs.len() > KILLS / 4, "most lives are long enough to speak: {}", epochs.len());
    for gateway in &counts {
        assert!(gateway.get(&("nar", Some(200))).is_some_and(|whole| *whole > 10), "under load: {gateway:?}");
    }
    assert!(!counts[1].contains_key(&("narinfo", None)), "b was never away");
    for known in &known {
        let gateway = if ours.contains(&known.path) { b.gateway() } else { a.gateway() };
        assert_eq!(ask_nar(gateway, known), Some(200), "URLs from before all deaths work");
    }
    a.realise(&theirs).expect_success("nix-store --realise after all deaths");
    b.realise(&ours).expect_success("nix-store --realise after all deaths");
    [&a, &b].iter().for_each(|node| node.store.verify_contents());
}

/// Kills `a` again and again; returns the epochs of `a` that `b` has seen.
fn kill_often(a: &mut TestNode, b: &TestNode, seed: u64, scratch: &Path) -> BTreeSet<u64> {
    let mut dice = Dice(seed);
    let (mut seen, mut newest) = (BTreeSet::new(), (0, 0));
    for number in 0..KILLS {
        let life = Duration::from_millis(dice.below(LIFE_MS));
        // The time between two kills is random.
        thread::sleep(life);
        a.kill();
        let kept = dead_state(a, scratch);
        let status = b.status();
        if let Some(heard) = status.summary_version("a") {
            assert!(heard >= newest, "kill {number}: b holds {heard:?} of a after {newest:?}");
            assert!(kept >= Some(heard.0), "kill {number}: b heard of epoch {}, written down is {kept:?}", heard.0);
            newest = heard;
            seen.insert(heard.0);
        }
        let misdeeds = status.peer("a").and_then(|peer| peer.get("misdeeds")?.as_u64());
        assert_eq!(misdeeds, Some(0), "kill {number}: two summaries of one number, or another lie: {:?}", status.0);
        a.start();
    }
    a.wait_all_advertised(&[]);
    b.wait_status("hears a after all deaths", HEARD, |status| {
        status.connected("a") && status.summary_version("a") > Some(newest)
    });
    assert!(!a.log().contains("could not be used"), "no state file was ever set aside");
    assert!(!a.log().contains("state was lost"), "nor was its epoch");
    seen
}
