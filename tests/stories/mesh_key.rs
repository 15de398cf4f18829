//! A mesh key that is replaced, because somebody else may have it.

use std::fs;
use std::path::{Path, PathBuf};

use narmesh_tests::{TestMesh, TestNode, promised, wait_until};

use crate::membership::{HEARD, founder, invite, join, list, machine, names, wait_met};

fn mesh_key(node: &TestNode) -> String {
    list(node)["mesh"].as_str().expect("a key").to_owned()
}

fn key_file(node: &TestNode) -> PathBuf {
    node.dir().join("state/mesh.key")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn rekey(node: &TestNode, arguments: &[&str]) -> String {
    node.narmesh(&[&["mesh", "rekey"], arguments].concat()).expect_success("mesh rekey");
    mesh_key(node)
}

fn wait_key(node: &TestNode, key: &str) {
    wait_until(&format!("{} follows the new mesh key", node.name), promised(HEARD), || mesh_key(node) == key);
}

#[test]
fn a_stolen_mesh_key_decides_nothing_after_a_rekey_not_even_for_who_was_away() {
    let mesh = TestMesh::new();
    let founder = founder(&mesh);
    let old = mesh_key(&founder);
    let [mut stolen, mut second, mut away] = ["stolen", "second", "away"].map(|name| machine(&mesh, name));
    for node in [&mut stolen, &mut second, &mut away] {
        node.start();
        join(node, &invite(&founder, &["--role", "builder"]));
        wait_met(&founder, node);
    }
    let open = invite(&founder, &["--uses", "9"]);
    let [taken, bundle] = ["taken", "bundle"].map(|name| mesh.path().join(name));
    for admin in [&stolen, &second] {
        fs::copy(key_file(&founder), key_file(admin)).unwrap();
    }
    stolen.kill();
    away.kill();
    // The thief signs as well, and more often than the owner.
    for [from, to] in [["stolen", "a"], ["a", "b"], ["b", "c"], ["c", "stolen"]] {
        stolen.narmesh(&["mesh", "rename", from, to]).expect_success("rename by the thief");
    }
    stolen.narmesh(&["mesh", "export", text(&taken)]).expect_success("mesh export");

    let new = rekey(&founder, &["--remove", "stolen"]);
    assert_ne!(new, old);
    wait_key(&second, &new);
    let left = ["away", "founder", "second"];
    assert_eq!(names(&second), left);
    assert!(!fs::read_to_string(second.config_file()).unwrap().contains(&new), "the daemon changes no configuration");
    let status = second.status();
    assert_eq!((status.text("/mesh/key"), status.text("/mesh/contradicting_key")), (Some(new.as_str()), None));
    // What the thief signs counts nowhere, whatever its version is and whoever brings it.
    for node in [&founder, &second] {
        let refused = node.narmesh(&["mesh", "import", text(&taken)]).expect_failure("what the thief signed");
        assert!(refused.contains("not newer") || refused.contains("roster of another mesh"), "{refused}");
    }
    stolen.start_as_written(None);
    away.start_as_written(None);
    wait_key(&away, &new);
    wait_met(&away, &founder);
    wait_met(&away, &second);
    for node in [&founder, &second, &away] {
        assert_eq!(names(node), left);
        assert!(node.status().peer("stolen").is_none());
    }
    assert_eq!(mesh_key(&stolen), old, "it was told nothing");

    // Invitations of the old key have ended; the new one admits, also by files.
    let late = machine(&mesh, "late");
    assert!(late.narmesh(&["join", &open]).expect_failure("join").contains("takes nobody now"));
    join(&late, &invite(&founder, &["--name", "late"]));
    assert_eq!(mesh_key(&late), new);
    let (mut far, request) = (machine(&mesh, "far"), mesh.path().join("request"));
    far.narmesh(&["join", "--request", text(&request)]).expect_success("join --request");
    founder.narmesh(&["mesh", "admit", text(&request)]).expect_success("mesh admit");
    founder.narmesh(&["mesh", "export", text(&bundle)]).expect_success("mesh export");
    // A configuration that still names the old key leads to the new one.
    (far.config.mesh_key, far.config.roster_file) = (Some(old), Some(bundle));
    far.start();
    wait_met(&founder, &far);
    assert_eq!(mesh_key(&far), new);
    // That is told until the file names the new one, with the command that writes it there.
    let told =
        |node: &TestNode| node.narmesh(&["check-config"]).expect_success("check-config").contains("was replaced by");
    assert!(told(&far) && !told(&founder));
    far.narmesh(&["mesh", "rekey", "--accept", &new]).expect_success("the key that counts");
    assert!(fs::read_to_string(far.config_file()).unwrap().contains(&new) && !told(&far));

    // Who had the old key is told what to do, and then signs again.
    let refused = second.narmesh(&["mesh", "rename", "far", "near"]).expect_failure("the old key");
    assert!(refused.contains("was replaced") && refused.contains("Copy the new one"), "{refused}");
    fs::copy(key_file(&founder), key_file(&second)).unwrap();
    second.narmesh(&["mesh", "rename", "far", "near"]).expect_success("the new key");
    wait_until("the rename is heard", promised(HEARD), || names(&founder).contains(&"near".to_owned()));
}

#[test]
fn two_keys_in_the_place_of_one_are_shown_and_a_person_decides() {
    let mesh = TestMesh::new();
    let founder = founder(&mesh);
    let [mut member, mut thief] = ["member", "thief"].map(|name| machine(&mesh, name));
    for node in [&mut member, &mut thief] {
        node.start();
        join(node, &invite(&founder, &[]));
        wait_met(&founder, node);
    }
    wait_met(&member, &thief);
    fs::copy(key_file(&founder), key_file(&thief)).unwrap();
    thief.kill();
    let ours = rekey(&founder, &[]);
    wait_key(&member, &ours);
    let theirs = rekey(&thief, &[]);
    thief.start_as_written(None);
    for (node, key, other) in [(&member, &ours, &theirs), (&founder, &ours, &theirs), (&thief, &theirs, &ours)] {
        node.wait_status("shows the other key", promised(HEARD), |status| {
            status.text("/mesh/contradicting_key") == Some(other)
        });
        assert_eq!(mesh_key(node), *key, "the first one that was followed stays");
        let shown = node.narmesh(&["mesh", "list"]).expect_success("mesh list");
        assert!(shown.contains(&format!("CONFLICT: {other} IS SAID TO BE THE MESH KEY AS WELL")), "{shown}");
    }
    // Only who accepts the other key by hand changes over to it.
    let unknown = "home:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
    let refused = thief.narmesh(&["mesh", "rekey", "--accept", unknown]).expect_failure("a key nobody named");
    assert!(
        refused.contains("no roster of the mesh key") && refused.contains("mesh import FILE --accept"),
        "{refused}"
    );
    thief.narmesh(&["mesh", "rekey", "--accept", &ours]).expect_success("mesh rekey --accept");
    assert_eq!(mesh_key(&thief), ours);
    founder.narmesh(&["mesh", "rename", "thief", "friend"]).expect_success("mesh rename");
    wait_until("it hears what the key signs", promised(HEARD), || names(&thief).contains(&"friend".to_owned()));
    assert_eq!(list(&thief)["contradicting_key"], serde_json::Value::Null);
    // A roster that is brought by hand needs the key named as well.
    let bundle = mesh.path().join("bundle");
    founder.narmesh(&["mesh", "export", text(&bundle)]).expect_success("mesh export");
    let other = machine(&mesh, "other");
    let refused = other.narmesh(&["mesh", "import", text(&bundle)]).expect_failure("a machine of no mesh");
    let bytes = ours.split_once(':').expect("name and key").1;
    assert!(refused.contains(&format!("mesh import FILE --accept mesh:{bytes}")), "the key is named: {refused}");
    let refused = member.narmesh(&["mesh", "import", text(&bundle), "--accept", &theirs]).expect_failure("another key");
    assert!(refused.contains("roster of another mesh"), "{refused}");
    member.narmesh(&["mesh", "rekey", "--accept", &ours]).expect_success("the key that counts");
    assert_eq!(list(&member)["contradicting_key"], serde_json::Value::Null, "decided");
}
