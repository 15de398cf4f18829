//! Ordinary lines, made by the kernel: they have a rate, and a queue of packets that overflows.

use std::process::Command;

use super::Network;
use super::namespace::{INTERFACE, Namespace, ip_batch};
use crate::process::finish;

/// Length of a line's queue, packets: a usual default of the kernel and of home routers.
const QUEUE_PACKETS: u32 = 100;
/// Size of the largest packet, with its Ethernet header.
const PACKET_BYTES: u32 = 1_514;

impl Network {
    /// Limits the rate at which the machine of this number sends. Call this before it connects to anyone: a connection
    /// keeps the segment size that it began with.
    ///
    /// # Panics
    /// When the kernel has no such queues.
    pub fn set_uplink(&self, number: usize, kilobits_per_s: u32) {
        shape(self.machine(number).name(), INTERFACE, kilobits_per_s);
    }

    /// Limits the rate at which the machine of this number receives.
    ///
    /// # Panics
    /// As [`Network::set_uplink`].
    pub fn set_downlink(&self, number: usize, kilobits_per_s: u32) {
        shape(&self.hub_name(), &format!("v{number}"), kilobits_per_s);
    }

    /// Makes every machine send packets as on a wire, none above 1,500 bytes: queues then count packets, and not the
    /// segments of 64 KiB that a kernel hands to itself.
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
    /// How long a line of this rate takes to send a full queue.
    #[must_use]
    pub fn full_queue(kilobits_per_s: u32) -> std::time::Duration {
        std::time::Duration::from_millis(u64::from(QUEUE_PACKETS * PACKET_BYTES * 8 / kilobits_per_s))
    }
}

/// Gives the interface a token bucket at which at most [`QUEUE_PACKETS`] packets wait.
#[track_caller]
fn shape(namespace: &str, interface: &str, kilobits_per_s: u32) {
    let tc = |arguments: &str| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, "tc"]).args(arguments.split(' '));
        finish(&mut command).expect_success(&format!("tc {arguments}"));
    };
    tc(&format!("qdisc add dev {interface} root handle 1: htb default 10"));
    // A burst of two packets, instead of the default of a tenth of a second: the rate holds at every moment.
    tc(&format!(
        "class add dev {interface} parent 1: classid 1:10 htb rate {kilobits_per_s}kbit burst 3028 cburst 3028"
    ));
    tc(&format!("qdisc add dev {interface} parent 1:10 handle 10: pfifo limit {QUEUE_PACKETS}"));
}
