//! Requests for build logs and realisations, implemented a second time from `docs/protocol.md`.

use crate::wire::{Reader, Writer};

pub const LOG: &str = "/narmesh/1/log";
/// Bytes of a log in one reply, at most.
pub const PART: usize = 64 << 10;

pub const LOG_ABSENT: [u8; 4] = [0, 0, 0, 0];
pub const LOG_BUSY: [u8; 4] = [2, 0, 0, 0];

pub const REALISATION: &str = "/narmesh/1/realisation";
pub const REALISATION_ABSENT: [u8; 4] = [0, 0, 0, 0];
pub const REALISATION_BUSY: [u8; 4] = [2, 0, 0, 0];

pub fn realisation_request(derivation_hash: &[u8; 32], output: &str) -> Vec<u8> {
    Writer::default().raw(derivation_hash).bytes(output.as_bytes()).0
}

pub fn realisation_found(json: &[u8]) -> Vec<u8> {
    Writer::default().u32(1).bytes(json).0
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRequest {
    pub derivation: [u8; 20],
    pub offset: u64,
}

impl LogRequest {
    pub fn encode(&self) -> Vec<u8> {
        Writer::default().raw(&self.derivation).u64(self.offset).0
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        let request = Self { derivation: from.array()?, offset: from.u64()? };
        from.0.is_empty().then_some(request)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPart {
    pub is_compressed: bool,
    pub size_bytes: u64,
    pub version: u64,
    pub bytes: Vec<u8>,
}

impl LogPart {
    pub fn encode(&self) -> Vec<u8> {
        let front = Writer::default().u32(1).u8(u8::from(self.is_compressed));
        front.u64(self.size_bytes).u64(self.version).bytes(&self.bytes).0
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        let is_part = from.u32()? == 1;
        let is_compressed = from.u8()? == 1;
        let part = Self { is_compressed, size_bytes: from.u64()?, version: from.u64()?, bytes: from.bytes()? };
        (is_part && from.0.is_empty()).then_some(part)
    }
}
