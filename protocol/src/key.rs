//! Nix signing keys and signatures (Ed25519), in the textual forms of `nix-store --generate-binary-cache-key`.

use crate::{Fingerprint, digest_text};
use data_encoding::BASE64;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use std::fmt;

/// A public key, as text `name:base64(32-byte public key)`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NixPublicKey {
    name: String,
    key: VerifyingKey,
}

/// A secret key, as text `name:base64(64-byte secret key)`. `Debug` shows the name only. The secret bytes are wiped on drop.
#[derive(Clone)]
pub struct NixSecretKey {
    name: String,
    key: SigningKey,
}

/// A signature of Nix, as text `name:base64(64 bytes)`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NixSignature {
    /// Name of the key that made the signature.
    pub key_name: String,
    /// The 64 bytes of the Ed25519 signature, not yet verified.
    pub bytes: [u8; 64],
}

/// Public keys by name; two different keys with the same name are refused.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct TrustedKeys {
    keys: Vec<NixPublicKey>,
}

/// Longest key name, bytes. The limit is ours; Nix has none.
const KEY_NAME_BYTES_MAX: usize = 255;

/// Why a text is not a valid key, or why keys do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No `:` between name and key.
    #[error("key: expected `name:base64`")]
    NoName,
    /// The name is empty, too long, or contains white space, control characters or a `:`.
    #[error("key name: expected 1 to {KEY_NAME_BYTES_MAX} bytes without white space, control characters or `:`")]
    Name,
    /// The part after the name is not base-64 of the length that such a key has.
    #[error("key: expected base-64 of {bytes} bytes after the name")]
    Length {
        /// 32 for a public key, 64 for a secret one.
        bytes: usize,
    },
    /// The bytes are not a public key that can be trusted: not a curve point, or a point of small
    /// order, for which anybody can sign.
    #[error("public key: not a strong Ed25519 point")]
    Point,
    /// The two halves of a secret key do not belong together.
    #[error("secret key: its public half is not that of its seed")]
    Halves,
    /// Two different keys have the same name.
    #[error("two different trusted keys are named {name:?}")]
    Ambiguous {
        /// The name that both keys have.
        name: String,
    },
}

/// Why a text is not a valid signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// No `:` between the key's name and the signature.
    #[error("signature: expected `name:base64`")]
    NoName,
    /// The key's name is empty, too long, or contains white space or control characters.
    #[error("signature: key name: expected 1 to {KEY_NAME_BYTES_MAX} bytes without white space or control characters")]
    Name,
    /// The part after the name is not base-64 of 64 bytes. Nix fails the whole build at such a signature.
    #[error("signature: expected base-64 of 64 bytes after the key name")]
    Length,
}

impl NixPublicKey {
    /// Parses Nix's form. White space around it is ignored, such as the newline at the end of a key file.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, key) = split_key(text)?;
        let bytes = digest_text::parse_base64::<32>(key).ok_or(KeyError::Length { bytes: 32 })?;
        Self::new(name, &bytes)
    }

    /// Makes a key from its name and its 32 bytes; checks both as [`Self::parse`] does.
    pub fn new(name: &str, bytes: &[u8; 32]) -> Result<Self, KeyError> {
        check_name(name)?;
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Point)?;
        if key.is_weak() {
            return Err(KeyError::Point);
        }
        Ok(Self { name: name.to_owned(), key })
    }

    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The 32 bytes of the key.
    pub fn bytes(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// Whether these 64 bytes are this key's signature over `message`; malleable forms are refused.
    pub(crate) fn verify_bytes(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.key.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }

    /// Whether `signature` is by this key (name and bytes) over `fingerprint`; malleable forms are refused.
    pub fn verify(&self, fingerprint: &Fingerprint, signature: &NixSignature) -> bool {
        self.name == signature.key_name && self.verify_bytes(fingerprint.as_bytes(), &signature.bytes)
    }
}

impl fmt::Display for NixPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, BASE64.encode(self.key.as_bytes()))
    }
}

