//! Machines behind routers that translate addresses, or that let nobody in.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

use super::namespace::{Namespace, ip_batch};
use super::{Network, hub_name};

/// What a router makes of the port of a connection that goes out. None lets a connection in that nobody behind it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nat {
    /// It keeps the port, if that is free.
    Keeping,
    /// Another port, always the same for one port of a machine.
    Changing,
    /// Another port for each connection.
    Symmetric,
}

/// Where a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Everybody reaches it.
    Public,
    /// Behind a router of its own.
    Behind(Nat),
    /// In the home of the machine of this number.
    WithMachine(usize),
    /// Behind a router that keeps ports, behind that of the provider, which keeps them as well and which all such
    /// machines share.
    Twice,
}

/// The interface of a router that leads out.
const WAN: &str = "wan";
/// The one that leads to its machines.
const LAN: &str = "lan";
const HOME_BITS: u8 = 24;
const CARRIER_BITS: u8 = 16;
/// The public address of the provider's router; its machines have numbers below.
const CARRIER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
const CARRIER_LAN: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
const V6_BITS: u8 = 64;

impl Network {
    /// A machine for each place, IPv4 alone.
    ///
    /// # Panics
    /// When the system refuses.
    #[must_use]
    pub fn behind_nats(places: &[Place]) -> Self {
        let prefix = Self::prepare();
        let mut network = Self { emulator: None, machines: Vec::new(), prefix: prefix.clone() };
        let hub = hub_name(&prefix);
        make_bridge(&hub, "bridge");
        let carrier = format!("{prefix}-carrier");
        if places.contains(&Place::Twice) {
            make_router(&carrier, (&hub, "bridge"), (CARRIER, HOME_BITS), None);
            ip_batch(Some(&carrier), &[format!("address add {CARRIER_LAN}/{CARRIER_BITS} dev {LAN}")]);
            translate(&carrier, Nat::Keeping, CARRIER);
        }
        for (number, place) in places.iter().enumerate() {
            let name = format!("{prefix}-{number}");
            let home = |number: usize| format!("{prefix}-home{number}");
            let machine = match place {
                Place::Public => {
                    plug(&name, &hub, "bridge");
                    Namespace::up(&name, public_address(number).into(), HOME_BITS)
                }
                Place::Behind(nat) => {
                    make_home(&home(number), number, (&hub, "bridge"), (public_address(100 + number), HOME_BITS), None);
                    translate(&home(number), *nat, public_address(100 + number));
                    settle(&name, &home(number), number, 2)
                }
                Place::WithMachine(other) => settle(&name, &home(*other), *other, 3),
                Place::Twice => {
                    let outside = Ipv4Addr::new(100, 64, 0, byte(101 + number));
                    make_home(&home(number), number, (&carrier, LAN), (outside, CARRIER_BITS), Some(CARRIER_LAN));
                    translate(&home(number), Nat::Keeping, outside);
                    settle(&name, &home(number), number, 2)
                }
            };
            network.machines.push(machine);
        }
        network
    }

    /// Takes a machine out of the network that it is in, into the home of another one, which is behind a router.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn take_into_home(&mut self, number: usize, of: usize) -> Namespace {
        let name = self.machine(number).name().to_owned();
        ip_batch(Some(&name), &["link delete eth0".to_owned()]);
        let home = format!("{}-home{of}", self.prefix);
        wire((&name, "eth0"), (&home, LAN));
        let machine = join_home(&name, of, byte(100 + number));
        self.machines.get_mut(number).expect("looked up above").clone_from(&machine);
        machine
    }

    /// Machines with IPv6 alone: those for which this says so behind a firewall that lets nobody in.
    ///
    /// # Panics
    /// When the system refuses.
    #[must_use]
    pub fn behind_firewalls(are_walled: &[bool]) -> Self {
        let prefix = Self::prepare();
        let mut network = Self { emulator: None, machines: Vec::new(), prefix: prefix.clone() };
        let hub = hub_name(&prefix);
        make_bridge(&hub, "bridge");
        for (number, is_walled) in are_walled.iter().enumerate() {
            let name = format!("{prefix}-{number}");
            plug(&name, &hub, "bridge");
            let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(byte(number + 1)));
            network.machines.push(Namespace::up(&name, IpAddr::V6(address), V6_BITS));
            if *is_walled {
                let wall = "table inet wall {\n chain in {\n type filter hook input priority 0\n \
                            iifname \"eth0\" meta l4proto tcp ct state new drop\n }\n}\n";
                load_rules(&name, wall);
            }
        }
        network
    }
}

