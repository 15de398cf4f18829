//! A certificate for a server on loopback, which certifies itself.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

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
                let text = BASE64_STANDARD.encode(der);
                fs::write(&file, format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n"))
                    .expect("a directory in the story's own");
                file
            },
        )
    }
}
