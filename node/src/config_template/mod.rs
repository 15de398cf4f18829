//! The commented configuration that `narmesh init` writes: it explains every key and shows its value or its default.

use crate::config::{
    BuilderConfig, Config, ListenerConfig, PeerConfig, QuorumOverrideConfig, RevokedBuilderConfig, UpstreamConfig,
};
use toml::Value;

/// The text of a configuration file with the values of `config`.
pub(crate) fn render(config: &Config) -> String {
    let Config {
        node,
        gateway,
        store,
        trust,
        advertise,
        transfer,
        limits,
        mesh,
        peer,
        upstream,
        builder,
        revoked_builders,
        quorum,
    } = config;
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
        (
            "node.relay",
            node.relay.map_or_else(|| "# relay = false".to_owned(), |is_relay| format!("relay = {is_relay}")),
        ),
        ("gateway.listen", quoted(&gateway.listen)),
        ("gateway.host_names", list(&gateway.host_names)),
        ("gateway.priority", gateway.priority.to_string()),
        ("gateway.narinfo_deadline_ms", gateway.narinfo_deadline_ms.to_string()),
        ("gateway.narinfo_deadline_max_ms", gateway.narinfo_deadline_max_ms.to_string()),
        ("gateway.sign", gateway.sign.to_string()),
        ("gateway.prefer", quoted(&gateway.prefer)),
        ("gateway.listener", gateway.listener.iter().map(listener_lines).collect::<String>()),
        ("store.store_dir", quoted(&store.store_dir)),
        ("store.real_dir", optional("real_dir", store.real_dir.as_deref(), "/nix/store")),
        ("store.state_dir", optional("state_dir", store.state_dir.as_deref(), "/nix/var/nix")),
        ("store.log_dir", optional("log_dir", store.log_dir.as_deref(), "/nix/var/log/nix")),
        ("store.root", optional("root", store.root.as_deref(), "/chroot")),
        ("trust.trusted_public_keys", lines(&trust.trusted_public_keys)),
        ("trust.builder_key_file", optional("builder_key_file", trust.builder_key_file.as_deref(), "builder.key")),
        ("trust.sign_remote_builds", trust.sign_remote_builds.to_string()),
        ("advertise.include", list(&advertise.include)),
        ("advertise.exclude", list(&advertise.exclude)),
        ("advertise.withhold_defaults", advertise.withhold_defaults.to_string()),
        ("advertise.derivations", advertise.derivations.to_string()),
        ("advertise.serve", advertise.serve.to_string()),
        ("advertise.serve_hours", list(&advertise.serve_hours)),
        ("transfer.compress", quoted(&transfer.compress)),
        ("transfer.stall_timeout_ms", transfer.stall_timeout_ms.to_string()),
        ("limits.connections_gossip", limits.connections_gossip.to_string()),
        ("limits.nar_buffer_bytes", limits.nar_buffer_bytes.to_string()),
        ("limits.uploads_per_peer", limits.uploads_per_peer.to_string()),
        ("limits.uploads_total", limits.uploads_total.to_string()),
        ("limits.upload_bytes_per_s", limits.upload_bytes_per_s.to_string()),
        ("limits.relay_bytes_per_s", limits.relay_bytes_per_s.to_string()),
        ("limits.partial_copies_bytes", limits.partial_copies_bytes.to_string()),
        ("limits.advertised_paths_max", limits.advertised_paths_max.to_string()),
        ("mesh.key", optional("key", mesh.key.as_deref().map(std::path::Path::new), "home:BASE64")),
        ("mesh.roster_file", optional("roster_file", mesh.roster_file.as_deref(), "/etc/narmesh/roster")),
        ("mesh.discover_lan", mesh.discover_lan.to_string()),
        ("quorum.mode", quoted(&quorum.mode)),
        ("quorum.k", quorum.k.map_or_else(|| "# k = 2".to_owned(), |k| format!("k = {k}"))),
        (
            "quorum.grace",
            quorum.grace.as_ref().map_or_else(|| "# grace = []".to_owned(), |it| format!("grace = {}", list(it))),
        ),
        ("quorum.veto", quorum.veto.to_string()),
        ("quorum.count_own_rebuild", quorum.count_own_rebuild.to_string()),
        ("quorum.from_roster", quorum.from_roster.to_string()),
        ("quorum.keep", list(&quorum.keep)),
        ("quorum.override", quorum.overrides.iter().map(override_lines).collect::<String>()),
        ("builder", builder.iter().map(builder_lines).collect::<String>()),
        ("revoked_builders", revoked_builders.iter().map(revoked_lines).collect::<String>()),
        ("peer", peer.iter().map(peer_lines).collect::<String>()),
        ("upstream", upstream.iter().map(upstream_lines).collect::<String>()),
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
    let limit = match peer.upload_bytes_per_s {
        0 => String::new(),
        limit => format!("upload_bytes_per_s = {limit}\n"),
    };
    let relay = if peer.relay { "relay = true\n" } else { "" };
    format!(
        "[[peer]]\nname = {}\npeer_id = {}\naddresses = {}\n{relay}{limit}",
        quoted(&peer.name),
        quoted(&peer.peer_id),
        list(&peer.addresses)
    )
}

