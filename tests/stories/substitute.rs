//! The main job: a path built on one machine arrives on others directly from it, and verified.

use std::collections::BTreeSet;
use std::time::Duration;

use narmesh_tests::{
    NixStoreFixture, NixVersion, TestMesh, TestNode, get, head, promised, request, scratch_dir, sha256_hex,
};

/// A path is promised to be substitutable elsewhere this soon after its build.
const SPREAD: Duration = Duration::from_secs(2);

/// Memory that a daemon may use on top of its idle memory for a transfer of any size.
const RISE_BYTES_MAX: u64 = 32 << 20;

/// Asserts that the receiver's store has exactly `paths`, with the same contents as at the holder, and built none of them.
fn assert_equal_stores(holder: &TestNode, receiver: &TestNode, paths: &[String]) {
    receiver.store.verify_contents();
    let outputs: BTreeSet<_> = paths.iter().cloned().collect();
    assert_eq!(receiver.store.outputs(), outputs, "nothing more and nothing less than the closure");
    for path in paths {
        let source = holder.store.row(path).expect("built there");
        let copy = receiver.store.row(path).expect("substituted");
        assert_eq!((&copy.nar_hash, copy.nar_size), (&source.nar_hash, source.nar_size), "{path}");
        assert_eq!(copy.references, source.references, "{path}");
        assert!(!copy.ultimate, "{path} was built here");
        let key = holder.builder_key();
        let key_name = key.split(':').next().unwrap();
        let kept = copy.signatures.iter().any(|signature| signature.split(':').next() == Some(key_name));
        assert!(kept || !copy.content_address.is_empty(), "{path} lost the signature of {key_name}");
    }
}

#[test]
fn the_whole_set_arrives_on_two_other_machines() {
    let mesh = TestMesh::new();
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| mesh.node(name));
    // Numbers of bytes are compared below, and "auto" compresses when the machine is too busy for a fast link.
    for node in [&mut b, &mut c] {
        node.config.compress = "never";
    }
    let paths = a.store.build("everything");
    let closure: Vec<_> = a.store.outputs().into_iter().collect();
    assert_eq!(closure.len(), 15, "every output is one that was asked for");
    TestMesh::start_all(&mut [&mut a, &mut b, &mut c]);
    a.wait_all_advertised(&[&b, &c]);
    for receiver in [&b, &c] {
        receiver.realise(&paths).expect_success("nix-store --realise");
        assert_equal_stores(&a, receiver, &closure);
    }
    let status = b.status();
    assert_eq!(status.number("/requests/nar_ok"), closure.len() as u64, "each NAR came once, through the gateway");
    assert_eq!(status.number("/requests/nar_aborted"), 0);
    let from_a = status.peer("a").unwrap()["bytes_in"].as_u64().unwrap();
    let nar_bytes: u64 = closure.iter().map(|path| a.store.row(path).unwrap().nar_size).sum();
    assert!(from_a > nar_bytes / 2 && status.number("/bytes/gateway_out") >= nar_bytes, "{from_a} of {nar_bytes}");
}

#[test]
fn the_whole_set_arrives_compressed() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    a.config.compress = "always";
    b.config.compress = "always";
    let paths = a.store.build("everything");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    b.realise(&paths).expect_success("nix-store --realise");
    assert_equal_stores(&a, &b, &a.store.outputs().into_iter().collect::<Vec<_>>());
    let nar_bytes: u64 = paths.iter().map(|path| a.store.row(path).unwrap().nar_size).sum();
    let from_a = b.status().peer("a").unwrap()["bytes_in"].as_u64().unwrap();
    assert!(from_a < nar_bytes / 2, "text that repeats crosses the wire small: {from_a} of {nar_bytes}");
}

#[test]
fn a_nar_of_300_mb_streams_through_in_bounded_memory() {
    let mesh = TestMesh::new();
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| mesh.node(name));
    let huge = a.store.build_one("huge");
    TestMesh::start_all(&mut [&mut a, &mut b, &mut c]);
    a.wait_all_advertised(&[&b, &c]);
    let peaks = [&a, &b, &c].map(|node| (node, node.watch_memory()));
    for receiver in [&b, &c] {
        receiver.realise(std::slice::from_ref(&huge)).expect_success("nix-store --realise");
        assert_equal_stores(&a, receiver, std::slice::from_ref(&huge));
    }
    for (node, peak) in peaks {
        let rise = peak.rise_bytes();
        assert!(rise <= RISE_BYTES_MAX, "{} took {} MiB more than idle", node.name, rise >> 20);
    }
}

