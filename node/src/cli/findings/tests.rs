//! Each finding, from a configuration and the `nix.conf` beside it.

use super::keys_of_nix::gateway_key_finding;
use super::nix::nix_findings;
use super::quorum::quorum_findings;
use super::*;
use crate::config::{BuilderConfig, Config, PeerConfig};
use narmesh_protocol::NixSecretKey;

fn public_key(name: &str, seed: u8) -> String {
    NixSecretKey::from_seed(name, &[seed; 32]).unwrap().public().to_string()
}

fn findings(trusted: &[String], nix_conf: &str) -> Vec<Finding> {
    findings_of(trusted, None, nix_conf)
}

fn findings_of(trusted: &[String], builder_key: Option<&str>, nix_conf: &str) -> Vec<Finding> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("nix.conf");
    std::fs::write(&file, nix_conf).unwrap();
    let mut config = Config::default();
    config.trust.trusted_public_keys = trusted.to_vec();
    config.trust.builder_key_file = builder_key.map(Into::into);
    let settings = Settings::check(config, &dir.path().join("narmesh.toml")).unwrap();
    nix_findings(&settings, None, &NixSettings::from_file(&file), None, &Mender::plain())
}

#[test]
fn upstreams_are_compared_with_what_nix_asks_and_trusts() {
    let dir = tempfile::tempdir().unwrap();
    let (file, key) = (dir.path().join("nix.conf"), public_key("cache-1", 7));
    let nix_conf = |keys: &str| {
        format!(
            "substituters = http://127.0.0.1:7281 https://cache.example/?priority=3\ntrusted-public-keys = {keys}\n"
        )
    };
    let text = format!("[[upstream]]\nname = 'x'\nurl = 'https://cache.example'\npublic_keys = ['{key}']\n");
    let config = dir.path().join("narmesh.toml");
    let settings = Settings::check(Config::parse(&text, &config).unwrap(), &config).unwrap();
    let found = |keys: &str| {
        std::fs::write(&file, nix_conf(keys)).unwrap();
        nix_findings(&settings, None, &NixSettings::from_file(&file), None, &Mender::plain())
    };
    let trusting = found(&key);
    assert_eq!(warnings(&trusting), Vec::<&str>::new());
    let is_twice = |finding: &Finding| finding.severity == Severity::Note && finding.found.contains("is asked once");
    assert!(trusting.iter().any(is_twice), "{trusting:?}");
    assert!(warnings(&found(""))[0].contains(&key));
}

fn warnings(findings: &[Finding]) -> Vec<&str> {
    let is_warning = |finding: &&Finding| finding.severity == Severity::Warning;
    findings.iter().filter(is_warning).map(|finding| finding.found.as_str()).collect()
}

#[test]
fn key_that_narmesh_trusts_and_nix_does_not_is_a_warning() {
    let key = public_key("b-1", 1);
    let conf = |keys: &str| format!("extra-substituters = http://127.0.0.1:7281\nextra-trusted-public-keys = {keys}\n");
    assert_eq!(warnings(&findings(std::slice::from_ref(&key), &conf(&key))), Vec::<&str>::new());
    let lacking = findings(std::slice::from_ref(&key), &conf(""));
    assert!(warnings(&lacking)[0].contains(&key) && warnings(&lacking)[0].contains("30 days"), "{lacking:?}");
    let other = findings(std::slice::from_ref(&key), &conf(&public_key("b-1", 2)));
    assert!(warnings(&other)[0].contains("another key of that name"), "{other:?}");
}

#[test]
fn what_goes_past_a_policy_that_requires_agreement_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("nix.conf");
    let (url, key) = ("https://cache.example", public_key("cache-1", 7));
    let gateway = public_key("narmesh-gateway-x", 8);
    let write = |keys: &str| {
        let text = format!("substituters = http://127.0.0.1:7281 {url}\ntrusted-public-keys = {keys}\n");
        std::fs::write(&file, text).unwrap();
    };
    write(&format!("{gateway} {key}"));
    let peer = |seed| PeerConfig {
        name: format!("p{seed}"),
        peer_id: libp2p::identity::Keypair::generate_ed25519().public().to_peer_id().to_string(),
        addresses: Vec::new(),
        relay: false,
        upload_bytes_per_s: 0,
    };
    let found_with = |mode: &str, k, with_peer: bool| {
        let builder = |seed| BuilderConfig {
            peer: with_peer.then(|| format!("p{seed}")),
            name: format!("b{seed}"),
            public_key: public_key("b", seed),
            group: None,
            signs_only_own_builds: false,
        };
        let builders = (1..=2).map(builder).collect();
        let mut config = Config { builder: builders, peer: (1..=2).map(peer).collect(), ..Config::default() };
        config.quorum.mode = mode.to_owned();
        config.quorum.k = Some(k);
        let settings = Settings::check(config, &dir.path().join("narmesh.toml")).unwrap();
        let keys = OwnKeys { builder: None, gateway: NixPublicKey::parse(&gateway).ok(), node: None };
        quorum_findings(&settings, &keys, &NixSettings::from_file(&file), &Mender::plain()).unwrap()
    };
    let found = |mode: &str, k| found_with(mode, k, true);
    assert_eq!(found("observe", 2), []);
    let as_files = found_with("observe", 2, false);
    assert!(warnings(&as_files)[1].contains("builder \"b2\" has no peer"), "{as_files:?}");
    let bypasses = found("require", 2);
    let texts = warnings(&bypasses);
    assert!(texts.len() == 2 && texts[0].contains(url) && texts[1].contains(&key), "{texts:?}");
    write(&key);
    let ours = NixPublicKey::parse(&gateway).ok();
    let lacking = gateway_key_finding(ours.as_ref(), &NixSettings::from_file(&file), &Mender::plain());
    let lacking: Vec<_> = lacking.into_iter().collect();
    assert!(warnings(&lacking)[0].contains(&gateway) && warnings(&lacking)[0].contains("30 days"), "{lacking:?}");
    assert!(warnings(&found("observe", 1))[0].contains("quorum.k = 1 of 2"));
    for (users, named) in
        [("root", None), ("root @wheel ann", Some("nix.conf: @wheel ann may")), ("*", Some(": * may"))]
    {
        std::fs::write(
            &file,
            format!("substituters = http://127.0.0.1:7281\ntrusted-public-keys = {gateway}\ntrusted-users = {users}\n"),
        )
        .unwrap();
        assert_eq!(found("prefer", 2), []);
        let bypasses = found("require", 2);
        assert_eq!(warnings(&bypasses).len(), named.iter().len(), "{bypasses:?}");
        assert!(named.is_none_or(|named| warnings(&bypasses)[0].contains(named)), "{bypasses:?}");
    }
}

