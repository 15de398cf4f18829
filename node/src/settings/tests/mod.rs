//! Every refusal names the key, the value and what would be accepted.

use super::secrets::make_gateway_key;
use super::*;
use narmesh_upstream::Credentials;
use std::os::unix::fs::PermissionsExt;

mod listeners;

const PEER: &str = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";
const OTHER: &str = "12D3KooWHdiAxVd8uMQR1hGWXccidmfCwLqcMpGwR6QcTP6QRMuD";
/// Peer ids of keys of other kinds, one with a hash of the key and one with the key itself (examples in libp2p's
/// specification of peer ids).
const RSA: &str = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N";
const SECP256K1: &str = "16Uiu2HAmLhLvBoYaoZfaMUKuibM6ac163GwKY74c5kiSLg5KvLpY";

fn check(text: &str) -> Result<Settings, SettingsError> {
    let file = Path::new("/etc/narmesh/narmesh.toml");
    Settings::check(Config::parse(text, file).unwrap(), file)
}

fn public_key(name: &str, seed: u8) -> String {
    NixSecretKey::from_seed(name, &[seed; 32]).unwrap().public().to_string()
}

#[test]
fn defaults_are_accepted_and_relative_paths_are_relative_to_the_file() {
    let settings = check("[trust]\nbuilder_key_file = 'builder.key'").unwrap();
    assert_eq!(settings.node.key_file, Path::new("/etc/narmesh/node.key"));
    assert_eq!(settings.node.control_socket, Path::new("/etc/narmesh/state/control.sock"));
    assert_eq!(settings.builder_key_file.as_deref(), Some(Path::new("/etc/narmesh/builder.key")));
    assert_eq!(settings.store.real_dir, Path::new("/nix/store"));
    assert_eq!(settings.store.state_dir, Path::new("/nix/var/nix"));
    assert_eq!(settings.gateway.listen.to_string(), "127.0.0.1:7281");
}

#[test]
fn names_of_the_gateway_are_compared_in_lower_case() {
    let settings = check("[gateway]\nhost_names = ['Cache.LAN', '192.0.2.7', '[2001:DB8::1]']").unwrap();
    assert_eq!(settings.gateway.host_names, ["cache.lan", "192.0.2.7", "[2001:db8::1]"]);
}

#[test]
fn store_root_sets_both_directories_and_cannot_be_combined_with_them() {
    let settings = check("[store]\nroot = '/chroot'").unwrap();
    assert_eq!(settings.store.real_dir, Path::new("/chroot/nix/store"));
    assert_eq!(settings.store.state_dir, Path::new("/chroot/nix/var/nix"));
    let message = check("[store]\nroot = '/chroot'\nreal_dir = '/x'").unwrap_err().to_string();
    assert_eq!(message, "store.root = \"/chroot\" cannot be combined with store.real_dir; accepted: one of the two");
}

const HASH_PART: &str = "0c5r1v9smcv5ibgzvl7yaz4xkbs2kz17";

#[test]
fn names_that_only_resemble_a_hash_part_are_patterns() {
    let words = "a-quick-brown-fox-jumped-over-the-lazy-dog";
    for name in [words, "linux-*", "*", &"?".repeat(32), &"x".repeat(31), &format!("{}-x", "e".repeat(32))] {
        assert!(check(&format!("[advertise]\nexclude = ['{name}']")).is_ok(), "{name}");
    }
}

