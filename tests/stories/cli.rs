//! Commands that a person types: `init`, `id`, `check-config`, `status`, `advertised`, `why`, and the README's quick start.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use narmesh_tests::{Finished, TestMesh, TestNode, finish, narmesh_binary, nix_client_environment, scratch_dir};
use serde_json::Value;

fn init(dir: &Path, arguments: &[&str], path: &str) -> Finished {
    let mut command = Command::new(narmesh_binary());
    finish(command.args(["init", "--dir"]).arg(dir).args(arguments).env("PATH", path))
}

fn system_path() -> String {
    std::env::var("PATH").unwrap()
}

#[test]
fn init_makes_keys_and_says_what_to_do_with_them() {
    let scratch = scratch_dir("init");
    let dir = scratch.path().join("new");
    let said = init(&dir, &["--name", "buildbox"], &system_path()).expect_success("init");
    for secret in ["node.key", "builder.key", "state/gateway.key"] {
        let mode = fs::metadata(dir.join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
        let text = String::from_utf8_lossy(&fs::read(dir.join(secret)).unwrap()).trim().to_owned();
        assert!(!said.contains(&text), "init prints the secret {secret}");
    }
    for line in [
        "[[peer]]",
        "name = \"buildbox\"",
        "peer_id = \"12D3KooW",
        "addresses = [",
        "\nsubstituters = http://127.0.0.1:7281\n",
        "\ntrusted-public-keys = narmesh-gateway-",
        "connect-timeout = ",
        "stalled-download-timeout = ",
        "download-attempts = ",
        "narinfo-cache-negative-ttl = ",
        "name them as [[builder]] in ",
        "and set k and mode = \"require\"",
        "Then nix.conf must have no other substituter and no other key",
    ] {
        assert!(said.contains(line), "init does not say {line}:\n{said}");
    }
    // A second `init` is refused and changes nothing.
    let before: Vec<_> =
        ["node.key", "builder.key", "narmesh.toml"].map(|file| fs::read(dir.join(file)).unwrap()).into();
    init(&dir, &[], &system_path()).expect_failure("a second init");
    let after: Vec<_> =
        ["node.key", "builder.key", "narmesh.toml"].map(|file| fs::read(dir.join(file)).unwrap()).into();
    assert!(before == after);

    let keyless = scratch.path().join("keyless");
    init(&keyless, &["--no-builder-key"], &system_path()).expect_success("init --no-builder-key");
    assert!(!keyless.join("builder.key").exists());
    finish(Command::new(narmesh_binary()).arg("--config").arg(keyless.join("narmesh.toml")).arg("check-config"))
        .expect_success("check-config of what init wrote");
}

#[test]
fn init_recommends_fallback_only_for_nix_versions_that_survive_it() {
    let scratch = scratch_dir("versions");
    // 2.8 aborts with `fallback = true` (SubstituterDisabled thrown in a noexcept function); 2.9 does not.
    for (version, wanted) in [("2.8.0", false), ("2.8.1", false), ("2.9.0", true), ("2.26.3", true), ("3.0.0", true)] {
        let bin = scratch.path().join(version);
        fs::create_dir(&bin).unwrap();
        fs::write(bin.join("nix"), format!("#!/bin/sh\necho 'nix (Nix) {version}'\n")).unwrap();
        fs::set_permissions(bin.join("nix"), fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", bin.display(), system_path());
        let said = init(&bin.join("conf"), &[], &path).expect_success("init");
        let recommended = said.lines().any(|line| line.trim() == "fallback = true");
        assert_eq!(recommended, wanted, "Nix {version}:\n{said}");
    }
}

#[test]
fn init_trusts_the_keys_that_nix_trusts_unless_told_not_to() {
    let scratch = scratch_dir("nix-keys");
    let [key_of_cache, key_of_office] = ["cache.example-1", "office-1"].map(|name| {
        let arguments = ["--extra-experimental-features", "nix-command", "key", "generate-secret", "--key-name", name];
        let mut nix = Command::new("nix");
        let secret = finish(nix_client_environment(&mut nix).args(arguments)).expect_success("a key");
        let file = scratch.path().join(name);
        fs::write(&file, secret).unwrap();
        let mut nix = Command::new("sh");
        let script = "nix --extra-experimental-features nix-command key convert-secret-to-public < \"$0\"";
        let public = finish(nix_client_environment(&mut nix).args(["-c", script]).arg(&file));
        public.expect_success("its public half").trim().to_owned()
    });
    let nix_conf = scratch.path().join("nix.conf");
    let trusted = format!("{key_of_cache} {key_of_office}");
    fs::write(&nix_conf, format!("trusted-public-keys = {trusted}\n")).unwrap();
    let run = |dir: &str, words: &[&str], path: &str, conf_dir: &Path| {
        let dir = scratch.path().join(dir);
        let mut command = Command::new(narmesh_binary());
        command.args(["init", "--name", "one", "--dir"]).arg(&dir).args(words);
        command.env("PATH", path).env("NIX_CONF_DIR", conf_dir);
        let said = finish(&mut command).expect_success("init");
        (said, fs::read_to_string(dir.join("narmesh.toml")).unwrap(), dir.join("narmesh.toml"))
    };
    let has_both = |text: &str| text.contains(&key_of_cache) && text.contains(&key_of_office);

    // The keys are asked of this machine's real Nix with that configuration; without a Nix, they are read from the file.
    for (dir, path) in [("asked", system_path().as_str()), ("read", "/nonexistent")] {
        let (said, written, file) = run(dir, &[], path, scratch.path());
        assert!(has_both(&written) && written.contains("one-narmesh-1:"), "{written}");
        assert!(said.contains("cache.example-1, office-1") && said.contains("--no-nix-keys"), "{said}");
        let check = |nix_conf: &Path| {
            let mut command = Command::new(narmesh_binary());
            command.arg("--config").arg(&file).args(["check-config", "--nix-conf"]).arg(nix_conf);
            finish(&mut command).expect_success("check-config")
        };
        fs::write(&file, written.replace("\nsign = true\n", "\nsign = false\n")).unwrap();
        assert!(!check(&nix_conf).contains("office-1"), "both trust it");
        // `check-config` goes on comparing, since Nix may stop trusting a key.
        let without = scratch.path().join("without.conf");
        fs::write(&without, format!("trusted-public-keys = {key_of_cache}\n")).unwrap();
        assert!(check(&without).contains(&format!("narmesh trusts {key_of_office}, but Nix does not")));
    }
    let unwanted = ["--no-nix-keys", "--no-upstreams"];
    let (said, written, _) = run("unwanted", &unwanted, &system_path(), scratch.path());
    assert!(!written.contains(&key_of_cache) && !written.contains(&key_of_office), "{written}");
    assert!(said.contains("--no-nix-keys"), "{said}");
    let (said, written, _) = run("no-nix", &[], "/nonexistent", Path::new("/nonexistent"));
    assert!(said.contains("no Nix was found here") && written.contains("one-narmesh-1:"), "{said}");
    let help = finish(Command::new(narmesh_binary()).args(["init", "--help"])).expect_success("--help");
    assert!(help.contains("--no-nix-keys"), "{help}");
}

/// The `[[peer]]` block that `init` or `id` printed for the other machines.
fn peer_block(said: &str) -> String {
    block(said, "[[peer]]")
}

fn block(said: &str, header: &str) -> String {
    let block = said.lines().skip_while(|line| line.trim() != header).map(str::trim);
    block.take_while(|line| !line.is_empty()).map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_quick_start_with_two_machines_works_as_written() {
    let mesh = TestMesh::new();
    let [mut one, mut two] = ["one", "two"].map(|name| mesh.node(name));
    // A second `init` for each node: its output is used below, and so are the files that it writes.
    let said = |node: &TestNode| {
        let dir = node.dir().join("again");
        // No test asks the caches that this machine's Nix has.
        let said = init(&dir, &["--name", &node.name, "--no-upstreams"], &system_path()).expect_success("init");
        for file in ["narmesh.toml", "node.key", "builder.key"] {
            fs::copy(dir.join(file), node.dir().join(file)).unwrap();
        }
        said
    };
    let (said_one, said_two) = (said(&one), said(&two));
    let public_key = |said: &str| {
        let line = said.lines().find(|line| line.contains("-narmesh-1:") && line.ends_with(',')).unwrap();
        line.trim().trim_matches(['"', ',']).to_owned()
    };
    let (key_one, key_two) = (public_key(&said_one), public_key(&said_two));
    let edit = |node: &TestNode, peer: &str, key: &str| {
        let text = fs::read_to_string(node.config_file()).unwrap();
        let root = node.dir().join("root").display().to_string();
        // Both machines are on this one: they get their own ports and stores, and loopback instead of a network.
        let mut edited = text
            .replace(r#""/ip4/0.0.0.0/tcp/7280", "/ip6/::/tcp/7280""#, r#""/ip4/127.0.0.1/tcp/0""#)
            .replace("127.0.0.1:7281", "127.0.0.1:0")
            .replace("# root = \"/chroot\"", &format!("root = \"{root}\""))
            .replace("trusted_public_keys = [", &format!("trusted_public_keys = [\n    \"{key}\","));
        edited.push_str(peer);
        fs::write(node.config_file(), edited).unwrap();
        node.narmesh(&["check-config"]).expect_success("check-config");
    };
    let without_address = |block: String| {
        block.lines().filter(|line| !line.starts_with("addresses")).map(|line| format!("{line}\n")).collect::<String>()
    };
    edit(&one, &without_address(peer_block(&said_two)), &key_two);
    one.start_as_written(None);
    let mut block_of_one = without_address(peer_block(&said_one));
    block_of_one.push_str(&format!("addresses = [\"{}\"]\n", one.p2p_address()));
    edit(&two, &block_of_one, &key_one);
    two.start_as_written(None);
    two.narmesh(&["check-config", "--probe"]).expect_success("both run, and allow each other");

    let lib = one.store.build_one("app");
    one.wait_all_advertised(&[&two]);
    two.trust_the_gateway_alone();
    two.realise(std::slice::from_ref(&lib)).expect_success("nix-store --realise");
    two.store.verify_contents();
}

#[test]
fn init_can_set_nix_up_and_leaves_to_nix_what_it_cannot_ask() {
    let scratch = scratch_dir("setup");
    let conf = scratch.path().join("nix.conf");
    let before = "substituters = https://cache.example s3://bucket\nconnect-timeout = 90\n";
    fs::write(&conf, before).unwrap();
    let dir = scratch.path().join("narmesh");
    let set_up = |arguments: &[&str]| {
        let mut command = Command::new(narmesh_binary());
        command.env("NIX_CONF_DIR", scratch.path()).args(["init", "--setup-nix", "--dir"]).arg(&dir).args(arguments);
        finish(&mut command).expect_success("init --setup-nix")
    };
    let said = set_up(&[]);
    let written = fs::read_to_string(&conf).unwrap();
    let part = written.strip_prefix(before).expect("our lines come after the others, so that they count");
    for line in
        ["substituters = http://127.0.0.1:7281\n", "extra-substituters = s3://bucket\n", "connect-timeout = 5\n"]
    {
        assert!(part.contains(line) && said.contains(line), "{line}{part}{said}");
    }
    assert!(part.contains("\nextra-trusted-public-keys = narmesh-gateway-"), "{part}");
    set_up(&["--force"]);
    assert_eq!(fs::read_to_string(&conf).unwrap(), written, "once, and the same again");
    let mut leave = Command::new(narmesh_binary());
    leave.env("NIX_CONF_DIR", scratch.path()).arg("--config").arg(dir.join("narmesh.toml")).arg("leave");
    finish(&mut leave).expect_success("leave, without a mesh");
    assert_eq!(fs::read_to_string(&conf).unwrap(), before);
}

#[test]
fn check_config_names_keys_that_nix_does_not_trust_and_other_caches_that_it_asks() {
    let mesh = TestMesh::new();
    let [mut a, b] = ["a", "b"].map(|name| mesh.node(name));
    a.allow(&b.card());
    a.write_config();
    let nix_conf = mesh.path().join("nix.conf");
    let check = |text: &str| {
        fs::write(&nix_conf, text).unwrap();
        a.narmesh(&["check-config", "--nix-conf", nix_conf.to_str().unwrap()])
    };
    let key = b.builder_key();
    let good = format!("substituters = http://127.0.0.1:7281 https://cache.nixos.org\ntrusted-public-keys = {key}\n");
    let said = check(&good);
    assert!(
        format!("{}{}", said.stdout, said.stderr).contains("cache.nixos.org"),
        "other substituters are named: {said:?}"
    );
    let key_name = key.split(':').next().unwrap();
    let without = check("substituters = http://127.0.0.1:7281\ntrusted-public-keys =\n");
    assert!(
        format!("{}{}", without.stdout, without.stderr).contains(key_name),
        "a key that only narmesh trusts: {without:?}"
    );
    assert!(
        !format!("{}{}", said.stdout, said.stderr).contains(key_name),
        "nothing to say of a key that both trust: {said:?}"
    );
}

#[test]
fn check_config_probes_peers() {
    let mesh = TestMesh::new();
    let [mut a, mut b, mut c, d] = ["a", "b", "c", "d"].map(|name| mesh.node(name));
    // B allows A; C has never heard of A; D does not run.
    a.allow(&b.card());
    a.allow(&c.card());
    a.allow(&d.card());
    b.allow(&a.card());
    b.start();
    c.start();
    a.learn_address("b", &b.p2p_address());
    a.learn_address("c", &c.p2p_address());
    a.learn_address("d", "/ip4/127.0.0.1/tcp/9");
    a.write_config();
    let probed = a.narmesh(&["check-config", "--probe"]);
    let said = format!("{}{}", probed.stdout, probed.stderr);
    let line = |name: &str| {
        let found =
            said.lines().find(|line| line.split(|letter: char| !letter.is_alphanumeric()).any(|word| word == name));
        found.unwrap_or_else(|| panic!("nothing about {name}:\n{said}")).to_owned()
    };
    assert_ne!(line("b").replace('b', ""), line("d").replace('d', ""), "reachable and not: {said}");
    assert_ne!(line("b").replace('b', ""), line("c").replace('c', ""), "allowed and not: {said}");
    assert!(!probed.status.success(), "peers that cannot be reached are a finding: {said}");
}

#[test]
fn status_describes_the_node_and_each_peer() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let lib = a.store.build_one("lib");
    let silent = a.narmesh(&["status"]).expect_failure("status of a daemon that does not run");
    assert!(!silent.contains("panicked"), "{silent}");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    b.realise(std::slice::from_ref(&lib)).expect_success("nix-store --realise");

    let text = b.narmesh(&["status"]).expect_success("status");
    for word in ["a", "connected", "127.0.0.1"] {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
    let status = b.status();
    assert_eq!(status.text("/peer_id"), Some(b.card().peer_id.as_str()));
    assert_eq!(status.number("/pid"), u64::from(b.pid()));
    assert_eq!(status.text("/store/dir"), Some("/nix/store"));
    assert_eq!(status.number("/requests/nar_ok"), 1);
    assert_eq!(status.number("/requests/false_hits"), 0);
    assert!(status.number("/requests/narinfo_hits") >= 1 && status.number("/rss_bytes") > 1 << 20);
    let peer = status.peer("a").unwrap();
    assert_eq!((&peer["peer_id"], &peer["allowed_there"]), (&Value::from(a.card().peer_id), &Value::from(true)));
    assert!(peer["hits"].as_u64().unwrap() >= 1 && peer["bytes_in"].as_u64().unwrap() > 0, "{peer}");
    assert!(peer["summary"]["filter_bits"].as_u64().unwrap() > 0, "{peer}");
    let served = a.status().peer("b").unwrap()["bytes_out"].as_u64().unwrap();
    assert!(served > 0);
}

#[test]
fn advertised_lists_the_offered_paths_and_why_explains_a_lookup() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let lib = a.store.build_one("lib");
    let private = a.store.build_one("private");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_advertised(1, &[&b]);
    let text = a.narmesh(&["advertised"]).expect_success("advertised");
    assert!(text.contains(&lib), "{text}");

    b.realise(std::slice::from_ref(&lib)).expect_success("nix-store --realise");
    b.store.delete(std::slice::from_ref(&lib));
    let known = b.narmesh(&["why", &lib]).expect_success("why");
    assert!(
        known.split(|letter: char| !letter.is_alphanumeric()).any(|word| word == "a"),
        "names the holder:\n{known}"
    );
    let unknown = b.narmesh(&["why", &private]);
    assert_ne!(unknown.stdout.replace(&private, ""), known.replace(&lib, ""));
    assert!(unknown.stdout.contains("not asked for since the daemon started"), "{}", unknown.stdout);
    // A miss out of memory asks nobody, and still somebody asked; a hit out of memory alike.
    for (path, status, sentence) in
        [(&private, 404, "ago: answered 404 at once, and nobody was asked"), (&lib, 200, "ago: answered from ")]
    {
        assert_eq!(b.get_narinfo(path).status, status, "{path}");
        let asked = b.narmesh(&["why", path]).expect_success("why of what was asked for");
        assert!(asked.contains(sentence), "{sentence}\n{asked}");
    }
    let structured = b.narmesh(&["why", &lib, "--json"]).expect_success("why --json");
    assert!(serde_json::from_str::<Value>(&structured).unwrap().is_object());
    b.narmesh(&["why", "no store path"]).expect_failure("why of something else");
}

#[test]
fn the_output_of_id_fits_into_the_other_machine_s_configuration() {
    let scratch = scratch_dir("id");
    let [one, two] = ["one", "two"].map(|name| {
        let dir = scratch.path().join(name);
        init(&dir, &["--name", name], &system_path()).expect_success("init");
        dir.join("narmesh.toml")
    });
    let run = |file: &Path, words: &[&str]| {
        finish(Command::new(narmesh_binary()).arg("--config").arg(file).args(words)).expect_success(&words.join(" "))
    };
    let said = run(&one, &["id"]);
    let structured: Value = serde_json::from_str(&run(&one, &["id", "--json"])).unwrap();
    assert_eq!(structured["name"], "one", "as it was called at init, not as the host");
    for field in ["name", "peer_id", "builder_key"] {
        assert!(said.contains(&format!("\"{}\"", structured[field].as_str().unwrap())), "{field}: {said}");
    }
    assert_eq!(structured["gateway"], "http://127.0.0.1:7281");
    let key = structured["gateway_key"].as_str().unwrap();
    assert!(said.contains(&format!("substituters = http://127.0.0.1:7281\ntrusted-public-keys = {key}")), "{said}");

    let written =
        fs::read_to_string(&two).unwrap().replace("# k = 2", "k = 1").replace("mode = \"off\"", "mode = \"observe\"");
    fs::write(&two, written + &peer_block(&said) + &block(&said, "[[builder]]")).unwrap();
    run(&two, &["check-config"]);
    let policy = run(&two, &["quorum", "policy", "check", two.to_str().unwrap()]);
    assert!(policy.contains("1 builders in 1 groups; observe"), "{policy}");
}

#[test]
fn a_listen_port_in_use_fails_the_start_with_an_error_that_names_it() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("a");
    let taken = std::net::TcpListener::bind("[::1]:0").unwrap();
    let address = format!("/ip6/::1/tcp/{}", taken.local_addr().unwrap().port());
    node.config.listen.push(address.clone());
    node.write_config();
    for command in ["run", "check-config"] {
        let said = node.narmesh(&[command]).expect_failure("a start on a port that is taken");
        for words in ["node.listen", &address, "in use", "accepted"] {
            assert!(said.contains(words), "{words} is not in what {command} says: {said}");
        }
    }
}

#[test]
fn check_config_refuses_what_run_refuses_and_not_the_daemon_that_runs() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("a");
    node.write_config();
    let good = fs::read_to_string(node.config_file()).unwrap();
    fs::write(node.dir().join("file"), "precious").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let in_node = |line: &str| good.replace("[node]\n", &format!("[node]\n{line}\n"));
    let with_state_dir = |dir: &str| good.replace("state_dir = \"state\"", &format!("state_dir = \"{dir}\""));
    let peer = "[[peer]]\nname = \"rsa\"\npeer_id = \"QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N\"\n";
    for (bad, key) in [
        (in_node("control_group = \"no-such-group\""), "node.control_group"),
        (in_node("control_socket = \"none/control.sock\""), "none/control.sock"),
        (with_state_dir("file/state"), "file/state"),
        (with_state_dir("/proc/narmesh"), "/proc/narmesh"),
        (good.replace("127.0.0.1:0", &taken), "gateway.listen"),
        (good.replace("peer = []\n", "") + peer, "peer_id"),
    ] {
        assert_ne!(bad, good);
        fs::write(node.config_file(), bad).unwrap();
        for command in ["run", "check-config"] {
            let said = node.narmesh(&[command]).expect_failure(command);
            assert!(said.contains(key), "{command} does not name {key}:\n{said}");
        }
    }
    node.start();
    let fixed = fs::read_to_string(node.config_file()).unwrap().replace("127.0.0.1:0", &node.gateway().to_string());
    let fixed = fixed.replace("/ip4/127.0.0.1/tcp/0", &node.p2p_address());
    fs::write(node.config_file(), fixed).unwrap();
    let said = node.narmesh(&["check-config"]).expect_success("check-config beside the daemon");
    assert!(said.contains(&format!("(pid {}) holds gateway.listen = {}", node.pid(), node.gateway())), "{said}");
    node.terminate();
    node.narmesh(&["check-config"]).expect_success("check-config after it");
}

#[test]
fn a_peer_that_is_killed_hung_up_and_that_is_all() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    TestMesh::start_all(&mut [&mut a, &mut b]);
    b.kill();
    a.wait_connected("b", false, std::time::Duration::from_secs(2));
    a.wait_logged(&["disconnected", "hung up without a goodbye"]);
    assert!(!a.log().contains("close_notify"), "{}", a.log());
}

#[test]
fn help_names_every_command() {
    let said = finish(Command::new(narmesh_binary()).arg("--help")).expect_success("--help");
    for command in ["init", "run", "id", "check-config", "doctor", "status", "advertised", "why", "demo"] {
        assert!(said.contains(command), "{command} is not in\n{said}");
    }
}
