//! What comes by multicast on the local network, from anybody there.

use super::{Outcome, Target, magnitude};
use crate::memory::MemoryBound;
use narmesh_lan::{ADDRESSES_MAX, Heard, LanKey, Presence, answer, question, read};

pub(super) const TARGET: Target = Target {
    name: "lan",
    run,
    seeds: || {
        let addresses = ["192.0.2.1:7280", "[2001:db8::1]:7280"].map(|text| text.parse().expect("an address"));
        let presence = Presence { node_key: [7; 32], addresses: addresses.into() };
        vec![question().expect("fits"), answer(&key(), &presence, [9; 16]).expect("fits")]
    },
    words: &[
        b"\x08_narmesh\x04_tcp\x05local\0",
        b"\xc0\x0c",
        b"\x84\0",
        &[0, 12, 0, 1],
        &[0, 16, 0x80, 1],
        &[0, 41, 0, 0],
        &[0, 1],
        &[0xff, 0xff],
    ],
    input_bytes_max: 2 << 10,
};

/// The header may name 16 records, each of which takes memory before it is read, and a name may consist of pointers.
const MEMORY: MemoryBound = MemoryBound { per_byte: 64, constant: 16 << 10 };

fn key() -> LanKey {
    LanKey::of_mesh(&[1; 32])
}

fn run(input: &[u8]) -> Outcome {
    let heard = MEMORY.hold(input.len(), || read(&key(), input));
    match heard {
        Heard::Question => Outcome::of(1),
        Heard::Presence(presence) => {
            assert!(presence.addresses.len() <= ADDRESSES_MAX);
            Outcome::of((2, magnitude(presence.addresses.len())))
        }
        Heard::Foreign => Outcome::of((3, input.len() > 11)),
    }
}