#[test]
fn a_builder_key_is_worth_what_sandbox_and_trusted_users_are_worth() {
    let url = "extra-substituters = http://127.0.0.1:7281";
    for (nix_conf, with_key) in [
        ("sandbox-fallback = false", None),
        ("sandbox-fallback = false\ntrusted-users = root", None),
        ("", Some("sandbox-fallback")),
        ("sandbox = false", Some("sandbox = false")),
        ("sandbox = relaxed\nsandbox-fallback = false", Some("sandbox = relaxed")),
        ("build-use-sandbox = false", Some("sandbox = false")),
        ("sandbox-fallback = false\nextra-trusted-users = @wheel ann", Some("holds @wheel ann")),
        ("sandbox-fallback = false\ntrusted-users = *", Some("holds *")),
    ] {
        let nix_conf = format!("{nix_conf}\n{url}\n");
        let found = findings_of(&[], Some("builder.key"), &nix_conf);
        let warned = warnings(&found);
        assert_eq!(warned.len(), with_key.iter().len(), "{nix_conf}{warned:?}");
        assert!(with_key.is_none_or(|words| warned[0].contains(words)), "{nix_conf}{warned:?}");
        assert_eq!(warnings(&findings(&[], &nix_conf)), Vec::<&str>::new(), "no key, no worry");
    }
}

#[test]
fn gateway_missing_from_substituters_is_a_warning_and_others_are_a_note() {
    let found = findings(&[], "");
    assert!(warnings(&found)[0].contains("http://127.0.0.1:7281 is not among"), "{found:?}");
    assert!(found.contains(&Finding::note("Nix's other substituters: https://cache.nixos.org/")));
    for url in ["http://127.0.0.1:7281", "http://127.0.0.1:7281/", "http://localhost:7281?priority=5"] {
        assert_eq!(warnings(&findings(&[], &format!("extra-substituters = {url}"))), Vec::<&str>::new());
    }
    assert_eq!(warnings(&findings(&[], "extra-substituters = http://127.0.0.1:72811")).len(), 1);
}

#[test]
fn fallback_on_an_old_nix_and_long_remembered_misses_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("nix.conf");
    std::fs::write(&file, "fallback = true\n").unwrap();
    let settings = Settings::check(Config::default(), &file).unwrap();
    let nix = NixSettings::from_file(&file);
    let found = |version: &str| {
        format!("{:?}", nix_findings(&settings, None, &nix, NixVersion::parse(version), &Mender::plain()))
    };
    assert!(found("nix (Nix) 2.8.0").contains("makes Nix 2.8 abort"));
    assert!(!found("nix (Nix) 2.9.0").contains("abort"));
    assert!(found("").contains("3600 s"));
}

#[test]
fn time_limits_of_nix_that_fail_builds_are_warnings_with_the_line_that_mends_them() {
    let url = "extra-substituters = http://127.0.0.1:7281\n";
    for (line, mend) in [
        ("stalled-download-timeout = 30\ndownload-attempts = 5\nconnect-timeout = 5", None),
        ("stalled-download-timeout = 10", Some("stalled-download-timeout = 30")),
        ("download-attempts = 2", Some("download-attempts = 5")),
    ] {
        let found = findings(&[], &format!("{url}{line}\n"));
        let mends: Vec<_> =
            found.iter().filter(|it| it.severity == Severity::Warning).flat_map(|it| &it.mend).collect();
        assert_eq!(mends.len(), mend.iter().len(), "{line}: {found:?}");
        assert!(mend.is_none_or(|mend| mends[0].contains(mend)), "{line}: {mends:?}");
    }
    let endless = findings(&[], &format!("{url}connect-timeout = 0\n"));
    assert!(endless.iter().any(|it| it.severity == Severity::Note && it.found.contains("without end")), "{endless:?}");
}
