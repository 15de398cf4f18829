//! The bytes of a member: one byte says whether it relays and whether it has a group, whose name then follows. So a member
//! without a group has the bytes that it had before there were groups, and rosters keep their signatures.

use crate::roster::Member;
use bincode::de::{Decode, Decoder};
use bincode::enc::{Encode, Encoder};
use bincode::error::{DecodeError, EncodeError};

const RELAY: u8 = 1;
const GROUP: u8 = 2;

impl Encode for Member {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        let Self { node_key, name, role, builder_key, group, relay, ephemeral_s, addresses } = self;
        node_key.encode(encoder)?;
        name.encode(encoder)?;
        role.encode(encoder)?;
        builder_key.encode(encoder)?;
        let relay = if *relay { RELAY } else { 0 };
        match group {
            None => relay.encode(encoder)?,
            Some(group) => {
                (relay | GROUP).encode(encoder)?;
                group.encode(encoder)?;
            }
        }
        ephemeral_s.encode(encoder)?;
        addresses.encode(encoder)
    }
}

impl<Context> Decode<Context> for Member {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let node_key = Decode::decode(decoder)?;
        let name = Decode::decode(decoder)?;
        let role = Decode::decode(decoder)?;
        let builder_key = Decode::decode(decoder)?;
        let flags = u8::decode(decoder)?;
        // Each value has one form, so that what is decoded encodes back to the same bytes.
        if flags & !(RELAY | GROUP) != 0 {
            return Err(DecodeError::Other("flags of a member, expected 0 to 3"));
        }
        let group = if flags & GROUP != 0 { Some(String::decode(decoder)?) } else { None };
        Ok(Self {
            node_key,
            name,
            role,
            builder_key,
            group,
            relay: flags & RELAY != 0,
            ephemeral_s: Decode::decode(decoder)?,
            addresses: Decode::decode(decoder)?,
        })
    }
}

bincode::impl_borrow_decode!(Member);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode, encode};
    use crate::roster::MemberRole;

    #[test]
    fn a_group_and_a_relay_come_back_and_other_flags_are_refused() {
        for (relay, group) in [(false, None), (true, None), (false, Some("a")), (true, Some("rack 1"))] {
            let member = Member {
                node_key: [1; 32],
                name: "box".to_owned(),
                role: MemberRole::Builder,
                builder_key: None,
                group: group.map(str::to_owned),
                relay,
                ephemeral_s: 7,
                addresses: vec!["/ip4/192.0.2.1/tcp/1".to_owned()],
            };
            let mut bytes = encode::<1_000>(&member).unwrap();
            assert_eq!(decode::<Member, 1_000>(&bytes).unwrap(), member);
            // Behind the node key, the name, the role and the absent builder key.
            let flags = 32 + 8 + 3 + 4 + 1;
            assert_eq!(bytes[flags], u8::from(relay) | if group.is_some() { 2 } else { 0 });
            for other in 4..=255 {
                bytes[flags] = other;
                assert!(decode::<Member, 1_000>(&bytes).is_err(), "{other}");
            }
        }
    }
}
