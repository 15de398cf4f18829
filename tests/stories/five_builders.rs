//! Five builders, of whom some lie, are cut off or lose their key: nothing wrong enters the store, every build succeeds, and
//! the report says what happened. Attestations travel between the daemons by themselves.

use std::fs;
use std::time::Duration;

use narmesh_tests::{Rules, StorePlace, TestMesh, TestNode, get, promised, wait_for, wait_until};
use serde_json::Value;

/// After a start, another node reaches a verdict within this.
const HEARD: Duration = Duration::from_secs(5);
/// A reload is in force within this.
const RELOADED: Duration = Duration::from_secs(1);
const NAMES: [&str; 5] = ["one", "two", "three", "four", "five"];
/// The file in `lib` that liars have changed.
const FILE: &str = "lib/libmesh.txt";

/// Five machines that built `lib` and `nondet`, and a client that demands that three of them agree.
struct Five {
    builders: [TestNode; 5],
    client: TestNode,
    lib: String,
    nondet: String,
    /// The NarHash that an honest build of `lib` has.
    honest: String,
}

impl Five {
    /// The builders at the places `liars` have all changed `lib` in the same way and registered that as their build.
    fn new(mesh: &TestMesh, liars: &[usize]) -> Self {
        let mut builders = NAMES.map(|name| mesh.node(name));
        let (mut lib, mut nondet) = (String::new(), String::new());
        for node in &builders {
            lib = node.store.build_one("lib");
            nondet = node.store.build_one("nondet");
        }
        let honest = builders[0].store.row(&lib).unwrap().nar_hash;
        for &liar in liars {
            builders[liar].store.tamper(&lib, FILE);
            assert_ne!(builders[liar].store.row(&lib).unwrap().nar_hash, honest);
        }
        let mut client = mesh.node("client");
        TestMesh::introduce(&mut builders.iter_mut().chain([&mut client]).collect::<Vec<_>>());
        // No signature alone convinces the client: only agreement does.
        client.config.trusted_public_keys.clear();
        for node in &mut builders {
            // Builders take nothing on signatures alone either.
            node.config.trusted_public_keys.clear();
        }
        let mut five = Self { builders, client, lib, nondet, honest };
        let rules = five.rules(3);
        five.client.follow(&rules);
        five
    }

    fn rules(&self, k: usize) -> Rules {
        Rules::require(k, &self.builders.iter().collect::<Vec<_>>()).told_by_their_machines("client")
    }

    /// Starts the builders at these places, and then the client.
    fn start(&mut self, places: &[usize]) {
        let Self { builders, client, .. } = self;
        let chosen = builders.iter_mut().enumerate().filter(|(place, _)| places.contains(place)).map(|(_, node)| node);
        TestMesh::start_introduced(&mut chosen.chain([&mut *client]).collect::<Vec<_>>());
        client.trust_the_gateway_alone();
    }

    /// Waits until the client's verdict on `path` is `wanted`, with `attested` builders; returns its entry in the report.
    fn wait_verdict(&self, path: &str, wanted: &str, attested: usize) -> Value {
        wait_for(&format!("{path} is {wanted}"), promised(HEARD), || {
            let said = self.client.narmesh(&["quorum", "report", "--json", "--path", path]).stdout;
            let report: Value = serde_json::from_str(&said).ok()?;
            let found = report["paths"][0].clone();
            (found["verdict"] == *wanted && voters(&found).len() == attested).then_some(found)
        })
    }

    /// Builds both paths with real Nix: both builds succeed, and nothing wrong is in the store.
    fn build_both(&self) {
        for attribute in ["lib", "nondet"] {
            self.client.nix_build(attribute).expect_success(attribute);
        }
        assert_eq!(self.client.store.row(&self.lib).unwrap().nar_hash, self.honest, "not what the liars have");
        self.client.store.verify_contents();
    }

    /// Whether the client built `lib` itself.
    fn built_lib(&self) -> bool {
        self.client.store.row(&self.lib).unwrap().ultimate
    }
}

