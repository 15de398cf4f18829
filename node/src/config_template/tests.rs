//! What is written is read back, and names every key.

use super::*;
use std::path::Path;

fn parse(text: &str) -> Config {
    Config::parse(text, Path::new("x.toml")).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[test]
fn template_of_the_defaults_parses_to_the_defaults() {
    assert_eq!(parse(&render(&Config::default())), Config::default());
}

/// Every key has another value than its default, and the values hold characters that TOML has to escape.
#[test]
fn every_value_survives_being_written_and_read_back() {
    let everything = r#"
        [node]
        name = "nm"
        key_file = "a\"b\\c@node.state_dir@.key"
        state_dir = "s"
        control_socket = "c"
        control_group = "cg"
        listen = ["l1", "l2"]
        external_addresses = ["e"]
        advertise_loopback = true
        relay = true
        [gateway]
        listen = "g"
        host_names = ["h"]
        priority = 1
        narinfo_deadline_ms = 2
        narinfo_deadline_max_ms = 3
        sign = true
        prefer = "pr"
        [[gateway.listener]]
        address = "a\\"
        role = "ro"
        host_names = ["hn"]
        tokens_file = "tf"
        tls_certificate_file = "tc"
        tls_key_file = "tk"
        tls_client_ca_file = "ca"
        connections_max = 9
        connections_per_client_max = 8
        idle_timeout_ms = 7
        stall_timeout_ms = 6
        zstd = true
        trusted_proxies = ["tp"]
        access_log = true
        [store]
        store_dir = "sd"
        real_dir = "r"
        state_dir = "st"
        log_dir = "ld"
        root = "@node.listen@"
        [trust]
        trusted_public_keys = ["one:AA==", "two:BB=="]
        builder_key_file = "b"
        sign_remote_builds = true
        [advertise]
        include = ["i"]
        exclude = ["x", "y"]
        withhold_defaults = false
        derivations = true
        serve = false
        serve_hours = ["sh"]
        [transfer]
        compress = "never"
        stall_timeout_ms = 3
        [limits]
        connections_gossip = 4
        nar_buffer_bytes = 5
        uploads_per_peer = 6
        uploads_total = 7
        upload_bytes_per_s = 9
        relay_bytes_per_s = 11
        partial_copies_bytes = 10
        advertised_paths_max = 8
        [mesh]
        key = "mk"
        roster_file = "rf"
        discover_lan = false
        [[peer]]
        name = "p\nq"
        peer_id = "id"
        addresses = ["a"]
        relay = true
        upload_bytes_per_s = 7
        [[peer]]
        name = "r"
        peer_id = "s"
        [[upstream]]
        name = "u\\"
        url = "v"
        public_keys = ["w"]
        tier = 1
        include = ["i"]
        exclude = ["e"]
        token_file = "t"
        user = "us"
        password_file = "pw"
        netrc_file = "nr"
        ca_file = "ca"
        proxy = "px"
        connect_timeout_ms = 2
        stall_timeout_ms = 3
        enabled = false
        [quorum]
        mode = "observe"
        k = 2
        grace = ["b"]
        veto = true
        count_own_rebuild = true
        from_roster = true
        keep = ["kp"]
        [[quorum.override]]
        name = "n*"
        k = 3
        [[builder]]
        name = "b"
        public_key = "k\\"
        group = "gr"
        peer = "p"
        signs_only_own_builds = true
        [[revoked_builders]]
        public_key = "k"
        from = 2026-11-01T12:00:00Z
        why = "w"
    "#;
    let config = parse(everything);
    assert_eq!(parse(&render(&config)), config);
    // No value above is the default, so a key that the template forgets is noticed.
    let (Ok(Value::Table(given)), Ok(Value::Table(default))) =
        (Value::try_from(&config), Value::try_from(Config::default()))
    else {
        panic!()
    };
    for (section, value) in given {
        let Value::Table(keys) = value else { continue };
        for (key, value) in keys {
            assert_ne!(Some(&value), default[&section].get(&key), "{section}.{key}");
        }
    }
}

/// Every key appears in the text, commented out or not.
#[test]
fn every_key_is_in_the_template() {
    let text = render(&Config::default());
    let optional = "node = { name = 'x', control_socket = 'x', control_group = 'x' }
        store = { real_dir = 'x', state_dir = 'x', log_dir = 'x', root = 'x' }
        trust = { builder_key_file = 'x' }
        peer = [{ name = 'x', peer_id = 'x' }]
        upstream = [{ name = 'x', url = 'x', token_file = 'x', user = 'x', password_file = 'x', netrc_file = 'x', ca_file = 'x', proxy = 'x' }]
        builder = [{ name = 'x', public_key = 'x', group = 'x', peer = 'x' }]
        revoked_builders = [{ public_key = 'x', from = 2026-11-01, why = 'x' }]
        quorum = { k = 1, grace = [], override = [{ name = 'x', k = 1 }] }";
    let Ok(Value::Table(sections)) = Value::try_from(parse(optional)) else { panic!() };
    let mut keys = 0;
    for (section, value) in sections {
        let table = value.as_table().or_else(|| value.as_array()?.first()?.as_table()).unwrap();
        assert!(text.contains(&format!("[{section}]")), "{section}");
        for key in table.keys() {
            let explained = text.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
            let explained = explained || text.contains(&format!("# [[{section}.{key}]]"));
            assert!(explained, "{section}.{key} is not in the template");
            keys += 1;
        }
    }
    assert!(keys >= 30, "only {keys} keys were compared");
}
