//! The network namespace of one machine.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::fd::AsFd as _;

use crate::wait::wait_until;

/// Where `ip netns` keeps namespaces.
pub(super) const NAMESPACES: &str = "/run/netns";
/// The interface of every machine.
pub(super) const INTERFACE: &str = "eth0";

/// A network namespace with one interface.
#[derive(Debug, Clone)]
pub struct Namespace {
    name: String,
    address: IpAddr,
}

/// What the kernel counted on the interface of a machine since it was made, Ethernet headers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes in frames received.
    pub received_bytes: u64,
    /// Bytes in frames sent.
    pub sent_bytes: u64,
    /// Number of frames sent.
    pub sent_packets: u64,
}

impl Traffic {
    /// Bytes sent and received.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.received_bytes + self.sent_bytes
    }

    /// Bytes of contents sent since `earlier`, retransmissions included: without the headers of Ethernet, IP and TCP with
    /// its time stamps.
    #[must_use]
    pub fn contents_sent_since(self, earlier: Self) -> u64 {
        const HEADER_BYTES: u64 = 14 + 20 + 32;
        (self.sent_bytes - earlier.sent_bytes).saturating_sub(HEADER_BYTES * (self.sent_packets - earlier.sent_packets))
    }
}

impl Namespace {
    pub(super) fn named(name: &str) -> Self {
        Self { name: name.to_owned(), address: Ipv4Addr::UNSPECIFIED.into() }
    }

    /// Gives its interface an address, and switches it on.
    pub(super) fn up(name: &str, address: IpAddr, network_bits: u8) -> Self {
        let machine = Self { name: name.to_owned(), address };
        machine.enter(|| {
            // The kernel's own questions for IPv6 neighbours and routers would count as traffic of the daemon.
            let scopes: &[_] = if address.is_ipv4() { &["all", "default", INTERFACE] } else { &[] };
            for scope in scopes {
                let switch = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
                if Path::new(&switch).exists() {
                    fs::write(switch, "1").expect("root");
                }
            }
        });
        let lines = [
            "link set lo up".to_owned(),
            format!("link set {INTERFACE} up txqueuelen 20000"),
            // Nobody else has our IPv6 address, so the kernel need not probe for it for a second before we may use it.
            format!(
                "address add {address}/{network_bits} dev {INTERFACE}{}",
                if address.is_ipv6() { " nodad" } else { "" }
            ),
        ];
        ip_batch(Some(name), &lines);
        machine
    }

    pub(super) fn change_address(&mut self, address: IpAddr, network_bits: u8) {
        let lines = [
            format!("address delete {}/{network_bits} dev {INTERFACE}", self.address),
            format!("address add {address}/{network_bits} dev {INTERFACE}"),
        ];
        ip_batch(Some(&self.name), &lines);
        self.address = address;
    }

    /// The name of the namespace for `ip netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address at which the others reach it.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The words that go before a program to run it in here.
    #[must_use]
    pub fn command_prefix(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.name]
    }

    /// A command that runs in here.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let [ip, words @ ..] = self.command_prefix();
        let mut command = Command::new(ip);
        command.args(words).arg(program);
        command
    }

    /// Runs `work` on a thread in here; sockets that it opens stay in here.
    ///
    /// # Panics
    /// When the namespace is gone, or `work` panics.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            self.move_this_thread();
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Moves the calling thread, and no other, in here for good.
    ///
    /// # Panics
    /// When the namespace is gone.
    pub fn move_this_thread(&self) {
        let place = File::open(Path::new(NAMESPACES).join(&self.name)).expect("made before");
        move_into_link_name_space(place.as_fd(), Some(LinkNameSpaceType::Network)).expect("root");
    }

    /// Waits until the kernel has given up the connections of dead processes, for which it would still say goodbye; a
    /// machine without power says nothing more. With the link cut that takes ten seconds, the time that the daemon set for
    /// its sockets.
    ///
    /// # Panics
    /// When it does not.
    pub fn forget_connections(&self) {
        /// The state of a listening socket in /proc/net/tcp.
        const LISTENING: &str = "0A";
        self.enter(|| {
            wait_until("the kernel has given up its connections", Duration::from_secs(100), || {
                let table = fs::read_to_string("/proc/thread-self/net/tcp").expect("connections");
                table.lines().skip(1).all(|line| line.split_whitespace().nth(3) == Some(LISTENING))
            });
        });
    }

    /// The counters of its interface.
    ///
    /// # Panics
    /// When they cannot be read.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let text = self.enter(|| fs::read_to_string("/proc/thread-self/net/dev").expect("counters"));
        let line = text.lines().find_map(|line| line.trim().strip_prefix(INTERFACE)?.strip_prefix(':'));
        let numbers: Vec<u64> =
            line.expect("an interface").split_whitespace().map(|word| word.parse().expect("a number")).collect();
        // Eight columns for each direction, bytes first, then packets: proc_pid_net(5).
        match numbers.as_slice() {
            [received, _, _, _, _, _, _, _, sent, packets, ..] => {
                Traffic { received_bytes: *received, sent_bytes: *sent, sent_packets: *packets }
            }
            other => panic!("unknown counters: {other:?}"),
        }
    }
}

/// Runs each line as a command of `ip`, in the given namespace or in our own.
#[track_caller]
pub(super) fn ip_batch(namespace: Option<&str>, lines: &[String]) {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("Debian's package iproute2 (./test.sh installs it)");
    let text = lines.join("\n") + "\n";
    child.stdin.take().expect("piped").write_all(text.as_bytes()).ok();
    let output = child.wait_with_output().expect("our own child");
    assert!(output.status.success(), "ip -batch: {}\n{text}", String::from_utf8_lossy(&output.stderr));
}