#[test]
fn every_refusal_names_key_value_and_what_is_accepted() {
    let peer = |fields: &str| format!("[[peer]]\nname = 'a'\npeer_id = '{PEER}'\n{fields}");
    let listener =
        |address: &str, role: &str| format!("[[gateway.listener]]\naddress = '{address}'\nrole = '{role}'\n");
    let cases: Vec<(String, &str, &str, &str)> = vec![
        ("[gateway]\nlisten = '0.0.0.0:7281'".into(), "gateway.listen", "0.0.0.0:7281", "127.0.0.1:7281"),
        ("[gateway]\nlisten = 'localhost:7281'".into(), "gateway.listen", "localhost:7281", "127.0.0.1:7281"),
        (
            "[gateway]\nhost_names = ['ok', 'cache.lan:80']".into(),
            "gateway.host_names[1]",
            "cache.lan:80",
            "without a port",
        ),
        ("[gateway]\nhost_names = ['*.lan']".into(), "gateway.host_names[0]", "*.lan", "without a port"),
        ("[gateway]\nhost_names = ['']".into(), "gateway.host_names[0]", "\"\"", "without a port"),
        ("[gateway]\nnarinfo_deadline_ms = 1".into(), "gateway.narinfo_deadline_ms", " = 1 is", "50 to 60000"),
        ("[node]\nlisten = []".into(), "node.listen", "[]", "1 to 8"),
        ("[node]\nlisten = ['/dns4/a/tcp/1']".into(), "node.listen[0]", "/dns4/a/tcp/1", "/ip4/192.0.2.1/tcp/7280"),
        ("[node]\nlisten = ['/ip4/1.2.3.4/udp/1']".into(), "node.listen[0]", "/ip4/1.2.3.4/udp/1", "/ip4/"),
        ("[node]\nlisten = ['1.2.3.4:5']".into(), "node.listen[0]", "1.2.3.4:5", "/ip4/"),
        (
            "[node]\nexternal_addresses = ['/ip4/0.0.0.0/tcp/1']".into(),
            "node.external_addresses[0]",
            "0.0.0.0",
            "can be dialled",
        ),
        ("[node]\ncontrol_group = '-x'".into(), "node.control_group", "-x", "name of a group"),
        ("[node]\nname = ''".into(), "node.name", "\"\"", "1 to 64"),
        (format!("[node]\nname = '{}'", "n".repeat(65)), "node.name", "nnn", "1 to 64"),
        ("[node]\nname = \"a\\nb\"".into(), "node.name", "\"a\\nb\"", "without control"),
        (
            "[node]\nstate_dir = '/nix/store/narmesh'".into(),
            "node.state_dir",
            "/nix/store/narmesh",
            "outside the store",
        ),
        (
            "[node]\nstate_dir = '/srv/../chroot/nix/store/x'\n[store]\nroot = '/chroot'".into(),
            "node.state_dir",
            "/chroot/nix/store/x",
            "outside the store",
        ),
        ("[node]\ncontrol_socket = '/nix/store/x'".into(), "node.control_socket", "/nix/store/x", "outside the store"),
        (listener("/nix/store/x", "serve"), "gateway.listener[0].address", "/nix/store/x", "outside the store"),
        ("[advertise]\nexclude = ['/nix/store/*-secret']".into(), "advertise.exclude[0]", "*-secret", "what follows"),
        (
            format!("[advertise]\nexclude = ['a', '{HASH_PART}-secret']"),
            "advertise.exclude[1]",
            HASH_PART,
            "what follows /nix/store/HASH-",
        ),
        (format!("[advertise]\ninclude = ['{HASH_PART}']"), "advertise.include[0]", HASH_PART, "what follows"),
        (format!("[advertise]\nexclude = ['{HASH_PART}*']"), "advertise.exclude[0]", HASH_PART, "what follows"),
        (format!("[advertise]\nexclude = ['{}-x']", "?".repeat(32)), "advertise.exclude[0]", "??-x", "what follows"),
        ("[node]\nstate_dir = ''".into(), "node.state_dir", "\"\"", "a path"),
        ("[node]\nkey_file = ''".into(), "node.key_file", "\"\"", "a path"),
        ("[node]\ncontrol_socket = ''".into(), "node.control_socket", "\"\"", "a path"),
        ("[node]\nstate_dir = \"a\\u0000b\"".into(), "node.state_dir", "\"a\\0b\"", "a path"),
        ("[store]\nroot = ''".into(), "store.root", "\"\"", "a path"),
        ("[store]\nreal_dir = ''".into(), "store.real_dir", "\"\"", "a path"),
        ("[store]\nstate_dir = ''".into(), "store.state_dir", "\"\"", "a path"),
        ("[trust]\nbuilder_key_file = ''".into(), "trust.builder_key_file", "\"\"", "a path"),
        ("[trust]\nsign_remote_builds = true".into(), "trust.sign_remote_builds", " = true is", "false, or"),
        ("[gateway]\nlisten = '127.0.0.1:7280'".into(), "gateway.listen", "node.listen[0]", "ports that differ"),
        ("[gateway]\nlisten = '[::1]:7280'".into(), "gateway.listen", "node.listen[1]", "ports that differ"),
        (listener("0.0.0.0:7282", "site"), "gateway.listener[0].role", "site at 0.0.0.0:7282", "\"serve\" at this"),
        (listener("[2001:db8::1]:7282", "local"), "gateway.listener[0].role", "local at", "Unix socket"),
        (listener("[::ffff:192.0.2.1]:7282", "site"), "gateway.listener[0].role", "site at", "Unix socket"),
        (
            listener("[::]:7282", "local") + "tokens_file = 'x'",
            "gateway.listener[0].role",
            "local at",
            "\"site\" with tokens_file",
        ),
        (
            listener("[::]:7282", "serve") + "tls_certificate_file = 'c'",
            "gateway.listener[0].tls_certificate_file",
            "\"/etc/narmesh/c\"",
            "together with tls_key_file",
        ),
        (
            listener("[::]:7282", "serve") + "tls_key_file = 'k'",
            "gateway.listener[0].tls_key_file",
            "\"/etc/narmesh/k\"",
            "together with tls_certificate_file",
        ),
        (
            listener("[::]:7282", "serve") + "tls_client_ca_file = 'ca'",
            "gateway.listener[0].tls_client_ca_file",
            "\"/etc/narmesh/ca\"",
            "together with tls_certificate_file and tls_key_file",
        ),
        (
            listener("/run/x", "serve") + "tls_certificate_file = 'c'\ntls_key_file = 'k'",
            "gateway.listener[0].tls_certificate_file",
            "\"/etc/narmesh/c\"",
            "no TLS on a Unix socket",
        ),
        (
            listener("[::]:7282", "site") + "tls_certificate_file = 'c'\ntls_key_file = 'k'",
            "gateway.listener[0].role",
            "site at",
            "tls_client_ca_file",
        ),
        (listener("[::]:7282", "serve") + "tokens_file = ''", "gateway.listener[0].tokens_file", "\"\"", "a path"),
        (listener("127.0.0.1:7282", "all"), "gateway.listener[0].role", "\"all\"", "\"local\", \"serve\" or \"site\""),
        (listener("7282", "serve"), "gateway.listener[0].address", "\"7282\"", "0.0.0.0:7282"),
        (listener("systemd:", "serve"), "gateway.listener[0].address", "\"systemd:\"", "FileDescriptorName"),
        (listener("systemd:a:b", "serve"), "gateway.listener[0].address", "\"systemd:a:b\"", "FileDescriptorName"),
        (
            listener("systemd:a", "serve") + &listener("systemd:a", "site"),
            "gateway.listener[1].address",
            "gateway.listener[0].address",
            "another address",
        ),
        (listener("", "serve"), "gateway.listener[0].address", "\"\"", "0.0.0.0:7282"),
        (listener(&format!("/{}", "x".repeat(107)), "serve"), "gateway.listener[0].address", "/xxx", "107 bytes"),
        (
            listener("0.0.0.0:7282", "serve") + "host_names = ['*', 'x']",
            "gateway.listener[0].host_names[0]",
            "\"*\"",
            "without a port",
        ),
        (
            listener("0.0.0.0:7282", "serve") + "connections_max = 0",
            "gateway.listener[0].connections_max",
            " = 0 is",
            "1 to 16384",
        ),
        (
            listener("0.0.0.0:7282", "serve") + "connections_per_client_max = 16385",
            "gateway.listener[0].connections_per_client_max",
            " = 16385 is",
            "1 to 16384",
        ),
        (
            listener("0.0.0.0:7282", "serve") + "trusted_proxies = ['::1', '192.0.2.1/24']",
            "gateway.listener[0].trusted_proxies[1]",
            "\"192.0.2.1/24\"",
            "an IP address, or a network",
        ),
        (
            listener("0.0.0.0:7282", "serve") + "trusted_proxies = ['0.0.0.0/0']",
            "gateway.listener[0].trusted_proxies[0]",
            "\"0.0.0.0/0\"",
            "not all addresses",
        ),
        (
            listener("0.0.0.0:7282", "serve") + "trusted_proxies = ['::1', '::ffff:0.0.0.0/96']",
            "gateway.listener[0].trusted_proxies[1]",
            "\"::ffff:0.0.0.0/96\"",
            "not all addresses",
        ),
        (
            listener("0.0.0.0:7282", "serve") + "trusted_proxies = ['unix']",
            "gateway.listener[0].trusted_proxies[0]",
            "\"unix\"",
            "an IP address, or a network",
        ),
        (
            listener("/run/x", "serve") + "trusted_proxies = ['nginx']",
            "gateway.listener[0].trusted_proxies[0]",
            "\"nginx\"",
            "\"unix\", an IP address",
        ),
        (
            listener("/run/x", "serve") + &format!("trusted_proxies = [{}]", "'::1',".repeat(65)),
            "gateway.listener[0].trusted_proxies",
            "65 entries",
            "at most 64",
        ),
        (
            listener("0.0.0.0:7282", "serve") + "idle_timeout_ms = 999",
            "gateway.listener[0].idle_timeout_ms",
            " = 999 is",
            "1000 to 3600000 (milliseconds)",
        ),
        (
            listener("0.0.0.0:7282", "serve") + "stall_timeout_ms = 3600001",
            "gateway.listener[0].stall_timeout_ms",
            " = 3600001 is",
            "1000 to 3600000 (milliseconds)",
        ),
        (
            listener("/run/x", "serve") + &listener("/run/x", "local"),
            "gateway.listener[1].address",
            "gateway.listener[0].address",
            "another address",
        ),
        (
            listener("0.0.0.0:7281", "serve"),
            "gateway.listener[0].address",
            "gateway.listen = \"127.0.0.1:7281\"",
            "ports that differ",
        ),
        (listener("127.0.0.1:7280", "serve"), "gateway.listener[0].address", "node.listen[0]", "ports that differ"),
        (listener("127.0.0.1:1", "serve").repeat(17), "gateway.listener", "17 entries", "at most 16"),
        ("[quorum]\nk = 1".into(), "quorum.k = 1", "names none", "at least one [[builder]]"),
        ("[quorum]\nmode = 'require'".into(), "quorum.mode", "\"require\"", "at least one [[builder]]"),
        ("[quorum]\nveto = true".into(), "quorum.veto = true", "needs quorum.k", "or neither"),
        ("[store]\nstore_dir = 'nix/store'".into(), "store.store_dir", "nix/store", "absolute"),
        ("[trust]\ntrusted_public_keys = ['oops']".into(), "trust.trusted_public_keys[0]", "oops", "name:base64"),
        ("[advertise]\nexclude = ['ok', 'a b']".into(), "advertise.exclude[1]", "a b", "characters"),
        ("[transfer]\ncompress = 'zstd'".into(), "transfer.compress", "zstd", "\"auto\", \"always\" or \"never\""),
        ("[gateway]\nnarinfo_deadline_max_ms = 1".into(), "gateway.narinfo_deadline_max_ms", " = 1 is", "50 to 60000"),
        ("[transfer]\nstall_timeout_ms = 0".into(), "transfer.stall_timeout_ms", " = 0 is", "100 to 600000"),
        ("[limits]\nuploads_total = 0".into(), "limits.uploads_total", " = 0 is", "1 to 65536"),
        ("[limits]\nadvertised_paths_max = 400001".into(), "limits.advertised_paths_max", "400001", "1 to 400000"),
        ("[limits]\nadvertised_paths_max = 0".into(), "limits.advertised_paths_max", " = 0 is", "1 to 400000"),
        ("[limits]\nnar_buffer_bytes = 5".into(), "limits.nar_buffer_bytes", " = 5 is", "16 MiB"),
        ("[[peer]]\nname = 'a'\npeer_id = 'Qm'".into(), "peer[0].peer_id", "\"Qm\"", "12D3KooW"),
        (format!("[[peer]]\nname = 'a'\npeer_id = '{RSA}'"), "peer[0].peer_id", RSA, "of an Ed25519 key"),
        (format!("[[peer]]\nname = 'a'\npeer_id = '{SECP256K1}'"), "peer[0].peer_id", SECP256K1, "of an Ed25519 key"),
        ("[[peer]]\nname = ''\npeer_id = 'Qm'".into(), "peer[0].name", "\"\"", "1 to 64"),
        (
            peer("addresses = ['/ip4/1.2.3.4/tcp/1', '/ip4/1.2.3.4/tcp/0']"),
            "peer[0].addresses[1]",
            "/ip4/1.2.3.4/tcp/0",
            "not port 0",
        ),
        (peer("addresses = ['/dns4/a.example/tcp/0']"), "peer[0].addresses[0]", "/dns4/a.example/tcp/0", "not port 0"),
        (peer("addresses = ['/dns/a b/tcp/1']"), "peer[0].addresses[0]", "/dns/a b/tcp/1", "a host name of letters"),
        (peer("addresses = ['/dns4/192.0.2.1/tcp/1']"), "peer[0].addresses[0]", "/dns4/192.0.2.1/tcp/1", "after /ip4/"),
        (
            peer("addresses = ['/dnsaddr/a.example']"),
            "peer[0].addresses[0]",
            "/dnsaddr/a.example",
            "/dns/buildbox.example/",
        ),
        (peer("addresses = ['a.example:7280']"), "peer[0].addresses[0]", "a.example:7280", "/dns/buildbox.example/"),
        (
            "[node]\nexternal_addresses = ['/dns4/a.example/tcp/1']".into(),
            "node.external_addresses[0]",
            "/dns4/a.example/tcp/1",
            "a multiaddr of an IP address and a TCP port",
        ),
        (
            peer(&format!("[[peer]]\nname = 'b'\npeer_id = '{PEER}'")),
            "peer[1].peer_id",
            "peer[0].peer_id",
            "one [[peer]] per peer id",
        ),
        (
            peer(&format!("[[peer]]\nname = 'a'\npeer_id = '{OTHER}'")),
            "peer[1].name",
            "peer[0].name",
            "one [[peer]] per name",
        ),
    ];
    for (text, key, value, accepted) in cases {
        let message = check(&text).unwrap_err().to_string();
        assert!(message.starts_with(key), "{text}: {message}");
        assert!(message.contains(value), "{text}: {message}");
        let (_, after) = message.split_once("accepted: ").unwrap_or_else(|| panic!("{message}"));
        assert!(after.contains(accepted), "{text}: {message}");
    }
}

