//! Meshes with a roster: machines join with one command each, share, and are removed.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use narmesh_tests::{TestMesh, TestNode, finish, free_address, narmesh_binary, promised, wait_until};
use serde_json::Value;

/// A member is on everybody's allowlist, or off it, within this.
pub(crate) const HEARD: Duration = Duration::from_secs(2);

/// A machine that `init` made, with a port that others may be told, and that knows nobody.
pub(crate) fn machine(mesh: &TestMesh, name: &str) -> TestNode {
    let mut node = mesh.node(name);
    node.config.listen = vec![format!("/ip4/127.0.0.1/tcp/{}", free_address().port())];
    node.config.sign = true;
    node.write_config();
    node
}

/// A running machine that made a mesh.
pub(crate) fn founder(mesh: &TestMesh) -> TestNode {
    let mut founder = machine(mesh, "founder");
    founder.start();
    founder.narmesh(&["mesh", "create", "home"]).expect_success("mesh create");
    founder
}

pub(crate) fn invite(founder: &TestNode, arguments: &[&str]) -> String {
    founder.narmesh(&[&["mesh", "invite"], arguments].concat()).expect_success("mesh invite")
}

pub(crate) fn join(node: &TestNode, token: &str) {
    node.narmesh(&["join", token]).expect_success("join");
}

/// Waits until both have a connection with each other.
pub(crate) fn wait_met(one: &TestNode, other: &TestNode) {
    for (node, peer) in [(one, other), (other, one)] {
        node.wait_status(&format!("met {}", peer.name), promised(HEARD), |status| {
            status.connected(&peer.name) && status.summary_paths(&peer.name).is_some()
        });
    }
}

pub(crate) fn list(node: &TestNode) -> Value {
    let text = node.narmesh(&["mesh", "list", "--json"]).expect_success("mesh list");
    serde_json::from_str(&text).expect("JSON")
}

