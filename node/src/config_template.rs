//! The commented configuration that `narmesh init` writes. Every key stands in it with its default.

/// What differs from the defaults.
#[derive(Clone, Debug, Default)]
pub(crate) struct TemplateValues {
    /// The builder key's file name, if there is one.
    pub(crate) builder_key_file: Option<String>,
    /// Keys to trust from the start.
    pub(crate) trusted_public_keys: Vec<String>,
}

/// The text of the file.
pub(crate) fn render(values: &TemplateValues) -> String {
    let builder_key = match &values.builder_key_file {
        Some(file) => format!("builder_key_file = {}", quoted(file)),
        None => "# builder_key_file = \"builder.key\"".to_owned(),
    };
    let trusted: String = values.trusted_public_keys.iter().map(|key| format!("    {},\n", quoted(key))).collect();
    TEMPLATE.replace("@BUILDER_KEY@", &builder_key).replace("@TRUSTED@", &trusted)
}

/// A TOML basic string.
pub(crate) fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

const TEMPLATE: &str = r#"# narmesh configuration. Relative paths are relative to the directory of this file.
# A key that is commented out shows its default or an example. Unknown keys are errors.
# After a change: `narmesh check-config`, then SIGHUP (or `systemctl reload narmesh`). A bad file keeps the running settings.

[node]
# This node's identity on the mesh. Made by `narmesh init`, never shared; mode 0600.
key_file = "node.key"
# Holds state.sqlite (may be deleted at any time) and the control socket.
state_dir = "state"
# Unix socket of `narmesh status`, `why`, `advertised`. Default: control.sock in state_dir.
# control_socket = "/run/narmesh/control.sock"
# Where peers connect: IP addresses and TCP ports. Read at start only.
listen = ["/ip4/0.0.0.0/tcp/7280"]
# Told to peers besides the addresses of this machine: for a forwarded port, at most 8.
external_addresses = []    # e.g. ["/ip4/203.0.113.7/tcp/7280"]
# Tell loopback addresses to peers and believe theirs: only for several nodes on one machine.
advertise_loopback = false

[gateway]
# The substituter for Nix on this machine. Only loopback addresses are accepted. Read at start only.
listen = "127.0.0.1:7281"
# Nix asks substituters in ascending order of priority; cache.nixos.org has 40.
priority = 30
# Longest time in which a narinfo is answered; after it the answer is "not here" (50 to 60000).
narinfo_deadline_ms = 1000

[store]
# The store directory as it stands in store paths. Peers with another one can share nothing with us.
store_dir = "/nix/store"
# Where its files and its database really are. Defaults: store_dir, and /nix/var/nix (it holds db/db.sqlite).
# real_dir = "/nix/store"
# state_dir = "/nix/var/nix"
# Short form of both for a chroot store: <root>/nix/store and <root>/nix/var/nix.
# root = "/chroot"

[trust]
# Whose builds are taken: public keys in Nix's form, one per name. Nix must trust the same keys (trusted-public-keys in
# nix.conf); a key that only narmesh trusts lets Nix remember unusable answers for 30 days.
# Add here what `narmesh id` prints as builder key on the other machines.
trusted_public_keys = [
@TRUSTED@]
# Signs what was built on this machine. Without it nothing built here is advertised, only what a trusted key has signed.
@BUILDER_KEY@

[advertise]
# What peers may see, by name (without the hash part): one of `include` must match, none of `exclude` may; * is any text.
include = ["*"]
exclude = []               # e.g. ["secret-*"]
# Keep back system configurations (nixos-system-*, etc, unit-*), outputs of derivations with allowSubstitutes = false,
# and everything that refers to them.
withhold_defaults = true

[transfer]
# zstd between peers: "auto" (where the link is slower than the compression), "always" or "never".
compress = "auto"
# A holder that sends nothing for so long is left for another one (100 to 600000).
stall_timeout_ms = 5000

[limits]
# Connections kept for gossip (1 to 1024); holders are dialled on demand beyond it.
connections_gossip = 32
# Memory for NARs in flight (16 MiB to 64 GiB).
nar_buffer_bytes = 134217728
# NARs sent at a time, to one peer and to all.
uploads_per_peer = 4
uploads_total = 32
# Paths in this node's summary (1 to 1000000).
advertised_paths_max = 200000

# The allowlist: one [[peer]] per machine, with what `narmesh id` prints there. Both sides must name each other.
# Addresses may be left out: they are learned from other peers.
# [[peer]]
# name = "buildbox"
# peer_id = "12D3KooW..."
# addresses = ["/ip4/192.0.2.1/tcp/7280"]
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    fn parse(text: &str) -> Config {
        Config::parse(text, Path::new("x.toml")).unwrap()
    }

    #[test]
    fn the_template_says_the_defaults() {
        assert_eq!(parse(&render(&TemplateValues::default())), Config::default());
    }

    #[test]
    fn the_values_arrive_also_with_quotes_in_them() {
        let values = TemplateValues {
            builder_key_file: Some("a\"b\\c.key".to_owned()),
            trusted_public_keys: vec!["one:AA==".to_owned(), "two:BB==".to_owned()],
        };
        let config = parse(&render(&values));
        assert_eq!(config.trust.builder_key_file.as_deref(), Some(Path::new("a\"b\\c.key")));
        assert_eq!(config.trust.trusted_public_keys, values.trusted_public_keys);
    }

    /// Every key of `Config` is explained: it stands in the text, commented out or not.
    #[test]
    fn every_key_is_in_the_template() {
        let text = render(&TemplateValues::default());
        let everything = r#"
            node = { control_socket = "x" }
            store = { real_dir = "x", state_dir = "x", root = "x" }
            trust = { builder_key_file = "x" }
            [[peer]]
            name = "x"
            peer_id = "x"
        "#;
        let toml::Value::Table(sections) = toml::Value::try_from(parse(everything)).unwrap() else { panic!() };
        let mut keys = 0;
        for (section, value) in sections {
            let table = value.as_table().or_else(|| value.as_array()?.first()?.as_table()).unwrap();
            assert!(text.contains(&format!("[{section}]")), "{section}");
            for key in table.keys() {
                let explained =
                    text.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
                assert!(explained, "{section}.{key} is not in the template");
                keys += 1;
            }
        }
        assert!(keys >= 28, "only {keys} keys were compared");
    }
}