#[test]
fn same_port_on_addresses_that_do_not_overlap_is_accepted() {
    for (gateway, listen) in [
        ("127.0.0.1:0", "/ip4/127.0.0.1/tcp/0"),
        ("127.0.0.1:7280", "/ip4/127.0.0.2/tcp/7280"),
        ("127.0.0.1:7280", "/ip6/::/tcp/7280"),
        ("[::1]:7280", "/ip4/0.0.0.0/tcp/7280"),
    ] {
        let text = format!("[gateway]\nlisten = '{gateway}'\n[node]\nlisten = ['{listen}']");
        assert!(check(&text).is_ok(), "{text}");
    }
}

#[test]
fn peer_addresses_may_have_an_ip_address_or_a_host_name() {
    let addresses =
        ["/ip4/192.0.2.1/tcp/1", "/ip6/2001:db8::1/tcp/1", "/dns/a/tcp/1", "/dns4/a.b/tcp/1", "/dns6/a/tcp/1"];
    let settings = check(&format!("[[peer]]\nname = 'a'\npeer_id = '{PEER}'\naddresses = {addresses:?}")).unwrap();
    assert_eq!(settings.peers[0].addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), addresses);
}

#[test]
fn two_trusted_keys_with_one_name_are_refused_but_one_key_twice_is_accepted() {
    let text = |second: &str| format!("[trust]\ntrusted_public_keys = ['{}', '{second}']", public_key("cache-1", 1));
    let message = check(&text(&public_key("cache-1", 2))).unwrap_err().to_string();
    assert!(message.starts_with("trust.trusted_public_keys[1]"), "{message}");
    assert!(message.contains("trust.trusted_public_keys[0]") && message.contains("one key per name"), "{message}");
    assert!(check(&text(&public_key("cache-1", 1))).is_ok());
    assert!(check(&text(&public_key("cache-2", 2))).is_ok());
}

