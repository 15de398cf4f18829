//! Caches that are this gateway itself, directly or over others: what nobody has is told at once, and the user hears why.

use std::time::{Duration, Instant};

use narmesh_tests::{LoggingProxy, TestMesh, TestNode, free_address, narinfo_url, promised, request};

/// What nobody has is told within this: without the circle it takes a few milliseconds, and with it the latest deadline.
const AT_ONCE: Duration = Duration::from_millis(200);

const NOBODY_HAS: &str = "/nix/store/00000000000000000000000000000000-nothing";

fn upstream(name: &str, url: &str, key: &str) -> String {
    format!("[[upstream]]\nname = '{name}'\nurl = '{url}'\npublic_keys = ['{key}']\n")
}

fn assert_told_at_once(node: &TestNode) {
    let since = Instant::now();
    assert_eq!(node.get_narinfo(NOBODY_HAS).status, 404);
    assert!(since.elapsed() < promised(AT_ONCE), "{:?}\n{}", since.elapsed(), node.log());
}

#[test]
fn upstream_that_is_this_gateway_itself_is_found_out_and_named() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let gateway = free_address();
    node.config.gateway_listen = gateway.to_string();
    let proxy = LoggingProxy::start(&node.dir().join("proxy"), gateway, "$request_uri");
    let key = node.builder_key();
    let urls = [format!("http://{gateway}"), format!("http://{}", proxy.address)];
    node.config.more = upstream("itself", &urls[0], &key) + &upstream("proxied", &urls[1], &key);
    node.start();
    for _ in 0..3 {
        assert_told_at_once(&node);
    }
    for (index, name) in ["itself", "proxied"].into_iter().enumerate() {
        let status = node.status();
        assert_eq!(status.text(&format!("/upstreams/{index}/state")), Some("down"), "{name}");
        assert_eq!(status.number(&format!("/upstreams/{index}/failures/leads_back")), 1, "{name}");
        let told = node.log().lines().filter(|line| line.contains("leads back") && line.contains(name)).count();
        assert_eq!(told, 1, "{name}: {}", node.log());
    }
    let checked = node.narmesh(&["check-config"]).expect_success("narmesh check-config");
    assert!(checked.contains("\"itself\": url = ") && !checked.contains("\"proxied\": url = "), "{checked}");
    let probed = node.narmesh(&["check-config", "--probe"]).expect_failure("narmesh check-config --probe");
    for name in ["itself", "proxied"] {
        assert!(probed.contains(&format!("{name}: leads back to this gateway")), "{probed}");
    }
    let status = node.narmesh(&["status"]).expect_success("narmesh status");
    assert!(status.contains("leads_back"), "{status}");
}

#[test]
fn gateways_that_are_each_others_caches_tell_at_once_what_none_has_and_give_what_one_has() {
    let mesh = TestMesh::new();
    let names = ["one", "two", "three"];
    let mut nodes = names.map(|name| mesh.node(name));
    let path = nodes[2].store.build_one("small");
    let addresses = names.map(|_| free_address());
    let keys: Vec<_> = nodes.iter().map(TestNode::builder_key).collect();
    for (number, node) in nodes.iter_mut().enumerate() {
        let next = (number + 1) % names.len();
        node.config.gateway_listen = addresses[number].to_string();
        node.config.trusted_public_keys = keys.clone();
        node.config.more = upstream(names[next], &format!("http://{}", addresses[next]), &keys[2]);
    }
    nodes.iter_mut().for_each(TestNode::start);
    nodes.iter().for_each(assert_told_at_once);
    assert!(nodes.iter().any(|node| node.log().contains("leads back to this gateway for some paths")));
    // Two hops away.
    nodes[0].realise(std::slice::from_ref(&path)).expect_success("nix-store --realise");
    for node in &nodes {
        assert_eq!(node.status().text("/upstreams/0/state"), Some("up"), "{}", node.name);
    }
}

/// Nobody signs the header by which circles are found: what one user writes into it must not make another one's build miss.
#[test]
fn a_made_up_chain_of_one_user_hides_nothing_from_another() {
    let mesh = TestMesh::new();
    let names = ["near", "far", "holder"];
    let mut nodes = names.map(|name| mesh.node(name));
    let paths = ["small", "lib"].map(|name| nodes[2].store.build_one(name));
    let addresses = names.map(|_| free_address());
    let key = nodes[2].builder_key();
    for (number, node) in nodes.iter_mut().enumerate() {
        node.config.gateway_listen = addresses[number].to_string();
        node.config.trusted_public_keys = vec![key.clone()];
        if let (Some(name), Some(address)) = (names.get(number + 1), addresses.get(number + 1)) {
            node.config.more = upstream(name, &format!("http://{address}"), &key);
        }
    }
    nodes.iter_mut().for_each(TestNode::start);
    let ask = |address, path: &str, via: &str| {
        request(address, "GET", &narinfo_url(path), &[("narmesh-via", via)]).unwrap().finish()
    };
    let ids = |ids: &[u64]| ids.iter().map(|id| format!("{id:016x}")).collect::<Vec<_>>().join(",");
    let far_id = ask(addresses[1], NOBODY_HAS, &ids(&[1])).header("narmesh-id").unwrap().to_owned();
    // That the cache itself asks for it, and that as many do as a chain may have.
    for (path, via) in paths.iter().zip([far_id, ids(&[1, 2, 3, 4, 5, 6, 7])]) {
        ask(addresses[0], path, &via);
        nodes[0].realise(std::slice::from_ref(path)).expect_success("nix-store --realise by another user");
    }
}
