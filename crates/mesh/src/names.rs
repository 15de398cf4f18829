//! Resolves host names in the addresses that are configured for a peer: the system is asked anew for each dial.
//!
//! A name never comes from a peer: summaries carry IP addresses. The swarm never sees a name either, so whatever asks
//! where a connection leads (bulk connections, a change of our own address) finds an IP address.
//! Invariants: each name is asked for once at a time, and at most [`LOOKUPS_MAX`] of them; no caller waits longer than
//! it wants to; a dial gets at most [`DIALLED_MAX`] addresses.

use futures::future;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};
use tokio::sync::watch;
use tokio::time::Instant;

use super::addresses::multiaddr;

/// Names that the system is asked for at the same time. Where no server answers, the C library takes half a minute or
/// more to give up, and cannot be stopped before.
const LOOKUPS_MAX: usize = 64;
/// Addresses taken of one name, in the order that the system prefers: as many as a peer may have.
const PER_NAME_MAX: usize = 8;
/// Addresses in one dial, with those that were no names, of which there may be sixteen.
const DIALLED_MAX: usize = 24;

/// Asks the system for the addresses of a name.
type System = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;
/// `None` until it is known.
type LookedUp = Option<Result<Vec<IpAddr>, String>>;

/// Resolves names; cheap to clone.
#[derive(Clone)]
pub(super) struct Names(Arc<Shared>);

struct Shared {
    system: Box<System>,
    under_way: Mutex<HashMap<String, watch::Receiver<LookedUp>>>,
}

/// The addresses of a peer after its host names were looked up.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Resolved {
    /// IP addresses only, at most [`DIALLED_MAX`].
    pub(super) addresses: Vec<Multiaddr>,
    /// Why a name led nowhere, one text for each such name.
    pub(super) failures: Vec<String>,
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").field("under_way", &self.0.under_way.lock().len()).finish_non_exhaustive()
    }
}

impl Names {
    /// Resolves names as every program of this machine does: `/etc/hosts`, `nsswitch.conf`, DNS.
    pub(super) fn of_the_system() -> Self {
        // The port plays no part in the answer.
        Self::new(|name: &str| Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect()))
    }

    fn new(system: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(Shared { system: Box::new(system), under_way: Mutex::default() }))
    }

    /// Puts IP addresses in place of names, within `patience`; IP addresses stay as they are.
    pub(super) async fn resolve(&self, addresses: &[Multiaddr], patience: Duration) -> Resolved {
        let deadline = Instant::now() + patience;
        let each = addresses.iter().map(async |address| {
            let Some(name) = Name::of(address) else { return Ok(vec![address.clone()]) };
            match self.look_up(&name, deadline).await {
                Ok(found) => Ok(found.into_iter().map(|ip| multiaddr(SocketAddr::new(ip, name.port))).collect()),
                Err(why) => Err(format!("{address}: {why}")),
            }
        });
        let (mut found, mut failures) = (Vec::new(), Vec::new());
        for one in future::join_all(each).await {
            match one {
                Ok(addresses) => found.push(addresses),
                Err(why) => failures.push(why),
            }
        }
        // The first address of each name comes before the second of any: one name with many leaves room for the others.
        let in_turn = (0..PER_NAME_MAX).flat_map(|rank| found.iter().filter_map(move |of_one| of_one.get(rank)));
        let mut seen = HashSet::new();
        let addresses = in_turn.filter(|address| seen.insert(*address)).take(DIALLED_MAX).cloned().collect();
        Resolved { addresses, failures }
    }

    async fn look_up(&self, name: &Name, deadline: Instant) -> Result<Vec<IpAddr>, String> {
        let mut answer = self.ask(&name.host)?;
        let found = match tokio::time::timeout_at(deadline, answer.wait_for(Option::is_some)).await {
            Ok(Ok(found)) => found.clone().unwrap_or_else(|| Ok(Vec::new()))?,
            Ok(Err(_)) => return Err("the lookup ended without an answer".to_owned()),
            Err(_) => return Err("the name was not resolved in time".to_owned()),
        };
        let usable = |ip: &IpAddr| name.family.admits(*ip) && !ip.is_unspecified() && !ip.is_multicast();
        let found: Vec<_> = found.into_iter().filter(usable).take(PER_NAME_MAX).collect();
        if found.is_empty() { Err(format!("the name has no {}", name.family.wanted())) } else { Ok(found) }
    }

    /// Starts a lookup on a thread of its own, so that neither a stop of the daemon nor other work of the runtime waits
    /// for it.
    fn ask(&self, host: &str) -> Result<watch::Receiver<LookedUp>, String> {
        let mut under_way = self.0.under_way.lock();
        // Several peers may be behind one name, and the system is asked once for all.
        if let Some(answer) = under_way.get(host) {
            return Ok(answer.clone());
        }
        // A thread that asks the system cannot be stopped, so there may be only so many.
        if under_way.len() >= LOOKUPS_MAX {
            return Err(format!("{LOOKUPS_MAX} other names are being resolved"));
        }
        let (sender, answer) = watch::channel(None);
        let (shared, name) = (Arc::clone(&self.0), host.to_owned());
        let thread = thread::Builder::new().name("lookup".to_owned()).spawn(move || {
            let found = (shared.system)(&name).map_err(|error| error.to_string());
            // Before the answer is given, so that whoever asks after it asks anew.
            shared.under_way.lock().remove(&name);
            sender.send_replace(Some(found));
        });
        thread.map_err(|error| format!("no thread to resolve it: {error}"))?;
        under_way.insert(host.to_owned(), answer.clone());
        Ok(answer)
    }
}