impl NixSecretKey {
    /// Makes a new key from 32 bytes of the caller's randomness.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, KeyError> {
        check_name(name)?;
        Ok(Self { name: name.to_owned(), key: SigningKey::from_bytes(seed) })
    }

    /// Parses the text of one of Nix's key files; white space around it is ignored.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, key) = split_key(text)?;
        let bytes = digest_text::parse_base64::<64>(key).ok_or(KeyError::Length { bytes: 64 })?;
        let key = SigningKey::from_keypair_bytes(&bytes).map_err(|_| KeyError::Halves)?;
        Ok(Self { name: name.to_owned(), key })
    }

    /// The text of a key file of Nix. It contains the secret itself, so there is no `Display`.
    pub fn expose_secret(&self) -> String {
        format!("{}:{}", self.name, BASE64.encode(&self.key.to_keypair_bytes()))
    }

    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public key that belongs to this secret key, with the same name.
    pub fn public(&self) -> NixPublicKey {
        NixPublicKey { name: self.name.clone(), key: self.key.verifying_key() }
    }

    /// Signs any bytes. Callers prefix them with a domain with which no Nix fingerprint begins.
    pub(crate) fn sign_bytes(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }

    /// Signs a fingerprint as Nix does.
    pub fn sign(&self, fingerprint: &Fingerprint) -> NixSignature {
        NixSignature { key_name: self.name.clone(), bytes: self.key.sign(fingerprint.as_bytes()).to_bytes() }
    }
}

impl fmt::Debug for NixSecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NixSecretKey({})", self.name)
    }
}

impl NixSignature {
    /// Parses `name:base64`.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        let (key_name, signature) = text.split_once(':').ok_or(SignatureError::NoName)?;
        check_name(key_name).map_err(|_| SignatureError::Name)?;
        let bytes = digest_text::parse_base64::<64>(signature).ok_or(SignatureError::Length)?;
        Ok(Self { key_name: key_name.to_owned(), bytes })
    }
}

impl fmt::Display for NixSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key_name, BASE64.encode(&self.bytes))
    }
}

impl TrustedKeys {
    /// Collects keys. Two different keys with the same name are an error that says the name; the same key twice is fine.
    pub fn new(keys: impl IntoIterator<Item = NixPublicKey>) -> Result<Self, KeyError> {
        let mut collected = Self::default();
        for key in keys {
            match collected.by_name(&key.name) {
                Some(known) if *known == key => {}
                Some(_) => return Err(KeyError::Ambiguous { name: key.name }),
                None => collected.keys.push(key),
            }
        }
        Ok(collected)
    }

    /// The key with this name, if it is trusted.
    pub fn by_name(&self, name: &str) -> Option<&NixPublicKey> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// All keys, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = &NixPublicKey> {
        self.keys.iter()
    }

    /// Whether the signature verifies under the trusted key that it names.
    pub fn verifies(&self, fingerprint: &Fingerprint, signature: &NixSignature) -> bool {
        self.by_name(&signature.key_name).is_some_and(|key| key.verify(fingerprint, signature))
    }
}

fn split_key(text: &str) -> Result<(&str, &str), KeyError> {
    let (name, key) = text.trim().split_once(':').ok_or(KeyError::NoName)?;
    check_name(name)?;
    Ok((name, key))
}

