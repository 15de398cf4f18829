//! The encoding of `docs/protocol.md`, implemented a second time: nothing here comes from the crate that defines it.

use libp2p::PeerId;
use libp2p::identity::Keypair;
use sha2::{Digest as _, Sha256};

pub const GOSSIP: &str = "/narmesh/1/gossip";
pub const NARINFO: &str = "/narmesh/1/narinfo";
/// The multiplexer of a bulk connection; this is not the protocol of a stream.
pub const NAR: &str = "/narmesh/4/bulk";
pub const CIRCUIT: &str = "/narmesh/1/circuit";
pub const RELAY: &str = "/narmesh/1/relay";
pub const DIAL: &str = "/narmesh/2/dial";
pub const QUORUM: &str = "/narmesh/1/quorum";
/// The multiplexer of a connection of a machine that wants to join.
pub const JOIN: &str = "/narmesh/1/join";
pub const REMOVAL: &str = "/narmesh/1/removal";
pub const ROSTER: &str = "/narmesh/1/roster";
pub const ROSTER_ABSENT: [u8; 4] = [0, 0, 0, 0];
pub const TOPIC: &str = "/narmesh/1/announce";

/// Appends values in the encoding of the protocol.
#[derive(Debug, Default, Clone)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    /// A byte string or a text.
    pub fn bytes(self, bytes: &[u8]) -> Self {
        self.u64(bytes.len() as u64).raw(bytes)
    }
    pub fn list<T>(self, items: &[T], each: impl FnMut(Self, &T) -> Self) -> Self {
        let counted = self.u64(items.len() as u64);
        items.iter().fold(counted, each)
    }
    pub fn option<T>(self, value: Option<T>, some: impl FnOnce(Self, T) -> Self) -> Self {
        match value {
            None => self.u8(0),
            Some(value) => some(self.u8(1), value),
        }
    }
}

/// Takes values from the front of the bytes; `None` where they end too early or are not valid.
#[derive(Debug)]
pub struct Reader<'b>(pub &'b [u8]);

impl<'b> Reader<'b> {
    pub fn raw(&mut self, count: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.raw(N)?.try_into().ok()
    }
    pub fn u8(&mut self) -> Option<u8> {
        Some(self.array::<1>()?[0])
    }
    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.array()?))
    }
    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.array()?))
    }
    pub fn bytes(&mut self) -> Option<Vec<u8>> {
        let count = usize::try_from(self.u64()?).ok()?;
        Some(self.raw(count)?.to_vec())
    }
    pub fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?).ok()
    }
    pub fn option<T>(&mut self, some: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.u8()? {
            0 => Some(None),
            1 => Some(Some(some(self)?)),
            _ => None,
        }
    }
    pub fn list<T>(&mut self, mut each: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        (0..self.u64()?).map(|_| each(self)).collect()
    }
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

pub fn audience_digest(peer: &PeerId) -> [u8; 8] {
    let digest = Sha256::new().chain_update(b"narmesh-audience-1;").chain_update(peer.to_bytes()).finalize();
    digest[..8].try_into().unwrap()
}

/// The payload of an envelope, which is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    pub epoch: u64,
    pub seq: u64,
    pub path_count: u64,
    pub body_digest: [u8; 32],
    pub body_bytes: u32,
    pub lifetime_s: u32,
    pub issued_at_ms: u64,
}

impl Announcement {
    pub fn encode(&self) -> Vec<u8> {
        let front = Writer::default().u64(self.epoch).u64(self.seq).u64(self.path_count).raw(&self.body_digest);
        front.u32(self.body_bytes).u32(self.lifetime_s).u64(self.issued_at_ms).0
    }

    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut from = Reader(payload);
        Some(Self {
            epoch: from.u64()?,
            seq: from.u64()?,
            path_count: from.u64()?,
            body_digest: from.array()?,
            body_bytes: from.u32()?,
            lifetime_s: from.u32()?,
            issued_at_ms: from.u64()?,
        })
    }

    pub fn seal(&self, keys: &Keypair) -> Vec<u8> {
        envelope(keys, &self.encode())
    }
}

pub fn envelope(keys: &Keypair, payload: &[u8]) -> Vec<u8> {
    let signature = keys.sign(&[b"narmesh-announcement-1;", payload].concat()).unwrap();
    let public = keys.public().try_into_ed25519().unwrap().to_bytes();
    Writer::default().u8(1).raw(&public).raw(&signature).raw(payload).0
}

/// The public key and the payload of an envelope; its signature is not verified.
pub fn open_envelope(bytes: &[u8]) -> Option<([u8; 32], Announcement)> {
    let mut from = Reader(bytes);
    let (_version, key, _signature) = (from.u8()?, from.array()?, from.raw(64)?);
    Some((key, Announcement::decode(from.0)?))
}

