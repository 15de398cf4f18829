//! The commented configuration that `narmesh init` writes: every key stands in it, explained, with its value or its default.

use crate::config::{BuilderConfig, Config, PeerConfig, QuorumOverrideConfig, RevokedBuilderConfig};
use toml::Value;

/// The text of a file that says `config`.
pub(crate) fn render(config: &Config) -> String {
    let Config { node, gateway, store, trust, advertise, transfer, limits, peer, builder, revoked_builders, quorum } =
        config;
    let values = [
        ("node.name", optional("name", node.name.as_deref().map(std::path::Path::new), "buildbox")),
        ("node.key_file", path(&node.key_file)),
        ("node.state_dir", path(&node.state_dir)),
        (
            "node.control_socket",
            optional("control_socket", node.control_socket.as_deref(), "/run/narmesh/control.sock"),
        ),
        (
            "node.control_group",
            optional("control_group", node.control_group.as_deref().map(std::path::Path::new), "adm"),
        ),
        ("node.listen", list(&node.listen)),
        ("node.external_addresses", list(&node.external_addresses)),
        ("node.advertise_loopback", node.advertise_loopback.to_string()),
        ("gateway.listen", quoted(&gateway.listen)),
        ("gateway.host_names", list(&gateway.host_names)),
        ("gateway.priority", gateway.priority.to_string()),
        ("gateway.narinfo_deadline_ms", gateway.narinfo_deadline_ms.to_string()),
        ("gateway.narinfo_deadline_max_ms", gateway.narinfo_deadline_max_ms.to_string()),
        ("store.store_dir", quoted(&store.store_dir)),
        ("store.real_dir", optional("real_dir", store.real_dir.as_deref(), "/nix/store")),
        ("store.state_dir", optional("state_dir", store.state_dir.as_deref(), "/nix/var/nix")),
        ("store.root", optional("root", store.root.as_deref(), "/chroot")),
        ("trust.trusted_public_keys", lines(&trust.trusted_public_keys)),
        ("trust.builder_key_file", optional("builder_key_file", trust.builder_key_file.as_deref(), "builder.key")),
        ("trust.sign_remote_builds", trust.sign_remote_builds.to_string()),
        ("advertise.include", list(&advertise.include)),
        ("advertise.exclude", list(&advertise.exclude)),
        ("advertise.withhold_defaults", advertise.withhold_defaults.to_string()),
        ("transfer.compress", quoted(&transfer.compress)),
        ("transfer.stall_timeout_ms", transfer.stall_timeout_ms.to_string()),
        ("limits.connections_gossip", limits.connections_gossip.to_string()),
        ("limits.nar_buffer_bytes", limits.nar_buffer_bytes.to_string()),
        ("limits.uploads_per_peer", limits.uploads_per_peer.to_string()),
        ("limits.uploads_total", limits.uploads_total.to_string()),
        ("limits.upload_bytes_per_s", limits.upload_bytes_per_s.to_string()),
        ("limits.advertised_paths_max", limits.advertised_paths_max.to_string()),
        ("quorum.mode", quoted(&quorum.mode)),
        ("quorum.k", quorum.k.map_or_else(|| "# k = 2".to_owned(), |k| format!("k = {k}"))),
        (
            "quorum.grace",
            quorum.grace.as_ref().map_or_else(|| "# grace = []".to_owned(), |it| format!("grace = {}", list(it))),
        ),
        ("quorum.veto", quorum.veto.to_string()),
        ("quorum.count_own_rebuild", quorum.count_own_rebuild.to_string()),
        ("quorum.keep", list(&quorum.keep)),
        ("quorum.override", quorum.overrides.iter().map(override_lines).collect::<String>()),
        ("builder", builder.iter().map(builder_lines).collect::<String>()),
        ("revoked_builders", revoked_builders.iter().map(revoked_lines).collect::<String>()),
        ("peer", peer.iter().map(peer_lines).collect::<String>()),
    ];
    // One pass, so that a value that looks like a placeholder stays what it is.
    let part =
        |(index, part): (usize, &'static str)| match values.iter().find(|(key, _)| index % 2 == 1 && *key == part) {
            Some((_, value)) => value.clone(),
            None => part.to_owned(),
        };
    TEMPLATE.split('@').enumerate().map(part).collect()
}

