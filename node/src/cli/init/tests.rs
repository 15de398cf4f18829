//! What `narmesh init` writes, and what it refuses to write over.

use super::*;
use crate::settings::Secrets;
use std::os::unix::fs::PermissionsExt;

fn arguments(dir: &Path) -> Arguments {
    Arguments {
        dir: Some(dir.to_owned()),
        name: Some("my host".to_owned()),
        no_builder_key: false,
        no_nix_keys: false,
        no_upstreams: false,
        user: None,
        force: false,
        setup_nix: false,
        joins: false,
        hides_nix_conf: false,
        keys: false,
    }
}

fn init_without_nix(arguments: &Arguments) -> anyhow::Result<()> {
    init_beside(Path::new("unused"), arguments, || None)
}

fn load(dir: &Path) -> (Settings, Secrets) {
    let settings = Settings::load(&dir.join("narmesh.toml")).unwrap();
    let secrets = settings.read_secrets().unwrap();
    (settings, secrets)
}

#[test]
fn files_written_by_init_are_accepted_and_keys_are_private() {
    let dir = tempfile::tempdir().unwrap();
    init_without_nix(&arguments(dir.path())).unwrap();
    let (settings, secrets) = load(dir.path());
    let key = secrets.builder_key.unwrap();
    assert_eq!((key.name(), settings.node.name.as_deref()), ("my-host-narmesh-1", Some("my host")));
    assert_eq!(settings.trusted.by_name(key.name()), Some(&key.public()));
    for file in [NODE_KEY, BUILDER_KEY] {
        assert_eq!(std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn the_keys_of_nix_are_trusted_unless_unwanted() {
    let dir = tempfile::tempdir().unwrap();
    // Nix's own defaults.
    let nix = || Some(NixSettings::from_file(Path::new("/nonexistent/nix.conf")));
    let mut arguments = Arguments { force: true, ..arguments(dir.path()) };
    let mut names = |no_nix_keys| {
        arguments.no_nix_keys = no_nix_keys;
        init_beside(Path::new("unused"), &arguments, nix).unwrap();
        load(dir.path()).0.trusted.iter().map(|key| key.name().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(false).len(), 2);
    assert!(names(false).contains(&"cache.nixos.org-1".to_owned()));
    assert_eq!(names(true), ["my-host-narmesh-1"]);
}

#[test]
fn nix_s_substituters_become_upstreams_unless_unwanted() {
    let dir = tempfile::tempdir().unwrap();
    // Nix's own defaults.
    let nix = || Some(NixSettings::from_file(Path::new("/nonexistent/nix.conf")));
    for no_upstreams in [false, true] {
        let arguments = Arguments { force: true, no_upstreams, ..arguments(dir.path()) };
        init_beside(Path::new("unused"), &arguments, nix).unwrap();
        let (settings, _) = load(dir.path());
        let upstreams: Vec<_> = settings.upstreams.iter().map(|it| it.cache.place.to_string()).collect();
        assert_eq!(upstreams, if no_upstreams { vec![] } else { vec!["https://cache.nixos.org".to_owned()] });
        assert!(settings.gateway.sign);
    }
}

#[test]
fn caches_and_keys_that_nix_no_longer_has_are_kept_when_the_configuration_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("nix.conf");
    let init = |arguments: &Arguments| {
        let nix = || Some(NixSettings::from_file(&conf));
        init_beside(Path::new("unused"), arguments, nix).unwrap();
        let (settings, _) = load(dir.path());
        let upstreams: Vec<_> = settings.upstreams.iter().map(|it| it.cache.place.to_string()).collect();
        (upstreams, settings.trusted.by_name("cache.nixos.org-1").is_some())
    };
    // Nix's own defaults, and then what `init` has nix.conf say.
    let first = init(&arguments(dir.path()));
    assert_eq!(first, (vec!["https://cache.nixos.org".to_owned()], true));
    std::fs::write(&conf, "substituters = http://127.0.0.1:7281\ntrusted-public-keys =\n").unwrap();
    let again = Arguments { force: true, ..arguments(dir.path()) };
    assert_eq!(init(&again), first);
    assert_eq!(init(&Arguments { no_upstreams: true, no_nix_keys: true, ..again }), (vec![], false));
}

#[test]
fn gateway_key_in_nix_conf_is_not_trusted_when_init_is_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let (conf, nowhere) = (dir.path().join("nix.conf"), Path::new("/nonexistent/nix.conf"));
    let init = |file: &Path, arguments: &Arguments| {
        init_beside(Path::new("unused"), arguments, || Some(NixSettings::from_file(file))).unwrap();
        load(dir.path()).0
    };
    let gateway_key = init(nowhere, &arguments(dir.path())).read_gateway_key().unwrap().unwrap().public();
    std::fs::write(&conf, format!("trusted-public-keys = {gateway_key}\n")).unwrap();
    let again = Arguments { force: true, ..arguments(dir.path()) };
    let trusts_it = |settings: &Settings| settings.trusted.by_name(gateway_key.name()).is_some();
    assert!(!trusts_it(&init(&conf, &again)));
    // Nix may still name the key of a state directory that is gone, and the configuration may have taken it before.
    std::fs::remove_file(gateway_key_file(&load(dir.path()).0.node.state_dir)).unwrap();
    assert!(!trusts_it(&init(&conf, &again)));
    let file = dir.path().join("narmesh.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let (before, after) = text.split_once("trusted_public_keys = [").unwrap();
    std::fs::write(&file, format!("{before}trusted_public_keys = [\"{gateway_key}\", {after}")).unwrap();
    assert!(trusts_it(&load(dir.path()).0));
    assert!(!trusts_it(&init(nowhere, &again)));
}

/// A configuration, and what it has nix.conf say.
fn lines_for_nix(left: Option<&[String]>, nix: Option<NixVersion>) -> String {
    let dir = tempfile::tempdir().unwrap();
    init_without_nix(&arguments(dir.path())).unwrap();
    let (settings, _) = load(dir.path());
    let mode = std::fs::metadata(gateway_key_file(&settings.node.state_dir)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let key = settings.read_gateway_key().unwrap().unwrap().public();
    let text = nix_conf_lines(&settings, &key, left, nix);
    assert!(text.contains(&format!("trusted-public-keys = {key}\n")), "{text}");
    text
}

#[test]
fn nix_asks_only_this_node_and_what_this_node_cannot_ask() {
    let has = |text: &str, line: &str| text.lines().any(|given| given == line);
    let alone = lines_for_nix(Some(&[]), None);
    assert!(has(&alone, "substituters = http://127.0.0.1:7281") && !alone.contains("extra-"), "{alone}");
    let beside = lines_for_nix(Some(&["s3://a".to_owned(), "ssh://b".to_owned()]), None);
    assert!(has(&beside, "extra-substituters = s3://a ssh://b"), "{beside}");
    let among = lines_for_nix(None, None);
    assert!(has(&among, "extra-substituters = http://127.0.0.1:7281"), "{among}");
}

#[test]
fn nothing_is_overwritten_unasked_and_keys_never() {
    let dir = tempfile::tempdir().unwrap();
    let mut arguments = arguments(dir.path());
    init_without_nix(&arguments).unwrap();
    let (_, before) = load(dir.path());
    let file = dir.path().join("narmesh.toml");
    std::fs::write(&file, "# mine\n").unwrap();
    let message = init_without_nix(&arguments).unwrap_err().to_string();
    assert!(message.contains("narmesh.toml exists") && message.contains("--force"), "{message}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "# mine\n");
    arguments.force = true;
    init_without_nix(&arguments).unwrap();
    let (_, after) = load(dir.path());
    assert_eq!(after.peer_id(), before.peer_id());
    assert_eq!(after.builder_key.unwrap().public(), before.builder_key.unwrap().public());
}

#[test]
fn nothing_is_written_into_what_is_not_a_regular_file() {
    let odd = tempfile::tempdir().unwrap();
    for (path, what) in regular_file::list_oddities(odd.path()) {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(&path, dir.path().join("narmesh.toml")).unwrap();
        let error = init_without_nix(&Arguments { force: true, ..arguments(dir.path()) }).unwrap_err();
        let message = crate::describe::describe(&error);
        assert!(message.contains("narmesh.toml: it is ") && message.contains(what), "{message}");
    }
}

#[test]
fn nothing_is_written_through_a_link() {
    let elsewhere = tempfile::tempdir().unwrap();
    let [precious, nothing] = ["precious", "nothing"].map(|name| elsewhere.path().join(name));
    std::fs::write(&precious, "mine").unwrap();
    for target in [&precious, &nothing] {
        for name in ["narmesh.toml", NODE_KEY, BUILDER_KEY] {
            let dir = tempfile::tempdir().unwrap();
            std::os::unix::fs::symlink(target, dir.path().join(name)).unwrap();
            let error = init_without_nix(&Arguments { force: true, ..arguments(dir.path()) }).unwrap_err();
            let message = crate::describe::describe(&error);
            assert!(message.contains(name), "{message}");
            assert_eq!(std::fs::read_to_string(&precious).unwrap(), "mine");
            assert!(!nothing.exists(), "{name}");
        }
    }
}

#[test]
fn no_other_file_is_given_away_by_a_link_in_place_of_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let [precious, key] = ["precious", "gateway.key"].map(|name| dir.path().join(name));
    std::fs::write(&precious, "mine").unwrap();
    set_permissions(&precious, Permissions::from_mode(0o644)).unwrap();
    let own = std::fs::metadata(&precious).unwrap();
    let owner = User { name: "me".to_owned(), uid: own.uid(), gid: own.gid() };
    std::os::unix::fs::symlink(&precious, &key).unwrap();
    give_itself(&key, &owner).unwrap_err();
    std::fs::remove_file(&key).unwrap();
    std::fs::hard_link(&precious, &key).unwrap();
    give_itself(&key, &owner).unwrap_err();
    assert_eq!(std::fs::metadata(&precious).unwrap().permissions().mode() & 0o777, 0o644);
    std::fs::remove_file(&key).unwrap();
    std::fs::write(&key, "secret").unwrap();
    give_itself(&key, &owner).unwrap();
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn nothing_is_written_that_run_would_refuse() {
    let dir = tempfile::tempdir().unwrap();
    let long = "n".repeat(65);
    for name in ["", "a\nb", &long] {
        let named = Arguments { name: Some(name.to_owned()), ..arguments(dir.path()) };
        let message = init_without_nix(&named).unwrap_err().to_string();
        assert!(message.contains("--name") && message.contains("1 to 64 bytes"), "{message}");
    }
    // The path would be too long for a socket.
    let deep = dir.path().join("d".repeat(100));
    let message = init_without_nix(&arguments(&deep)).unwrap_err().to_string();
    assert!(message.starts_with("node.control_socket"), "{message}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let most = Arguments { name: Some("n".repeat(64)), ..arguments(dir.path()) };
    init_without_nix(&most).unwrap();
    assert_eq!(load(dir.path()).0.node.name, most.name);
}

#[test]
fn unknown_user_is_refused_before_the_configuration_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let unknown = Arguments { user: Some("no-such-user".to_owned()), ..arguments(dir.path()) };
    let message = init_without_nix(&unknown).unwrap_err().to_string();
    assert!(message.contains("no user \"no-such-user\""), "{message}");
    assert!(!dir.path().join("narmesh.toml").exists());
}

#[test]
fn only_a_file_in_etc_narmesh_is_the_configuration_of_the_system() {
    assert!(is_of_the_system(Path::new("/etc/narmesh/narmesh.toml")));
    assert!(!is_of_the_system(Path::new("/etc/narmesh/two/narmesh.toml")));
    assert!(!is_of_the_system(Path::new("narmesh.toml")));
}

#[test]
fn without_a_builder_key_the_output_says_what_that_means() {
    let dir = tempfile::tempdir().unwrap();
    init_without_nix(&Arguments { no_builder_key: true, ..arguments(dir.path()) }).unwrap();
    let (settings, secrets) = load(dir.path());
    assert!(secrets.builder_key.is_none() && settings.builder_key_file.is_none());
    assert!(introduction("x", &settings, &secrets).contains("nothing built here can be substituted"));
}

#[test]
fn nix_gets_fallback_only_where_it_works() {
    let lines = |version| lines_for_nix(None, version);
    let has_fallback = |text: &str| text.lines().any(|line| line == "fallback = true");
    assert!(has_fallback(&lines(Some(NixVersion::FALLBACK_WORKS))));
    assert!(!has_fallback(&lines(None)));
    let text = lines(None);
    for line in [
        "extra-substituters = http://127.0.0.1:7281",
        "extra-trusted-public-keys = narmesh-gateway-",
        "connect-timeout = 5",
        "stalled-download-timeout = 30",
        "download-attempts = 5",
        "narinfo-cache-negative-ttl = 0",
    ] {
        assert!(text.lines().any(|given| given.starts_with(line)), "{line}\n{text}");
    }
}
