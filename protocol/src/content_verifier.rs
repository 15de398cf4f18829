//! Checks whether the contents of a NAR match a content address.

use crate::nar::NarWriter;
use crate::{ContentAddress, HashAlgorithm, HashPart};
use md5::Md5;
use memchr::memmem::Finder;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

/// Takes a NAR in pieces of any size, then says whether its contents match the content address.
///
/// - Flat and text addresses: the NAR must be one regular file that is not executable, and the digest is over its contents.
/// - Recursive addresses: the digest is over the whole NAR.
/// - Recursive addresses with a self-reference (`HashModuloSink` in Nix's `references.cc`): the digest is over the NAR with
///   each occurrence of the path's own hash part (32 characters) replaced by NULs, followed by `|<offset>` for each of them.
///   Nix 2.17 to 2.34 left the offsets out by mistake (NixOS/nix#15837), so both forms are accepted. The check is then as
///   strong as the Nix version that computed the address.
///
/// It does not check the NAR's grammar otherwise: a [`NarVerifier`](crate::nar::NarVerifier) runs beside it.
#[derive(Clone, Debug)]
pub struct ContentVerifier {
    digest: Vec<u8>,
    contents: Contents,
}

/// Most self-references whose offsets are kept, 8 bytes each. A path with more of them can match only without offsets.
const OFFSETS_MAX: usize = 1 << 20;
/// Bytes of the NAR that are searched in one step.
const SEARCH_BYTES: usize = 64 << 10;
/// Bytes before the contents in the NAR of one plain file. The last 8 of them are the length of the contents.
const FLAT_HEAD_BYTES: usize = 96;
/// Most bytes after the contents in such a NAR: padding and the closing word.
const FLAT_TAIL_BYTES_MAX: usize = 7 + 16;

#[derive(Clone, Debug)]
enum Contents {
    Recursive(Hasher),
    RecursiveModulo(Box<Modulo>),
    Flat(Flat),
    /// The address is of an unknown kind, so no contents match.
    Unknown,
}

impl ContentAddress {
    /// Starts a check of contents against this address. `self_reference` is the path's own hash part
    /// if the path refers to itself.
    ///
    /// It is ignored for a flat file or a text, which cannot refer to itself
    /// ([`ContentAddress::store_path`] gives no path then).
    pub fn verifier(&self, self_reference: Option<&HashPart>) -> ContentVerifier {
        match self {
            Self::Text { sha256 } => ContentVerifier {
                digest: sha256.to_vec(),
                contents: Contents::Flat(Flat::new(Hasher::new(HashAlgorithm::Sha256))),
            },
            Self::Fixed { recursive, algorithm, digest } => {
                let hasher = Hasher::new(*algorithm);
                let contents = match (recursive, self_reference) {
                    (false, _) => Contents::Flat(Flat::new(hasher)),
                    (true, None) => Contents::Recursive(hasher),
                    (true, Some(own)) => Contents::RecursiveModulo(Box::new(Modulo::new(hasher, own))),
                };
                ContentVerifier { digest: digest.clone(), contents }
            }
            Self::Other(_) => ContentVerifier { digest: Vec::new(), contents: Contents::Unknown },
        }
    }
}

impl ContentVerifier {
    /// Takes the next bytes of the NAR. The verifier uses at most about 8 MiB of memory, or 100
    /// bytes without a self-reference.
    pub fn feed(&mut self, nar: &[u8]) {
        match &mut self.contents {
            Contents::Recursive(hasher) => hasher.update(nar),
            Contents::RecursiveModulo(modulo) => modulo.feed(nar),
            Contents::Flat(flat) => flat.feed(nar),
            Contents::Unknown => {}
        }
    }

    /// Whether everything that was fed, taken as a complete NAR, matches the content address.
    pub fn matches(&self) -> bool {
        match &self.contents {
            Contents::Recursive(hasher) => hasher.digest() == self.digest,
            Contents::RecursiveModulo(modulo) => modulo.digests().any(|digest| digest == self.digest),
            Contents::Flat(flat) => flat.digest().is_some_and(|digest| digest == self.digest),
            Contents::Unknown => false,
        }
    }
}

