//! A holder at its upload limit says *busy*, and a client that knows another holder does not wait for it.

use std::thread;
use std::time::{Duration, Instant};

use narmesh_tests::{Status, TestMesh, TestNode, fetch_all, missing, promised, request};

/// Upload limit of the limited holder, bytes per second: enough for one large NAR at a time.
const LIMIT_BYTES_S: u32 = 128 << 10;
/// The holder's burst, and what is buffered in sockets and windows on the way.
const ON_THE_WAY_BYTES: u64 = 2 << 20;
/// The summary of a new peer is promised to arrive within this.
const SPREAD: Duration = Duration::from_secs(2);

#[test]
fn a_holder_keeps_its_upload_limit_and_another_holder_is_asked_at_once() {
    let mesh = TestMesh::new();
    let [mut limited, mut other, mut client] = ["limited", "other", "client"].map(|name| mesh.node(name));
    limited.config.upload_bytes_per_s = Some(LIMIT_BYTES_S);
    for node in [&mut limited, &mut other, &mut client] {
        node.config.compress = "never";
    }
    let path = limited.store.build_one("huge");
    assert_eq!(other.store.build_one("huge"), path);
    TestMesh::introduce(&mut [&mut limited, &mut other, &mut client]);
    limited.start();
    client.learn_address("limited", &limited.p2p_address());
    client.start();
    limited.wait_all_advertised(&[&client]);
    let url = client.wait_narinfo(&path).url;

    let since = Instant::now();
    let mut slow = request(client.gateway(), "GET", &url, &[]).unwrap();
    let got = slow.read_some(1 << 20).len() as u64;
    let allowed = ON_THE_WAY_BYTES + u64::from(LIMIT_BYTES_S) * (since.elapsed().as_secs() + 1);
    assert!(got <= allowed, "{got} bytes in {:?}", since.elapsed());
    assert!(since.elapsed() > Duration::from_secs(3), "1 MiB at 128 KiB/s with a burst of one second");

    other.learn_address("client", &client.p2p_address());
    other.start();
    client.wait_status("has heard of the other", promised(SPREAD), |status| status.summary_paths("other") == Some(1));
    let since = Instant::now();
    let mut quick = request(client.gateway(), "GET", &url, &[]).unwrap();
    let got = quick.read_some(16 << 20).len();
    assert_eq!(got, 16 << 20);
    // At the limit this takes two minutes; waiting for the busy holder would take 20 s.
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
}

#[test]
fn a_peers_own_upload_limit_holds_for_it_alone_and_all_nars_arrive_at_that_rate() {
    const NARS: usize = 12;
    const NAR_BYTES: u64 = 150_000;
    let mesh = TestMesh::new();
    let [mut holder, mut limited, mut other] = ["holder", "limited", "other"].map(|name| mesh.node(name));
    for node in [&mut holder, &mut limited, &mut other] {
        node.config.compress = "never";
    }
    let paths = holder.store.hold_noise(2 * NARS, NAR_BYTES, 1);
    let (first, second) = paths.split_at(NARS);
    TestMesh::introduce(&mut [&mut holder, &mut limited]);
    TestMesh::introduce(&mut [&mut holder, &mut other]);
    limit(&mut holder, Some(LIMIT_BYTES_S));
    holder.start();
    for client in [&mut limited, &mut other] {
        client.learn_address("holder", &holder.p2p_address());
        client.start();
    }
    holder.wait_all_advertised(&[&limited, &other]);

    // Both at once: the limit of the one takes nothing from the other.
    let took = |client: &TestNode, paths: &[String]| {
        let since = Instant::now();
        assert_eq!(missing(&fetch_all(client, paths, 16)), 0, "a limit means waiting, not gone");
        since.elapsed()
    };
    let (slow, quick) = thread::scope(|scope| {
        let slow = scope.spawn(|| took(&limited, first));
        let quick = took(&other, first);
        (slow.join().unwrap(), quick)
    });
    let at_the_limit = Duration::from_secs(NARS as u64 * NAR_BYTES / u64::from(LIMIT_BYTES_S));
    // A burst of a second comes first.
    assert!(slow >= at_the_limit - Duration::from_secs(2), "{slow:?} instead of {at_the_limit:?}");
    assert!(quick < at_the_limit / 3, "{quick:?} at the other, {slow:?} at the limited one");

    // Both clients have none of these.
    limit(&mut holder, None);
    let loaded = |status: &Status| status.number("/config/loaded_unix_s");
    let before = loaded(&holder.status());
    holder.reload();
    holder.wait_status("has reloaded", promised(SPREAD), |status| loaded(status) > before);
    let free = took(&limited, second);
    assert!(free < at_the_limit / 3, "{free:?} without the limit");
}

/// Sets what the holder sends to the peer named "limited".
fn limit(holder: &mut TestNode, bytes_per_s: Option<u32>) {
    let peer = holder.config.peers.iter_mut().find(|peer| peer.name == "limited");
    peer.expect("it was introduced").upload_bytes_per_s = bytes_per_s;
}
