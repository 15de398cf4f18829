//! A path arrives with everything that it refers to, and with nothing else.

use narmesh_tests::{TestMesh, finish, wait_until};
use std::fs;
use std::time::Duration;

/// The output refers to a text and a file that were added to the store at evaluation: no derivation makes them, and no other
/// cache has them.
#[test]
fn an_output_arrives_with_the_sources_that_it_refers_to() {
    let mesh = TestMesh::new();
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| mesh.node(name));
    let output = a.store.build_one("withsources");
    let sources: Vec<_> = a.store.row(&output).unwrap().references.into_iter().collect();
    assert_eq!(sources.len(), 2, "{sources:?}");
    let alone = mesh.path().join("alone");
    fs::write(&alone, "nobody's business").unwrap();
    let alone = finish(a.store.nix("nix-store").arg("--add").arg(&alone)).expect_success("nix-store --add");
    TestMesh::start_all(&mut [&mut a, &mut b, &mut c]);
    // The output and its two sources.
    for receiver in [&b, &c] {
        receiver.wait_status("has heard of them", Duration::from_secs(10), |it| it.summary_paths("a") == Some(3));
    }
    b.realise(std::slice::from_ref(&output)).expect_success("nix-store --realise of a path by its name");
    c.copy(std::slice::from_ref(&output)).expect_success("nix copy of it");
    for receiver in [&b, &c] {
        receiver.store.verify_contents();
        for path in sources.iter().chain([&output]) {
            assert!(receiver.store.has(path), "{path} did not arrive");
        }
        assert_eq!(receiver.get_narinfo(alone.trim()).status, 404);
    }
    // A node that got all three offers all three.
    wait_until("all three are advertised by who got them", Duration::from_secs(10), || {
        b.status().number("/own/paths") >= 3
    });
}
