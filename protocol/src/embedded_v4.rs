//! IPv4 addresses that IPv6 addresses contain: what is sent to the one may reach the other.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The IPv4 addresses that a packet to `address` may reach by a translator, by a tunnel, or because the kernel takes the
/// one for the other. Of a prefix that a network chose for its own translator nothing can be known.
pub fn embedded_v4(address: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let octets = address.octets();
    let at = |places: [usize; 4]| Some(Ipv4Addr::from(places.map(|place| octets.get(place).copied().unwrap_or(0))));
    let last = at([12, 13, 14, 15]);
    let (first, second) = match address.segments() {
        // Mapped (::ffff:0:0/96), compatible (::/96), translated (::ffff:0:0:0/96), and the well-known prefix of NAT64
        // (RFC 6052).
        [0, 0, 0, 0, 0, 0xffff | 0, _, _] | [0, 0, 0, 0, 0xffff, 0, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => {
            ([last, None, None, None], None)
        }
        // The prefix of local NAT64 (RFC 8215). Who uses it takes 48, 56, 64 or 96 bits of it; in the first three cases
        // the ninth byte is skipped, and all that follows the address is zero.
        [0x64, 0xff9b, 1, _, 0, 0, _, _] => ([last, None, None, None], None),
        [0x64, 0xff9b, 1, ..] => ([last, at([6, 7, 9, 10]), at([7, 9, 10, 11]), at([9, 10, 11, 12])], None),
        // 6to4 (RFC 3056).
        [0x2002, ..] => ([at([2, 3, 4, 5]), None, None, None], isatap(address)),
        // Teredo (RFC 4380): its server, and the client, whose bits are inverted.
        [0x2001, 0, ..] => ([at([4, 5, 6, 7]), last.map(|client| !client), None, None], isatap(address)),
        _ => ([None; 4], isatap(address)),
    };
    first.into_iter().chain([second]).flatten()
}

/// ISATAP (RFC 5214): in the second half, in any network.
fn isatap(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        [.., 0 | 0x200, 0x5efe, high, low] => Some(Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_contain_an_ipv4_address_is_known() {
        let embedded = |text: &str| embedded_v4(text.parse().unwrap()).map(|ip| ip.to_string()).collect::<Vec<_>>();
        for text in [
            "::ffff:10.1.2.3",
            "::10.1.2.3",
            "::ffff:0:10.1.2.3",
            "64:ff9b::10.1.2.3",
            "64:ff9b:1::10.1.2.3",
            "64:ff9b:1:fffe::10.1.2.3",
            "2002:a01:203::1",
            "2001:db8::5efe:10.1.2.3",
            "fe80::200:5efe:10.1.2.3",
        ] {
            assert_eq!(embedded(text), ["10.1.2.3"], "{text}");
        }
        assert_eq!(embedded("2001:0:a01:203:0:0:f5fe:fdfb"), ["10.1.2.3", "10.1.2.4"], "server and client");
        for of_a_shorter_prefix in ["64:ff9b:1:a01:2:300::", "64:ff9b:1:a:1:203::", "64:ff9b:1:0:a:102:300:0"] {
            assert!(embedded(of_a_shorter_prefix).contains(&"10.1.2.3".to_owned()), "{of_a_shorter_prefix}");
        }
        for text in ["2001:db8::a01:203", "2a04:4e42::347", "fd00::10.1.2.3", "64:ff9b:2::10.1.2.3"] {
            assert!(embedded(text).is_empty(), "{text}");
        }
    }
}
