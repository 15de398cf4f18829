//! How a Nix client is started that is not the one of a store: its environment and its options.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `narmesh init` tells users to put into `nix.conf` beside the substituter and its keys, for Nix below 2.9.
const CLIENT_OPTIONS: [(&str, &str); 4] = [
    ("connect-timeout", "5"),
    ("stalled-download-timeout", "30"),
    ("download-attempts", "5"),
    ("narinfo-cache-negative-ttl", "0"),
];

/// The environment of a separate Nix client in `dir`: its configuration is in `dir/etc`, and it has its own narinfo disk
/// cache, since answers would leak from one client to another through a shared one.
#[must_use]
pub fn nix_homes(dir: &Path) -> [(String, PathBuf); 3] {
    [("HOME", "home"), ("NIX_CONF_DIR", "etc"), ("XDG_CACHE_HOME", "cache")]
        .map(|(name, place)| (name.to_owned(), dir.join(place)))
}

/// Removes all our variables except `PATH` from the environment of a Nix client.
pub fn nix_client_environment(command: &mut Command) -> &mut Command {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    command.env_clear().env("PATH", path).env("LC_ALL", "C")
}

/// Makes `command` substitute from this gateway alone, with the options of a client that `narmesh init` describes.
pub fn with_gateway<'c>(command: &'c mut Command, gateway: SocketAddr, keys: &[String]) -> &'c mut Command {
    command.args(["--option", "substituters", &format!("http://{gateway}")]);
    command.args(["--option", "trusted-public-keys", &keys.join(" ")]);
    for (name, value) in CLIENT_OPTIONS {
        command.args(["--option", name, value]);
    }
    command
}
