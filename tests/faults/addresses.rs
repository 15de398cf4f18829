//! Peers that vanish and return elsewhere.

use std::time::Duration;

use narmesh_tests::TestMesh;

/// A peer that returned at another address is promised to be connected within this: it dials us.
const FOUND: Duration = Duration::from_secs(5);

#[test]
fn a_peer_that_returns_at_another_address_is_found() {
    let mesh = TestMesh::new();
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| mesh.node(name));
    let app = c.store.build_one("app");
    // c knows the addresses of a and b; they know only the address that c advertises.
    TestMesh::start_all(&mut [&mut a, &mut b, &mut c]);
    c.wait_all_advertised(&[&a, &b]);
    for kind in ["killed", "said goodbye"] {
        let before = c.p2p_address();
        if kind == "killed" {
            c.kill();
        } else {
            c.terminate();
        }
        for node in [&a, &b] {
            node.wait_connected("c", false, FOUND);
            // While it is away, a lookup of its path is answered in time: with a remembered answer, or 404.
            let answer = node.get_narinfo(&app);
            assert!(matches!(answer.status, 200 | 404), "{kind}: {}", answer.status);
        }
        c.move_away();
        c.start();
        assert_ne!(c.p2p_address(), before, "another port");
        for node in [&a, &b] {
            node.wait_connected("c", true, FOUND);
            node.wait_status("has c's new address", FOUND, |status| {
                let peer = status.peer("c").unwrap();
                peer["addresses"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|known| known.as_str().unwrap().starts_with(&c.p2p_address()))
            });
        }
        c.wait_all_advertised(&[&a, &b]);
        let fresh = c.store.build_fresh(kind.split(' ').next().unwrap());
        c.wait_all_advertised(&[&a, &b]);
        assert_eq!(a.wait_narinfo(&fresh).nar_hash, c.store.row(&fresh).unwrap().nar_hash);
    }
    b.realise(&[app]).expect_success("from the peer that moved twice");
}