/// An address in a summary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    V4([u8; 4], u16),
    V6([u8; 16], u16),
}

fn address(writer: Writer, address: &Address) -> Writer {
    match address {
        Address::V4(octets, port) => writer.u32(0).raw(octets).raw(&port.to_le_bytes()),
        Address::V6(octets, port) => writer.u32(1).raw(octets).raw(&port.to_le_bytes()),
    }
}

/// The body whose digest an announcement carries.
#[derive(Debug, Clone)]
pub struct Summary {
    pub hash_id: u32,
    pub items: u64,
    pub audience: Vec<[u8; 8]>,
    pub addresses: Vec<Address>,
    pub filter_bytes: Vec<u8>,
}

impl Summary {
    pub fn encode(&self) -> Vec<u8> {
        let front = Writer::default().u32(self.hash_id).u64(self.items);
        let middle = front.list(&self.audience, |writer, digest| writer.raw(digest)).list(&self.addresses, address);
        middle.bytes(&self.filter_bytes).0
    }
}

/// The change from a summary to a later one.
#[derive(Debug, Clone)]
pub struct Delta {
    pub base_seq: u64,
    pub items: u64,
    pub positions: Vec<u32>,
    pub audience: Option<Vec<[u8; 8]>>,
    pub addresses: Option<Vec<Address>>,
}

impl Delta {
    pub fn encode(&self) -> Vec<u8> {
        let front = Writer::default().u64(self.base_seq).u64(self.items);
        let middle = front.list(&self.positions, |writer, position| writer.u32(*position));
        let middle =
            middle.option(self.audience.as_ref(), |writer, all| writer.list(all, |writer, one| writer.raw(one)));
        middle.option(self.addresses.as_ref(), |writer, all| writer.list(all, address)).0
    }
}

/// One entry of `have` in a Sync request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Have {
    pub owner: [u8; 8],
    pub epoch: u64,
    pub seq: u64,
}

#[derive(Debug, Clone)]
pub enum GossipRequest {
    Sync { store_dir: String, software: String, yours: Option<Vec<u8>>, have: Vec<Have> },
    Pull { owner: [u8; 8], epoch: u64, seq: u64, have_seq: Option<u64> },
}

