//! The kernel's settings for the lines to peers.

use super::Facts;
use super::report::Look;
use crate::cli::findings::Finding;
use std::fs;
use std::path::Path;

/// IPv6 needs packets of this size to pass whole (RFC 8200, section 5), and Linux takes IPv6 away from an interface below it.
const MTU_MIN: u64 = 1_280;
/// The bytes a second of the line that `docs/operations.md` was measured on, 1 Gbit/s: a buffer has to hold what is sent on
/// it until the first of it is acknowledged. A slower line needs less.
const LINE_BYTES_PER_MS: f64 = 125_000.0;
/// What `docs/operations.md` recommends, bytes.
const BUFFER_BYTES: u64 = 33_554_432;

pub(super) fn look(facts: &Facts, look: &mut Look) {
    look_at_buffers(facts, look);
    look_at_interfaces(facts, look);
}

/// A buffer is worth a note only where a peer is so far away that it can fill.
fn look_at_buffers(facts: &Facts, look: &mut Look) {
    let peers = facts.status().map_or(&[][..], |status| &status.peers[..]);
    let far = peers.iter().filter(|peer| peer.stats.connected).filter_map(|peer| Some((peer, peer.distance_ms?)));
    // The farthest of them needs the largest buffer.
    let Some((peer, distance_ms)) = far.max_by(|(_, one), (_, other)| one.total_cmp(other)) else { return };
    for (name, rest) in [("net.ipv4.tcp_wmem", "4096 65536"), ("net.ipv4.tcp_rmem", "4096 131072")] {
        let text = match fs::read_to_string(Path::new("/proc/sys").join(name.replace('.', "/"))) {
            Ok(text) => text,
            Err(error) => {
                look.unseen(format!("{name}: {error}"));
                continue;
            }
        };
        let largest = text.split_whitespace().nth(2).and_then(|number| number.parse::<u64>().ok());
        let Some(largest) = largest.filter(|largest| is_short(*largest, distance_ms)) else { continue };
        look.found(
            Finding::note(format!(
                "{name} lets a connection have {largest} bytes, and {:?} is {distance_ms:.0} ms away: that fills a line of {:.0} \
                 Mbit/s at most",
                peer.name,
                largest as f64 / distance_ms * 8.0 / 1_000.0
            ))
            .mended_by(facts.mender.sysctl(name, &format!("{rest} {BUFFER_BYTES}"))),
        );
    }
}

fn is_short(buffer_bytes: u64, rtt_ms: f64) -> bool {
    buffer_bytes < BUFFER_BYTES && (buffer_bytes as f64) < rtt_ms * LINE_BYTES_PER_MS
}

fn look_at_interfaces(facts: &Facts, look: &mut Look) {
    let interfaces = match fs::read_dir("/sys/class/net") {
        Ok(interfaces) => interfaces,
        Err(error) => return look.unseen(format!("the interfaces: {error}")),
    };
    for interface in interfaces.flatten() {
        let name = interface.file_name().to_string_lossy().into_owned();
        let read = |file: &str| fs::read_to_string(interface.path().join(file)).unwrap_or_default().trim().to_owned();
        // An interface that is off carries nothing, whatever its MTU.
        let is_off = read("operstate") == "down";
        let Some(mtu) = read("mtu").parse::<u64>().ok().filter(|mtu| *mtu < MTU_MIN && !is_off) else { continue };
        look.found(
            Finding::warning(format!(
                "the interface {name} has an MTU of {mtu}: below {MTU_MIN} it carries no IPv6, and a peer behind it may be out \
                 of reach"
            ))
            .mended_by(facts.mender.as_root(&format!("ip link set dev {name} mtu {MTU_MIN}"))),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_buffers_are_short_only_for_far_peers() {
        // The kernel's default, where 1 Gbit/s over 80 ms was measured to be half as fast.
        assert!(is_short(4 << 20, 80.0));
        assert!(!is_short(4 << 20, 20.0));
        assert!(!is_short(BUFFER_BYTES, 1_000.0), "what is recommended is never complained of");
    }
}