#[test]
fn socket_path_that_is_too_long_to_bind_is_refused() {
    let message = check(&format!("[node]\nstate_dir = '/{}'", "d".repeat(120))).unwrap_err().to_string();
    assert!(message.starts_with("node.control_socket") && message.contains("107 bytes"), "{message}");
}

/// A configuration in `dir` with a fresh node key.
fn with_key(dir: &Path, rest: &str) -> (Settings, libp2p::identity::Keypair) {
    let keypair = libp2p::identity::Keypair::generate_ed25519();
    NodeKeyFile::create(&dir.join("node.key"), &keypair).unwrap();
    let rest = rest.replace("OWN", &keypair.public().to_peer_id().to_string());
    let file = dir.join("narmesh.toml");
    (Settings::check(Config::parse(&rest, &file).unwrap(), &file).unwrap(), keypair)
}

#[test]
fn the_node_key_comes_back_and_its_file_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, keypair) = with_key(dir.path(), "");
    let secrets = settings.read_secrets().unwrap();
    assert_eq!(secrets.peer_id(), keypair.public().to_peer_id());
    assert!(secrets.builder_key.is_none());
    let shown = format!("{secrets:?}");
    let text = std::fs::read_to_string(&settings.node.key_file).unwrap();
    assert!(!shown.contains(text.trim().strip_prefix(NodeKeyFile::HEADER).unwrap()), "{shown}");
    assert!(NodeKeyFile::create(&settings.node.key_file, &keypair).is_err(), "a key is never overwritten");

    std::fs::set_permissions(&settings.node.key_file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let message = settings.read_secrets().unwrap_err().to_string();
    assert!(
        message.starts_with("node.key_file") && message.contains("0640") && message.contains("chmod 600"),
        "{message}"
    );
}