/// The `[[gateway.listener]]` lines of one listener.
fn listener_lines(listener: &ListenerConfig) -> String {
    let ListenerConfig { address, role, host_names, connections_max, access_log, .. } = listener;
    let ListenerConfig { connections_per_client_max, idle_timeout_ms, stall_timeout_ms, zstd, .. } = listener;
    let trusted_proxies = list(&listener.trusted_proxies);
    let per_client = connections_per_client_max.map(|count| format!("connections_per_client_max = {count}\n"));
    let per_client = per_client.unwrap_or_default();
    let files: String = [
        ("tokens_file", &listener.tokens_file),
        ("tls_certificate_file", &listener.tls_certificate_file),
        ("tls_key_file", &listener.tls_key_file),
        ("tls_client_ca_file", &listener.tls_client_ca_file),
    ]
    .iter()
    .filter_map(|(key, file)| file.as_deref().map(|file| format!("{key} = {}\n", path(file))))
    .collect();
    let (address, role, host_names) = (quoted(address), quoted(role), list(host_names));
    format!(
        "[[gateway.listener]]\naddress = {address}\nrole = {role}\nhost_names = {host_names}\n{files}\
         connections_max = {connections_max}\n{per_client}idle_timeout_ms = {idle_timeout_ms}\n\
         stall_timeout_ms = {stall_timeout_ms}\nzstd = {zstd}\ntrusted_proxies = {trusted_proxies}\naccess_log = {access_log}\n"
    )
}

