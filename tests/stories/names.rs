//! Peers that the configuration gives by host name.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use narmesh_tests::{TestMesh, TestNode};

/// A peer that could not be reached before is connected within this: the longest pause between two dials, and a dial.
const FOUND: Duration = Duration::from_secs(6);

const NAME: &str = "a.narmesh.example";

/// A file that a daemon sees as the hosts file of its machine; no name server is asked.
struct Hosts(PathBuf);

impl Hosts {
    /// Gives `node` an empty hosts file, from its next start on.
    fn of(node: &mut TestNode) -> Self {
        let [hosts, switch] = ["hosts", "nsswitch.conf"].map(|name| node.dir().join(name));
        fs::write(&hosts, "").unwrap();
        fs::write(&switch, "hosts: files\n").unwrap();
        let script = r#"mount --bind "$0" /etc/hosts; mount --bind "$1" /etc/nsswitch.conf; shift; exec "$@""#;
        let [hosts_text, switch_text] = [&hosts, &switch].map(|path| path.to_str().unwrap());
        node.run_under(&["unshare", "--mount", "sh", "-ec", script, hosts_text, switch_text]);
        Self(hosts)
    }

    /// Makes [`NAME`] lead to `ip`. The file is overwritten in place, since a new one would not be the mounted one.
    fn lead_to(&self, ip: &str) {
        fs::write(&self.0, format!("{ip} {NAME}\n")).unwrap();
    }
}

#[test]
fn a_peer_is_found_by_its_host_name_also_after_that_leads_elsewhere() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    TestMesh::introduce(&mut [&mut a, &mut b]);
    // Neither advertises its address, so the name is the only way to `a`.
    a.config.advertise_loopback = false;
    b.config.advertise_loopback = false;
    let app = a.store.build_one("app");
    a.start();
    let port = a.p2p_socket().port();
    b.learn_address("a", &format!("/dns4/{NAME}/tcp/{port}"));
    let hosts = Hosts::of(&mut b);
    b.start();
    b.wait_status("says which name leads nowhere", FOUND, |status| {
        let why = status.peer("a").unwrap()["why"].as_str().unwrap_or_default();
        why.contains(&format!("/dns4/{NAME}/tcp/{port}: "))
    });
    assert_eq!(b.get_narinfo(&app).status, 404, "nobody waits for a name");

    hosts.lead_to("127.0.0.1");
    b.wait_connected("a", true, FOUND);
    a.wait_all_advertised(&[&b]);
    b.realise(&[app]).expect_success("over a bulk connection with a peer that has a name");

    a.terminate();
    b.wait_connected("a", false, FOUND);
    // `start` would make it listen at its former address.
    a.config.listen = vec![format!("/ip4/127.0.0.2/tcp/{port}")];
    hosts.lead_to("127.0.0.2");
    a.launch();
    a.wait_started(FOUND);
    b.wait_connected("a", true, FOUND);
    let fresh = a.store.build_fresh("fresh");
    a.wait_all_advertised(&[&b]);
    b.realise(&[fresh]).expect_success("from where the name leads now");

    // A host name from the configuration is told to no other node.
    let told = b.status().peer("a").unwrap()["addresses"].to_string();
    assert!(told.contains(NAME), "{told}");
    let heard = a.status().peer("b").unwrap()["addresses"].to_string();
    assert!(!heard.contains("dns") && !a.log().contains(NAME), "{heard}");
}

#[test]
fn check_config_accepts_host_names_and_probes_where_they_lead() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    TestMesh::introduce(&mut [&mut a, &mut b]);
    a.start();
    b.learn_address("a", &format!("/dns4/localhost/tcp/{}", a.p2p_socket().port()));
    b.write_config();
    b.narmesh(&["check-config", "--probe"]).expect_success("a name that leads to the peer");

    b.config.peers[0].addresses = vec!["/dns6/127.0.0.1/tcp/7280".to_owned()];
    b.write_config();
    let said = b.narmesh(&["check-config"]).expect_failure("an IP address in place of a name");
    for words in ["peer[0].addresses[0]", "/dns6/127.0.0.1/tcp/7280", "accepted: a host name"] {
        assert!(said.contains(words), "{words} is not in {said}");
    }
}