#[test]
fn a_damaged_key_is_refused_without_showing_it() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, _) = with_key(dir.path(), "");
    std::fs::write(&settings.node.key_file, "narmesh-node-key-1:c2VjcmV0").unwrap();
    let message = settings.read_secrets().unwrap_err().to_string();
    assert!(message.contains("accepted: a file of one line, narmesh-node-key-1:<base64>"), "{message}");
    assert!(!message.contains("c2VjcmV0"), "{message}");
}

#[test]
fn a_builder_key_is_read_and_a_missing_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, _) = with_key(dir.path(), "[trust]\nbuilder_key_file = 'builder.key'");
    let message = settings.read_secrets().unwrap_err().to_string();
    assert!(message.starts_with("trust.builder_key_file") && message.contains("narmesh init"), "{message}");
    let key = NixSecretKey::from_seed("host-1", &[7; 32]).unwrap();
    create_builder_key(settings.builder_key_file.as_deref().unwrap(), &key).unwrap();
    assert_eq!(settings.read_secrets().unwrap().builder_key.unwrap().public(), key.public());
}

#[test]
fn key_that_is_not_a_regular_file_is_refused_without_waiting() {
    let odd = tempfile::tempdir().unwrap();
    for (path, what) in crate::regular_file::list_oddities(odd.path()) {
        let dir = tempfile::tempdir().unwrap();
        let (settings, _) = with_key(dir.path(), "[trust]\nbuilder_key_file = 'builder.key'\n[node]\nstate_dir = '.'");
        let named = |error: SecretError, key: &str, file: &str| {
            let message = error.to_string();
            assert!(message.starts_with(key) && message.contains(file), "{message}");
            assert!(message.contains(&format!("it is {what}, not a file; accepted: ")), "{message}");
        };
        std::os::unix::fs::symlink(&path, dir.path().join("gateway.key")).unwrap();
        named(make_gateway_key(dir.path()).unwrap_err(), "gateway key = ", "gateway.key");
        std::os::unix::fs::symlink(&path, dir.path().join("builder.key")).unwrap();
        named(settings.read_secrets().unwrap_err(), "trust.builder_key_file = ", "builder.key");
        std::fs::remove_file(dir.path().join("node.key")).unwrap();
        std::os::unix::fs::symlink(&path, dir.path().join("node.key")).unwrap();
        named(settings.read_secrets().unwrap_err(), "node.key_file = ", "node.key");
    }
}