/// Whether this address has a name that must be resolved.
pub(super) fn is_named(address: &Multiaddr) -> bool {
    Name::of(address).is_some()
}

struct Name {
    host: String,
    family: Wanted,
    port: u16,
}

#[derive(Clone, Copy)]
enum Wanted {
    Any,
    V4,
    V6,
}

impl Name {
    /// `/dns|dns4|dns6/…/tcp/…`.
    fn of(address: &Multiaddr) -> Option<Self> {
        let mut parts = address.iter();
        let (family, host) = match parts.next()? {
            Protocol::Dns(host) => (Wanted::Any, host),
            Protocol::Dns4(host) => (Wanted::V4, host),
            Protocol::Dns6(host) => (Wanted::V6, host),
            _ => return None,
        };
        match parts.next()? {
            Protocol::Tcp(port) => Some(Self { host: host.into_owned(), family, port }),
            _ => None,
        }
    }
}

impl Wanted {
    fn admits(self, ip: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::V4 => ip.is_ipv4(),
            Self::V6 => ip.is_ipv6(),
        }
    }

    fn wanted(self) -> &'static str {
        match self {
            Self::Any => "address that can be dialled",
            Self::V4 => "IPv4 address that can be dialled",
            Self::V6 => "IPv6 address that can be dialled",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    const PATIENCE: Duration = Duration::from_secs(100);

    fn parse(texts: &[&str]) -> Vec<Multiaddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn hosts(name: &str) -> io::Result<Vec<IpAddr>> {
        let ips = |texts: &[&str]| Ok(texts.iter().map(|text| text.parse().unwrap()).collect());
        match name {
            "both" => ips(&["2001:db8::1", "192.0.2.1"]),
            "odd" => ips(&["0.0.0.0", "224.0.0.1", "::"]),
            "many" => Ok((0..200).map(|host| IpAddr::from([198, 51, 100, host])).collect()),
            _ => Err(io::Error::other("no such name")),
        }
    }

    #[tokio::test]
    async fn each_kind_of_name_resolves_to_its_family_and_ip_addresses_stay() {
        let resolve = async |text: &str| Names::new(hosts).resolve(&parse(&[text]), PATIENCE).await;
        for (address, expected) in [
            ("/dns/both/tcp/1", &["/ip6/2001:db8::1/tcp/1", "/ip4/192.0.2.1/tcp/1"][..]),
            ("/dns4/both/tcp/1", &["/ip4/192.0.2.1/tcp/1"]),
            ("/dns6/both/tcp/2", &["/ip6/2001:db8::1/tcp/2"]),
            ("/ip4/192.0.2.9/tcp/3", &["/ip4/192.0.2.9/tcp/3"]),
        ] {
            assert_eq!(resolve(address).await, Resolved { addresses: parse(expected), failures: vec![] }, "{address}");
        }
        for (address, why) in [
            ("/dns/gone/tcp/1", "/dns/gone/tcp/1: no such name"),
            ("/dns6/many/tcp/1", "/dns6/many/tcp/1: the name has no IPv6 address that can be dialled"),
            ("/dns/odd/tcp/1", "/dns/odd/tcp/1: the name has no address that can be dialled"),
        ] {
            assert_eq!(resolve(address).await, Resolved { addresses: vec![], failures: vec![why.to_owned()] });
        }
    }

    #[tokio::test]
    async fn a_name_with_many_addresses_leaves_room_for_others() {
        let mut addresses = parse(&["/dns/many/tcp/1", "/dns/many/tcp/2", "/dns/many/tcp/3", "/dns/many/tcp/4"]);
        addresses.extend(parse(&["/dns/both/tcp/5", "/ip4/192.0.2.9/tcp/6"]));
        let found = Names::new(hosts).resolve(&addresses, PATIENCE).await.addresses;
        assert_eq!(found.len(), DIALLED_MAX);
        assert!(found[..6].contains(&addresses[5]), "{found:?}");
        let of_one = Names::new(hosts).resolve(&addresses[..1], PATIENCE).await.addresses;
        assert_eq!(of_one.len(), PER_NAME_MAX);
    }

    #[tokio::test]
    async fn a_name_without_an_answer_is_asked_for_once_and_holds_up_nobody() {
        let asked = Arc::new(AtomicUsize::new(0));
        let (release, held) = mpsc::channel::<()>();
        let (count, held) = (Arc::clone(&asked), Mutex::new(held));
        let names = Names::new(move |_: &str| {
            count.fetch_add(1, Ordering::Relaxed);
            // Ends when `release` is dropped.
            held.lock().recv().unwrap_err();
            Ok(vec![[192, 0, 2, 1].into()])
        });
        let addresses = parse(&["/dns/slow/tcp/1", "/dns4/slow/tcp/1", "/ip4/192.0.2.9/tcp/1"]);
        for _ in 0..2 {
            let found = names.resolve(&addresses, Duration::from_millis(5)).await;
            assert_eq!(found.addresses, addresses[2..], "what needs no name is dialled");
            assert!(found.failures.len() == 2 && found.failures[0].contains("in time"), "{found:?}");
        }
        for number in 1..2 * LOOKUPS_MAX {
            names.resolve(&parse(&[&format!("/dns/n{number}/tcp/1")]), Duration::ZERO).await;
        }
        assert_eq!(names.0.under_way.lock().len(), LOOKUPS_MAX);
        let refused = names.resolve(&parse(&["/dns/other/tcp/1"]), PATIENCE).await;
        assert!(refused.failures[0].contains("64 other names"), "{refused:?}");
        drop(release);
        let found = names.resolve(&parse(&["/dns/slow/tcp/1"]), PATIENCE).await;
        assert_eq!(found.addresses, parse(&["/ip4/192.0.2.1/tcp/1"]), "and later it answers");
        assert!(asked.load(Ordering::Relaxed) <= LOOKUPS_MAX + 1);
    }

    #[tokio::test]
    async fn localhost_is_resolved_by_the_system() {
        let found = Names::of_the_system().resolve(&parse(&["/dns4/localhost/tcp/1"]), PATIENCE).await;
        assert_eq!(found, Resolved { addresses: parse(&["/ip4/127.0.0.1/tcp/1"]), failures: vec![] });
    }
}
