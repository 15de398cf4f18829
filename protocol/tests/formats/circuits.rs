//! Messages about circuits.

use narmesh_protocol::wire::{CircuitReply, CircuitRequest, RelayHello, RelayWelcome};
use proptest::collection::vec;
use proptest::prelude::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The examples of `docs/protocol.md`.
#[test]
fn messages_have_the_bytes_in_the_documentation() {
    let (member, ticket) = ("01".repeat(32), "02".repeat(16));
    for (encoded, digits) in [
        (CircuitRequest::Open([1; 32]).encode(), format!("00000000{member}")),
        (CircuitRequest::Come { from: [1; 32], ticket: [2; 16] }.encode(), format!("01000000{member}{ticket}")),
        (CircuitReply::Ticket([2; 16]).encode(), format!("00000000{ticket}")),
        (CircuitReply::Coming.encode(), "01000000".to_owned()),
        (CircuitReply::Refused.encode(), "02000000".to_owned()),
        (CircuitReply::Busy.encode(), "03000000".to_owned()),
        (RelayHello::Join([2; 16]).encode(), format!("00000000{ticket}")),
        (RelayWelcome::Joined.encode(), "00000000".to_owned()),
        (RelayWelcome::Refused.encode(), "01000000".to_owned()),
    ] {
        assert_eq!(hex(&encoded.unwrap()), digits);
    }
}

macro_rules! assert_one_spelling {
    ($type:ty, $bytes:expr) => {
        if let Ok(message) = <$type>::decode($bytes) {
            prop_assert_eq!(&message.encode().unwrap(), $bytes);
        }
    };
}

proptest! {
    #[test]
    fn messages_survive_a_round_trip(member: [u8; 32], ticket: [u8; 16]) {
        for request in [CircuitRequest::Open(member), CircuitRequest::Come { from: member, ticket }] {
            prop_assert_eq!(CircuitRequest::decode(&request.encode().unwrap()).unwrap(), request);
        }
        for reply in [CircuitReply::Ticket(ticket), CircuitReply::Coming, CircuitReply::Refused, CircuitReply::Busy] {
            prop_assert_eq!(CircuitReply::decode(&reply.encode().unwrap()).unwrap(), reply);
        }
        prop_assert_eq!(RelayHello::decode(&RelayHello::Join(ticket).encode().unwrap()).unwrap(), RelayHello::Join(ticket));
    }

    #[test]
    fn bytes_that_decode_have_one_spelling(mut bytes in vec(any::<u8>(), 0..64), variant in 0..4_u8) {
        if let Some(first) = bytes.first_chunk_mut::<4>() {
            *first = [variant, 0, 0, 0];
        }
        assert_one_spelling!(CircuitRequest, &bytes);
        assert_one_spelling!(CircuitReply, &bytes);
        assert_one_spelling!(RelayHello, &bytes);
        assert_one_spelling!(RelayWelcome, &bytes);
    }
}
