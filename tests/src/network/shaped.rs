//! Ordinary lines: a rate, and a queue of packets that overflows, made by the kernel.

use std::process::Command;

use super::Network;
use super::namespace::{INTERFACE, Namespace, ip_batch};
use crate::process::finish;

/// The queue of a line: what the kernel and home routers have had by default, packets.
const QUEUE_PACKETS: u32 = 100;
/// Of the largest packet, with its Ethernet header.
const PACKET_BYTES: u32 = 1_514;

impl Network {
    /// What the machine of this number sends passes at so many kilobits a second. To be called before it connects to anyone: a
    /// connection keeps the size of segments that it began with.
    ///
    /// # Panics
    /// When the kernel has no such queues.
    pub fn set_uplink(&self, number: usize, kilobits_per_s: u32) {
        shape(self.machine(number).name(), INTERFACE, kilobits_per_s);
    }

    /// What is sent to the machine of this number passes at so many kilobits a second.
    ///
    /// # Panics
    /// As [`Network::set_uplink`].
    pub fn set_downlink(&self, number: usize, kilobits_per_s: u32) {
        shape(&self.hub_name(), &format!("v{number}"), kilobits_per_s);
    }

    /// Lets every machine send packets as they are on a wire, none above 1,500 bytes: what a queue counts are then packets, and
    /// not the segments of 64 KiB that a kernel hands to itself.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn send_real_packets(&self) {
        for machine in self.machines() {
            ip_batch(Some(machine.name()), &[format!("link set {INTERFACE} mtu 1500 gso_max_segs 1")]);
        }
    }
}

impl Namespace {
    /// How long a line of this rate takes for a queue that is full.
    #[must_use]
    pub fn full_queue(kilobits_per_s: u32) -> std::time::Duration {
        std::time::Duration::from_millis(u64::from(QUEUE_PACKETS * PACKET_BYTES * 8 / kilobits_per_s))
    }
}

/// A token bucket behind which at most [`QUEUE_PACKETS`] wait.
#[track_caller]
fn shape(namespace: &str, interface: &str, kilobits_per_s: u32) {
    let tc = |arguments: &str| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, "tc"]).args(arguments.split(' '));
        finish(&mut command).expect_success(&format!("tc {arguments}"));
    };
    tc(&format!("qdisc add dev {interface} root handle 1: htb default 10"));
    // Two packets at once, not the tenth of a second that is allowed otherwise: the rate holds in every moment.
    tc(&format!(
        "class add dev {interface} parent 1: classid 1:10 htb rate {kilobits_per_s}kbit burst 3028 cburst 3028"
    ));
    tc(&format!("qdisc add dev {interface} parent 1:10 handle 10: pfifo limit {QUEUE_PACKETS}"));
}
