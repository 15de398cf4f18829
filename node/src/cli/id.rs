//! `narmesh id`: what other machines need to know about this one.

use super::{emit, emit_report};
use crate::config::{BuilderConfig, PeerConfig};
use crate::config_template::{builder_lines, peer_lines, quoted};
use crate::settings::{NAME_FORM, Secrets, Settings, is_name};
use anyhow::Context as _;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use narmesh_mesh::{find_outward_v4, find_outward_v6};
use narmesh_protocol::NixPublicKey;
use narmesh_quorum::Mode;
use serde::Serialize;
use std::net::IpAddr;
use std::path::Path;

/// The name of a machine's builder key ends with this, after the machine's name.
pub(super) const KEY_NAME_END: &str = "-narmesh-1";

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Name of this machine in the [[peer]] lines. By default node.name in the configuration, else the name in the
    /// builder key, else the host name
    #[arg(long)]
    name: Option<String>,
    /// Print one JSON object, for scripts: name, peer_id, addresses, builder_key, gateway, gateway_key
    #[arg(long)]
    json: bool,
    /// Print only the gateway key, for trusted-public-keys of this machine's Nix
    #[arg(long, conflicts_with_all = ["name", "json"])]
    gateway_key: bool,
}

/// `narmesh id --json`.
#[derive(Serialize)]
struct Identity {
    name: String,
    peer_id: String,
    /// A guess, as in the text.
    addresses: Vec<String>,
    builder_key: Option<String>,
    /// The URL at which Nix on this machine asks.
    gateway: String,
    /// The key that signs all narinfos of the gateway; absent if there is none, or until the daemon has made it.
    gateway_key: Option<String>,
}

pub(super) fn id(config: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    let settings = Settings::load(config)?;
    if arguments.gateway_key {
        let key = settings.read_gateway_key()?.context(
            "there is no gateway key: gateway.sign is not true, or nobody has made the key yet (`narmesh init --keys` does)",
        )?;
        return Ok(emit(&format!("{}\n", key.public()))?);
    }
    let secrets = settings.read_secrets()?;
    let name = match &arguments.name {
        Some(name) => check_name(name)?.to_owned(),
        None => own_name(&settings, &secrets),
    };
    let nix_conf = for_nix_conf(&settings)?;
    let peer = introduced(&name, &settings, &secrets);
    let identity = Identity {
        name: peer.name,
        peer_id: peer.peer_id,
        addresses: peer.addresses,
        builder_key: secrets.builder_key.as_ref().map(|key| key.public().to_string()),
        gateway: format!("http://{}", settings.gateway.listen),
        gateway_key: settings.read_gateway_key()?.map(|key| key.public().to_string()),
    };
    emit_report(&identity, arguments.json, |identity| {
        let introduction = introduction(&name, &settings, &secrets) + &as_builder(identity);
        format!("peer id: {}\n\n{introduction}{nix_conf}", identity.peer_id)
    })
}

/// What another machine has to add to its configuration to count this node as a builder.
fn as_builder(identity: &Identity) -> String {
    let Some(public_key) = identity.builder_key.clone() else { return String::new() };
    let (name, peer) = (identity.name.clone(), Some(identity.name.clone()));
    let builder = BuilderConfig { name, public_key, group: None, peer, signs_only_own_builds: false };
    format!(
        "\nand, where builders must agree (docs/quorum.md), this one (add a group if its owner has several):\n\n{}",
        builder_lines(&builder)
    )
}

/// The lines of `nix.conf` that make this node the only substituter, with its gateway key as the only key; empty if there
/// is none.
fn for_nix_conf(settings: &Settings) -> anyhow::Result<String> {
    if !settings.needs_gateway_key() {
        return Ok(String::new());
    }
    let Some(key) = settings.read_gateway_key()? else {
        return Ok(
            "\nThe daemon makes the gateway key at its first start; `narmesh id` then prints what nix.conf needs.\n"
                .to_owned(),
        );
    };
    let why = match settings.quorum.mode() {
        Mode::Require => "instead of all other substituters and keys (they would bypass the policy)",
        Mode::Off | Mode::Observe | Mode::Prefer => "instead of what narmesh knows as [[upstream]], and its keys",
    };
    Ok(format!("\nIn nix.conf of this machine, {why}:\n\n{}", only_way_in(settings, &key.public())))
}

/// The two lines of `nix.conf` without anything around them.
pub(super) fn only_way_in(settings: &Settings, gateway_key: &NixPublicKey) -> String {
    format!("substituters = http://{}\ntrusted-public-keys = {gateway_key}\n", settings.gateway.listen)
}

/// Checks that other machines would accept a name given on the command line.
pub(super) fn check_name(name: &str) -> anyhow::Result<&str> {
    anyhow::ensure!(is_name(name), "--name {name:?} is refused; accepted: {NAME_FORM}");
    Ok(name)
}