#[test]
fn only_a_policy_that_needs_the_gateway_key_looks_at_its_file() {
    let odd = tempfile::tempdir().unwrap();
    let oddities = crate::regular_file::list_oddities(odd.path());
    let builder = NixSecretKey::from_seed("builder-1", &[7; 32]).unwrap().public();
    for mode in ["off", "observe", "prefer", "require"] {
        for (path, what) in &oddities {
            let dir = tempfile::tempdir().unwrap();
            let quorum = format!(
                "[node]\nstate_dir = '.'\n[quorum]\nmode = '{mode}'\nk = 1\n\
                 [[builder]]\nname = 'one'\npublic_key = '{builder}'"
            );
            let (settings, _) = with_key(dir.path(), &quorum);
            std::os::unix::fs::symlink(path, dir.path().join("gateway.key")).unwrap();
            // The one is what `check-config` and `id` ask, the other what the daemon does.
            let (read, made) = (settings.read_gateway_key(), settings.make_gateway_key());
            assert_eq!((read.is_ok(), made.is_ok()), (mode != "require", mode != "require"), "{mode}, {what}");
            assert!([read, made].into_iter().all(|key| key.ok().flatten().is_none()), "{mode}, {what}");
        }
    }
}

#[test]
fn gateway_that_signs_needs_its_key_whatever_the_policy() {
    for sign in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (settings, _) = with_key(dir.path(), &format!("[node]\nstate_dir = '.'\n[gateway]\nsign = {sign}"));
        assert_eq!(settings.make_gateway_key().unwrap().is_some(), sign);
    }
}

