//! Paths that their holder has collected: they come from another holder or are answered 404, and no build fails.

use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use narmesh_tests::{NixStoreFixture, TestMesh, finish, get, hash_part, promised, scratch_dir, wait_until};
use sha2::{Digest as _, Sha256};

/// A machine is promised to notice within this that a path was deleted from its store.
const NOTICED: Duration = Duration::from_secs(1);
/// Peers are promised to hear within this that a path was registered anew: noticed, a second for other removals, and five
/// after the epoch before.
const TOLD_ANEW: Duration = Duration::from_secs(7);

#[test]
fn a_collected_path_comes_from_the_other_holder_or_is_built() {
    let mesh = TestMesh::new();
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| mesh.node(name));
    let lib = a.store.build_one("lib");
    assert_eq!(b.store.build_one("lib"), lib);
    TestMesh::start_all(&mut [&mut a, &mut b, &mut c]);
    a.wait_all_advertised(&[&c]);
    b.wait_all_advertised(&[&c]);
    let narinfo = c.wait_narinfo(&lib);
    let prober = c.probe(&[&lib]);

    // Asked for at once, while a's filter still claims the path.
    a.store.delete(std::slice::from_ref(&lib));
    assert_eq!(c.get_narinfo(&lib).status, 200, "B has it still");
    let body = get(c.gateway(), &narinfo.url).unwrap();
    assert_eq!((body.status, body.body.len() as u64), (200, narinfo.nar_size));
    c.realise(std::slice::from_ref(&lib)).expect_success("from b");
    c.store.delete(std::slice::from_ref(&lib));

    b.store.delete(std::slice::from_ref(&lib));
    c.nix_build("lib").expect_success("nobody has it: built");
    assert!(c.store.row(&lib).unwrap().ultimate);
    prober.finish().assert_fit_for_nix(c.narinfo_slowest_max());
}

#[test]
fn a_collected_path_is_gone_from_its_own_gateway_and_from_the_peers() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let lib = a.store.build_one("lib");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    let narinfo = b.wait_narinfo(&lib);
    a.store.delete(std::slice::from_ref(&lib));
    for node in [&a, &b] {
        wait_until("a 404 for what is gone", promised(NOTICED), || node.get_narinfo(&lib).status == 404);
        let body = get(node.gateway(), &narinfo.url).unwrap();
        assert_eq!(body.status, 404, "before the first byte, so that Nix goes on at once");
    }
    // Built again, it is offered again.
    a.store.build_one("lib");
    assert_eq!(b.wait_narinfo(&lib).nar_hash, narinfo.nar_hash);
    b.realise(std::slice::from_ref(&lib)).expect_success("nix-store --realise");
}

/// Between two looks at the store it was never missing.
#[test]
fn a_path_deleted_and_at_once_built_again_with_other_contents_is_told_as_it_is_now() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let path = a.store.build_one("nondet");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    let before = b.wait_narinfo(&path).nar_hash;
    a.store.delete(std::slice::from_ref(&path));
    assert_eq!(a.store.build_one("nondet"), path);
    wait_until("what it is now", promised(TOLD_ANEW), || b.wait_narinfo(&path).nar_hash != before);
    b.realise(std::slice::from_ref(&path)).expect_success("its contents of now");
}

#[test]
fn a_client_that_remembers_a_narinfo_builds_when_the_nar_is_gone() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let middle = a.store.build_one("middle");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    // The client's own disk cache now holds the narinfo for 30 days.
    b.realise(std::slice::from_ref(&middle)).expect_success("nix-store --realise");
    b.store.delete(std::slice::from_ref(&middle));
    a.store.delete(std::slice::from_ref(&middle));
    b.nix_build("middle").expect_success("built, since the NAR gives 404");
    assert!(b.store.row(&middle).unwrap().ultimate);
}

#[test]
fn asking_repeatedly_for_a_collected_path_sets_no_peer_aside() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let gone = a.store.build_one("lib");
    let kept = a.store.build_one("fod");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    a.store.delete(std::slice::from_ref(&gone));
    // a's filter claims the path until its next summary: that counts as one false hit, however often b asks.
    for _ in 0..200 {
        assert_eq!(b.get_narinfo(&gone).status, 404);
    }
    assert_eq!(b.get_narinfo(&kept).status, 200, "the peer is still asked");
    let peer = b.status().peer("a").unwrap().clone();
    assert!(peer["set_aside_s"].is_null() && peer["misdeeds"] == 0, "{peer}");
}

/// A store that lies where its paths say, as /nix/store does: there Nix's collector knows the files that are open.
#[test]
fn a_nar_that_is_being_sent_survives_a_collection() {
    let scratch = scratch_dir("collecting");
    let mesh = TestMesh::new();
    let store = NixStoreFixture::relocated_builder(&mesh.path().join("a"), &scratch.path().join("store"));
    let mut a = mesh.node_with_store("a", store);
    let path = a.store.build_one("middle");
    a.start();
    let narinfo = a.wait_narinfo(&path);
    let mut client = TcpStream::connect(a.gateway()).unwrap();
    client.set_read_timeout(Some(promised(Duration::from_secs(5)))).unwrap();
    write!(client, "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", narinfo.url).unwrap();
    // Or else the kernel takes the rest of the NAR, and nothing is left to be read.
    rustix::net::sockopt::set_socket_recv_buffer_size(&client, 256 << 10).unwrap();
    let mut received = Vec::new();
    // In the first file, and in later ones, when those before were closed.
    for at in [100 << 10, 3 << 20, 6 << 20] {
        Read::by_ref(&mut client).take(at - received.len() as u64).read_to_end(&mut received).unwrap();
        assert_eq!(received.len() as u64, at);
        finish(a.store.nix("nix-store").arg("--gc")).expect_success("nix-store --gc");
        let refused = finish(a.store.nix("nix-store").arg("--delete").arg(&path));
        assert!(refused.stderr.contains("still alive"), "after {at} bytes: {}", refused.stderr);
        assert!(a.store.has(&path), "collected after {at} bytes");
    }
    client.read_to_end(&mut received).unwrap();
    let body = received.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let nar = &received[body..];
    assert_eq!(nar.len() as u64, narinfo.nar_size);
    let digest: String = Sha256::digest(nar).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(narinfo.nar_hash, format!("sha256:{digest}"));
    // It was not kept by anything else.
    wait_until("the path is collected", promised(NOTICED), || {
        finish(a.store.nix("nix-store").arg("--gc")).expect_success("nix-store --gc");
        !a.store.has(&path)
    });
    wait_until("the daemon notices", promised(NOTICED), || {
        get(a.gateway(), &format!("/{}.narinfo", hash_part(&path))).unwrap().status == 404
    });
}