fn check_name(name: &str) -> Result<(), KeyError> {
    let foreign = |character: char| character.is_whitespace() || character.is_control() || character == ':';
    match name.is_empty() || name.len() > KEY_NAME_BYTES_MAX || name.contains(foreign) {
        true => Err(KeyError::Name),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NarHash, StoreDir, StorePath};

    fn fingerprint(nar_size: u64) -> Fingerprint {
        let path = StorePath::parse("7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-x").unwrap();
        Fingerprint::new(&StoreDir::parse("/nix/store").unwrap(), &path, &NarHash([1; 32]), nar_size, &[])
    }

    fn secret(name: &str, seed: u8) -> NixSecretKey {
        NixSecretKey::from_seed(name, &[seed; 32]).unwrap()
    }

    #[test]
    fn signature_verifies_only_for_its_key_and_fingerprint() {
        let key = secret("a-1", 1);
        let signature = key.sign(&fingerprint(1));
        assert!(key.public().verify(&fingerprint(1), &signature));
        assert!(!key.public().verify(&fingerprint(2), &signature));
        assert!(!secret("a-1", 2).public().verify(&fingerprint(1), &signature));
        assert!(!secret("b-1", 1).public().verify(&fingerprint(1), &signature), "the name counts too");
        for at in 0..64 {
            let mut forged = signature.clone();
            forged.bytes[at] ^= 1;
            assert!(!key.public().verify(&fingerprint(1), &forged), "byte {at}");
        }
    }

    #[test]
    fn keys_and_signatures_survive_print_and_parse() {
        let key = secret("a-1", 1);
        assert_eq!(NixPublicKey::parse(&key.public().to_string()).unwrap(), key.public());
        let file = format!("{}\n", key.expose_secret());
        assert_eq!(NixSecretKey::parse(&file).unwrap().expose_secret(), key.expose_secret());
        let signature = key.sign(&fingerprint(1));
        assert_eq!(NixSignature::parse(&signature.to_string()).unwrap(), signature);
    }

    #[test]
    fn bad_keys_are_refused_with_the_reason() {
        let public = secret("a-1", 1).public().to_string();
        let bare = public.strip_prefix("a-1:").unwrap();
        assert_eq!(NixPublicKey::parse(bare), Err(KeyError::NoName));
        assert_eq!(NixPublicKey::parse(&format!(":{bare}")), Err(KeyError::Name));
        assert_eq!(NixPublicKey::parse(&format!("a b:{bare}")), Err(KeyError::Name));
        assert_eq!(NixPublicKey::parse(&format!("{}:{bare}", "a".repeat(256))), Err(KeyError::Name));
        assert_eq!(NixPublicKey::parse(&format!("a-1:{bare}=")), Err(KeyError::Length { bytes: 32 }));
        // The neutral element: without `verify_strict`, every well-formed signature would verify under it.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        assert_eq!(NixPublicKey::parse(&format!("a:{}", BASE64.encode(&neutral))), Err(KeyError::Point));
        let mut halves = [1; 64];
        halves[32..].copy_from_slice(secret("a-1", 2).key.verifying_key().as_bytes());
        let halves = format!("a:{}", BASE64.encode(&halves));
        assert_eq!(NixSecretKey::parse(&halves).err(), Some(KeyError::Halves));
        assert_eq!(NixSecretKey::parse(&public).err(), Some(KeyError::Length { bytes: 64 }));
        assert_eq!(NixSecretKey::from_seed("a:b", &[0; 32]).err(), Some(KeyError::Name));
    }

    #[test]
    fn bad_signatures_are_refused_with_the_reason() {
        let text = secret("a-1", 1).sign(&fingerprint(1)).to_string();
        let bare = text.strip_prefix("a-1:").unwrap();
        assert_eq!(NixSignature::parse(bare), Err(SignatureError::NoName));
        assert_eq!(NixSignature::parse(&format!(" a:{bare}")), Err(SignatureError::Name));
        assert_eq!(NixSignature::parse(&format!("a:{bare} ")), Err(SignatureError::Length));
        assert_eq!(NixSignature::parse("a:AAAA"), Err(SignatureError::Length));
    }

    #[test]
    fn two_different_keys_with_one_name_are_refused() {
        let (first, second, other) = (secret("a", 1).public(), secret("a", 2).public(), secret("b", 1).public());
        let twice = TrustedKeys::new([first.clone(), other.clone(), first.clone()]).unwrap();
        assert_eq!(twice.iter().map(NixPublicKey::name).collect::<Vec<_>>(), ["a", "b"]);
        let error = TrustedKeys::new([first, other, second]).unwrap_err();
        assert_eq!(error, KeyError::Ambiguous { name: "a".to_owned() });
        assert!(error.to_string().contains("\"a\""));
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = secret("a-1", 7);
        assert_eq!(format!("{key:?}"), "NixSecretKey(a-1)");
    }
}
