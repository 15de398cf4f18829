//! Private networks: namespaces joined by a bridge, or by the [`Emulator`].
//!
//! Walk: [`Network::on_a_bridge`], [`Network::in_sites`] or [`Network::behind_nats`] makes a namespace for each machine, with the interface `eth0`
//! and an address; [`crate::TestNode::live_on`] puts a daemon and its Nix into one.
//! Invariants: no namespace has a way out, so all traffic stays inside; names carry the process id, so that a later run can
//! remove what a killed one left; everything is removed with the [`Network`].

mod bare_machine;
mod namespace;
mod nat;
mod shaped;
mod walls;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use tappers::{Interface, Tap};

use crate::emulator::{Emulator, Link, Site};
use crate::process::finish;

pub use bare_machine::BareMachine;
pub use namespace::{Namespace, Traffic};
pub use nat::{Nat, Place};
pub use walls::Wall;

use namespace::{NAMESPACES, ip_batch};

/// Names of namespaces begin with this, followed by a process id and a number.
const PREFIX: &str = "narmesh";
/// Every machine has an address in 10.77.0.0/16.
const NETWORK_BITS: u8 = 16;
/// In a network without IPv4, every machine has an address in fd00:77::/64.
const NETWORK_BITS_V6: u8 = 64;

/// Machines in namespaces.
#[derive(Debug)]
pub struct Network {
    /// Dropped before the namespaces, which hold its taps.
    emulator: Option<Emulator>,
    machines: Vec<Namespace>,
    prefix: String,
}