fn byte(number: usize) -> u8 {
    u8::try_from(number).expect("at most 100 machines")
}

fn public_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, byte(number + 1))
}

fn make_bridge(namespace: &str, bridge: &str) {
    ip_batch(None, &[format!("netns add {namespace}")]);
    let lines = [
        "link set lo up".to_owned(),
        format!("link add {bridge} type bridge mcast_snooping 0"),
        format!("link set {bridge} up"),
    ];
    ip_batch(Some(namespace), &lines);
}

/// Plugs a new namespace's `eth0` into a bridge of another one.
fn plug(name: &str, at: &str, bridge: &str) {
    ip_batch(None, &[format!("netns add {name}")]);
    wire((name, "eth0"), (at, bridge));
}

fn wire((name, interface): (&str, &str), (at, bridge): (&str, &str)) {
    let port = format!("p{}", name.rsplit('-').next().unwrap_or(name));
    ip_batch(None, &[format!("link add {interface} netns {name} type veth peer name {port} netns {at}")]);
    ip_batch(Some(at), &[format!("link set {port} master {bridge} up")]);
}

/// A router between a bridge outside and one of its own.
fn make_router(name: &str, outside: (&str, &str), (address, bits): (Ipv4Addr, u8), gateway: Option<Ipv4Addr>) {
    make_bridge(name, LAN);
    wire((name, WAN), outside);
    let mut lines = vec![format!("link set {WAN} up"), format!("address add {address}/{bits} dev {WAN}")];
    lines.extend(gateway.map(|gateway| format!("route add default via {gateway}")));
    ip_batch(Some(name), &lines);
    Namespace::named(name).enter(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("root"));
}

fn make_home(name: &str, number: usize, outside: (&str, &str), address: (Ipv4Addr, u8), gateway: Option<Ipv4Addr>) {
    make_router(name, outside, address, gateway);
    ip_batch(Some(name), &[format!("address add 192.168.{number}.1/{HOME_BITS} dev {LAN}")]);
}

/// A machine in the home of this number.
fn settle(name: &str, home: &str, number: usize, host: u8) -> Namespace {
    plug(name, home, LAN);
    join_home(name, number, host)
}

/// Gives a machine an address in the home of this number, and the way out.
fn join_home(name: &str, number: usize, host: u8) -> Namespace {
    let machine = Namespace::up(name, Ipv4Addr::new(192, 168, byte(number), host).into(), HOME_BITS);
    ip_batch(Some(name), &[format!("route add default via 192.168.{number}.1")]);
    machine
}

/// Has a router translate, and drop what nobody behind it asked for.
fn translate(router: &str, nat: Nat, outside: Ipv4Addr) {
    let out = match nat {
        Nat::Keeping => "masquerade".to_owned(),
        Nat::Changing => {
            format!("ip protocol tcp snat to {outside}:jhash tcp sport mod 20000 seed 7 offset 20000")
        }
        Nat::Symmetric => "masquerade fully-random".to_owned(),
    };
    let rules = format!(
        "table ip nat {{\n chain out {{\n type nat hook postrouting priority 100\n oifname \"{WAN}\" {out}\n }}\n}}\n\
         table ip wall {{\n chain in {{\n type filter hook input priority 0\n iifname \"{WAN}\" ct state new drop\n }}\n \
         chain through {{\n type filter hook forward priority 0\n iifname \"{WAN}\" ct state new drop\n }}\n}}\n"
    );
    load_rules(router, &rules);
}

pub(super) fn load_rules(namespace: &str, rules: &str) {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, "nft", "-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("Debian's package iproute2 (./test.sh installs it)");
    child.stdin.take().expect("piped").write_all(rules.as_bytes()).ok();
    let output = child.wait_with_output().expect("our own child");
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft, of Debian's package nftables (./test.sh installs it): {why}\n{rules}");
}