#[test]
fn a_path_is_substitutable_when_its_holder_is_known_only_through_a_third_machine() {
    let mesh = TestMesh::new();
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| mesh.node(name));
    TestMesh::introduce(&mut [&mut a, &mut b, &mut c]);
    a.config.connections_gossip = Some(1);
    c.config.connections_gossip = Some(1);
    a.start();
    b.learn_address("a", &a.p2p_address());
    b.start();
    b.wait_connected("a", true, SPREAD);
    c.learn_address("b", &b.p2p_address());
    c.start();
    c.wait_connected("b", true, SPREAD);
    // Only B was told A's address.
    assert!(
        [&a, &c].iter().all(|node| node.config.peers.iter().all(|peer| { !peer.addresses.contains(&a.p2p_address()) }))
    );
    c.wait_status("has heard of a", SPREAD, |status| status.summary_paths("a") == Some(0));

    let path = a.store.build_one("lib");
    let heard = c.wait_status("has heard of a's path", SPREAD, |status| status.summary_paths("a") == Some(1));
    assert!(!heard.connected("a") && !a.status().connected("c"), "C and A are not connected at this moment");
    c.realise(std::slice::from_ref(&path)).expect_success("nix-store --realise");
    assert_equal_stores(&a, &c, std::slice::from_ref(&path));
    assert_eq!(b.status().number("/bytes/out"), b.status().number("/bytes/out").min(64 << 10), "B relayed no NAR");
}

#[test]
fn references_of_a_path_are_looked_up_before_nix_asks() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let app = a.store.build_one("app");
    let lib = a.store.outputs().into_iter().find(|path| *path != app).unwrap();
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    assert_eq!(b.get_narinfo(&app).status, 200);
    b.wait_status("was told of both", SPREAD, |status| {
        status.peer("a").is_some_and(|peer| peer["hits"].as_u64() == Some(2))
    });
    a.kill();
    assert_eq!(b.get_narinfo(&lib).status, 200, "known although nobody is left to be asked");
}

/// Nix 2.8 copies one path after the other. The NARs that it will ask for next are read ahead, and none in vain.
#[test]
fn a_copy_finds_its_small_nars_read_ahead() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    // Later versions ask for sixteen at a time, and overtake the reading ahead.
    b.store.use_nix(NixVersion::V2_8);
    let paths = a.store.build("everything");
    let closure: Vec<_> = a.store.outputs().into_iter().collect();
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    b.copy(&paths).expect_success("nix copy");
    assert_equal_stores(&a, &b, &closure);
    let metrics = get(b.gateway(), "/metrics").unwrap().text();
    let count = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        line.unwrap_or_else(|| panic!("{name} is not counted"))
    };
    assert!(count("narmesh_nars_ahead_used_total") > closure.len() as u64 / 2, "{metrics}");
    assert_eq!(count("narmesh_nars_ahead_wasted_total"), 0, "{metrics}");
    assert_eq!(count("narmesh_nars_complete_total"), closure.len() as u64);
}

#[test]
fn a_substituted_path_is_offered_to_others() {
    let mesh = TestMesh::new();
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| mesh.node(name));
    let app = a.store.build_one("app");
    TestMesh::start_all(&mut [&mut a, &mut b, &mut c]);
    a.wait_all_advertised(&[&b]);
    b.realise(std::slice::from_ref(&app)).expect_success("on b");
    b.wait_advertised(2, &[&c]);
    a.terminate();
    c.realise(std::slice::from_ref(&app)).expect_success("on c, from b alone");
    assert_equal_stores(&a, &c, &b.store.outputs().into_iter().collect::<Vec<_>>());
}

#[test]
fn a_relocated_store_substitutes_into_another() {
    let scratch = scratch_dir("relocated");
    let store_dir = scratch.path().join("logical/store");
    let mesh = TestMesh::new();
    let mut a = mesh.node_with_store("a", NixStoreFixture::relocated_builder(&mesh.path().join("a"), &store_dir));
    let mut b = mesh.node_with_store("b", NixStoreFixture::relocated_client(&mesh.path().join("b"), &store_dir));
    let app = a.store.build_one("app");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    let info = get(b.gateway(), "/nix-cache-info").unwrap().text();
    assert!(info.lines().any(|line| line == format!("StoreDir: {}", store_dir.display())), "{info}");
    b.realise(std::slice::from_ref(&app)).expect_success("nix-store --realise");
    assert_equal_stores(&a, &b, &a.store.outputs().into_iter().collect::<Vec<_>>());
}

#[test]
fn a_peer_with_another_store_directory_is_not_used_and_status_names_it() {
    let scratch = scratch_dir("elsewhere");
    let store_dir = scratch.path().join("store");
    let mesh = TestMesh::new();
    let mut a = mesh.node_with_store("a", NixStoreFixture::relocated_builder(&mesh.path().join("a"), &store_dir));
    let mut b = mesh.node("b");
    let lib = a.store.build_one("lib");
    TestMesh::introduce(&mut [&mut a, &mut b]);
    a.start();
    b.learn_address("a", &a.p2p_address());
    b.start();
    b.wait_status("says whose store differs", SPREAD, |status| {
        status.peer("a").is_some_and(|peer| peer["store_dir_differs"] == store_dir.to_str().unwrap())
    });
    assert_eq!(b.get_narinfo(&lib).status, 404);
}

