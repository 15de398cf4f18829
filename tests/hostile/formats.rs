//! Nix's formats as `docs/protocol.md` describes them: nix32, narinfos and their signatures, NARs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use libp2p::identity::Keypair;

const DIGITS: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

pub fn nix32(bytes: &[u8]) -> String {
    let count = (bytes.len() * 8).div_ceil(5);
    let digit = |n: usize| {
        let (byte, shift) = (n * 5 / 8, n * 5 % 8);
        let low = u16::from(bytes[byte]) | u16::from(bytes.get(byte + 1).copied().unwrap_or(0)) << 8;
        char::from(DIGITS[usize::from(low >> shift & 31)])
    };
    (0..count).rev().map(digit).collect()
}

pub fn from_nix32(text: &str) -> Vec<u8> {
    let mut bytes = vec![0_u8; text.len() * 5 / 8];
    for (n, letter) in text.bytes().rev().enumerate() {
        let digit = DIGITS.iter().position(|known| *known == letter).expect("a digit of nix32");
        let value = u16::try_from(digit).unwrap() << (n * 5 % 8);
        let [low, high] = value.to_le_bytes();
        bytes[n * 5 / 8] |= low;
        if let Some(next) = bytes.get_mut(n * 5 / 8 + 1) {
            *next |= high;
        }
    }
    bytes
}

pub fn hash_part_bytes(path: &str) -> [u8; 20] {
    from_nix32(narmesh_tests::hash_part(path)).try_into().unwrap()
}

/// A Nix signing key, for tests only.
#[derive(Debug, Clone)]
pub struct NixKey {
    pub name: String,
    keys: Keypair,
}

impl NixKey {
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), keys: Keypair::generate_ed25519() }
    }

    /// The public key as in `trusted-public-keys`.
    pub fn public(&self) -> String {
        let key = self.keys.public().try_into_ed25519().unwrap().to_bytes();
        format!("{}:{}", self.name, BASE64.encode(key))
    }

    pub fn public_bytes(&self) -> [u8; 32] {
        self.keys.public().try_into_ed25519().unwrap().to_bytes()
    }

    pub fn sign_bytes(&self, bytes: &[u8]) -> [u8; 64] {
        self.keys.sign(bytes).unwrap().try_into().unwrap()
    }

    pub fn sign(&self, fingerprint: &str) -> String {
        format!("{}:{}", self.name, BASE64.encode(self.keys.sign(fingerprint.as_bytes()).unwrap()))
    }
}

/// A narinfo whose fields can be changed one by one.
#[derive(Debug, Clone)]
pub struct NarInfo {
    pub store_path: String,
    pub url: String,
    pub nar_hash: [u8; 32],
    pub nar_size: u64,
    /// Base names of store paths.
    pub references: Vec<String>,
    pub signatures: Vec<String>,
    pub content_address: Option<String>,
}

impl NarInfo {
    pub fn fingerprint(&self) -> String {
        let references: Vec<_> = self.references.iter().map(|name| format!("/nix/store/{name}")).collect();
        let hash = nix32(&self.nar_hash);
        format!("1;{};sha256:{hash};{};{}", self.store_path, self.nar_size, references.join(","))
    }

    pub fn signed(mut self, key: &NixKey) -> Self {
        let signature = key.sign(&self.fingerprint());
        self.signatures.push(signature);
        self
    }

    pub fn text(&self) -> String {
        let (hash, size) = (nix32(&self.nar_hash), self.nar_size);
        let mut text = format!(
            "StorePath: {}\nURL: {}\nCompression: none\nFileHash: sha256:{hash}\nFileSize: {size}\n",
            self.store_path, self.url
        );
        text += &format!("NarHash: sha256:{hash}\nNarSize: {size}\nReferences: {}\n", self.references.join(" "));
        for signature in &self.signatures {
            text += &format!("Sig: {signature}\n");
        }
        if let Some(address) = &self.content_address {
            text += &format!("CA: {address}\n");
        }
        text
    }
}

/// A NAR that is written word by word; it need not be a valid one.
#[derive(Debug, Default, Clone)]
pub struct Nar(pub Vec<u8>);

impl Nar {
    pub fn begin() -> Self {
        Self::default().word("nix-archive-1")
    }
    pub fn length(mut self, length: u64) -> Self {
        self.0.extend(length.to_le_bytes());
        self
    }
    pub fn token(mut self, bytes: &[u8]) -> Self {
        self = self.length(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self
    }
    pub fn word(self, word: &str) -> Self {
        self.token(word.as_bytes())
    }
    pub fn words(self, words: &str) -> Self {
        words.split(' ').fold(self, Self::word)
    }
    pub fn file(self, contents: &[u8]) -> Self {
        self.words("( type regular contents").token(contents).word(")")
    }
    pub fn entry(self, name: &str, node: impl FnOnce(Self) -> Self) -> Self {
        node(self.words("entry ( name").word(name).word("node")).word(")")
    }
    pub fn directory(self, entries: impl FnOnce(Self) -> Self) -> Self {
        entries(self.words("( type directory")).word(")")
    }
}
