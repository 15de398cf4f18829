//! A holder at its upload limit says *busy*, and nobody waits for it who can go elsewhere.

use std::time::{Duration, Instant};

use narmesh_tests::{TestMesh, promised, request};

/// What the limited holder sends in all, bytes per second: one large NAR at a time.
const LIMIT_BYTES_S: u32 = 128 << 10;
/// Its burst, and what waits in sockets and windows on the way.
const ON_THE_WAY_BYTES: u64 = 2 << 20;
/// The summary of a new peer is there after this.
const SPREAD: Duration = Duration::from_secs(2);

#[test]
fn at_its_upload_limit_a_holder_keeps_to_it_and_the_next_is_asked_at_once() {
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