/// The name of this machine: `node.name`, else the name in its builder key (which `narmesh init --name` set before
/// there was `node.name`), else the host name.
pub(super) fn own_name(settings: &Settings, secrets: &Secrets) -> String {
    let of_key = || Some(secrets.builder_key.as_ref()?.name().strip_suffix(KEY_NAME_END)?.to_owned());
    settings.node.name.clone().or_else(of_key).filter(|name| is_name(name)).unwrap_or_else(host_name)
}

/// The host name as the kernel gives it; `node` if there is none.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "node".to_owned() } else { name.to_owned() }
}

pub(super) fn introduced(name: &str, settings: &Settings, secrets: &Secrets) -> PeerConfig {
    let addresses = dialable_addresses(&settings.node.listen, &settings.node.external_addresses);
    PeerConfig {
        name: name.to_owned(),
        peer_id: secrets.peer_id().to_string(),
        addresses: addresses.iter().map(Multiaddr::to_string).collect(),
        relay: false,
        upload_bytes_per_s: 0,
    }
}

/// The text to add to the configuration of the other machines.
pub(super) fn introduction(name: &str, settings: &Settings, secrets: &Secrets) -> String {
    let peer = introduced(name, settings, secrets);
    let mut text = "In narmesh.toml of every other machine (the addresses are a guess: correct them):\n\n".to_owned();
    text += &peer_lines(&peer);
    match &secrets.builder_key {
        Some(key) => {
            text += "\nand, in its [trust] section, in trusted_public_keys (without gateway.sign also in trusted-public-keys of its nix.conf):\n\n";
            text += &format!("    {},\n", quoted(&key.public().to_string()));
        }
        None => text += "\nThis node has no builder key: nothing built here can be substituted elsewhere.\n",
    }
    text
}

/// The listen addresses with `0.0.0.0` and `::` replaced by the address of the interface with the default route; no port 0.
fn dialable_addresses(listen: &[Multiaddr], external: &[Multiaddr]) -> Vec<Multiaddr> {
    let mut addresses = external.to_vec();
    for address in listen {
        let mut parts = address.iter();
        let (Some(ip), Some(Protocol::Tcp(port))) = (parts.next(), parts.next()) else { continue };
        let ip: Option<IpAddr> = match ip {
            Protocol::Ip4(ip) if ip.is_unspecified() => find_outward_v4(),
            Protocol::Ip6(ip) if ip.is_unspecified() => find_outward_v6(),
            Protocol::Ip4(ip) => Some(ip.into()),
            Protocol::Ip6(ip) => Some(ip.into()),
            _ => None,
        };
        if let Some(ip) = ip.filter(|_| port != 0) {
            addresses.push(Multiaddr::from(ip).with(Protocol::Tcp(port)));
        }
    }
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, NodeConfig};
    use libp2p::identity::Keypair;
    use narmesh_protocol::NixSecretKey;

    #[test]
    fn name_comes_from_the_configuration_else_from_the_builder_key() {
        let dir = tempfile::tempdir().unwrap();
        let name = |text: &str, key: Option<&str>| {
            let file = dir.path().join("narmesh.toml");
            let settings = Settings::check(Config::parse(text, &file).unwrap(), &file).unwrap();
            let builder_key = key.map(|name| NixSecretKey::from_seed(name, &[1; 32]).unwrap());
            own_name(&settings, &Secrets { keypair: Keypair::generate_ed25519(), builder_key })
        };
        assert_eq!(name("[node]\nname = 'one'", Some("two-narmesh-1")), "one");
        assert_eq!(name("", Some("two-narmesh-1")), "two");
        for other in [None, Some("cache.example-1"), Some("-narmesh-1")] {
            assert_eq!(name("", other), host_name());
        }
    }

    #[test]
    fn name_that_other_machines_would_refuse_is_refused() {
        let file = Path::new("/nonexistent/narmesh.toml");
        let long = "n".repeat(65);
        for name in ["", "a\nb", &long] {
            let message = check_name(name).unwrap_err().to_string();
            assert!(message.contains("--name") && message.contains("accepted: 1 to 64 bytes"), "{message}");
            let config = Config {
                node: NodeConfig { name: Some(name.to_owned()), ..NodeConfig::default() },
                ..Config::default()
            };
            assert!(Settings::check(config, file).is_err(), "{name:?}");
        }
    }

    #[test]
    fn only_addresses_that_can_be_dialled_are_told() {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Multiaddr>>();
        let told = dialable_addresses(
            &parse(&["/ip4/192.0.2.7/tcp/7280", "/ip4/127.0.0.1/tcp/0", "/ip4/0.0.0.0/tcp/7280"]),
            &parse(&["/ip4/203.0.113.7/tcp/1"]),
        );
        assert_eq!(told[..2], parse(&["/ip4/203.0.113.7/tcp/1", "/ip4/192.0.2.7/tcp/7280"]));
        assert!(told.iter().all(|address| !address.to_string().contains("0.0.0.0")), "{told:?}");
    }
}