#[test]
fn a_daemon_that_may_not_write_to_nix_serves_its_store() {
    if !rustix::process::geteuid().is_root() {
        // Without root, daemons of these stories cannot run as another user.
        return;
    }
    const NOBODY: u32 = 65_534;
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    a.run_as(NOBODY);
    b.run_as(NOBODY);
    let app = a.store.build_one("app");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    // Built while the daemon runs: it reads the database while Nix writes to it.
    let fresh = a.store.build_fresh("while-serving");
    a.wait_all_advertised(&[&b]);
    b.realise(&[app, fresh]).expect_success("nix-store --realise");
    assert_equal_stores(&a, &b, &a.store.outputs().into_iter().collect::<Vec<_>>());
}

#[test]
fn the_gateway_answers_as_nix_expects_of_a_binary_cache() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let middle = a.store.build_one("middle");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    let gateway = b.gateway();

    let info = get(gateway, "/nix-cache-info").unwrap();
    assert_eq!(info.status, 200);
    assert!(
        info.text().contains("StoreDir: /nix/store\n") && info.text().contains("Priority: 30\n"),
        "{}",
        info.text()
    );
    let narinfo = b.wait_narinfo(&middle);
    assert!(narinfo.signatures.iter().all(|one| one.split(':').next() == a.builder_key().split(':').next()));
    let url = narinfo.url.as_str();

    let announced = head(gateway, url).unwrap();
    assert_eq!(announced.status, 200);
    assert_eq!(announced.header("content-length"), Some(narinfo.nar_size.to_string().as_str()));
    assert_eq!(announced.header("accept-ranges"), Some("bytes"));
    let whole = get(gateway, url).unwrap();
    assert!(whole.status == 200 && whole.complete && whole.header("content-encoding").is_none());
    assert_eq!(format!("sha256:{}", sha256_hex(&whole.body)), narinfo.nar_hash);
    let tail = request(gateway, "GET", url, &[("Range", "bytes=1000000-")]).unwrap().finish();
    assert_eq!(tail.status, 206);
    let range = format!("bytes 1000000-{}/{}", narinfo.nar_size - 1, narinfo.nar_size);
    assert_eq!(tail.header("content-range"), Some(range.as_str()));
    assert!(tail.body == whole.body[1_000_000..]);

    assert_eq!(get(gateway, "/healthz").unwrap().status, 200);
    let metrics = get(gateway, "/metrics").unwrap();
    assert!(
        metrics.status == 200 && metrics.text().lines().any(|line| line.starts_with("narmesh_")),
        "{}",
        metrics.text()
    );
    for refused in [("Host", "evil.example"), ("Origin", "http://evil.example")] {
        let answer = request(gateway, "GET", &format!("/{}.narinfo", &middle[11..43]), &[refused]).unwrap().finish();
        assert!(!(200..300).contains(&answer.status), "{refused:?} got {}", answer.status);
        assert!(answer.header("access-control-allow-origin").is_none());
    }
    for odd in
        ["/", "/x.narinfo", "/../etc/passwd", "/nar/x", "/nar/../../etc/passwd.nar", "/%00.narinfo", "/log/x.drv"]
    {
        assert_eq!(get(gateway, odd).unwrap().status, 404, "{odd}");
    }
}

#[test]
fn a_client_that_stops_reading_holds_nobody_up() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let huge = a.store.build_one("huge");
    let lib = a.store.build_one("lib");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    let narinfo = b.wait_narinfo(&huge);
    let peaks = [&a, &b].map(|node| (node.name.clone(), node.watch_memory()));
    let mut stuck: Vec<_> = (0..4).map(|_| request(b.gateway(), "GET", &narinfo.url, &[]).unwrap()).collect();
    for body in &mut stuck {
        assert_eq!(body.read_some(1 << 20).len(), 1 << 20);
    }
    b.realise(std::slice::from_ref(&lib)).expect_success("nix-store --realise beside four that do not read");
    let whole = get(b.gateway(), &narinfo.url).unwrap();
    assert_eq!(format!("sha256:{}", sha256_hex(&whole.body)), narinfo.nar_hash);
    // The buffers of all five bodies together are bounded by `limits.nar_buffer_bytes`, 128 MiB.
    for (name, peak) in peaks {
        assert!(peak.rise_bytes() <= (128 << 20) + RISE_BYTES_MAX, "{name} took {} MiB", peak.rise_bytes() >> 20);
    }
    // A client that reads again gets all of the body.
    let rest = stuck.pop().unwrap().finish();
    assert!(rest.complete, "a slow reader is not cut off within {:?}", promised(SPREAD));
}
