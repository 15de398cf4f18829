//! A daemon gives a peer only what it offers; for everything else it gives the same answer in the same time.

use crate::formats::hash_part_bytes;
use crate::peer::{Peer, peer_id};
use crate::stage::Stage;
use crate::wire::{ABSENT, NARINFO, NarRequest};
use narmesh_tests::{finish, wait_until};
use std::fs;
use std::time::{Duration, Instant};

/// Requests for each kind of path.
const ROUNDS: usize = 60;

#[test]
fn paths_that_are_not_offered_all_look_the_same_to_a_peer() {
    let peer = Peer::honest("curious");
    let stage =
        Stage::with(&["serving"], 64, &[&peer], |client| client.config.exclude = vec!["mesh-small-*".to_owned()]);
    let store = &stage.client.store;
    let lib = store.build_one("lib");
    let withheld = store.build_one("small");
    let private = store.build_one("private");
    let collected = store.build_fresh("collected");
    let source = stage.mesh.path().join("a-source");
    fs::write(&source, "source").unwrap();
    let mut add = store.nix("nix-store");
    let source = finish(add.arg("--add").arg(&source)).expect_success("nix-store --add");
    let derivation = store.query(&["--query", "--deriver", &lib]);
    stage.client.wait_status("advertises", Duration::from_secs(2), |status| status.number("/own/paths") >= 2);
    peer.connect(&stage.client);
    let ask = |path: &str| peer.ask(&stage.client, NARINFO, &hash_part_bytes(path)).unwrap();
    wait_until("the offered one is served", Duration::from_secs(20), || {
        ask(&lib) != ABSENT && ask(&collected) != ABSENT
    });
    store.delete(std::slice::from_ref(&collected));
    wait_until("the collected one is not", Duration::from_secs(20), || ask(&collected) == ABSENT);

    let never = "/nix/store/00000000000000000000000000000000-never";
    let kinds = [
        ("never heard of", never),
        ("withheld", &withheld),
        ("private", &private),
        ("collected", &collected),
        ("source", &source),
        ("derivation", &derivation),
    ];
    let mut times = vec![Vec::new(); kinds.len()];
    let reads = reads_of(stage.client.pid());
    for _ in 0..ROUNDS {
        // In turns, so that other load on the machine falls on all kinds alike.
        for ((kind, path), times) in kinds.iter().zip(&mut times) {
            let started = Instant::now();
            assert_eq!(ask(path), ABSENT, "{kind}");
            times.push(started.elapsed());
        }
    }
    let reads = reads_of(stage.client.pid()) - reads;
    let medians: Vec<_> = times
        .iter_mut()
        .map(|times| {
            times.sort_unstable();
            times[times.len() / 2]
        })
        .collect();
    for ((kind, _), median) in kinds.iter().zip(&medians) {
        let bound = medians[0] + medians[0] / 2 + Duration::from_micros(300);
        assert!(*median <= bound, "{kind} takes {median:?}, what was never heard of {:?}", medians[0]);
    }
    // No disk is touched: reading a database or a derivation would take several calls of `pread` for each request.
    assert!(reads < (kinds.len() * ROUNDS) as u64 / 2, "{reads} reads for {} questions", kinds.len() * ROUNDS);
    let (fastest, slowest) = (medians.iter().min().unwrap(), medians.iter().max().unwrap());
    stage.note("asks for what is not offered", |row| {
        row.outcome = format!("the same bytes within {:.2?} to {:.2?}, medians", fastest, slowest);
    });
    assert_no_nar(&stage, &peer, &[&withheld, &private, &source, never]);
    stage.finish();
}

/// Asserts that none of the NARs is served, although the request has a size that fits.
fn assert_no_nar(stage: &Stage, peer: &Peer, paths: &[&str]) {
    for path in paths {
        let row = stage.client.store.row(path);
        let nar_size = row.map_or(120, |row| row.nar_size);
        let request = NarRequest {
            hash_part: hash_part_bytes(path),
            nar_hash: [7; 32],
            nar_size,
            offset: 0,
            end: nar_size,
            accept_zstd: false,
            passes_on: false,
            referral: 0,
        };
        let answer = peer.ask(&stage.client, crate::wire::NAR, &request.frame()).unwrap();
        assert_eq!(answer, crate::wire::nar_absent(), "{path}");
    }
    assert_ne!(peer_id(&stage.client), peer.id);
}

/// How often a process called `read` and `pread`; it uses other calls for sockets.
fn reads_of(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap().parse().unwrap()
}