#[test]
fn credentials_of_a_cache_come_from_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    write("netrc", "machine cache.example login me password secret\nmachine bad.example login a:b password c");
    write("token", "t\n");
    write("password", "p\n");
    let read = |host: &str, lines: &str| {
        let text = format!("[[upstream]]\nname = 'x'\nurl = '{host}'\n{lines}");
        let file = dir.path().join("narmesh.toml");
        let checked =
            Settings::check(Config::parse(&text, &file).unwrap(), &file).map_err(|error| error.to_string())?;
        checked.upstreams[0].read().map(|cache| cache.credentials).map_err(|error| error.to_string())
    };
    let user = |user: &str, password: &str| {
        Ok(Some(Credentials::User { user: user.to_owned(), password: password.to_owned() }))
    };
    let cache = "https://cache.example:8443/team";
    assert_eq!(read(cache, "netrc_file = 'netrc'"), user("me", "secret"));
    assert_eq!(read(cache, "user = 'u'\npassword_file = 'password'"), user("u", "p"));
    assert_eq!(read(cache, "token_file = 'token'"), Ok(Some(Credentials::Token("t".to_owned()))));
    for host in ["https://other.example", "https://bad.example"] {
        let error = read(host, "netrc_file = 'netrc'").unwrap_err();
        assert!(error.starts_with("netrc_file of [[upstream]] \"x\" = ") && error.contains("for the host"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
    let error = read("file:///srv", "netrc_file = 'netrc'").unwrap_err();
    assert!(error.starts_with("upstream[0].netrc_file = "), "{error}");
    for lines in ["netrc_file = 'netrc'\ntoken_file = 'token'", "netrc_file = 'netrc'\nuser = 'u'", "user = 'u'"] {
        let error = read(cache, lines).unwrap_err();
        assert!(error.starts_with("upstream[0].user = ") && error.contains("`netrc_file` alone"), "{error}");
    }
}

#[test]
fn leftover_of_an_unfinished_gateway_key_does_not_prevent_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("gateway.key.new")).unwrap();
    let key = make_gateway_key(dir.path()).unwrap();
    assert_eq!(read_gateway_key(dir.path()).unwrap().unwrap().public(), key.public());
}

#[test]
fn our_own_peer_id_in_the_allowlist_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, _) = with_key(dir.path(), "[[peer]]\nname = 'me'\npeer_id = 'OWN'");
    let message = settings.read_secrets().unwrap_err().to_string();
    assert!(message.starts_with("peer[0].peer_id") && message.contains("this node's own"), "{message}");
}
