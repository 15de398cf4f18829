//! What a remote builder built and Nix copied back without a signature: who may have it, and on whose word.

use std::time::Duration;

use narmesh_tests::{Rules, TestMesh, TestNode, finish, promised, wait_for, wait_until};
use serde_json::Value;

/// A path is promised to be offered this soon after a builder's attestation of it came.
const OFFERED: Duration = Duration::from_secs(2);

/// The keys by whose attestations `path` is advertised, or why it is withheld.
fn look(node: &TestNode, path: &str) -> Result<Vec<String>, String> {
    let said = node.narmesh(&["advertised", "--json"]).stdout;
    let told: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"));
    let find = |list: &str| told[list].as_array().unwrap().iter().find(|told| told["path"] == *path).cloned();
    match find("paths") {
        Some(told) => {
            assert_eq!(told["attested"], true, "{told}");
            Ok(serde_json::from_value(told["signed_by"].clone()).unwrap())
        }
        None => Err(find("withheld").map_or_else(String::new, |told| told["reason"].as_str().unwrap().to_owned())),
    }
}

#[test]
fn a_remote_build_is_offered_on_the_word_of_its_builder_and_not_without() {
    let mesh = TestMesh::new();
    let [mut builder, mut client, mut third] = ["builder", "client", "third"].map(|name| mesh.node(name));
    let app = client.store.build_one_on(&builder.store, "app");
    let outputs = client.store.outputs();
    let lib = outputs.iter().find(|path| path.contains("mesh-lib")).unwrap();
    let row = client.store.row(&app).unwrap();
    assert!(!row.ultimate && row.signatures.is_empty(), "Nix copied it back without a signature");
    assert!(builder.store.row(&app).unwrap().ultimate, "it was built there");
    // The same path with other contents than what is here: nobody's word is about this one.
    let nondet = client.store.build_one_on(&builder.store, "nondet");
    let mut again = builder.store.nix("nix-store");
    finish(again.args(["--delete", "--ignore-liveness", &nondet])).expect_success("nix-store --delete");
    assert_eq!(builder.store.build_one("nondet"), nondet);

    TestMesh::introduce(&mut [&mut builder, &mut client, &mut third]);
    builder.start();
    let attestations = builder.attested(&app);
    builder.terminate();
    client.follow(&Rules::new("off", 1, &[&builder]));
    client.start();
    third.learn_address("client", &client.p2p_address());
    third.start();
    TestMesh::wait_met(&[&mut client, &mut third]);
    wait_until("the client has looked at its store", promised(OFFERED), || {
        look(&client, &app).is_err_and(|why| why.contains("no [[builder]] attests it as it is here"))
    });
    assert_eq!(third.get_narinfo(&app).status, 404);

    // The attestation comes later than the path.
    client.import(&attestations);
    let name = builder.builder_key().split(':').next().unwrap().to_owned();
    for path in [&app, lib] {
        let signers = wait_for("it is offered", promised(OFFERED), || look(&client, path).ok());
        assert_eq!(signers, std::slice::from_ref(&name), "{path}");
    }
    let said = client.narmesh(&["advertised"]).expect_success("advertised");
    assert!(said.lines().any(|line| line.contains(&app) && line.ends_with(&format!("attested by {name}"))), "{said}");
    let narinfo = third.wait_narinfo(&app);
    assert!(narinfo.signatures.iter().any(|signature| signature.starts_with(&format!("{name}:"))), "{narinfo:?}");
    third.realise(std::slice::from_ref(&app)).expect_success("from the client, by the builder's signature");
    let why = look(&client, &nondet).unwrap_err();
    assert!(why.contains("no [[builder]] attests it as it is here"), "its builder attests other contents: {why}");

    // A start finds the attestations in the file.
    client.kill();
    client.start();
    wait_until("it is offered again", promised(OFFERED), || look(&client, &app).is_ok());

    client.follow(&Rules::new("off", 1, &[&builder]).revoke(&builder));
    client.reload();
    wait_until("a revoked key vouches for nothing", promised(OFFERED), || look(&client, &app).is_err());
}
