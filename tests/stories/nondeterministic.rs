//! One store path, two NarHashes: the client gets what its narinfo promised, from the holder that has it.

use narmesh_tests::{NarInfoText, TestMesh, TestNode, get, head, request, sha256_hex};

/// The bytes that every NAR begins with: `nix-archive-1`, `(` and `type`, each with its length before it.
const COMMON_BYTES: usize = 56;

struct Two {
    first: TestNode,
    second: TestNode,
    client: TestNode,
    path: String,
}

impl Two {
    fn new(mesh: &TestMesh, attribute: &str) -> Self {
        let [mut first, mut second, mut client] = ["first", "second", "client"].map(|name| mesh.node(name));
        let path = first.store.build_one(attribute);
        assert_eq!(second.store.build_one(attribute), path);
        let hash = |node: &TestNode| node.store.row(&path).unwrap().nar_hash;
        assert_ne!(hash(&first), hash(&second), "the fixture is not deterministic");
        TestMesh::start_all(&mut [&mut first, &mut second, &mut client]);
        first.wait_all_advertised(&[&client]);
        second.wait_all_advertised(&[&client]);
        Self { first, second, client, path }
    }

    /// The narinfo that each holder's own gateway gives: two different promises.
    fn promises(&self) -> [NarInfoText; 2] {
        [&self.first, &self.second].map(|node| node.wait_narinfo(&self.path))
    }
}

#[test]
fn each_promised_nar_comes_from_the_holder_that_promised_it() {
    for attribute in ["nondet", "nondetbig"] {
        let mesh = TestMesh::new();
        let two = Two::new(&mesh, attribute);
        for promise in two.promises() {
            // A client that got either narinfo up to 30 days ago asks for its URL at once.
            assert_eq!(head(two.client.gateway(), &promise.url).unwrap().status, 200);
            let body = get(two.client.gateway(), &promise.url).unwrap();
            assert!(body.status == 200 && body.complete, "{attribute}");
            assert_eq!(format!("sha256:{}", sha256_hex(&body.body)), promise.nar_hash, "{attribute}");
        }
        two.client.realise(std::slice::from_ref(&two.path)).expect_success("nix-store --realise");
        two.client.store.verify_contents();
    }
}

#[test]
fn a_holder_of_other_contents_is_no_replacement() {
    let mesh = TestMesh::new();
    let mut two = Two::new(&mesh, "nondetbig");
    let [promise, other] = two.promises();
    two.first.kill();
    let gone = get(two.client.gateway(), &promise.url).unwrap();
    // The other holder has other bytes: 404 at once, or after a second a body cut short within the bytes of all NARs.
    assert!(gone.status == 404 || (!gone.complete && gone.body.len() <= COMMON_BYTES), "{}", gone.status);
    // A client that resumes in the middle gets nothing from the other holder either.
    let resumed = request(two.client.gateway(), "GET", &promise.url, &[("Range", "bytes=5000000-")]).unwrap();
    assert_eq!(resumed.finish().status, 404);
    let body = get(two.client.gateway(), &other.url).unwrap();
    assert_eq!(format!("sha256:{}", sha256_hex(&body.body)), other.nar_hash);
    two.client.nix_build("nondetbig").expect_success("nix-build");
    two.client.store.verify_contents();
}