pub(crate) fn names(node: &TestNode) -> Vec<String> {
    let list = list(node);
    let members = list.pointer("/members").and_then(Value::as_array).expect("members").clone();
    members.iter().map(|member| member["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn machines_join_with_one_command_each_and_share_what_builders_built() {
    let mesh = TestMesh::new();
    let mut founder = founder(&mesh);
    let [mut builder, mut client] = ["builder", "client"].map(|name| machine(&mesh, name));
    // One joins while its daemon runs, the other one before it starts for the first time.
    builder.start();
    join(&builder, &invite(&founder, &["--role", "builder"]));
    wait_met(&founder, &builder);
    join(&client, &invite(&founder, &[]));
    client.start_as_written(None);
    // Everyone meets everyone, though the two that joined were never told of each other.
    wait_met(&founder, &client);
    wait_met(&builder, &client);
    assert_eq!(names(&client), ["builder", "client", "founder"]);

    let built = builder.store.build_fresh("builders");
    builder.wait_advertised(1, &[&client, &founder]);
    client.trust_the_gateway_alone();
    client.realise(std::slice::from_ref(&built)).expect_success("what the builder built");
    client.store.verify_contents();
    let status = client.status();
    let role = (status.text("/mesh/roster/name"), status.text("/mesh/roster/role"));
    assert_eq!((role, status.number("/mesh/roster/members")), ((Some("client"), Some("client")), 3));
    let checked = client.narmesh(&["check-config", "--probe"]).expect_success("check-config");
    assert!(checked.contains("2 peers, 2 of them by the roster of the mesh"), "{checked}");
    assert_eq!(checked.matches("allowed both ways").count(), 2, "{checked}");
    // Nobody trusts what a client built.
    let own = client.store.build_fresh("clients");
    client.wait_advertised(2, &[&founder]);
    founder.trust_the_gateway_alone();
    assert_eq!(founder.get_narinfo(&own).status, 404);
    founder.narmesh(&["mesh", "role", "client", "builder"]).expect_success("mesh role");
    wait_until("the client's key is trusted", promised(HEARD), || founder.get_narinfo(&own).status == 200);
    founder.realise(std::slice::from_ref(&own)).expect_success("what is trusted now");
    // The roster outlives a restart, without anybody to tell it.
    founder.kill();
    builder.kill();
    client.kill();
    client.start_as_written(None);
    builder.start_as_written(None);
    wait_met(&builder, &client);
    // One that loses the file while it runs writes it again; one that has none takes it from another member.
    let kept = client.dir().join("state/roster");
    fs::remove_file(&kept).unwrap();
    client.narmesh(&["reload"]).expect_success("reload");
    assert!(kept.exists() && client.status().connected("builder"));
    client.kill();
    fs::write(&kept, "torn").unwrap();
    client.start_as_written(None);
    assert!(client.status().peer("builder").is_none());
    let (file, text) = (mesh.path().join("exported"), |file: &Path| file.to_str().expect("UTF-8").to_owned());
    builder.narmesh(&["mesh", "export", &text(&file)]).expect_success("mesh export");
    client.narmesh(&["mesh", "import", &text(&file)]).expect_success("mesh import");
    wait_met(&builder, &client);
}

#[test]
fn a_member_that_is_removed_is_cut_off_everywhere_and_told_nothing_more() {
    let mesh = TestMesh::new();
    let founder = founder(&mesh);
    let [mut one, mut two] = ["one", "two"].map(|name| machine(&mesh, name));
    for node in [&mut one, &mut two] {
        node.start();
        join(node, &invite(&founder, &["--role", "builder"]));
        wait_met(&founder, node);
    }
    wait_met(&one, &two);
    let built = two.store.build_fresh("removed");
    two.wait_advertised(1, &[&one]);
    assert!(!one.wait_narinfo(&built).signatures.is_empty());
    founder.narmesh(&["mesh", "remove", "two"]).expect_success("mesh remove");
    for node in [&founder, &one] {
        node.wait_status("knows two no longer", promised(HEARD), |status| status.peer("two").is_none());
        assert_eq!(node.get_narinfo(&built).status, 404, "its key is trusted no longer");
    }
    two.wait_status("is refused", promised(HEARD), |status| !status.connected("one") && !status.connected("founder"));
    assert_eq!(names(&one), ["founder", "one"]);
    assert_eq!(names(&two).len(), 3, "it is told nothing of a mesh that it does not belong to");
    // It may come back as what it was not before.
    join(&two, &invite(&founder, &["--name", "again"]));
    founder.wait_status("is back", promised(HEARD), |status| status.connected("again"));
}

#[test]
fn an_invitation_ends_and_a_wrong_token_tells_nothing() {
    let mesh = TestMesh::new();
    let mut founder = founder(&mesh);
    let [stranger, other] = ["stranger", "other"].map(|name| machine(&mesh, name));
    let refused = |node: &TestNode, token: &str| node.narmesh(&["join", token]).expect_failure("join");
    let used = invite(&founder, &[]);
    assert!(refused(&stranger, &used[..used.len() - 1]).contains("accepted: the whole word narmesh-join-"));
    join(&stranger, &used);
    let open = invite(&founder, &["--for", "1h"]);
    let short = invite(&founder, &["--for", "1s"]);
    std::thread::sleep(Duration::from_secs(2));
    // Used up, over: while another invitation is open, both get the same answer.
    let answers = [&used, &short].map(|token| refused(&other, token));
    assert!(answers[0].contains("the invitation is not good"), "{answers:?}");
    assert_eq!(answers[0], answers[1]);
    founder.narmesh(&["mesh", "close-invitations"]).expect_success("mesh close-invitations");
    let closed = refused(&other, &open);
    assert!(closed.contains("takes nobody now"), "{closed}");
    founder.kill();
    let dead = refused(&other, &open);
    assert!(dead.contains("cannot be reached") && dead.contains("refused"), "{dead}");
    assert_eq!(fs::read_to_string(other.config_file()).unwrap().matches("\nkey = ").count(), 0, "nothing was written");
    // Words that cannot be meant.
    for (arguments, accepted) in [
        (&["mesh", "invite", "--role", "king"][..], "accepted: client, builder"),
        (&["mesh", "invite", "--for", "soon"][..], "accepted: 1 second to 366 days"),
        (&["mesh", "invite", "--uses", "0"][..], "accepted: 1 to"),
        (&["mesh", "remove", "nobody"][..], "accepted: founder, stranger"),
        (&["mesh", "create"][..], "in the mesh home:"),
    ] {
        let told = founder.narmesh(arguments).expect_failure("words that cannot be meant");
        assert!(told.contains(accepted), "{arguments:?}: {told}");
    }
}

/// Runs narmesh with this directory as that of nix.conf.
fn with_conf(node: &TestNode, conf: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(narmesh_binary());
    command.env("NIX_CONF_DIR", conf).arg("--config").arg(node.config_file()).args(arguments);
    finish(&mut command).expect_success("narmesh")
}

#[test]
fn joining_can_set_nix_up_and_leaving_undoes_it() {
    let mesh = TestMesh::new();
    let founder = founder(&mesh);
    let node = machine(&mesh, "node");
    let (conf, before) = (mesh.path().join("conf"), "max-jobs = 1\n");
    fs::create_dir(&conf).unwrap();
    fs::write(conf.join("nix.conf"), before).unwrap();
    let read = || fs::read_to_string(conf.join("nix.conf")).unwrap();
    let shown = with_conf(&node, &conf, &["join", "--setup-nix", &invite(&founder, &[])]);
    let written = read();
    let lines: Vec<_> = written.lines().filter(|line| line.starts_with("extra-")).collect();
    assert_eq!(lines.len(), 2, "{written}");
    assert!(written.contains("\nconnect-timeout = 5\n") && written.contains("\nnarinfo-cache-negative-ttl = 0\n"));
    assert!(lines.iter().all(|line| shown.contains(line)), "{shown}");
    let id = node.narmesh(&["id", "--json"]).expect_success("id");
    let id: Value = serde_json::from_str(&id).expect("JSON");
    assert!(lines[1].contains(id["gateway_key"].as_str().expect("a key")), "{written}");
    assert!(written.starts_with(before), "{written}");
    with_conf(&node, &conf, &["join", "--setup-nix", &invite(&founder, &[])]);
    assert_eq!(read(), written, "once");
    with_conf(&node, &conf, &["leave"]);
    assert_eq!(read(), before);
    assert_eq!(names(&founder), ["founder", "node"], "the others know it until it is removed");
}

#[test]
fn a_machine_is_admitted_by_files_and_finds_its_mesh_by_a_roster_file() {
    let mesh = TestMesh::new();
    let founder = founder(&mesh);
    let mut far = machine(&mesh, "far");
    let [request, roster] = ["request", "roster"].map(|name| mesh.path().join(name));
    let [request_text, roster_text] = [&request, &roster].map(|file| file.to_str().expect("UTF-8"));
    far.narmesh(&["join", "--request", request_text]).expect_success("join --request");
    let admit = ["mesh", "admit", request_text, "--role", "builder", "--group", "rack 1", "--relay"];
    founder.narmesh(&admit).expect_success("mesh admit");
    founder.narmesh(&["mesh", "export", roster_text]).expect_success("mesh export");
    let key = list(&founder)["mesh"].as_str().expect("a key").to_owned();
    (far.config.mesh_key, far.config.roster_file) = (Some(key), Some(roster.clone()));
    far.start();
    wait_met(&founder, &far);
    let shown = far.narmesh(&["mesh", "list"]).expect_success("mesh list");
    assert!(shown.contains("  of rack 1  relay"), "{shown}");
    // What is heard later counts beside the file.
    founder.narmesh(&["mesh", "rename", "far", "near"]).expect_success("mesh rename");
    wait_until("the new roster is heard", promised(HEARD), || names(&far) == ["founder", "near"]);
    far.narmesh(&["leave"]).expect_failure("the file names a roster, which has to go by hand");
}

/// A copied disk has the builder key of another machine.
#[test]
fn a_builder_key_has_one_machine() {
    let mesh = TestMesh::new();
    let founder = founder(&mesh);
    let twin = machine(&mesh, "twin");
    let key_of = |node: &TestNode| node.config_file().with_file_name("builder.key");
    fs::copy(key_of(&founder), key_of(&twin)).unwrap();
    let token = invite(&founder, &["--role", "builder", "--group", "twins"]);
    let said = twin.narmesh(&["join", &token]).expect_failure("the builder key of another member");
    assert!(said.contains("its builder key is that of the member \"founder\""), "{said}");
    let request = mesh.path().join("request");
    let request = request.to_str().expect("UTF-8");
    twin.narmesh(&["join", "--request", request]).expect_success("join --request");
    let said = founder.narmesh(&["mesh", "admit", request]).expect_failure("the same by a file");
    assert!(said.contains("its builder key is that of the member \"founder\""), "{said}");
    assert_eq!(names(&founder), ["founder"]);
    // The token was not used up by that.
    fs::remove_file(key_of(&twin)).unwrap();
    twin.narmesh(&["init", "--force", "--name", "twin"]).expect_success("a key of its own");
    join(&twin, &token);
    assert_eq!(names(&founder), ["founder", "twin"]);
    // A key file that was exchanged later is told where the machine is.
    let is_told = || twin.narmesh(&["check-config"]).stdout.contains("members take nothing that is built here");
    assert!(!is_told());
    fs::copy(key_of(&founder), key_of(&twin)).unwrap();
    assert!(is_told());
}

#[test]
fn an_ephemeral_member_is_removed_when_it_is_gone_and_a_broken_configuration_does_not_hinder_it() {
    let mesh = TestMesh::new();
    let founder = founder(&mesh);
    let mut runner = machine(&mesh, "runner");
    runner.start();
    join(&runner, &invite(&founder, &["--ephemeral", "1s"]));
    wait_met(&founder, &runner);
    fs::write(founder.config_file(), "broken = [").unwrap();
    founder.narmesh(&["reload"]).expect_failure("a broken file");
    runner.kill();
    // It is looked for once a minute.
    founder.wait_status("the runner is forgotten", Duration::from_secs(150), |status| status.peer("runner").is_none());
    assert!(founder.status().text("/config/error").is_some(), "the refusal is still shown");
}

#[test]
fn two_machines_that_sign_at_once_lose_no_edit() {
    let mesh = TestMesh::new();
    let (one, mut other) = (founder(&mesh), machine(&mesh, "other"));
    for name in ["c", "d"] {
        join(&machine(&mesh, name), &invite(&one, &[]));
    }
    join(&other, &invite(&one, &[]));
    // The mesh key is copied to a second machine, as docs/mesh.md says. That one hears nothing of the first one's edit.
    let key = |node: &TestNode| node.dir().join("state/mesh.key");
    fs::copy(key(&one), key(&other)).unwrap();
    one.narmesh(&["mesh", "remove", "c"]).expect_success("mesh remove");
    other.narmesh(&["mesh", "rename", "d", "renamed"]).expect_success("mesh rename");
    other.narmesh(&["mesh", "role", "renamed", "builder"]).expect_success("mesh role");
    assert_eq!((names(&one), names(&other).len()), (vec!["d".to_owned(), "founder".to_owned(), "other".to_owned()], 4));
    other.start_as_written(None);
    let all_edits = || [&one, &other].iter().all(|node| names(node) == ["founder", "other", "renamed"]);
    wait_until("both have the edits of both", promised(HEARD), all_edits);
    assert_eq!(list(&one)["version"], list(&other)["version"]);
    one.wait_logged(&["another machine signed at the same time"]);
}

#[test]
fn what_a_restored_machine_changes_is_not_lost() {
    let mesh = TestMesh::new();
    let (mut one, mut other) = (founder(&mesh), machine(&mesh, "other"));
    other.start();
    join(&other, &invite(&one, &[]));
    wait_met(&one, &other);
    let kept = ["roster", "mesh.edits"].map(|name| one.dir().join("state").join(name));
    let backup = kept.each_ref().map(|file| fs::read(file).expect("a file"));
    join(&machine(&mesh, "c"), &invite(&one, &[]));
    join(&machine(&mesh, "d"), &invite(&one, &[]));
    wait_until("the newest roster is heard", promised(HEARD), || names(&other).len() == 4);
    one.kill();
    kept.iter().zip(backup).for_each(|(file, bytes)| fs::write(file, bytes).unwrap());
    one.narmesh(&["mesh", "rename", "other", "renamed"]).expect_success("mesh rename");
    one.start_as_written(None);
    let has_all = |node: &TestNode| names(node) == ["c", "d", "founder", "renamed"];
    wait_until("both have what was changed before and after", promised(HEARD), || has_all(&one) && has_all(&other));
}

#[test]
fn what_is_so_already_changes_nothing_and_names_hide_nothing() {
    let mesh = TestMesh::new();
    let founder = founder(&mesh);
    let version = || list(&founder)["version"].as_u64().expect("a number");
    let (before, run) = (version(), |arguments: &[&str]| founder.narmesh(arguments));
    for same in [["mesh", "rename", "founder", "founder"], ["mesh", "role", "founder", "builder"]] {
        let told = run(&same);
        assert!(told.stderr.contains("is that already"), "{}", told.stderr);
    }
    assert_eq!(version(), before);
    let hidden = "foun\u{202e}der";
    for arguments in [&["mesh", "rename", "founder", hidden][..], &["mesh", "invite", "--name", hidden]] {
        let refused = run(arguments).expect_failure("a name that hides something");
        assert!(refused.contains("foun\\u{202e}der") && refused.contains("accepted: 1 to 64 bytes"), "{refused}");
    }
    let token = invite(&founder, &[]);
    let node = machine(&mesh, "node");
    let refused =
        node.narmesh(&["join", &token, "--name", "b\u{200b}ox"]).expect_failure("a name that hides something");
    assert!(refused.contains("b\\u{200b}ox") && refused.contains("accepted: 1 to 64 bytes"), "{refused}");
    join(&node, &token);
    invite(&founder, &[]);
    let closed = run(&["mesh", "close-invitations"]);
    assert!(closed.stderr.contains("1 invitations of this machine were closed"), "{}", closed.stderr);
}
