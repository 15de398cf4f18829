//! The configuration file, from its text to checked settings.

use super::{Outcome, Target};
use crate::memory::MemoryBound;
use narmesh::config::Config;
use narmesh::settings::Settings;
use std::path::Path;

pub(super) const TARGET: Target = Target {
    name: "config",
    run,
    seeds,
    words: &[
        b"[node]\n",
        b"[gateway]\n",
        b"[store]\n",
        b"[trust]\n",
        b"[advertise]\n",
        b"[transfer]\n",
        b"[limits]\n",
        b"[[peer]]\n",
        b"listen = ",
        b"peer_id = ",
        b"addresses = ",
        b"name = ",
        b"root = ",
        b"real_dir = ",
        b"state_dir = ",
        b"compress = ",
        b"control_socket = ",
        b"trusted_public_keys = ",
        b"include = ",
        b"external_addresses = ",
        b"\"\"",
        b"\"",
        b"[",
        b"]",
        b"/ip4/127.0.0.1/tcp/0",
        b"/ip6/::1/tcp/1",
        b"/dns4/x/tcp/1",
        b"/p2p/",
        b"\\u0000",
        b"\"\"\"",
        b"'",
        b"\n",
        b"=",
        b"{",
        b"-1",
        b"1e400",
        b"inf",
        b"1979-05-27",
        b"#",
        b"..",
        b"../../..",
        b"a:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",
        b"12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X",
    ],
    input_bytes_max: 8 << 10,
};

/// The TOML parser keeps a span and an event for each token, and a token may be a single byte.
const MEMORY: MemoryBound = MemoryBound { per_byte: 1_024, constant: 64 << 10 };

fn run(input: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(input);
    let file = Path::new("/etc/narmesh/narmesh.toml");
    let config = match MEMORY.hold(input.len(), || Config::parse(&text, file)) {
        Ok(config) => config,
        Err(error) => {
            let text = error.to_string();
            return Outcome::of(text.lines().last().map(|line| line.chars().take(40).collect::<String>()));
        }
    };
    let written = toml::to_string(&config).expect("what was read can be written");
    assert_eq!(Config::parse(&written, file).expect("and read again"), config);
    let settings = MEMORY.hold(input.len(), || Settings::check(config, file));
    match &settings {
        Ok(settings) => check(settings),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("accepted: "), "a refusal says what would be accepted: {text}");
        }
    }
    Outcome::of(
        settings
            .map(|settings| settings.peers.len())
            .map_err(|error| error.to_string().split_once(" = ").map(|(key, _)| key.to_owned())),
    )
}

fn check(settings: &Settings) {
    assert!(settings.gateway.listen.ip().is_loopback(), "the gateway listens on loopback only");
    let paths =
        [&settings.node.key_file, &settings.node.state_dir, &settings.node.control_socket, &settings.store.real_dir];
    assert!(paths.iter().all(|path| path.is_absolute()), "{paths:?}");
    assert_eq!(settings.peer_addresses().len(), settings.peers.len(), "peer ids are unique");
    assert!(settings.peers.iter().all(|peer| !peer.name.contains(char::is_control)), "names cannot forge a log");
}

fn seeds() -> Vec<Vec<u8>> {
    let whole = r#"
[node]
key_file = "node.key"
state_dir = "state"
listen = ["/ip4/127.0.0.1/tcp/0"]
advertise_loopback = true
[gateway]
listen = "127.0.0.1:0"
priority = 30
narinfo_deadline_ms = 1000
[store]
root = "/chroot"
[trust]
trusted_public_keys = ["a:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="]
builder_key_file = "builder.key"
[advertise]
include = ["*"]
exclude = ["secret-*"]
[transfer]
compress = "auto"
stall_timeout_ms = 5000
[limits]
nar_buffer_bytes = 134217728
uploads_per_peer = 4
[[peer]]
name = "buildbox"
peer_id = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"
addresses = ["/ip4/192.0.2.1/tcp/7280", "/dns6/buildbox.example/tcp/7280"]
"#;
    ["", "[store]\nreal_dir = \"/a\"\nstate_dir = \"b\"\n", whole].map(|text| text.as_bytes().to_vec()).to_vec()
}
