//! Listeners with TLS: clients that know the CA get what they ask for, and the files may change while the daemon runs.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use narmesh_tests::{
    Finished, NixStoreFixture, NixVersion, TestCa, TestMesh, TestNode, finish, free_address, get, hash_part, promised,
    scratch_dir, wait_until, with_gateway,
};

/// Files that were replaced are promised to be in use within this.
const FOLLOWED: Duration = Duration::from_secs(4);

/// A listener with TLS, and the directory of its files.
struct Place {
    address: SocketAddr,
    dir: PathBuf,
}

impl Place {
    /// Adds a listener to the configuration, whose files are in a directory of its own, or will be.
    fn add_to(node: &mut TestNode, role: &str, more: &str) -> Self {
        let address = free_address();
        let dir = node.dir().join("tls");
        fs::create_dir_all(&dir).unwrap();
        node.config.more += &format!(
            "[[gateway.listener]]\naddress = '{address}'\nrole = '{role}'\ntls_certificate_file = 'tls/certificate.pem'\n\
             tls_key_file = 'tls/key.pem'\n{more}"
        );
        Self { address, dir }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    /// What curl says that trusts this CA.
    fn curl(&self, ca: &TestCa, path: &str, options: &[&str]) -> Finished {
        let file = self.dir.join("ca-of-curl.pem");
        fs::write(&file, ca.pem()).unwrap();
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", "--max-time", "60", "--cacert"]).arg(file);
        finish(command.args(options).arg(self.url(path)))
    }

    fn is_answered(&self, ca: &TestCa) -> bool {
        self.curl(ca, "/healthz", &[]).status.success()
    }

    /// `nix-store --realise` by this listener alone, with a client that trusts this CA.
    fn realise(&self, store: &NixStoreFixture, path: &str, ca_file: &Path, keys: &[String]) -> Finished {
        let mut command = store.nix("nix-store");
        command.args(["--realise", path, "--option", "max-jobs", "0"]);
        with_gateway(&mut command, self.address, keys).args(["--option", "substituters", &self.url("")]);
        finish(command.env("NIX_SSL_CERT_FILE", ca_file))
    }
}

fn narinfo(path: &str) -> String {
    format!("/{}.narinfo", hash_part(path))
}

#[test]
fn nix_substitutes_over_tls_from_whom_its_ca_certified() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let (ca, other_ca) = (TestCa::new(), TestCa::new());
    let place = Place::add_to(&mut node, "serve", "");
    ca.certify(2100).write(&place.dir);
    let path = node.store.build_one("shapes");
    node.start();
    wait_until("it is offered", promised(FOLLOWED), || place.curl(&ca, &narinfo(&path), &[]).status.success());

    let scratch = scratch_dir("client");
    let files = [("ca", &ca), ("other-ca", &other_ca)].map(|(name, ca)| {
        let file = scratch.path().join(name);
        fs::write(&file, ca.pem()).unwrap();
        file
    });
    let keys = [node.builder_key()];
    let client = NixStoreFixture::chroot(scratch.path());
    place.realise(&client, &path, &files[1], &keys).expect_failure("with another CA");
    place.realise(&client, &path, &files[0], &keys).expect_success("with the CA");
    client.verify_contents();

    let refused = place.curl(&other_ca, "/healthz", &[]).expect_failure("curl with another CA");
    assert!(refused.contains("certificate"), "{refused}");
    // Whoever speaks plain HTTP by mistake is told so, and whoever speaks neither is closed.
    let plain = get(place.address, "/nix-cache-info").unwrap();
    assert_eq!(plain.status, 400);
    assert!(plain.text().contains("https://"), "{}", plain.text());
    let mut stream = TcpStream::connect(place.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(&[0xff; 100]).unwrap();
    let mut rest = Vec::new();
    // However it ends.
    drop(stream.read_to_end(&mut rest));
    assert!(place.is_answered(&ca));
    let log = node.log();
    let (_, while_up) = log.split_once("narmesh is up").unwrap();
    assert!(!while_up.contains(" WARN ") && !while_up.contains(" ERROR "), "{log}");
    for (option, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let shown = place.curl(&ca, "/nix-cache-info", &[option, "--write-out", " %{http_version}"]);
        assert!(shown.expect_success(option).ends_with(version), "{option}");
    }

    let said = node.narmesh(&["status"]).expect_success("status");
    let line = format!("https://{}: serve; ", place.address);
    assert!(said.contains(&line) && said.contains("certificate until 2100-01-01 00:00:00 UTC"), "{said}");
}

#[test]
fn a_certificate_that_is_replaced_is_shown_without_a_restart_and_a_broken_one_is_not() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let [first, second, third] = [(); 3].map(|()| TestCa::new());
    let place = Place::add_to(&mut node, "serve", "");
    // As certbot has it: what is named is a link, which is replaced.
    let versions = [&first, &second].map(|ca| {
        let dir = scratch_dir("archive");
        ca.certify(2100).write(dir.path());
        dir
    });
    let link_to = |version: &Path| {
        for name in ["certificate.pem", "key.pem"] {
            let (link, new) = (place.dir.join(name), place.dir.join("new"));
            symlink(version.join(name), &new).unwrap();
            fs::rename(new, link).unwrap();
        }
    };
    link_to(versions[0].path());
    node.start();
    assert!(place.is_answered(&first) && !place.is_answered(&second));
    link_to(versions[1].path());
    wait_until("the second is shown", promised(FOLLOWED), || place.is_answered(&second));
    assert!(!place.is_answered(&first));

