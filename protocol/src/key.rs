//! Nix signing keys and signatures (Ed25519).
use crate::Fingerprint;
use std::fmt;
/// `name:base64(32-byte public key)`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NixPublicKey { name: String, key: ed25519_dalek::VerifyingKey }
/// `name:base64(64-byte secret key)`; `Debug` shows the name only.
#[derive(Clone)]
pub struct NixSecretKey { name: String, key: ed25519_dalek::SigningKey }
/// `name:base64(64 bytes)`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NixSignature { /// The key's name.
    pub key_name: String, /// The signature.
    pub bytes: [u8; 64] }
/// Public keys by name; two keys of one name are refused.
#[derive(Clone, Default, Debug)]
pub struct TrustedKeys { keys: Vec<NixPublicKey> }
/// Why a text is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Placeholder until filled.
    #[error("not a key")]
    Invalid,
}
/// Why a text is no signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Placeholder until filled.
    #[error("not a signature")]
    Invalid,
}
impl NixPublicKey {
    /// Parses Nix's form.
    pub fn parse(text: &str) -> Result<Self, KeyError> { let _ = text; todo!() }
    /// The key's name.
    pub fn name(&self) -> &str { &self.name }
    /// Whether `signature` is by this key (name and bytes) over `fingerprint`.
    pub fn verify(&self, fingerprint: &Fingerprint, signature: &NixSignature) -> bool { let _ = (fingerprint, signature); todo!() }
}
impl fmt::Display for NixPublicKey { fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result { todo!() } }
impl NixSecretKey {
    /// Makes a new key from 32 bytes of the caller's randomness.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, KeyError> { let _ = (name, seed); todo!() }
    /// Parses Nix's key file form.
    pub fn parse(text: &str) -> Result<Self, KeyError> { let _ = text; todo!() }
    /// Nix's key file form: the secret itself, hence no `Display`.
    pub fn expose_secret(&self) -> String { todo!() }
    /// The name.
    pub fn name(&self) -> &str { &self.name }
    /// The public half.
    pub fn public(&self) -> NixPublicKey { todo!() }
    /// Signs.
    pub fn sign(&self, fingerprint: &Fingerprint) -> NixSignature { let _ = fingerprint; todo!() }
}
impl fmt::Debug for NixSecretKey { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "NixSecretKey({})", self.name) } }
impl NixSignature {
    /// Parses `name:base64`.
    pub fn parse(text: &str) -> Result<Self, SignatureError> { let _ = text; todo!() }
}
impl fmt::Display for NixSignature { fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result { todo!() } }
impl TrustedKeys {
    /// Collects; two different keys of one name are an error that names it (the same key twice is fine).
    pub fn new(keys: impl IntoIterator<Item = NixPublicKey>) -> Result<Self, KeyError> { let _ = keys.into_iter(); todo!() }
    /// The key of that name.
    pub fn by_name(&self, name: &str) -> Option<&NixPublicKey> { self.keys.iter().find(|k| k.name == name) }
    /// All keys, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = &NixPublicKey> { self.keys.iter() }
    /// Whether a key named in the signature verifies it.
    pub fn verifies(&self, fingerprint: &Fingerprint, signature: &NixSignature) -> bool { self.by_name(&signature.key_name).is_some_and(|k| k.verify(fingerprint, signature)) }
}
