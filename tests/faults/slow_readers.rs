//! Many large NARs at once, for clients that do not read them.

use std::time::Duration;

use narmesh_tests::{HttpBody, TestMesh, TestNode, get, head, promised, request};

/// As in the default of `limits.nar_buffer_bytes`.
const BUDGET_BYTES: u64 = 128 << 20;
/// Sockets, connections and streams of the clients, and what the allocator keeps.
const IDLE_BYTES: u64 = 64 << 20;
/// As many as Nix opens by default (`http-connections`).
const CLIENTS: usize = 25;
/// Of NARs that are held whole: several times the budget.
const SMALL_CLIENTS: usize = 120;
/// What the connection with the holder may keep in its windows (threat model, "Memory of a connection").
const CONNECTION_BYTES: u64 = 50 << 20;
/// As many as the gateway lets one local user have.
const OWN_CLIENTS: usize = 250;
/// What clients that hung up held is free again within this.
const FREED: Duration = Duration::from_secs(20);

/// Starts `count` downloads and reads the first megabyte of each; those that have as much.
fn stuck(node: &TestNode, url: &str, count: usize) -> Vec<HttpBody> {
    let gateway = node.gateway();
    let asked: Vec<_> = (0..count)
        .map(|_| {
            let url = url.to_owned();
            std::thread::spawn(move || {
                let mut body = request(gateway, "GET", &url, &[]).expect("an answer");
                assert!(matches!(body.status, 200 | 404), "{}", body.status);
                // A client that waits for memory is kept waiting with the first bytes; there may be none for it in the end.
                let begun = if body.status == 200 { body.read_some(1 << 20).len() } else { 0 };
                assert!(begun == 1 << 20 || begun <= 56, "{begun} bytes: it begins, or is told as gone");
                (begun == 1 << 20).then_some(body)
            })
        })
        .collect();
    asked.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn twenty_five_gigabytes_for_clients_that_stop_reading() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let giant = a.store.build_one("giant");
    let [lib, small] = ["lib", "small"].map(|attribute| a.store.build_one(attribute));
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    let narinfo = b.wait_narinfo(&giant);
    assert!(narinfo.nar_size > 1 << 30);
    assert_eq!(head(b.gateway(), &narinfo.url).unwrap().status, 200);
    for node in [&a, &b] {
        let peaks = [&a, &b].map(|node| (node.name.clone(), node.watch_memory()));
        let bodies = stuck(node, &narinfo.url, CLIENTS);
        println!("{}: {} of {CLIENTS} began", node.name, bodies.len());
        assert!(!bodies.is_empty());
        // The others go on: narinfos within their deadline, a NAR, a build.
        let prober = node.probe(&[&lib, &small]);
        let other = get(node.gateway(), &node.wait_narinfo(&small).url).unwrap();
        assert!(other.status == 200 && other.complete, "a NAR beside clients that do not read: {}", other.status);
        if node.name == "b" {
            node.realise(&[lib.clone(), small.clone()]).expect_success("beside clients that do not read");
        }
        prober.finish().assert_fit_for_nix(node.narinfo_slowest_max());
        for (name, peak) in peaks {
            println!("{}: {name} rose by {} MiB", node.name, peak.rise_bytes() >> 20);
            assert!(peak.rise_bytes() <= BUDGET_BYTES + IDLE_BYTES, "{name} took {} MiB", peak.rise_bytes() >> 20);
        }
        // One of them reads again, and gets all of it; the others give their memory back.
        let mut bodies = bodies.into_iter();
        let mut patient = bodies.next().unwrap();
        drop(bodies);
        let mut left = narinfo.nar_size - (1 << 20);
        while left > 0 {
            let piece = patient.read_some(16 << 20);
            assert!(!piece.is_empty(), "cut {left} bytes before the end");
            assert!(piece.iter().skip(4 << 10).rev().skip(4 << 10).all(|byte| *byte == 0), "all zeros but the ends");
            left -= piece.len() as u64;
        }
        let again = promised(FREED);
        narmesh_tests::wait_until("the memory is free again", again, || stuck(node, &narinfo.url, 4).len() == 4);
    }
}

/// A NAR of up to 8 MiB is held whole until its client has read it: more of them than fit into the budget.
#[test]
fn many_small_nars_for_clients_that_stop_reading() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let [lib, small] = ["lib", "small"].map(|attribute| a.store.build_one(attribute));
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    let narinfo = b.wait_narinfo(&small);
    let peak = b.watch_memory();
    let bodies = stuck(&b, &narinfo.url, SMALL_CLIENTS);
    println!("{} of {SMALL_CLIENTS} began, b rose by {} MiB", bodies.len(), peak.rise_bytes() >> 20);
    assert!(
        peak.rise_bytes() <= BUDGET_BYTES + IDLE_BYTES + CONNECTION_BYTES,
        "b took {} MiB",
        peak.rise_bytes() >> 20
    );
    let prober = b.probe(&[&lib]);
    assert_eq!(b.wait_narinfo(&lib).nar_hash, a.store.row(&lib).unwrap().nar_hash);
    let (mut whole, mut resumed) = (0, 0);
    for body in bodies {
        let read = (1 << 20) + body.finish().body.len() as u64;
        if read == narinfo.nar_size {
            whole += 1;
            continue;
        }
        // While others waited for memory, it was closed for reading nothing.
        let range = format!("bytes={read}-");
        let rest = request(b.gateway(), "GET", &narinfo.url, &[("Range", &range)]).unwrap().finish();
        assert!(rest.status == 206 && rest.complete, "who reads again gets the rest: {}", rest.status);
        assert_eq!(read + rest.body.len() as u64, narinfo.nar_size);
        resumed += 1;
    }
    println!("{whole} went on, {resumed} resumed");
    b.realise(&[lib, small]).expect_success("once there is memory");
    prober.finish().assert_fit_for_nix(b.narinfo_slowest_max());
}

/// NARs of the own store, for as many clients as one user may have: each holds two buffers at most, fewer bytes while others hold all the
/// memory, and no thread.
#[test]
fn clients_that_stop_reading_the_own_store_hold_no_thread_and_little_memory() {
    let mesh = TestMesh::new();
    let mut a = mesh.node("a");
    let giant = a.store.build_one("giant");
    let small = a.store.build_one("small");
    TestMesh::start_all(&mut [&mut a]);
    let narinfo = a.wait_narinfo(&giant);
    let peak = a.watch_memory();
    let threads = a.threads();
    let bodies = stuck(&a, &narinfo.url, OWN_CLIENTS);
    assert_eq!(bodies.len(), OWN_CLIENTS, "whoever else reads, each begins");
    let other = get(a.gateway(), &a.wait_narinfo(&small).url).unwrap();
    assert!(other.status == 200 && other.complete, "a NAR beside clients that do not read: {}", other.status);
    let rise = peak.rise_bytes() >> 20;
    println!("{OWN_CLIENTS} clients: {rise} MiB, {} threads more", a.threads().saturating_sub(threads));
    // Those that read for a moment end 10 s after they were last used.
    narmesh_tests::wait_until("no thread waits for a client", promised(FREED), || a.threads() <= threads + 8);
    assert!(peak.rise_bytes() <= BUDGET_BYTES / 8 + IDLE_BYTES, "{rise} MiB");
    let mut patient = bodies.into_iter().next_back().unwrap();
    let mut left = narinfo.nar_size - (1 << 20);
    while left > 0 {
        let piece = patient.read_some(16 << 20);
        assert!(!piece.is_empty(), "cut {left} bytes before the end");
        left -= piece.len() as u64;
    }
}