    // A broken file changes nothing, and says so once.
    let key = versions[1].path().join("key.pem");
    let good = fs::read(&key).unwrap();
    fs::write(&key, "-----BEGIN").unwrap();
    let listener = |field: &str| node.status().0["listeners"][0]["tls"][field].clone();
    wait_until("status says so", promised(FOLLOWED), || listener("error").is_string());
    assert!(place.is_answered(&second));
    let refused = node.narmesh(&["reload"]).expect_failure("reload");
    for said in [refused, listener("error").to_string()] {
        assert!(said.contains("gateway.listener[0].tls_key_file") && said.contains("holds no key"), "{said}");
    }
    assert!(place.is_answered(&second));
    assert_eq!(node.log().matches("the certificate of before is shown on").count(), 1, "{}", node.log());
    fs::write(&key, good).unwrap();
    wait_until("it is good again", promised(FOLLOWED), || listener("error").is_null());

    // A reload takes it at once.
    third.certify(2100).write(versions[1].path());
    node.narmesh(&["reload"]).expect_success("reload");
    assert!(place.is_answered(&third));
}

#[test]
fn where_a_ca_of_clients_is_named_they_need_a_certificate_of_it() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let [ca, clients, strangers] = [(); 3].map(|()| TestCa::new());
    let place = Place::add_to(&mut node, "site", "tls_client_ca_file = 'tls/clients.pem'\n");
    ca.certify(2100).write(&place.dir);
    fs::write(place.dir.join("clients.pem"), clients.pem()).unwrap();
    node.start();
    place.curl(&ca, "/healthz", &[]).expect_failure("without a certificate");
    let [good, stranger] = [&clients, &strangers].map(|ca| {
        let dir = scratch_dir("client");
        let files = ca.certify(2100).write(dir.path());
        (dir, files.map(|file| file.display().to_string()))
    });
    let ask = |(_, [certificate, key]): &(_, [String; 2])| {
        place.curl(&ca, "/nix-cache-info", &["--cert", certificate, "--key", key])
    };
    ask(&good).expect_success("with a certificate");
    ask(&stranger).expect_failure("with a certificate of another CA");
    let expired = scratch_dir("expired");
    let files = clients.certify(2020).write(expired.path()).map(|file| file.display().to_string());
    ask(&(expired, files)).expect_failure("with a certificate that has expired");
    let said = node.narmesh(&["status"]).expect_success("status");
    assert!(said.contains("site, needs a certificate;"), "{said}");

    // The first of these versions that can show a certificate.
    if NixVersion::from_environment() == NixVersion::V2_34 {
        let (dir, [certificate, key]) = &good;
        let ca_file = dir.path().join("ca.pem");
        fs::write(&ca_file, ca.pem()).unwrap();
        let url = place.url(&format!("?tls-certificate={certificate}&tls-private-key={key}"));
        let client = NixStoreFixture::chroot(dir.path());
        for (url, has_it) in [(place.url(""), false), (url, true)] {
            let mut ping = client.nix("nix");
            ping.args(["--extra-experimental-features", "nix-command", "store", "info", "--store", &url]);
            let done = finish(ping.env("NIX_SSL_CERT_FILE", &ca_file));
            assert_eq!(done.status.success(), has_it, "{url}: {}", done.stderr);
        }
    }
}

#[test]
fn what_is_wrong_with_the_files_is_said_at_the_start() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let place = Place::add_to(&mut node, "serve", "");
    node.write_config();
    let refused = |words: &[&str]| {
        for command in ["run", "check-config"] {
            let done = node.narmesh(&[command]);
            assert!(!done.status.success(), "{command}");
            let said = done.stdout + &done.stderr;
            for word in words {
                assert!(said.contains(word), "{command}: {word:?} is not in {said}");
            }
        }
    };
    refused(&["gateway.listener[0].tls_certificate_file", "certificate.pem", "cannot be read", "PEM certificates"]);
    let (good, other) = (TestCa::new().certify(2100), TestCa::new().certify(2100));
    let [_, key] = good.write(&place.dir);
    fs::write(&key, other.key).unwrap();
    refused(&["gateway.listener[0].tls_key_file", "not the key of the certificate", "PEM private key"]);

    // An expired one is no reason to serve nobody, but a warning.
    TestCa::new().certify(2020).write(&place.dir);
    let address = place.address.port();
    node.config.more += &format!(
        "[[gateway.listener]]\naddress = '0.0.0.0:{}'\nrole = 'serve'\ntokens_file = 'tokens'\n",
        if address == u16::MAX { address - 1 } else { address + 1 }
    );
    node.start();
    let said = node.narmesh(&["status"]).expect_success("status");
    assert!(said.contains("CERTIFICATE NOT VALID") && said.contains("until 2020-01-01"), "{said}");
    let checked = node.narmesh(&["check-config"]).stdout;
    for text in [node.log(), checked] {
        assert!(text.contains("has expired") && text.contains("asks for tokens without TLS"), "{text}");
    }
}
