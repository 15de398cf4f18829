//! A daemon that has no file descriptors left.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use narmesh_tests::{TestMesh, get, promised, wait_until};

/// The daemon's limit: few enough to use up, and enough to start and to connect.
const DESCRIPTORS: usize = 64;
/// A client is promised an answer within this, during a flood and after it; idle connections are closed only after 10 s.
const CALM: Duration = Duration::from_millis(500);

#[test]
fn a_daemon_without_free_descriptors_answers_new_clients_and_keeps_its_peers() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let limit = format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}");
    b.run_under(&["prlimit", &limit]);
    let [app, lib] = ["app", "lib"].map(|attribute| a.store.build_one(attribute));
    let files = b.store.build_one("files");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    let narinfo = b.wait_narinfo(&files);
    // Somebody opens more connections than the daemon can accept, as in the middle of a build.
    let flood: Vec<_> = (0..2 * DESCRIPTORS).filter_map(|_| TcpStream::connect(b.gateway()).ok()).collect();
    assert!(flood.len() > DESCRIPTORS, "the kernel takes them, whoever is to accept them");
    // The flood stays; its oldest connections are closed one by one to make room for new clients.
    for round in 0..3 {
        let asked = Instant::now();
        let answer = get(b.gateway(), "/nix-cache-info").unwrap();
        let took = asked.elapsed();
        assert!(answer.status == 200 && took < promised(CALM), "round {round}: {} after {took:?}", answer.status);
    }
    assert!(a.status().connected("b"), "peers are not lost over it");
    b.wait_logged(&["warn", "too many open files"]);
    drop(flood);
    wait_until("the gateway answers as before", promised(CALM), || {
        get(b.gateway(), "/nix-cache-info").is_ok_and(|answer| answer.status == 200)
    });
    let prober = b.probe(&[&app, &lib]);
    let nar = get(b.gateway(), &narinfo.url).unwrap();
    assert!(nar.status == 200 && nar.complete, "{}", nar.status);
    b.realise(&[app, lib]).expect_success("after the flood");
    prober.finish().assert_fit_for_nix(b.narinfo_slowest_max());
}