/// The `[[peer]]` lines of one peer.
pub(crate) fn peer_lines(peer: &PeerConfig) -> String {
    format!(
        "[[peer]]\nname = {}\npeer_id = {}\naddresses = {}\n",
        quoted(&peer.name),
        quoted(&peer.peer_id),
        list(&peer.addresses)
    )
}

/// The `[[builder]]` lines of one builder.
pub(crate) fn builder_lines(builder: &BuilderConfig) -> String {
    let group = builder.group.as_ref().map(|group| format!("group = {}\n", quoted(group))).unwrap_or_default();
    let peer = builder.peer.as_ref().map(|peer| format!("peer = {}\n", quoted(peer))).unwrap_or_default();
    format!(
        "[[builder]]\nname = {}\npublic_key = {}\n{group}{peer}signs_only_own_builds = {}\n",
        quoted(&builder.name),
        quoted(&builder.public_key),
        builder.signs_only_own_builds
    )
}

fn revoked_lines(revoked: &RevokedBuilderConfig) -> String {
    let RevokedBuilderConfig { public_key, from, why } = revoked;
    format!("[[revoked_builders]]\npublic_key = {}\nfrom = {from}\nwhy = {}\n", quoted(public_key), quoted(why))
}

fn override_lines(special: &QuorumOverrideConfig) -> String {
    format!("[[quorum.override]]\nname = {}\nk = {}\n", quoted(&special.name), special.k)
}

/// A TOML string.
pub(crate) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn path(path: &std::path::Path) -> String {
    quoted(&path.to_string_lossy())
}

fn list(texts: &[String]) -> String {
    Value::from(texts.to_vec()).to_string()
}

fn lines(texts: &[String]) -> String {
    texts.iter().map(|text| format!("    {},\n", quoted(text))).collect()
}

fn optional(key: &str, value: Option<&std::path::Path>, example: &str) -> String {
    match value {
        Some(value) => format!("{key} = {}", path(value)),
        None => format!("# {key} = {}", quoted(example)),
    }
}

const TEMPLATE: &str = r#"# narmesh configuration. Relative paths are relative to the directory of this file.
# A key that is commented out shows its default or an example. Unknown keys are errors.
# After a change: `narmesh check-config`, then SIGHUP (or `systemctl reload narmesh`). A bad file keeps the running settings.

[node]
# What this machine is called in the lines that `narmesh id` prints for the others. Default: as its builder key, or the host name.
@node.name@
# This node's identity on the mesh. Made by `narmesh init`, never shared; mode 0600.
key_file = @node.key_file@
# Holds state.sqlite (may be deleted at any time) and the control socket.
state_dir = @node.state_dir@
# Unix socket of `narmesh status`, `why`, `advertised`, `quorum report`. Default: control.sock in state_dir.
@node.control_socket@
# The group whose members may use that socket (mode 0660), besides the daemon's user and root; the daemon has to be in it.
# Default: the daemon's own group. Read at start only.
@node.control_group@
# Where peers connect: IP addresses and TCP ports. Of IPv4 and IPv6, what this machine lacks is left out. Read at start only.
listen = @node.listen@
# Told to peers besides the addresses of this machine: for a forwarded port, at most 8, such as
# "/ip4/203.0.113.7/tcp/7280".
external_addresses = @node.external_addresses@
# Tell loopback addresses to peers and believe theirs: only for several nodes on one machine.
advertise_loopback = @node.advertise_loopback@

[gateway]
# The substituter for Nix on this machine. Only loopback addresses are accepted. Read at start only.
listen = @gateway.listen@
# Names by which programs on this machine call it besides 127.0.0.1, [::1] and localhost, without a port, such as "cache.lan"
# from /etc/hosts. A request to another name is a web page's that plays with names, and refused. Only names that nobody else
# can point elsewhere belong here. Read at start only.
host_names = @gateway.host_names@
# Nix asks substituters in ascending order of priority; cache.nixos.org has 40.
priority = @gateway.priority@
# Longest time in which a narinfo is answered; after it the answer is "not here" (50 to 60000).
narinfo_deadline_ms = @gateway.narinfo_deadline_ms@
# The same while a peer that may hold the path is worth waiting for: it sends us NARs at that moment, usually takes long to
# answer, or is awaited after a start. "Not here" would cost a rebuild (50 to 60000; never less than narinfo_deadline_ms).
narinfo_deadline_max_ms = @gateway.narinfo_deadline_max_ms@

