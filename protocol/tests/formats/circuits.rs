//! Messages about circuits.

use narmesh_protocol::wire::{CircuitReply, CircuitRequest, RelayHello, RelayWelcome};
use proptest::collection::vec;
use proptest::prelude::*;
use std::net::SocketAddr;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn addresses() -> Vec<SocketAddr> {
    vec!["192.0.2.1:7280".parse().unwrap()]
}

fn meet() -> CircuitRequest {
    CircuitRequest::Meet { addresses: addresses(), token: [2; 16] }
}

/// The examples of `docs/protocol.md`.
#[test]
fn messages_have_the_bytes_in_the_documentation() {
    let (member, ticket, address) = ("01".repeat(32), "02".repeat(16), "00000000c0000201701c");
    for (encoded, digits) in [
        (CircuitRequest::Open([1; 32]).encode(), format!("00000000{member}")),
        (CircuitRequest::Come { from: [1; 32], ticket: [2; 16] }.encode(), format!("01000000{member}{ticket}")),
        (CircuitReply::Ticket([2; 16]).encode(), format!("00000000{ticket}")),
        (CircuitReply::Coming.encode(), "01000000".to_owned()),
        (CircuitReply::Refused.encode(), "02000000".to_owned()),
        (CircuitReply::Busy.encode(), "04000000".to_owned()),
        (RelayHello::Join([2; 16]).encode(), format!("00000000{ticket}")),
        (RelayWelcome::Joined.encode(), "00000000".to_owned()),
        (RelayWelcome::Refused.encode(), "01000000".to_owned()),
        (meet().encode(), format!("020000000100000000000000{address}{ticket}")),
        (CircuitReply::Meeting(addresses()).encode(), format!("030000000100000000000000{address}")),
        (RelayHello::Observe.encode(), "01000000".to_owned()),
        (RelayWelcome::Observed(addresses()[0]).encode(), format!("02000000{address}")),
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
        let v6 = SocketAddr::from((member.first_chunk::<16>().copied().unwrap(), 7));
        let meet = CircuitRequest::Meet { addresses: vec![v6; CircuitRequest::ADDRESSES_MAX], token: ticket };
        for request in [CircuitRequest::Open(member), CircuitRequest::Come { from: member, ticket }, meet] {
            prop_assert_eq!(CircuitRequest::decode(&request.encode().unwrap()).unwrap(), request);
        }
        let meeting = CircuitReply::Meeting(vec![v6; CircuitRequest::ADDRESSES_MAX]);
        for reply in
            [CircuitReply::Ticket(ticket), CircuitReply::Coming, CircuitReply::Refused, CircuitReply::Busy, meeting]
        {
            prop_assert_eq!(CircuitReply::decode(&reply.encode().unwrap()).unwrap(), reply);
        }
        let observed = RelayWelcome::Observed(v6);
        prop_assert_eq!(RelayWelcome::decode(&observed.encode().unwrap()).unwrap(), observed);
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
