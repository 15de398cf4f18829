//! The only user of bincode: fixed-width little-endian integers, a size limit in both directions, no trailing bytes.
//!
//! Fixed-width integers have one form each, so decoding is injective: bytes that decode also encode back to themselves.
//! The length is checked before decoding and after encoding, because bincode's own `with_limit` covers neither encoding nor
//! trailing bytes. Why bincode 2.0.1: `docs/decisions/0003-bincode.md`.

use bincode::config;

/// Why bytes are refused, or why a value cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// More bytes than this type may have.
    #[error("message of {bytes} bytes, limit {bytes_max}")]
    TooLong {
        /// Length of the message, bytes.
        bytes: usize,
        /// Limit of this message type, bytes.
        bytes_max: usize,
    },
    /// Bytes follow after the value.
    #[error("message has {bytes} bytes after its end")]
    Trailing {
        /// Number of bytes after the value.
        bytes: usize,
    },
    /// The bytes are not a value of this type.
    #[error("message malformed")]
    Malformed(#[source] bincode::error::DecodeError),
    /// The value cannot be encoded.
    #[error("message not encodable")]
    Unencodable(#[source] bincode::error::EncodeError),
}

impl CodecError {
    /// Whether the bytes end before the value does, as they do when a connection broke.
    pub fn is_truncated(&self) -> bool {
        matches!(self, Self::Malformed(bincode::error::DecodeError::UnexpectedEnd { .. }))
    }
}

/// Encodes `value`; an error when it takes more than `BYTES_MAX` bytes.
pub fn encode<const BYTES_MAX: usize>(value: &impl bincode::Encode) -> Result<Vec<u8>, CodecError> {
    let bytes =
        bincode::encode_to_vec(value, config::standard().with_fixed_int_encoding()).map_err(CodecError::Unencodable)?;
    if bytes.len() > BYTES_MAX {
        return Err(CodecError::TooLong { bytes: bytes.len(), bytes_max: BYTES_MAX });
    }
    Ok(bytes)
}

/// Decodes exactly `bytes`. Lengths that they claim allocate at most 32 times their size, or 2 KiB if that is more.
pub fn decode<T: bincode::Decode<()>, const BYTES_MAX: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > BYTES_MAX {
        return Err(CodecError::TooLong { bytes: bytes.len(), bytes_max: BYTES_MAX });
    }
    // bincode allocates a whole list or text before it checks that so many bytes are there. With a limit by
    // type alone, 33 bytes could allocate 2 MiB. An honest message needs at most 4 times its own size (a `Vec`
    // of 24 bytes for a length of 8).
    let (value, consumed) = match bytes.len() {
        0..=0x100 => decode_claiming::<T, 0x800>(bytes),
        0x101..=0x400 => decode_claiming::<T, 0x2000>(bytes),
        0x401..=0x1000 => decode_claiming::<T, 0x8000>(bytes),
        0x1001..=0x4000 => decode_claiming::<T, 0x2_0000>(bytes),
        0x4001..=0x1_0000 => decode_claiming::<T, 0x8_0000>(bytes),
        _ => decode_claiming::<T, BYTES_MAX>(bytes),
    }?;
    match bytes.len() - consumed {
        0 => Ok(value),
        left => Err(CodecError::Trailing { bytes: left }),
    }
}

fn decode_claiming<T: bincode::Decode<()>, const CLAIM_MAX: usize>(bytes: &[u8]) -> Result<(T, usize), CodecError> {
    let limited = config::standard().with_fixed_int_encoding().with_limit::<CLAIM_MAX>();
    bincode::decode_from_slice(bytes, limited).map_err(CodecError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_trailing_bytes_and_long_messages() {
        let bytes = encode::<64>(&(7u64, vec![1u8, 2, 3])).unwrap();
        assert_eq!(decode::<(u64, Vec<u8>), 64>(&bytes).unwrap(), (7, vec![1, 2, 3]));
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(matches!(decode::<(u64, Vec<u8>), 64>(&longer), Err(CodecError::Trailing { bytes: 1 })));
        assert!(matches!(decode::<(u64, Vec<u8>), 8>(&bytes), Err(CodecError::TooLong { .. })));
        assert!(matches!(encode::<8>(&(7u64, 1u8)), Err(CodecError::TooLong { .. })));
    }

    #[test]
    fn claimed_length_beyond_the_bytes_is_refused() {
        let mut bytes = u64::MAX.to_le_bytes().to_vec();
        bytes.push(1);
        assert!(matches!(decode::<Vec<u8>, 64>(&bytes), Err(CodecError::Malformed(_))));
    }

    #[test]
    fn short_message_cannot_claim_much_memory() {
        let limit = |length: u64, bytes: usize| {
            let mut message = length.to_le_bytes().to_vec();
            message.resize(bytes, 1);
            match decode::<Vec<u8>, { 2 << 20 }>(&message) {
                Err(CodecError::Malformed(bincode::error::DecodeError::LimitExceeded)) => "refused",
                Err(CodecError::Malformed(bincode::error::DecodeError::UnexpectedEnd { .. })) => "memory was taken",
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(limit(1 << 20, 33), "refused");
        assert_eq!(limit(2_049, 256), "refused");
        assert_eq!(limit(2_000, 256), "memory was taken");
        assert_eq!(limit(1 << 20, 60_000), "refused");
        assert_eq!(limit(1 << 20, 80_000), "memory was taken");
    }
}