/// A hasher of one of the algorithms that content addresses use.
#[derive(Clone, Debug)]
enum Hasher {
    Md5(Md5),
    Sha1(Sha1),
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    fn new(algorithm: HashAlgorithm) -> Self {
        match algorithm {
            HashAlgorithm::Md5 => Self::Md5(Md5::new()),
            HashAlgorithm::Sha1 => Self::Sha1(Sha1::new()),
            HashAlgorithm::Sha256 => Self::Sha256(Sha256::new()),
            HashAlgorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Md5(hasher) => hasher.update(bytes),
            Self::Sha1(hasher) => hasher.update(bytes),
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of the bytes taken so far.
    fn digest(&self) -> Vec<u8> {
        match self.clone() {
            Self::Md5(hasher) => hasher.finalize().to_vec(),
            Self::Sha1(hasher) => hasher.finalize().to_vec(),
            Self::Sha256(hasher) => hasher.finalize().to_vec(),
            Self::Sha512(hasher) => hasher.finalize().to_vec(),
        }
    }
}

/// A hasher that replaces each occurrence of one text with NULs and keeps its offset.
#[derive(Clone, Debug)]
struct Modulo {
    hasher: Hasher,
    finder: Finder<'static>,
    /// Bytes hashed so far, which is also the offset of `pending`.
    hashed_bytes: u64,
    /// The last bytes fed, searched but not yet hashed, because the text can begin in them. Between
    /// calls shorter than the text.
    pending: Vec<u8>,
    offsets: Vec<u64>,
    offsets_lost: bool,
}

impl Modulo {
    fn new(hasher: Hasher, own: &HashPart) -> Self {
        Self {
            hasher,
            finder: Finder::new(&own.to_string()).into_owned(),
            hashed_bytes: 0,
            pending: Vec::new(),
            offsets: Vec::new(),
            offsets_lost: false,
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        for bytes in bytes.chunks(SEARCH_BYTES) {
            self.pending.extend_from_slice(bytes);
            self.blot_out();
            // The text can begin in the last 31 bytes and end in the next piece, so these are not hashed yet.
            let undecided = self.pending.len().min(HashPart::TEXT_LEN - 1);
            let decided = self.pending.len() - undecided;
            self.hasher.update(self.pending.get(..decided).unwrap_or_default());
            self.hashed_bytes += decided as u64;
            self.pending.drain(..decided);
        }
    }

    fn blot_out(&mut self) {
        let mut from = 0;
        while let Some(found) = self.pending.get(from..).and_then(|rest| self.finder.find(rest)) {
            let at = from + found;
            from = at + HashPart::TEXT_LEN;
            if let Some(text) = self.pending.get_mut(at..from) {
                text.fill(0);
            }
            // A file of nothing but this hash would take as much memory as it has bytes.
            match self.offsets.len() < OFFSETS_MAX {
                true => self.offsets.push(self.hashed_bytes + at as u64),
                false => self.offsets_lost = true,
            }
        }
    }

    /// The digest with offsets (unless some were not kept) and the digest without.
    fn digests(&self) -> impl Iterator<Item = Vec<u8>> {
        let mut bare = self.hasher.clone();
        bare.update(&self.pending);
        let mut with_offsets = bare.clone();
        self.offsets.iter().for_each(|offset| with_offsets.update(format!("|{offset}").as_bytes()));
        let with_offsets = (!self.offsets_lost).then(|| with_offsets.digest());
        with_offsets.into_iter().chain([bare.digest()])
    }
}

/// A hasher for the contents of a NAR that must be one plain file.
#[derive(Clone, Debug)]
struct Flat {
    hasher: Hasher,
    head: Vec<u8>,
    /// Bytes of contents still to come, once the head was read.
    left: u64,
    /// The bytes after the contents; of bytes beyond the longest possible tail, only one is kept.
    tail: Vec<u8>,
}

impl Flat {
    fn new(hasher: Hasher) -> Self {
        Self { hasher, head: Vec::with_capacity(FLAT_HEAD_BYTES), left: 0, tail: Vec::new() }
    }

    fn feed(&mut self, bytes: &[u8]) {
        let in_head = bytes.len().min(FLAT_HEAD_BYTES - self.head.len());
        let (head, bytes) = bytes.split_at(in_head);
        self.head.extend_from_slice(head);
        if in_head > 0 {
            self.left = self.claimed_length().unwrap_or(0);
        }
        // What comes after the claimed contents must be the end of a NAR, and is compared with one.
        let in_contents = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let (contents, tail) = bytes.split_at(in_contents);
        self.hasher.update(contents);
        self.left -= contents.len() as u64;
        self.tail.extend(tail.iter().take(FLAT_TAIL_BYTES_MAX + 1 - self.tail.len()));
    }

    /// The digest, if the NAR is one complete plain file.
    fn digest(&self) -> Option<Vec<u8>> {
        let length = self.claimed_length()?;
        if self.left > 0 {
            return None;
        }
        let (mut head, mut tail) = (Vec::new(), Vec::new());
        let mut writer = NarWriter::start(&mut head);
        writer.begin_file(&mut head, length, false);
        writer.end_file(&mut tail, length);
        (self.head == head && self.tail == tail).then(|| self.hasher.digest())
    }

    fn claimed_length(&self) -> Option<u64> {
        let (_, length) = self.head.split_last_chunk::<8>()?;
        (self.head.len() == FLAT_HEAD_BYTES).then(|| u64::from_le_bytes(*length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat_nar(contents: &[u8], executable: bool) -> Vec<u8> {
        let mut nar = Vec::new();
        let mut writer = NarWriter::start(&mut nar);
        writer.begin_file(&mut nar, contents.len() as u64, executable);
        nar.extend_from_slice(contents);
        writer.end_file(&mut nar, contents.len() as u64);
        nar
    }

    fn matches_in_pieces(address: &ContentAddress, own: Option<&HashPart>, nar: &[u8]) -> bool {
        let [whole, bytewise, odd] = [nar.len().max(1), 1, 13].map(|piece| {
            let mut verifier = address.verifier(own);
            nar.chunks(piece).for_each(|piece| verifier.feed(piece));
            verifier.matches()
        });
        assert!(whole == bytewise && whole == odd, "the pieces must not matter");
        whole
    }

    fn recursive(algorithm: HashAlgorithm, digest: Vec<u8>) -> ContentAddress {
        ContentAddress::Fixed { recursive: true, algorithm, digest }
    }

    #[test]
    fn flat_addresses_are_over_the_file_alone() {
        for contents in [&b""[..], b"x", b"12345678", &[7; 1000]] {
            let text = ContentAddress::Text { sha256: Sha256::digest(contents).into() };
            let flat = |algorithm, digest| ContentAddress::Fixed { recursive: false, algorithm, digest };
            for address in [
                text,
                flat(HashAlgorithm::Md5, Md5::digest(contents).to_vec()),
                flat(HashAlgorithm::Sha1, Sha1::digest(contents).to_vec()),
                flat(HashAlgorithm::Sha512, Sha512::digest(contents).to_vec()),
            ] {
                let nar = flat_nar(contents, false);
                assert!(matches_in_pieces(&address, None, &nar), "{address}");
                assert!(!matches_in_pieces(&address, None, &flat_nar(contents, true)), "executable");
                assert!(!matches_in_pieces(&address, None, &flat_nar(b"other", false)));
                assert!(!matches_in_pieces(&address, None, &nar[..nar.len() - 1]), "cut short");
                assert!(!matches_in_pieces(&address, None, &[nar.as_slice(), &[0]].concat()), "trailing byte");
                let mut padding = nar.clone();
                padding[nar.len() - 17] ^= 1;
                assert!(!matches_in_pieces(&address, None, &padding), "padding or last byte changed");
            }
        }
    }

    #[test]
    fn nar_shorter_than_its_claimed_length_does_not_match() {
        let address = ContentAddress::Text { sha256: Sha256::digest(b"").into() };
        let mut nar = flat_nar(b"", false);
        nar[88..96].fill(0xff);
        assert!(!matches_in_pieces(&address, None, &nar));
        assert!(!matches_in_pieces(&address, None, &nar[..96]));
        assert!(!matches_in_pieces(&address, None, b""));
    }

    #[test]
    fn recursive_addresses_are_over_the_nar() {
        let nar = flat_nar(b"contents", true);
        for address in [
            recursive(HashAlgorithm::Md5, Md5::digest(&nar).to_vec()),
            recursive(HashAlgorithm::Sha1, Sha1::digest(&nar).to_vec()),
            recursive(HashAlgorithm::Sha256, Sha256::digest(&nar).to_vec()),
            recursive(HashAlgorithm::Sha512, Sha512::digest(&nar).to_vec()),
        ] {
            assert!(matches_in_pieces(&address, None, &nar), "{address}");
            assert!(!matches_in_pieces(&address, None, &flat_nar(b"Contents", true)), "{address}");
        }
    }

    #[test]
    fn self_references_are_zeroed_and_their_offsets_hashed() {
        let own = HashPart([5; 20]);
        let nar = flat_nar(format!("a {own} b {own}{own}").as_bytes(), false);
        let blotted = String::from_utf8(nar.clone()).unwrap().replace(&own.to_string(), &"\0".repeat(32));
        let with_offsets = recursive(HashAlgorithm::Sha256, Sha256::digest(format!("{blotted}|98|133|165")).to_vec());
        let bare = recursive(HashAlgorithm::Sha256, Sha256::digest(&blotted).to_vec());
        for address in [&with_offsets, &bare] {
            assert!(matches_in_pieces(address, Some(&own), &nar));
            assert!(!matches_in_pieces(address, Some(&HashPart([6; 20])), &nar));
            assert!(!matches_in_pieces(address, None, &nar));
        }
        assert!(matches_in_pieces(&bare, Some(&own), blotted.as_bytes()), "what Nix 2.17 to 2.34 could not tell apart");
        assert!(!matches_in_pieces(&with_offsets, Some(&own), blotted.as_bytes()), "and what the offsets are for");
    }

    #[test]
    fn nar_with_too_many_offsets_matches_the_digest_without_them() {
        let own = HashPart([5; 20]);
        let nar = own.to_string().repeat(OFFSETS_MAX + 1);
        let digest = Sha256::digest(vec![0; nar.len()]).to_vec();
        let mut verifier = recursive(HashAlgorithm::Sha256, digest).verifier(Some(&own));
        verifier.feed(nar.as_bytes());
        assert!(verifier.matches());
    }
}