impl GossipRequest {
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Sync { store_dir, software, yours, have } => {
                let front = Writer::default().u32(0).bytes(store_dir.as_bytes()).bytes(software.as_bytes());
                let middle = front.option(yours.as_ref(), |writer, yours| writer.bytes(yours));
                middle.list(have, |writer, have| writer.raw(&have.owner).u64(have.epoch).u64(have.seq)).0
            }
            Self::Pull { owner, epoch, seq, have_seq } => {
                let front = Writer::default().u32(1).raw(owner).u64(*epoch).u64(*seq);
                front.option(*have_seq, Writer::u64).0
            }
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        Some(match from.u32()? {
            0 => Self::Sync {
                store_dir: from.text()?,
                software: from.text()?,
                yours: from.option(Reader::bytes)?,
                have: from.list(|from| Some(Have { owner: from.array()?, epoch: from.u64()?, seq: from.u64()? }))?,
            },
            1 => Self::Pull {
                owner: from.array()?,
                epoch: from.u64()?,
                seq: from.u64()?,
                have_seq: from.option(Reader::u64)?,
            },
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GossipReply {
    Sync { store_dir: String, software: String, yours: Option<Vec<u8>>, news: Vec<Vec<u8>> },
    StoreDirDiffers { store_dir: String },
    Body(Vec<u8>),
    Delta(Vec<u8>),
    Absent,
    Busy,
}

impl GossipReply {
    pub fn encode(&self) -> Vec<u8> {
        let writer = Writer::default();
        match self {
            Self::Sync { store_dir, software, yours, news } => {
                let front = writer.u32(0).bytes(store_dir.as_bytes()).bytes(software.as_bytes());
                let middle = front.option(yours.as_ref(), |writer, yours| writer.bytes(yours));
                middle.list(news, |writer, envelope| writer.bytes(envelope)).0
            }
            Self::StoreDirDiffers { store_dir } => writer.u32(1).bytes(store_dir.as_bytes()).0,
            Self::Body(body) => writer.u32(2).bytes(body).0,
            Self::Delta(delta) => writer.u32(3).bytes(delta).0,
            Self::Absent => writer.u32(4).0,
            Self::Busy => writer.u32(5).0,
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        Some(match from.u32()? {
            0 => Self::Sync {
                store_dir: from.text()?,
                software: from.text()?,
                yours: from.option(Reader::bytes)?,
                news: from.list(Reader::bytes)?,
            },
            1 => Self::StoreDirDiffers { store_dir: from.text()? },
            2 => Self::Body(from.bytes()?),
            3 => Self::Delta(from.bytes()?),
            4 => Self::Absent,
            5 => Self::Busy,
            _ => return None,
        })
    }
}

pub const ABSENT: [u8; 4] = [0, 0, 0, 0];

/// A narinfo reply `Found`.
pub fn found(text: &[u8]) -> Vec<u8> {
    Writer::default().u32(1).bytes(text).0
}

/// A request to dial a bulk connection, and the two answers.
pub const DIAL_BULK: [u8; 4] = [0; 4];
pub const DIALLING: [u8; 4] = [0; 4];
pub const DIALS_NOT: [u8; 4] = [1, 0, 0, 0];

/// A request for a circuit to the member with this node key.
pub fn open_circuit(node_key: &[u8; 32]) -> Vec<u8> {
    Writer::default().u32(0).raw(node_key).0
}

/// What a relay says to a member for whom another one waits.
pub fn come(from: &[u8; 32], ticket: &[u8; 16]) -> Vec<u8> {
    Writer::default().u32(1).raw(from).raw(ticket).0
}

/// A request to meet at one address of IPv4.
pub fn meet(ip: [u8; 4], port: u16, token: &[u8; 16]) -> Vec<u8> {
    Writer::default().u32(2).u64(1).u32(0).raw(&ip).raw(&port.to_le_bytes()).raw(token).0
}

/// Answers about circuits; the first of them has a ticket behind it.
pub const CIRCUIT_TICKET: [u8; 4] = [0; 4];
pub const CIRCUIT_COMING: [u8; 4] = [1, 0, 0, 0];
pub const CIRCUIT_REFUSED: [u8; 4] = [2, 0, 0, 0];
pub const CIRCUIT_BUSY: [u8; 4] = [4, 0, 0, 0];

/// A request for a NAR, without the length that goes before it.
#[derive(Debug, Clone, Copy)]
pub struct NarRequest {
    pub hash_part: [u8; 20],
    pub nar_hash: [u8; 32],
    pub nar_size: u64,
    pub offset: u64,
    pub end: u64,
    pub accept_zstd: bool,
    pub passes_on: bool,
    /// 0: no names, 1: names are welcome, 2: the same from who reads from one of them.
    pub referral: u32,
}

impl NarRequest {
    /// The request as it is sent, with its length before it.
    pub fn frame(&self) -> Vec<u8> {
        let bytes = self.encode();
        [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], &bytes].concat()
    }

    pub fn encode(&self) -> Vec<u8> {
        let front = Writer::default().raw(&self.hash_part).raw(&self.nar_hash);
        front
            .u64(self.nar_size)
            .u64(self.offset)
            .u64(self.end)
            .u8(self.accept_zstd.into())
            .u8(self.passes_on.into())
            .u32(self.referral)
            .0
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        Some(Self {
            hash_part: from.array()?,
            nar_hash: from.array()?,
            nar_size: from.u64()?,
            offset: from.u64()?,
            end: from.u64()?,
            accept_zstd: from.u8()? == 1,
            passes_on: from.u8()? == 1,
            referral: from.u32()?,
        })
    }
}

/// The head `Body`, with its length before it.
pub fn nar_head(zstd: bool) -> Vec<u8> {
    Writer::default().u32(5).u32(0).u8(zstd.into()).0
}

/// The head `Others`, with its length before it.
pub fn nar_others(named: &[[u8; 8]]) -> Vec<u8> {
    let length = 12 + 8 * u32::try_from(named.len()).unwrap();
    Writer::default().u32(length).u32(3).list(named, |writer, digest| writer.raw(digest)).0
}

pub fn nar_not_now(place: u32, ask_again_ms: u32) -> Vec<u8> {
    Writer::default().u32(12).u32(2).u32(place).u32(ask_again_ms).0
}

pub fn nar_absent() -> Vec<u8> {
    Writer::default().u32(4).u32(1).0
}

/// Bytes as chunks, without the end mark.
pub fn nar_chunks(bytes: &[u8]) -> Vec<u8> {
    let chunks = bytes.chunks(262_144);
    chunks.fold(Writer::default(), |writer, chunk| writer.u32(u32::try_from(chunk.len()).unwrap()).raw(chunk)).0
}

/// The end mark of a NAR: *complete*.
pub const NAR_END: [u8; 5] = [0, 0, 0, 0, 0];

/// Parses 32 bytes in base 16.
pub fn from_hex(digits: &str) -> [u8; 32] {
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    std::array::from_fn(|index| byte(index * 2))
}
