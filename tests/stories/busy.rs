//! A holder at its upload limit says *busy*, and a client that knows another holder does not wait for it.

use std::time::{Duration, Instant};

use narmesh_tests::{TestMesh, promised, request};

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
