//! The firewall of this machine: does it let peers in at the ports where the daemon listens?

use super::Facts;
use super::firewall_rules::{Port, Protocol, Rules, Shut};
use super::report::Look;
use crate::cli::findings::{Finding, Mender};
use crate::settings::{Settings, socket_address};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

/// Where multicast DNS is heard (RFC 6762).
const MDNS_PORT: u16 = 5_353;

pub(super) fn look(facts: &Facts, look: &mut Look) {
    let ports = ports(facts);
    let nft = run(&["nft", "--json", "list", "ruleset"]).and_then(|text| Rules::of_nft(&text));
    let iptables = run(&["iptables", "-S"]).map(|text| Rules::of_iptables(&text));
    if let (Err(nft), Err(iptables)) = (&nft, &iptables) {
        return look.unseen(format!("the rules of the firewall: {nft}; {iptables}"));
    }
    for port in ports {
        // What iptables shows may be what nft shows, so one of the two is enough.
        let shut = [&nft, &iptables].into_iter().flatten().find_map(|rules| Some((rules, rules.shut(port)?)));
        if let Some((rules, shut)) = shut {
            look.found(describe(port, shut, rules, &facts.mender));
        }
    }
}

/// Where peers have to get in: nobody dials loopback from elsewhere.
fn ports(facts: &Facts) -> BTreeSet<Port> {
    // What the daemon listens on counts, and the file only while it does not run.
    let in_force =
        facts.status().map(|status| status.listen.iter().filter_map(|address| address.parse().ok()).collect());
    let listen = in_force.unwrap_or_else(|| facts.settings.node.listen.clone());
    let sockets = listen.iter().filter_map(socket_address).filter(|socket| !socket.ip().is_loopback());
    let mut ports: BTreeSet<_> =
        sockets.filter(|socket| socket.port() != 0).map(|socket| Port(Protocol::Tcp, socket.port())).collect();
    if is_heard_on_the_lan(&facts.settings) && !ports.is_empty() {
        ports.insert(Port(Protocol::Udp, MDNS_PORT));
    }
    ports
}

fn is_heard_on_the_lan(settings: &Settings) -> bool {
    settings.mesh.key.is_some() && settings.mesh.discover_lan
}

fn run(words: &[&str]) -> Result<String, String> {
    let [program, words @ ..] = words else { return Ok(String::new()) };
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{program}: {}", said.lines().next().unwrap_or("it failed")))
        }
        Err(error) => Err(format!("{program}: {error}")),
    }
}

fn describe(port: Port, shut: Shut, rules: &Rules, mender: &Mender) -> Finding {
    let Port(protocol, number) = port;
    let what = match protocol {
        Protocol::Tcp => "peers cannot dial this machine, and those that it cannot dial either are out of reach",
        Protocol::Udp => "members of the mesh on the local network are not heard",
    };
    let word = protocol.word();
    let why = match shut {
        Shut::Named => format!("a rule of the firewall of this machine keeps out {word} port {number}"),
        Shut::Unnamed => format!(
            "the firewall of this machine keeps out what no rule lets in, and no rule names {word} port {number}"
        ),
    };
    Finding::warning(format!("{why}: {what}")).mended_by(opening(port, shut, rules, mender))
}

/// The command of whatever manages the firewall here, because that would undo what another command does.
fn opening(Port(protocol, number): Port, shut: Shut, rules: &Rules, mender: &Mender) -> String {
    let word = protocol.word().to_ascii_lowercase();
    let is_there =
        |program: &str| ["/usr/sbin", "/usr/bin", "/sbin"].iter().any(|dir| Path::new(dir).join(program).exists());
    if mender.is_nixos() {
        return match protocol {
            Protocol::Tcp => "services.narmesh.openFirewall = true; then nixos-rebuild switch".to_owned(),
            Protocol::Udp => format!("networking.firewall.allowedUDPPorts = [ {number} ]; then nixos-rebuild switch"),
        };
    }
    if rules.has_chain("ufw-user-input") && is_there("ufw") {
        // Before the rule that denies it, because the first that fits counts.
        let place = if shut == Shut::Named { "insert 1 " } else { "" };
        return mender.as_root(&format!("ufw {place}allow {number}/{word}"));
    }
    if rules.is_of_firewalld() && is_there("firewall-cmd") {
        let add = mender.as_root(&format!("firewall-cmd --permanent --add-port={number}/{word}"));
        return format!("{add} && {}", mender.as_root("firewall-cmd --reload"));
    }
    // Inserted before all other rules, because one of them may drop it.
    match rules.input_of_nft() {
        Some(chain) => mender.as_root(&format!("nft insert rule {chain} {word} dport {number} accept")),
        None => mender.as_root(&format!("iptables -I INPUT -p {word} --dport {number} -j ACCEPT")),
    }
}