impl Network {
    /// Why no network can be made here; `None` when it can.
    ///
    /// # Panics
    /// When a tool is missing: it has to be installed; that is no reason to skip a test.
    #[must_use]
    pub fn not_permitted() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("network namespaces need root".to_owned());
        }
        // Stories that run at the same time may ask at the same moment.
        static PROBES: AtomicUsize = AtomicUsize::new(0);
        let probe = format!("{PREFIX}-{}-probe{}", std::process::id(), PROBES.fetch_add(1, Ordering::Relaxed));
        let made = finish(Command::new("ip").args(["netns", "add", &probe]));
        finish(Command::new("ip").args(["netns", "delete", &probe]));
        if !made.status.success() {
            return Some(format!("network namespaces are not permitted here: {}", made.stderr.trim()));
        }
        let tun = Path::new("/dev/net/tun");
        (!tun.exists()).then(|| format!("{} is missing", tun.display()))
    }

    /// `machines` machines on one bridge of the kernel, without IPv6.
    ///
    /// # Panics
    /// When the system refuses.
    #[must_use]
    pub fn on_a_bridge(machines: usize) -> Self {
        Self::bridged(machines, |number| address_of(0, number), NETWORK_BITS)
    }

    /// As [`Network::on_a_bridge`], with IPv6 alone: IPv4 is there on loopback only, for the gateway.
    ///
    /// # Panics
    /// When the system refuses.
    #[must_use]
    pub fn on_a_bridge_of_ipv6(machines: usize) -> Self {
        let address = |number: usize| {
            let host = u16::try_from(number + 1).expect("at most 254 machines");
            IpAddr::from(Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, host))
        };
        Self::bridged(machines, address, NETWORK_BITS_V6)
    }

    fn bridged(machines: usize, address_of: impl Fn(usize) -> IpAddr, network_bits: u8) -> Self {
        let prefix = Self::prepare();
        let hub = hub_name(&prefix);
        let mut outside = vec![format!("netns add {hub}")];
        let mut inside = vec![
            "link set lo up".to_owned(),
            "link add bridge type bridge mcast_snooping 0".to_owned(),
            "link set bridge up".to_owned(),
        ];
        for number in 0..machines {
            let name = format!("{prefix}-{number}");
            outside.push(format!("netns add {name}"));
            let ethernet = ethernet_of(number);
            outside.push(format!(
                "link add eth0 address {ethernet} netns {name} type veth peer name v{number} netns {hub}"
            ));
            inside.push(format!("link set v{number} master bridge up"));
        }
        // Made first, so that its drop removes what exists, whatever fails below.
        let mut network = Self { emulator: None, machines: Vec::new(), prefix: prefix.clone() };
        ip_batch(None, &outside);
        ip_batch(Some(&hub), &inside);
        for number in 0..machines {
            let machine = Namespace::up(&format!("{prefix}-{number}"), address_of(number), network_bits);
            // A kernel keeps 1,024 neighbours in all namespaces together and drops more; permanent ones do not count.
            let others = (0..machines).filter(|other| *other != number);
            let neighbours = others
                .map(|other| (address_of(other), ethernet_of(other)))
                .map(|(address, ethernet)| format!("neighbour add {address} lladdr {ethernet} dev eth0 nud permanent"));
            ip_batch(Some(machine.name()), &neighbours.collect::<Vec<_>>());
            network.machines.push(machine);
        }
        network
    }

    /// Machines in sites that the emulator joins, `machines_per_site` in each; they are numbered in the order of the sites.
    ///
    /// # Panics
    /// When the system refuses.
    #[must_use]
    pub fn in_sites(machines_per_site: &[usize], near: Link, far: Link, seed: u64) -> Self {
        let prefix = Self::prepare();
        let sites = machines_per_site.iter().enumerate();
        let places: Vec<(Site, usize)> =
            sites.flat_map(|(site, count)| (0..*count).map(move |number| (site, number))).collect();
        let mut network = Self { emulator: None, machines: Vec::new(), prefix: prefix.clone() };
        let names: Vec<_> = (0..places.len()).map(|number| format!("{prefix}-{number}")).collect();
        ip_batch(None, &names.iter().map(|name| format!("netns add {name}")).collect::<Vec<_>>());
        let mut taps = Vec::new();
        for (name, (site, number)) in names.iter().zip(&places) {
            let tap = Namespace::named(name).enter(|| {
                let mut tap = Tap::new_named(Interface::new("eth0").expect("a name")).expect("a tap device");
                tap.set_nonblocking(true).expect("our own tap");
                tap
            });
            taps.push((tap, *site));
            network.machines.push(Namespace::up(name, address_of(*site, *number), NETWORK_BITS));
        }
        network.emulator = Some(Emulator::start(taps, near, far, seed).expect("a thread"));
        network
    }

    /// The namespace of the bridge.
    fn hub_name(&self) -> String {
        hub_name(&self.prefix)
    }

    /// The machine of this number.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn machine(&self, number: usize) -> &Namespace {
        self.machines.get(number).expect("a machine of this network")
    }

    /// All machines.
    #[must_use]
    pub fn machines(&self) -> &[Namespace] {
        &self.machines
    }

    /// The emulator that joins the sites.
    ///
    /// # Panics
    /// On a bridge, which has none.
    #[must_use]
    pub fn emulator(&self) -> &Emulator {
        self.emulator.as_ref().expect("a network of sites")
    }

    /// Moves a machine to another site, where it gets another address.
    ///
    /// # Panics
    /// When the system refuses, or on a bridge.
    pub fn move_machine(&mut self, number: usize, site: Site) -> &Namespace {
        self.emulator().move_tap(number, site);
        // Higher than the addresses of machines that began there.
        let address = address_of(site, 100 + number);
        let machine = self.machines.get_mut(number).expect("a machine of this network");
        machine.change_address(address, NETWORK_BITS);
        machine
    }

    /// Gives a machine on a bridge another address of IPv4.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn renumber(&mut self, number: usize, host: u8) {
        let machine = self.machines.get_mut(number).expect("a machine of this network");
        machine.change_address(Ipv4Addr::new(10, 77, 200, host).into(), NETWORK_BITS);
    }

    /// Removes what killed runs left, and returns a prefix for the names of a new network.
    fn prepare() -> String {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        for name in namespaces() {
            let pid = name.split('-').nth(1).and_then(|pid| pid.parse::<u32>().ok());
            if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                delete(&name);
            }
        }
        format!("{PREFIX}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.emulator = None;
        let ours = format!("{}-", self.prefix);
        namespaces().iter().filter(|name| name.starts_with(&ours)).for_each(|name| delete(name));
    }
}

fn hub_name(prefix: &str) -> String {
    format!("{prefix}-hub")
}

/// 10.77.site.machine, both counted from one.
fn address_of(site: Site, number: usize) -> IpAddr {
    let byte = |number: usize| u8::try_from(number + 1).expect("at most 254 of a kind");
    Ipv4Addr::new(10, 77, byte(site), byte(number)).into()
}

/// A locally administered Ethernet address for this machine, which no real device has.
fn ethernet_of(number: usize) -> String {
    let [high, low] = u16::try_from(number).expect("at most 254 machines").to_be_bytes();
    format!("02:6e:61:72:{high:02x}:{low:02x}")
}

/// The namespaces that runs of this harness made.
fn namespaces() -> Vec<String> {
    let entries = fs::read_dir(NAMESPACES).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with('-'))).collect()
}

/// Removes a namespace; a failure is no error, since another run may be removing the same one.
fn delete(name: &str) {
    finish(Command::new("ip").args(["netns", "delete", name]));
}