[store]
# The store directory as it stands in store paths. Peers with another one can share nothing with us.
store_dir = @store.store_dir@
# Where its files and its database really are. Defaults: store_dir, and /nix/var/nix (it holds db/db.sqlite).
@store.real_dir@
@store.state_dir@
# Short form of both for a chroot store: <root>/nix/store and <root>/nix/var/nix.
@store.root@

[trust]
# Whose builds are taken: public keys in Nix's form, one per name. Nix must trust the same keys (trusted-public-keys in
# nix.conf); a key that only narmesh trusts lets Nix remember unusable answers for 30 days.
# Add here what `narmesh id` prints as builder key on the other machines. `narmesh init` puts in the keys that Nix trusts, so that
# what came from the public cache is shared, too: "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=".
trusted_public_keys = [
@trust.trusted_public_keys@]
# Signs what was built on this machine. Without it nothing built here is advertised, only what a trusted key has signed.
@trust.builder_key_file@
# Sign as well what remote builders (`builders` in nix.conf) built for this machine: what has no signature, and is an output of a
# derivation that is here. Nix does not note where it came from, so one of `trusted-users` who imports such a path without a
# signature has it signed, too.
sign_remote_builds = @trust.sign_remote_builds@

[advertise]
# What peers may see, by name (without the hash part): one of `include` must match, none of `exclude` may. A pattern is about
# the whole name; * stands for any text, also none, and ? for any one character, as in "secret-*" or "release-?.?". Sources
# (./src, builtins.toFile) go with an output that refers to them, whatever `include` says; to keep one, exclude its name.
include = @advertise.include@
exclude = @advertise.exclude@
# Keep back system configurations (nixos-system-*, etc, unit-*), outputs of derivations with allowSubstitutes = false,
# and everything that refers to them.
withhold_defaults = @advertise.withhold_defaults@

[transfer]
# zstd between peers: "auto" (where the link is slower than the compression), "always" or "never".
compress = @transfer.compress@
# A holder from which nothing comes at all for so long is left (100 to 600000). One that is slow is waited for, or raced.
stall_timeout_ms = @transfer.stall_timeout_ms@

[limits]
# Connections kept for gossip (1 to 1024); holders are dialled on demand beyond it.
connections_gossip = @limits.connections_gossip@
# Memory for NARs in flight from peers (16 MiB to 64 GiB); those of the own store have an eighth as much beside it.
nar_buffer_bytes = @limits.nar_buffer_bytes@
# NARs sent at a time to one peer (those up to 8 MiB are counted apart and have as many; further ones wait), and read from the
# disk at the same moment for all.
uploads_per_peer = @limits.uploads_per_peer@
uploads_total = @limits.uploads_total@
# Bytes per second of NARs to all peers together, 16384 or more, shared fairly between them; 0 for no limit.
upload_bytes_per_s = @limits.upload_bytes_per_s@
# Paths in this node's summary (1 to 400000); beyond it the newest are withheld, with a warning in the log.
advertised_paths_max = @limits.advertised_paths_max@

