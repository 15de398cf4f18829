//! Certificates for servers on loopback and their clients: one that certifies itself, and a CA with what it certified.

use std::fmt;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

/// A key and its certificate for 127.0.0.1, as DER.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

impl Certificate {
    pub(crate) fn of_loopback() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        Self { certificate: made.cert.der().to_vec(), key: made.key_pair.serialize_der() }
    }

    /// Writes both as PEM into `dir`; returns the files of the certificate and of the key.
    pub(crate) fn write(&self, dir: &Path) -> [PathBuf; 2] {
        [("certificate.pem", "CERTIFICATE", &self.certificate), ("key.pem", "PRIVATE KEY", &self.key)].map(
            |(name, label, der)| {
                let file = dir.join(name);
                fs::write(&file, pem(label, der)).expect("a directory in the story's own");
                file
            },
        )
    }
}

/// A CA of a test.
pub struct TestCa {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

/// A certificate and its key, as PEM.
#[derive(Clone, Debug)]
pub struct Certified {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl fmt::Debug for TestCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestCa").finish_non_exhaustive()
    }
}

impl TestCa {
    /// A new one, which nothing trusts yet.
    ///
    /// # Panics
    /// When there is no randomness.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "each one is another")]
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("randomness");
        // A name of its own, or a client would take one for another and find a wrong signature.
        let name = format!("narmesh test CA {}", crate::sha256_hex(&key.serialize_der()));
        params.distinguished_name.push(rcgen::DnType::CommonName, &name[..48]);
        let certificate = params.self_signed(&key).expect("a CA");
        Self { certificate, key }
    }

    /// Its own certificate, as PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        pem("CERTIFICATE", self.certificate.der())
    }

    /// Certifies a new key for 127.0.0.1 and localhost, until the beginning of this year.
    ///
    /// # Panics
    /// When there is no randomness.
    #[must_use]
    pub fn certify(&self, until_year: i32) -> Certified {
        let names = ["127.0.0.1", "localhost"].map(str::to_owned);
        let mut params = CertificateParams::new(names).expect("names");
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(until_year, 1, 1);
        let key = KeyPair::generate().expect("randomness");
        let certificate = params.signed_by(&key, &self.certificate, &self.key).expect("a certificate");
        Certified { certificate: pem("CERTIFICATE", certificate.der()), key: pem("PRIVATE KEY", &key.serialize_der()) }
    }
}

impl Certified {
    /// Writes both into `dir`; returns the files of the certificate and of the key, which only its owner may read.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn write(&self, dir: &Path) -> [PathBuf; 2] {
        [("certificate.pem", &self.certificate, 0o644), ("key.pem", &self.key, 0o600)].map(|(name, text, mode)| {
            let file = dir.join(name);
            fs::write(&file, text).expect("a directory in the story's own");
            fs::set_permissions(&file, Permissions::from_mode(mode)).expect("a file of the story's own");
            file
        })
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_STANDARD.encode(der))
}
