//! A builder that does not attest: another tool signs what it builds, and the configuration says that it signs nothing else.

use std::fs;
use std::time::Duration;

use narmesh_tests::{Rules, TestMesh, TestNode, finish, get, promised, wait_until};
use serde_json::Value;

/// A new path in the store and a new configuration count within this.
const COUNTED: Duration = Duration::from_secs(2);

/// Signs a path as `secret-key-files` of a builder do, or harmonia: with a Nix signature, and without an attestation.
fn sign(node: &TestNode, path: &str) {
    sign_with(node, node, path);
}

/// The same with the key of another node.
pub(crate) fn sign_with(signer: &TestNode, node: &TestNode, path: &str) {
    let key = fs::canonicalize(signer.dir().join("builder.key")).unwrap();
    let mut sign = node.store.nix("nix");
    sign.args(["--extra-experimental-features", "nix-command", "store", "sign", "-k"]).arg(key).arg(path);
    finish(&mut sign).expect_success("nix store sign");
}

/// Takes the builder key out of the configuration: the node builds, and does not attest.
fn does_not_attest(node: &mut TestNode) {
    node.config.builder_key = false;
}

fn report(node: &TestNode, path: &str) -> Value {
    let said = node.narmesh(&["quorum", "report", "--json", "--path", path]).stdout;
    let report: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"));
    report["paths"][0].clone()
}

#[test]
fn a_bare_signature_counts_only_while_its_builder_is_said_to_sign_only_own_builds() {
    let mesh = TestMesh::new();
    let [mut one, mut two, mut client] = ["one", "two", "client"].map(|name| mesh.node(name));
    does_not_attest(&mut two);
    let mut paths = Vec::new();
    for builder in [&one, &two] {
        paths = ["lib", "rootfile", "files"].map(|name| builder.store.build(name).remove(0)).into();
    }
    paths.iter().for_each(|path| sign(&two, path));
    let [lib, plain, files] = paths.as_slice() else { panic!("three paths: {paths:?}") };
    TestMesh::introduce(&mut [&mut one, &mut two, &mut client]);
    client.config.trusted_public_keys.clear();
    let unflagged = Rules::require(2, &[&one, &two]).told_by_their_machines("client");
    let flagged = unflagged.clone().signs_only_own_builds(&two);
    client.follow(&unflagged);
    TestMesh::start_introduced(&mut [&mut one, &mut two, &mut client]);
    one.wait_all_advertised(&[&client]);
    two.wait_all_advertised(&[&client]);
    client.trust_the_gateway_alone();

    // A bare signature does not count, so only one of two builders is heard.
    wait_until("one is heard", promised(COUNTED), || report(&client, plain)["verdict"] == "short");
    client.nix_build("rootfile").expect_success("what falls short is built here");
    assert!(client.store.row(plain).unwrap().ultimate);
    assert_eq!(client.status().number("/quorum/bare_signatures"), 0, "nor is it kept");

    // Once the operator vouches that the builder signs only own builds, its signature counts.
    client.follow(&flagged);
    client.reload();
    client.wait_logged(&["configuration reloaded"]);
    client.realise(std::slice::from_ref(lib)).expect_success("one attests it, two signed it");
    let row = client.store.row(lib).unwrap();
    let by = |node: &TestNode| node.builder_key().split(':').next().unwrap().to_owned();
    assert!(!row.ultimate);
    for key in [by(&one), by(&two)] {
        assert!(row.signatures.iter().any(|it| it.starts_with(&format!("{key}:"))), "{key}: {:?}", row.signatures);
    }
    let path = report(&client, lib);
    assert_eq!(path["verdict"], "agreed", "{path:#}");
    assert_eq!(path["fingerprints"][0]["builders"], serde_json::json!(["one", "two"]), "{path:#}");
    assert_eq!(path["fingerprints"][0]["by_signature"], serde_json::json!(["two"]), "{path:#}");
    let why = client.narmesh(&["quorum", "why", lib]).expect_success("why of what is agreed");
    assert!(why.contains("two by a bare Nix signature, without a date: it counts because the configuration"), "{why}");
    assert!(client.status().number("/quorum/bare_signatures") > 0);
    let status = client.narmesh(&["status"]).expect_success("status");
    assert!(status.contains(" bare signature"), "{status}");
    let export = client.narmesh(&["quorum", "export", lib]).expect_success("export");
    assert!(!export.contains(&by(&two)) && export.contains(&by(&one)), "it is no attestation: {export}");

    // After a restart it still counts.
    client.kill();
    client.start();
    assert_eq!(report(&client, lib)["verdict"], "agreed");

    // Without the flag the signature stops counting at once, also one that is stored.
    let narinfo = client.wait_narinfo(files);
    assert_eq!(get(client.gateway(), &narinfo.url).unwrap().status, 200);
    client.follow(&unflagged);
    client.reload();
    wait_until("the NAR is gone", promised(COUNTED), || get(client.gateway(), &narinfo.url).unwrap().status == 404);
    client.nix_build("files").expect_success("built here");
    assert!(client.store.row(files).unwrap().ultimate);
    let why = client.narmesh(&["quorum", "why", lib]).stdout;
    assert!(why.contains("two says") && why.contains("a Nix signature without a date"), "{why}");
    assert!(why.contains("on the strength of a verdict that does not stand"), "{why}");
}

#[test]
fn a_signature_that_came_with_a_substitution_counts_and_a_forged_one_does_not() {
    let mesh = TestMesh::new();
    let [mut two, mut client] = ["two", "client"].map(|name| mesh.node(name));
    does_not_attest(&mut two);
    let [lib, multi, files] = ["lib", "multi", "files"].map(|name| two.store.build(name).remove(0));
    [&lib, &multi, &files].iter().for_each(|path| sign(&two, path));
    client.follow(&Rules::new("observe", 1, &[&two]).signs_only_own_builds(&two));
    client.start();
    // The path comes from that builder's cache, not through narmesh, with its signature.
    client.store.take_from(&two.store, &lib);
    wait_until("the signature is found", promised(COUNTED), || report(&client, &lib)["verdict"] == "agreed");
    assert_eq!(report(&client, &lib)["fingerprints"][0]["by_signature"], serde_json::json!(["two"]));
    assert_eq!(report(&client, &lib)["held"], "agreed");

    // A path with that builder's signature and with contents that it did not sign.
    two.store.tamper(&multi, "docref");
    client.store.take_from(&two.store, &multi);
    client.store.take_from(&two.store, &files);
    wait_until("what came after it counts", promised(COUNTED), || report(&client, &files)["verdict"] == "agreed");
    assert_eq!(report(&client, &multi)["verdict"], "none");
    assert_eq!(client.status().number("/quorum/bare_signatures"), 2);
}