# The allowlist: one [[peer]] per machine, with what `narmesh id` prints there. Both sides must name each other.
# Addresses may be left out: they are learned from other peers. A host name, as in "/dns/buildbox.example/tcp/7280" (or /dns4/,
# /dns6/), is resolved anew for each dial.
# [[peer]]
# name = "buildbox"
# peer_id = "12D3KooW..."
# addresses = ["/ip4/192.0.2.1/tcp/7280"]
@peer@
# Quorum: how many builders must have got the same (docs/quorum.md). Agreement says that they got the same bytes, not that
# their inputs were honest; builders that take their compiler from one cache are not independent.
[quorum]
# "off": as Nix alone. "observe": reports and metrics. "prefer": holders of what is agreed are asked first. "require": nothing
# goes to Nix that is not agreed; it governs only what passes through this node. The daemon then makes a gateway key, and
# `narmesh id` prints the substituters and trusted-public-keys lines that nix.conf needs instead of all others.
mode = @quorum.mode@
# Groups of builders that must attest one and the same; more than half of them, or two sets could both reach it.
@quorum.k@
# Names of builders whose word is enough for a path that no other builder has; our own builder key is always among them.
# Without this line nobody's is.
@quorum.grace@
# Whether one builder that got something else is enough against agreement.
veto = @quorum.veto@
# Whether what this machine rebuilt itself counts as one group.
count_own_rebuild = @quorum.count_own_rebuild@
# Store paths of which all that is attested is kept for good, as of those that are held, served or asked for here.
keep = @quorum.keep@
# Another k for some names, as in [advertise]; the first that matches counts.
# [[quorum.override]]
# name = "linux-*"
# k = 1
@quorum.override@
# Whose attestations count: one [[builder]] each, by its builder key. Builders of one owner share a group, which counts once.
# A bare Nix signature is no attestation, because other tools put it on what they substituted; of a builder that signs only
# its own builds (signs_only_own_builds = true) it counts, wherever it is found: in narinfos of peers, and on paths of the own
# store. peer is the name of the [[peer]] that is the builder's node: its attestations then travel through
# the mesh, to whom that node tells its summary; without it they come as files alone.
# [[builder]]
# name = "buildbox"
# public_key = "buildbox-1:..."
# group = "acme"
# peer = "buildbox"
# signs_only_own_builds = false
@builder@
# Keys that are not to be believed any more: what this node first stored from then on is void. A time needs a zone.
# [[revoked_builders]]
# public_key = "buildbox-1:..."
# from = 2026-11-01T12:00:00Z
# why = "the machine was stolen"
@revoked_builders@"#;

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn parse(text: &str) -> Config {
        Config::parse(text, Path::new("x.toml")).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    #[test]
    fn the_template_says_the_defaults() {
        assert_eq!(parse(&render(&Config::default())), Config::default());
    }

    /// Every key at another value than its default, and with all that TOML would trip over.
    #[test]
    fn every_value_arrives() {
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
            [gateway]
            listen = "g"
            host_names = ["h"]
            priority = 1
            narinfo_deadline_ms = 2
            narinfo_deadline_max_ms = 3
            [store]
            store_dir = "sd"
            real_dir = "r"
            state_dir = "st"
            root = "@node.listen@"
            [trust]
            trusted_public_keys = ["one:AA==", "two:BB=="]
            builder_key_file = "b"
            sign_remote_builds = true
            [advertise]
            include = ["i"]
            exclude = ["x", "y"]
            withhold_defaults = false
            [transfer]
            compress = "never"
            stall_timeout_ms = 3
            [limits]
            connections_gossip = 4
            nar_buffer_bytes = 5
            uploads_per_peer = 6
            uploads_total = 7
            upload_bytes_per_s = 9
            advertised_paths_max = 8
            [[peer]]
            name = "p\nq"
            peer_id = "id"
            addresses = ["a"]
            [[peer]]
            name = "r"
            peer_id = "s"
            [quorum]
            mode = "observe"
            k = 2
            grace = ["b"]
            veto = true
            count_own_rebuild = true
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
        // Nothing above is a default, so nothing is compared with itself.
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

    /// Every key is explained: it stands in the text, commented out or not.
    #[test]
    fn every_key_is_in_the_template() {
        let text = render(&Config::default());
        let optional = "node = { name = 'x', control_socket = 'x', control_group = 'x' }
            store = { real_dir = 'x', state_dir = 'x', root = 'x' }
            trust = { builder_key_file = 'x' }
            peer = [{ name = 'x', peer_id = 'x' }]
            builder = [{ name = 'x', public_key = 'x', group = 'x', peer = 'x' }]
            revoked_builders = [{ public_key = 'x', from = 2026-11-01, why = 'x' }]
            quorum = { k = 1, grace = [], override = [{ name = 'x', k = 1 }] }";
        let Ok(Value::Table(sections)) = Value::try_from(parse(optional)) else { panic!() };
        let mut keys = 0;
        for (section, value) in sections {
            let table = value.as_table().or_else(|| value.as_array()?.first()?.as_table()).unwrap();
            assert!(text.contains(&format!("[{section}]")), "{section}");
            for key in table.keys() {
                let explained =
                    text.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
                let explained = explained || text.contains(&format!("# [[{section}.{key}]]"));
                assert!(explained, "{section}.{key} is not in the template");
                keys += 1;
            }
        }
        assert!(keys >= 30, "only {keys} keys were compared");
    }
}