/// The `[[upstream]]` lines of one cache.
pub(crate) fn upstream_lines(upstream: &UpstreamConfig) -> String {
    let UpstreamConfig { name, url, public_keys, tier, include, exclude, user, proxy, enabled, .. } = upstream;
    let line = |key: &str, value: Option<String>| value.map(|value| format!("{key} = {value}\n")).unwrap_or_default();
    let file = |file: &Option<std::path::PathBuf>| file.as_deref().map(path);
    format!(
        "[[upstream]]\nname = {}\nurl = {}\npublic_keys = {}\ntier = {tier}\ninclude = {}\nexclude = {}\n{}{}{}{}{}{}\
         connect_timeout_ms = {}\nstall_timeout_ms = {}\nenabled = {enabled}\n",
        quoted(name),
        quoted(url),
        list(public_keys),
        list(include),
        list(exclude),
        line("token_file", file(&upstream.token_file)),
        line("user", user.as_deref().map(quoted)),
        line("password_file", file(&upstream.password_file)),
        line("netrc_file", file(&upstream.netrc_file)),
        line("ca_file", file(&upstream.ca_file)),
        line("proxy", proxy.as_deref().map(quoted)),
        upstream.connect_timeout_ms,
        upstream.stall_timeout_ms,
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
# After a change: `narmesh check-config`, then SIGHUP (or `systemctl reload narmesh`). If the new file has an error, the
# daemon keeps its current settings.

[node]
# Name of this machine in the lines that `narmesh id` prints for the others. Default: the name in its builder key, else
# the host name.
@node.name@
# The private key that is this node's identity on the mesh. `narmesh init` creates it. Never share it; mode 0600.
key_file = @node.key_file@
# Directory of state.sqlite (which may be deleted at any time) and the control socket.
state_dir = @node.state_dir@
# Unix socket for `narmesh status`, `why`, `advertised`, `quorum report`. Default: control.sock in state_dir.
@node.control_socket@
# The group whose members may use that socket (mode 0660), besides root and the daemon's user, who must be in the group.
# Default: the daemon's own group. Read at start only.
@node.control_group@
# IP addresses and TCP ports at which peers connect. If this machine lacks IPv4 or IPv6, those addresses are skipped.
# Read at start only.
listen = @node.listen@
# Addresses to tell peers besides those of this machine, for instance of a forwarded port: at most 8, such as
# "/ip4/203.0.113.7/tcp/7280".
external_addresses = @node.external_addresses@
# Whether to tell peers loopback addresses and to use theirs: only for several nodes on one machine.
advertise_loopback = @node.advertise_loopback@
# Whether this node passes bytes on between peers of its own that cannot reach each other (docs/mesh.md); it has to be one
# that all of them reach. Default: what the roster says of it.
@node.relay@

[gateway]
# Address and port of the substituter for Nix on this machine. Only loopback addresses are accepted. Read at start only.
listen = @gateway.listen@
# Other names of the gateway that requests may use besides 127.0.0.1, [::1] and localhost, without a port, such as
# "cache.lan" from /etc/hosts. A request for any other name is refused, because a web page could send it through a name
# of its own that points here. List only names that nobody else can point elsewhere. Read at start only.
host_names = @gateway.host_names@
# Nix asks substituters in ascending order of priority; cache.nixos.org has 40.
priority = @gateway.priority@
# How long Nix waits for a narinfo at most, milliseconds; after that the answer is "not here" (50 to 60000).
narinfo_deadline_ms = @gateway.narinfo_deadline_ms@
# The same while it is worth waiting for a peer that may hold the path: one that is sending us NARs, that usually takes
# long to answer, or that is expected back after a start. "Not here" would cost a rebuild (50 to 60000; never less than
# narinfo_deadline_ms).
narinfo_deadline_max_ms = @gateway.narinfo_deadline_max_ms@
# Whether all narinfos are signed with this node's gateway key, which is made at the first start (`narmesh id` prints it).
# Nix then needs to trust no other key: narmesh checks what it passes on against trusted_public_keys and the keys of each
# upstream cache, and another builder or cache needs no change of nix.conf.
sign = @gateway.sign@
# Which sources are asked first. "mesh": peers that may hold the path; an upstream cache when the best of them is late.
# "fastest": whichever usually answers first. "upstream": upstream caches; a peer when the best of them is late.
prefer = @gateway.prefer@
# Where others may ask, up to 16 places: an IP address with a port, the path of a Unix socket, or systemd:NAME for the socket
# that systemd hands over under this FileDescriptorName. role says what they get.
# "serve": what [advertise] offers of our own store, decided anew at each request, and nothing of the mesh. "site": the
# same, and what the mesh gives; at an address that other machines reach only with tokens_file or tls_client_ca_file.
# "local": all that our own Nix gets; only on this machine. With tokens_file clients need a token that `narmesh token add
# NAME` made. Without TLS whoever is on the way can read it.
# With tls_certificate_file and tls_key_file (PEM, the key in a file that only its owner may read) clients ask by https://
# and the key and certificate may be replaced at any time. With tls_client_ca_file they need a certificate of one of its CAs.
# Requests may name this machine by an IP address and by host_names (["*"] for any name, if no browser can reach the place).
# connections_max are the connections at a time, connections_per_client_max those of one address or user (default: half).
# One without a request is closed after idle_timeout_ms, and one whose client takes no byte of its answer after
# stall_timeout_ms.
# zstd = true compresses NARs while they are sent, for clients behind a slow line; a NAR that breaks off begins anew.
# trusted_proxies are addresses and networks of proxies whose X-Forwarded-For is believed ("unix" for who connects through
# a Unix socket): without it all clients of a proxy are one.
# access_log = true logs each request: who asked, what for, and what came of it.
# Read at start only.
# [[gateway.listener]]
# address = "0.0.0.0:7282"
# role = "serve"
# host_names = ["cache.lan"]
# tokens_file = "tokens"
# tls_certificate_file = "/etc/narmesh/cache.lan.pem"
# tls_key_file = "/etc/narmesh/cache.lan.key"
# tls_client_ca_file = "/etc/narmesh/clients.pem"
# connections_max = 256
# connections_per_client_max = 128
# idle_timeout_ms = 300000
# stall_timeout_ms = 300000
# zstd = false
# trusted_proxies = ["192.0.2.1"]
# access_log = false
@gateway.listener@
[store]
# The store directory in store paths. Peers with another store directory can share nothing with us.
store_dir = @store.store_dir@
# Where the files of the store really are (default: store_dir), and the directory that holds db/db.sqlite (default:
# /nix/var/nix).
@store.real_dir@
@store.state_dir@
# The directory that holds drvs, the logs of builds (default: /nix/var/log/nix).
@store.log_dir@
# Short for all three in a chroot store: <root>/nix/store, <root>/nix/var/nix and <root>/nix/var/log/nix.
@store.root@

[trust]
# Public keys of the builders and caches whose paths are accepted, in Nix's form, one key per name. Nix must trust the
# same keys (trusted-public-keys in nix.conf): with a key that only narmesh trusts, Nix remembers unusable answers for
# 30 days.
# Add the builder keys that `narmesh id` prints on the other machines. `narmesh init` adds the keys that Nix trusts, so
# that paths from the public cache are shared too: "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=".
trusted_public_keys = [
@trust.trusted_public_keys@]
# The secret key that signs what was built on this machine. Without it nothing built here is advertised, only what a
# trusted key has signed.
@trust.builder_key_file@
# Whether to sign also what remote builders (`builders` in nix.conf) built for this machine: unsigned outputs of
# derivations that are here. Nix does not record where such a path came from, so if one of `trusted-users` imports one
# without a signature, it is signed too.
sign_remote_builds = @trust.sign_remote_builds@

[advertise]
# Which paths peers may see, by name (without the hash part): a pattern of `include` must match, and none of `exclude`
# may. A pattern must match the whole name; * stands for any text, even none, and ? for any one character, as in
# "secret-*" or "release-?.?". Sources (./src, builtins.toFile) are offered with an output that refers to them, whatever
# `include` says; to withhold one, exclude its name.
include = @advertise.include@
exclude = @advertise.exclude@
# Whether to withhold outputs of derivations with allowSubstitutes = false, system configurations (nixos-system-*, etc,
# unit-*), and everything that refers to them.
withhold_defaults = @advertise.withhold_defaults@
# Whether peers may see derivations (.drv), too, and with them the sources that they are built from: ./src of a package that
# was evaluated here leaves this machine. A derivation is withheld where what it builds, or a derivation or source that it
# refers to, is withheld by name or by allowSubstitutes = false.
derivations = @advertise.derivations@
# Whether peers get anything of this machine, and in which hours by its clock, such as ["22:00-06:00"]; without hours it is
# always. `narmesh serve off` and `narmesh serve on` go before both, until `narmesh serve auto`.
serve = @advertise.serve@
serve_hours = @advertise.serve_hours@

[transfer]
# Compress NARs between peers with zstd: "auto" (where the link is slower than the compression), "always" or "never".
compress = @transfer.compress@
# A holder that sends nothing at all for this long, milliseconds, is given up (100 to 600000). A slow one is waited for,
# or raced against another.
stall_timeout_ms = @transfer.stall_timeout_ms@

[limits]
# Connections kept open for gossip (1 to 1024); other holders are dialled on demand.
connections_gossip = @limits.connections_gossip@
# Memory for NARs in flight from peers, bytes (16 MiB to 64 GiB); NARs of our own store have an eighth as much besides,
# and so have NARs up to 256 KiB.
nar_buffer_bytes = @limits.nar_buffer_bytes@
# The most NARs over 8 MiB sent to one peer at a time, and also the most smaller ones; further requests wait.
uploads_per_peer = @limits.uploads_per_peer@
# The most NARs read from the disk at the same moment, for all peers together.
uploads_total = @limits.uploads_total@
# The most bytes per second of NARs sent to all peers together, 16384 or more, shared fairly; 0 for no limit.
upload_bytes_per_s = @limits.upload_bytes_per_s@
# The most bytes per second that this node passes on as a relay, 131072 or more, both directions together, shared fairly;
# 0 for no limit.
relay_bytes_per_s = @limits.relay_bytes_per_s@
# Disk space, bytes (0 to 1 TiB), for NARs over 8 MiB that peers get from us while we still receive them; 0 for none.
partial_copies_bytes = @limits.partial_copies_bytes@
# The most paths that this node advertises (1 to 400000); beyond that the newest are withheld, and the log warns.
advertised_paths_max = @limits.advertised_paths_max@

[mesh]
# A mesh has a roster, which names its machines: they are peers as if each had a [[peer]], and the keys of its builders
# are trusted. `narmesh mesh create` and `narmesh join` write the mesh key here, which signs the roster (docs/mesh.md).
@mesh.key@
# A signed roster of that mesh (`narmesh mesh export`), for machines that are configured from one place. What the daemon
# hears of a newer version counts as well.
@mesh.roster_file@
# Whether the members of that mesh find each other on the local network by multicast DNS, without an address in any file.
# Others there learn that narmesh runs on this machine, and nothing more. Without a mesh nothing is sent.
discover_lan = @mesh.discover_lan@

# The allowlist: one [[peer]] per machine, with what `narmesh id` prints there. Both sides must name each other.
# Addresses may be left out: they are learned from other peers. A host name, as in "/dns/buildbox.example/tcp/7280" (or
# /dns4/, /dns6/), is resolved again for each dial. relay: whether it passes bytes on between this node and others that
# cannot reach each other. upload_bytes_per_s is the most that is sent to this peer, as in
# [limits], and within that.
# [[peer]]
# name = "buildbox"
# peer_id = "12D3KooW..."
# addresses = ["/ip4/192.0.2.1/tcp/7280"]
# relay = false
# upload_bytes_per_s = 0
@peer@
# Upstream caches: HTTP caches, and directories in the same layout (file:///srv/cache), that are asked beside the mesh
# (docs/operations.md). A narinfo of a cache counts only with a signature of one of its own public_keys, or with a proven
# content address. Caches of a lower tier are asked first. include and exclude are patterns as in [advertise]: what may
# come from the cache; an empty include means everything. token_file holds what is sent as a bearer token, password_file
# the password of user, netrc_file both in the form of curl; only their owner may read them. ca_file: PEM certificates
# beside those of the system. proxy: a URL or "none"; without it, that of the environment. Times are in milliseconds: for a
# connection, and for a request on which nothing comes.
# [[upstream]]
# name = "nixos"
# url = "https://cache.nixos.org"
# public_keys = ["cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="]
# tier = 0
# include = []
# exclude = []
# token_file = "cache.token"
# user = "me"
# password_file = "cache.password"
# netrc_file = "netrc"
# ca_file = "ca.pem"
# proxy = "http://proxy.example:3128"
# connect_timeout_ms = 5000
# stall_timeout_ms = 10000
# enabled = true
@upstream@
# Quorum: how many builders must have got the same result (docs/quorum.md). Agreement means that they got the same
# bytes, not that their inputs were honest; builders that take their compiler from the same cache are not independent.
[quorum]
# What verdicts are used for. "off": nothing. "observe": reports and metrics. "prefer": holders of what is agreed are
# asked first. "require": Nix gets only what is agreed; this governs only what passes through this node. The daemon then
# makes a gateway key, and `narmesh id` prints the substituters and trusted-public-keys lines that nix.conf needs
# instead of all others.
mode = @quorum.mode@
# How many groups of builders must attest the same result. Use more than half of them: otherwise two different results
# could both reach it.
@quorum.k@
# Names of builders whose attestation alone is enough for a path that no other builder has attested; our own builder key
# is always among them. Without this line no single attestation is enough.
@quorum.grace@
# Whether one builder that got another result is enough to prevent agreement.
veto = @quorum.veto@
# Whether this machine's own rebuild of a path counts as one group.
count_own_rebuild = @quorum.count_own_rebuild@
# Whether the builders of the mesh's roster count as if each had a [[builder]], under the groups that the roster gives
# them. Whoever has the mesh key then decides who counts.
from_roster = @quorum.from_roster@
# Store paths whose attestations are kept for good, like those of paths that are held, served or asked for here.
keep = @quorum.keep@
# Another k for names that match a pattern as in [advertise]; the first that matches counts.
# [[quorum.override]]
# name = "linux-*"
# k = 1
@quorum.override@
# The builders whose attestations count: one [[builder]] for each builder key. Builders of one owner share a group,
# which counts once.
# A bare Nix signature is not an attestation, because other tools also put it on what they substituted. It counts for a
# builder that signs only its own builds (signs_only_own_builds = true), wherever it is found: in narinfos of peers, and
# on paths of our own store.
# peer is the name of the [[peer]] that is the builder's node. The builder's attestations then travel through the mesh,
# to the peers that are told that node's summary; without it they come only as files.
# [[builder]]
# name = "buildbox"
# public_key = "buildbox-1:..."
# group = "acme"
# peer = "buildbox"
# signs_only_own_builds = false
@builder@
# Keys that are no longer trusted: their attestations that this node first stored at that time or later are void. A time
# needs a zone.
# [[revoked_builders]]
# public_key = "buildbox-1:..."
# from = 2026-11-01T12:00:00Z
# why = "the machine was stolen"
@revoked_builders@"#;

#[cfg(test)]
mod tests;