/// The names of all builders that attest any result for a path, as the report has them.
fn voters(path: &Value) -> Vec<String> {
    let fingerprints = path["fingerprints"].as_array().cloned().unwrap_or_default();
    let names = fingerprints.iter().flat_map(|it| it["builders"].as_array().cloned().unwrap_or_default());
    names.filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

#[test]
fn what_three_of_five_agree_on_is_substituted_and_the_rest_is_built() {
    let mesh = TestMesh::new();
    let mut five = Five::new(&mesh, &[]);
    five.start(&[0, 1, 2, 3, 4]);
    five.wait_verdict(&five.lib, "agreed", 5);
    five.wait_verdict(&five.nondet, "conflict", 5);
    five.build_both();
    assert!(!five.built_lib(), "substituted");
    assert!(five.client.store.row(&five.nondet).unwrap().ultimate, "five results of five builders: built here");
}

#[test]
fn one_hostile_builder_and_two_that_collude_change_nothing() {
    for liars in [&[4][..], &[3, 4]] {
        let mesh = TestMesh::new();
        let mut five = Five::new(&mesh, liars);
        five.start(&[0, 1, 2, 3, 4]);
        five.wait_verdict(&five.lib, "agreed", 5);
        five.build_both();
        assert!(!five.built_lib(), "three honest ones are enough, with {} against them", liars.len());
        let why = five.client.narmesh(&["quorum", "why", &five.lib]).expect_success("why of what is agreed");
        assert!(why.contains("disputed by") && liars.iter().all(|&liar| why.contains(NAMES[liar])), "{why}");
    }
}

#[test]
fn contents_that_nobody_agreed_on_never_arrive_under_an_agreed_narinfo() {
    for sound in [Some(2), None] {
        let mesh = TestMesh::new();
        let mut five = Five::new(&mesh, &[]);
        five.start(&[0, 1, 2, 3, 4]);
        five.wait_verdict(&five.lib, "agreed", 5);
        // All attested the same result, but their disks return something else by now.
        for (place, node) in five.builders.iter().enumerate() {
            if sound != Some(place) {
                node.store.corrupt_file(&five.lib, FILE);
            }
        }
        five.build_both();
        assert_eq!(five.built_lib(), sound.is_none(), "from the one that is sound, or built here");
    }
}

#[test]
fn two_colluding_builders_make_no_quorum_when_the_honest_are_cut_off() {
    let mesh = TestMesh::new();
    let mut five = Five::new(&mesh, &[3, 4]);
    five.start(&[3, 4]);
    let path = five.wait_verdict(&five.lib, "short", 2);
    assert_eq!(voters(&path), ["four", "five"], "{path:#}");
    let why = five.client.narmesh(&["quorum", "why", &five.lib]).stdout;
    assert!(["one", "two", "three"].iter().all(|name| why.contains(name)), "it says who is missing: {why}");
    five.build_both();
    assert!(five.built_lib());
}

#[test]
fn revoking_a_stolen_key_before_the_nar_is_fetched_undoes_its_quorum() {
    let mesh = TestMesh::new();
    // `three` plays the thief: with the key that the rules know, it signs what the real `three` never built.
    let mut five = Five::new(&mesh, &[2, 3, 4]);
    five.start(&[2, 3, 4]);
    five.wait_verdict(&five.lib, "agreed", 3);
    let narinfo = five.client.wait_narinfo(&five.lib);
    assert_ne!(narinfo.nar_hash, five.honest, "three keys are three keys");
    let mut look = five.client.store.nix("nix");
    let from = format!("http://{}", five.client.gateway());
    look.args(["--extra-experimental-features", "nix-command", "path-info", "--store", &from, &five.lib]);
    narmesh_tests::finish(&mut look).expect_success("its Nix remembers the narinfo for 30 days");

    let rules = five.rules(3).revoke(&five.builders[2]);
    five.client.follow(&rules);
    five.client.reload();
    let gateway = five.client.gateway();
    wait_until("the NAR is gone", promised(RELOADED), || get(gateway, &narinfo.url).unwrap().status == 404);
    five.build_both();
    assert!(five.built_lib());
    let why = five.client.narmesh(&["quorum", "why", &five.lib]).stdout;
    assert!(why.contains("its key is revoked"), "{why}");
}

#[test]
fn a_cache_that_signs_what_it_substituted_has_no_vote() {
    let mesh = TestMesh::new();
    let mut five = Five::new(&mesh, &[2, 3]);
    // As harmonia does: `five` has the path from `four` and signs it, as it signs all that it serves.
    let StorePlace::Root(four) = five.builders[3].store.place() else { panic!("a chroot store") };
    let Five { builders: [.., four_node, cache], lib, .. } = &mut five;
    cache.store.delete(std::slice::from_ref(lib));
    let mut copy = cache.store.nix("nix");
    let from = format!("local?root={}", four.display());
    let key = fs::canonicalize(cache.dir().join("builder.key")).unwrap();
    copy.args(["--extra-experimental-features", "nix-command", "copy", "--no-check-sigs", "--from", &from, lib]);
    narmesh_tests::finish(&mut copy).expect_success("nix copy");
    let mut sign = cache.store.nix("nix");
    sign.args(["--extra-experimental-features", "nix-command", "store", "sign", "-k"]).arg(key).arg(&*lib);
    narmesh_tests::finish(&mut sign).expect_success("nix store sign");
    let row = cache.store.row(lib).unwrap();
    assert!(!row.ultimate && row.nar_hash == four_node.store.row(lib).unwrap().nar_hash && !row.signatures.is_empty());

    five.start(&[2, 3, 4]);
    let path = five.wait_verdict(&five.lib, "short", 2);
    assert_eq!(voters(&path), ["three", "four"], "{path:#}");
    five.build_both();
    assert!(five.built_lib(), "two attested it, the third only served it");
}
