//! The bytes of a roster: removals come last, and only if there are any. So a roster without them has the bytes that it had
//! before there were removals, and keeps its signature.

use crate::roster::Roster;
use bincode::de::read::Reader as _;
use bincode::de::{Decode, Decoder};
use bincode::enc::{Encode, Encoder};
use bincode::error::{DecodeError, EncodeError};

impl Encode for Roster {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        let Self { version, issued_at_ms, members, edits, removals } = self;
        version.encode(encoder)?;
        issued_at_ms.encode(encoder)?;
        members.encode(encoder)?;
        edits.encode(encoder)?;
        if removals.is_empty() { Ok(()) } else { removals.encode(encoder) }
    }
}

impl<Context> Decode<Context> for Roster {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let version = Decode::decode(decoder)?;
        let issued_at_ms = Decode::decode(decoder)?;
        let members = Decode::decode(decoder)?;
        let edits = Decode::decode(decoder)?;
        // A roster is always the last thing in what it comes in.
        let removals: Vec<_> = match decoder.reader().peek_read(1) {
            None => Vec::new(),
            Some(_) => Vec::decode(decoder).and_then(|removals: Vec<_>| {
                // None at all has one form, so that what is decoded encodes back to the same bytes.
                if removals.is_empty() { Err(DecodeError::Other("a list of no removals")) } else { Ok(removals) }
            })?,
        };
        Ok(Self { version, issued_at_ms, members, edits, removals })
    }
}
