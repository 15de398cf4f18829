//! One key in nix.conf: narmesh signs whatever it passes on, and another builder or cache needs no change of Nix.

use narmesh_tests::{PlainCache, TestMesh, TestNode, finish, narmesh_binary};
use std::fs;
use std::process::Command;

/// The names of the keys that signed the copy, in order.
fn signers(node: &TestNode, path: &str) -> Vec<String> {
    let mut names: Vec<_> = node.store.row(path).expect("a copy").signatures.iter().map(|it| name_of(it)).collect();
    names.sort();
    names
}

fn name_of(text: &str) -> String {
    text.split(':').next().unwrap_or_default().to_owned()
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

#[test]
fn the_gateway_key_alone_is_enough_for_peers_and_upstreams_and_what_is_added_later() {
    let mesh = TestMesh::new();
    let [mut neighbour, far, farther, stranger] =
        ["neighbour", "far", "farther", "stranger"].map(|name| mesh.node(name));
    let [mut client, mut third] = ["client", "third"].map(|name| mesh.node(name));
    let from_neighbour = neighbour.store.build_fresh("neighbour");
    let from_far = far.store.build_fresh("far");
    let from_farther = farther.store.build_fresh("farther");
    let from_stranger = stranger.store.build_fresh("stranger");
    let [one, two, three] = [(&far, &from_far), (&farther, &from_farther), (&stranger, &from_stranger)]
        .map(|(node, path)| PlainCache::on_loopback(node, std::slice::from_ref(path), "xz"));
    client.config.sign = true;
    client.config.more = one.upstream("far", &far) + &three.upstream("stranger", &far);
    TestMesh::start_all(&mut [&mut neighbour, &mut client, &mut third]);
    neighbour.wait_all_advertised(&[&client]);
    client.trust_the_gateway_alone();
    let gateway = name_of(&client.gateway_key());
    assert!(gateway.starts_with("narmesh-gateway-"));

    for (path, holder) in [(&from_neighbour, &neighbour), (&from_far, &far)] {
        client.realise(std::slice::from_ref(path)).expect_success("with the gateway key alone in nix.conf");
        assert_eq!(signers(&client, path), sorted(vec![name_of(&holder.builder_key()), gateway.clone()]), "{path}");
    }
    assert_eq!(client.get_narinfo(&from_stranger).status, 404, "no key of that cache signed it");
    assert_eq!(client.get_narinfo(&from_farther).status, 404);

    // Another cache with a key of its own: a reload, and nothing of Nix changes.
    client.config.more += &two.upstream("farther", &farther);
    client.write_config();
    client.narmesh(&["reload"]).expect_success("narmesh reload");
    client.realise(std::slice::from_ref(&from_farther)).expect_success("from a cache that was added");
    assert_eq!(signers(&client, &from_farther), sorted(vec![name_of(&farther.builder_key()), gateway.clone()]));

    // Peers never see the gateway's signature, which is meant for this machine's Nix.
    client.wait_advertised(1, &[&third]);
    assert!(neighbour.terminate().success());
    third.realise(std::slice::from_ref(&from_neighbour)).expect_success("from the client");
    assert_eq!(signers(&third, &from_neighbour), [name_of(&neighbour.builder_key())]);
}

#[test]
fn init_takes_over_the_substituters_of_nix_and_nix_then_needs_one_line_and_one_key() {
    let mesh = TestMesh::new();
    let [far, mut client] = ["far", "client"].map(|name| mesh.node(name));
    let path = far.store.build_fresh("far");
    let cache = PlainCache::on_loopback(&far, std::slice::from_ref(&path), "xz");
    let conf = mesh.path().join("conf");
    fs::create_dir(&conf).unwrap();
    let dir = client.dir().to_owned();
    // The upstream that `init` finds in nix.conf is what the client's own configuration gets.
    fs::write(
        conf.join("nix.conf"),
        format!(
            "substituters = file://{} s3://bucket\ntrusted-public-keys = {}\n",
            cache.dir().display(),
            far.builder_key()
        ),
    )
    .unwrap();
    let taken = mesh.path().join("taken");
    let mut init = Command::new(narmesh_binary());
    init.args(["init", "--name", "client", "--dir"]).arg(&taken).env("NIX_CONF_DIR", &conf);
    let said = finish(&mut init).expect_success("init");
    let key = said.lines().find_map(|line| line.strip_prefix("trusted-public-keys = ")).expect("a key").to_owned();
    for line in ["substituters = http://127.0.0.1:7281", "extra-substituters = s3://bucket"] {
        assert!(said.lines().any(|given| given == line), "{line}\n{said}");
    }
    assert!(said.contains("left to Nix: s3://bucket"), "{said}");
    let written = fs::read_to_string(taken.join("narmesh.toml")).unwrap();
    let (_, upstream) = written.split_once("\n[[upstream]]\n").expect("what was taken over");
    let (upstream, _) = upstream.split_once("\n\n").unwrap_or((upstream, ""));
    client.config.more = format!("[[upstream]]\n{}\n", upstream.split("\n#").next().unwrap());
    client.config.sign = true;
    fs::create_dir_all(dir.join("state")).unwrap();
    fs::copy(taken.join("state/gateway.key"), dir.join("state/gateway.key")).unwrap();
    client.start();
    client.trust_the_gateway_alone();
    assert_eq!(client.gateway_key(), key, "the key that init printed");
    client.realise(&[path]).expect_success("with what init printed");
}
