//! SIGHUP: the allowlist changes while the daemon runs.

use std::fs;
use std::time::Duration;

use narmesh_tests::TestMesh;
use rustix::process::Signal;

/// A reload is promised to be in force within this.
const RELOADED: Duration = Duration::from_secs(1);

/// A new peer is promised to be connected within this.
const MET: Duration = Duration::from_secs(5);

#[test]
fn a_peer_added_is_dialled_and_a_peer_removed_is_forgotten() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let lib = a.store.build_one("lib");
    a.allow(&b.card());
    a.start();
    b.start();
    assert!(b.status().peer("a").is_none());
    assert_eq!(b.get_narinfo(&lib).status, 404);

    b.allow(&a.card());
    b.learn_address("a", &a.p2p_address());
    b.reload();
    b.wait_connected("a", true, MET);
    assert_eq!(b.wait_narinfo(&lib).nar_hash, a.store.row(&lib).unwrap().nar_hash);

    b.disallow("a");
    b.reload();
    b.wait_status("has forgotten a", RELOADED, |status| status.peer("a").is_none());
    a.wait_connected("b", false, RELOADED);
    assert_eq!(b.get_narinfo(&lib).status, 404, "its column and what was remembered of it went with it");

    b.allow(&a.card());
    b.learn_address("a", &a.p2p_address());
    b.reload();
    assert_eq!(b.wait_narinfo(&lib).nar_hash, a.store.row(&lib).unwrap().nar_hash);
}

#[test]
fn a_peer_removed_cannot_come_back_by_itself() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let lib = a.store.build_one("lib");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    a.disallow("b");
    a.reload();
    // B goes on dialling A, and is refused each time.
    b.wait_connected("a", false, MET);
    a.wait_status("does not know b", RELOADED, |status| status.peer("b").is_none());
    b.wait_status("says why", MET, |status| status.peer("a").is_some_and(|peer| peer["why"].is_string()));
    assert_eq!(b.get_narinfo(&lib).status, 404, "A, its only holder, does not answer B");
    b.nix_build("lib").expect_success("built instead");
}

#[test]
fn a_bad_file_keeps_the_running_settings() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let lib = a.store.build_one("lib");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    let good = fs::read_to_string(b.config_file()).unwrap();
    let key = a.builder_key();
    let key_name = key.split(':').next().unwrap();
    let two_of_a_name = good.replace(&format!("\"{key}\""), &format!("\"{key}\", \"{key_name}:{}=\"", "A".repeat(43)));
    assert_ne!(good, two_of_a_name);
    let cases = [
        ("not TOML", "this is = not [ TOML".to_owned()),
        ("an unknown key", format!("surprise = 1\n{good}")),
        ("a gateway for all", good.replace("127.0.0.1:0", "0.0.0.0:7281")),
        ("two keys of one name", two_of_a_name),
        ("no such peer id", good.replace(&a.card().peer_id, "12D3KooWnonsense")),
    ];
    for (what, bad) in cases {
        assert_ne!(bad, good, "{what}");
        b.clear_log();
        fs::write(b.config_file(), bad).unwrap();
        b.narmesh(&["reload"]).expect_failure(what);
        b.clear_log();
        b.signal(Signal::HUP);
        // Asked while the bad file is still there, as by the person who wrote it.
        b.wait_status(&format!("shows {what}"), RELOADED, |status| status.text("/config/error").is_some());
        b.wait_logged(&["error"]);
        assert!(b.status().connected("a"), "{what}: the running settings are kept");
        assert_eq!(b.wait_narinfo(&lib).nar_hash, a.store.row(&lib).unwrap().nar_hash);
        fs::write(b.config_file(), &good).unwrap();
        let said = b.narmesh(&["reload"]).expect_success("narmesh reload");
        assert_eq!(said, "the configuration is in force");
        assert_eq!(b.status().text("/config/error"), None);
    }
}

/// The file is right; what it asks for cannot be had.
#[test]
fn a_gateway_key_that_cannot_be_made_keeps_the_running_settings_and_is_told() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("lone");
    node.start();
    let key = node.config_file().with_file_name("state").join("gateway.key");
    fs::remove_file(&key).unwrap();
    fs::create_dir(key).unwrap();
    let builder =
        format!("[[builder]]\nname = 'other'\npublic_key = '{}'\n", node.builder_key().replacen("lone", "other", 1));
    node.config.more = format!("[quorum]\nmode = 'require'\nk = 1\n\n{builder}");
    node.reload();
    let status = node.wait_status("says what it lacks", RELOADED, |status| status.text("/config/error").is_some());
    let error = status.text("/config/error").unwrap();
    assert!(error.contains("gateway.key"), "{error}");
    let refused = node.narmesh(&["reload"]).expect_failure("narmesh reload");
    assert!(refused.contains("gateway.key"), "{refused}");
}

#[test]
fn a_daemon_does_not_start_with_a_bad_file_and_names_the_key() {
    let mesh = TestMesh::new();
    let node = mesh.node("node");
    node.write_config();
    let good = fs::read_to_string(node.config_file()).unwrap();
    for (bad, word) in [
        (format!("surprise = 1\n{good}"), "surprise"),
        (good.replace("127.0.0.1:0", "0.0.0.0:7281"), "gateway"),
        (good.replace("/tcp/0", "/udp/0"), "listen"),
    ] {
        assert_ne!(bad, good);
        fs::write(node.config_file(), bad).unwrap();
        for command in ["run", "check-config"] {
            let said = node.narmesh(&[command]).expect_failure(command);
            assert!(said.contains(word), "{command} does not name {word}:\n{said}");
        }
    }
}
