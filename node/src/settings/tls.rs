//! The files that a listener with TLS names, and what is in them.

use super::secrets::{SecretError, read_secret};
use crate::regular_file::read_text;
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest file of certificates, bytes.
const CERTIFICATES_BYTES_MAX: u64 = 1 << 20;
/// Most certificates in such a file: each handshake sends the chain.
const CHAIN_MAX: usize = 16;
/// Most CAs of clients. Each handshake names them all.
const CLIENT_CAS_MAX: usize = 64;

const ACCEPTED_CERTIFICATE: &str = "a file of 1 to 16 PEM certificates (BEGIN CERTIFICATE): first that of this listener, then those between it and its CA";
const ACCEPTED_KEY: &str = "a file with the PEM private key of that certificate (BEGIN PRIVATE KEY, BEGIN EC PRIVATE KEY or \
                            BEGIN RSA PRIVATE KEY, not encrypted), which only its owner may read";
const ACCEPTED_CLIENT_CA: &str = "a file of 1 to 64 PEM certificates (BEGIN CERTIFICATE) of CAs";

/// The files of a listener with TLS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// The certificate that it shows, and those between it and its CA.
    pub certificate: PathBuf,
    /// The key of the certificate.
    pub key: PathBuf,
    /// The CAs of which clients need a certificate; `None` if they need none.
    pub client_ca: Option<PathBuf>,
}

/// What was read from the files of one listener.
#[derive(Clone, Debug)]
pub(crate) struct TlsInForce {
    /// What rustls answers connections with.
    pub(crate) config: Arc<ServerConfig>,
    /// From when on the certificate counts, seconds since 1970.
    pub(crate) from_unix_s: u64,
    /// Until when it counts.
    pub(crate) until_unix_s: u64,
}

impl TlsInForce {
    /// Why clients will not accept the certificate at this time, if they will not.
    pub(crate) fn why_not_valid(&self, now: Timestamp) -> Option<&'static str> {
        let now_unix_s = u64::try_from(now.as_second()).unwrap_or(0);
        match () {
            () if now_unix_s > self.until_unix_s => Some("has expired"),
            () if now_unix_s < self.from_unix_s => Some("is not valid yet"),
            () => None,
        }
    }
}

impl TlsFiles {
    /// All files, in the order in which they are read.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Path> {
        [&self.certificate, &self.key].into_iter().chain(&self.client_ca).map(PathBuf::as_path)
    }

    /// Reads the files of `gateway.listener[index]`. A certificate that has expired is read like any other: its clients refuse
    /// it, and perhaps not all of them.
    pub(crate) fn read(&self, index: usize) -> Result<TlsInForce, SecretError> {
        let key = |name: &str| format!("gateway.listener[{index}].{name}");
        let certificate_key = key("tls_certificate_file");
        let unusable = |key: &str, path: &Path, why: String, accepted| SecretError::Unusable {
            key: key.to_owned().into(),
            path: path.to_owned(),
            why,
            accepted,
        };
        let of_certificate = |why| unusable(&certificate_key, &self.certificate, why, ACCEPTED_CERTIFICATE);
        let chain = read_certificates(&certificate_key, &self.certificate, CHAIN_MAX, ACCEPTED_CERTIFICATE)?;
        let first = chain.first().ok_or_else(|| of_certificate("it holds no certificate".to_owned()))?;
        // Read here, so that `status` can say until when it is good.
        let (from_unix_s, until_unix_s) = validity(first)
            .ok_or_else(|| of_certificate("what stands first in it is no certificate of X.509".to_owned()))?;

        let key_key = key("tls_key_file");
        let of_key = |why: String| unusable(&key_key, &self.key, why, ACCEPTED_KEY);
        let text = read_secret(key_key.clone(), &self.key, ACCEPTED_KEY)?;
        // The error of the parser is not shown, because it may quote a part of the secret.
        let private = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| {
            let is_encrypted = text.contains("ENCRYPTED");
            of_key(if is_encrypted { "the key is encrypted" } else { "it holds no key" }.to_owned())
        })?;

        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| of_certificate(error.to_string()))?;
        // Everybody may connect, unless there is a file that says who.
        let config = match &self.client_ca {
            None => config.with_no_client_auth(),
            Some(path) => {
                let key = key("tls_client_ca_file");
                let of_ca = |why| unusable(&key, path, why, ACCEPTED_CLIENT_CA);
                let mut roots = RootCertStore::empty();
                for ca in read_certificates(&key, path, CLIENT_CAS_MAX, ACCEPTED_CLIENT_CA)? {
                    roots.add(ca).map_err(|error| of_ca(error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                config.with_client_cert_verifier(verifier.map_err(|error| of_ca(error.to_string()))?)
            }
        };
        let mut config = config.with_single_cert(chain, private).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                of_key(format!("it is not the key of the certificate in {:?}", self.certificate))
            }
            other => of_key(other.to_string()),
        })?;
        // HTTP/2 first: a client that speaks both takes the first one that it knows.
        config.alpn_protocols = [&b"h2"[..], b"http/1.1"].map(Vec::from).into();
        Ok(TlsInForce { config: Arc::new(config), from_unix_s, until_unix_s })
    }
}

/// The certificates of a file: at least one, and at most so many.
fn read_certificates(
    key: &str,
    path: &Path,
    max: usize,
    accepted: &'static str,
) -> Result<Vec<CertificateDer<'static>>, SecretError> {
    let unusable =
        |why: String| SecretError::Unusable { key: key.to_owned().into(), path: path.to_owned(), why, accepted };
    let text = read_text(path, CERTIFICATES_BYTES_MAX).map_err(|source| SecretError::Read {
        key: key.to_owned().into(),
        path: path.to_owned(),
        source,
        accepted,
    })?;
    let text = text.ok_or_else(|| unusable(format!("it is larger than {CERTIFICATES_BYTES_MAX} bytes")))?;
    // One more than is accepted shows that there are more.
    let found = CertificateDer::pem_slice_iter(text.as_bytes()).take(max + 1).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| unusable(error.to_string()))?;
    match found.len() {
        0 => Err(unusable("it holds no certificate".to_owned())),
        count if count > max => Err(unusable("it holds more certificates".to_owned())),
        _ => Ok(found),
    }
}

/// From when and until when a certificate counts, seconds since 1970; `None` if it is none.
fn validity(certificate: &CertificateDer<'_>) -> Option<(u64, u64)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let validity = parsed.validity();
    let unix_s = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    Some((unix_s(validity.not_before), unix_s(validity.not_after)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    struct Pem {
        certificate: String,
        key: String,
    }

    fn make() -> Pem {
        let made = rcgen::generate_simple_self_signed(["cache.lan".to_owned()]).unwrap();
        Pem { certificate: made.cert.pem(), key: made.key_pair.serialize_pem() }
    }

    fn files(dir: &Path) -> TlsFiles {
        let [certificate, key, client_ca] = ["certificate", "key", "ca"].map(|name| dir.join(name));
        TlsFiles { certificate, key, client_ca: Some(client_ca) }
    }

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn certificate_with_its_key_is_read_with_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let (files, pem, ca) = (files(dir.path()), make(), make());
        write(&files.certificate, &format!("a remark\n{}{}", pem.certificate, ca.certificate), 0o644);
        write(&files.key, &pem.key, 0o600);
        write(files.client_ca.as_deref().unwrap(), &ca.certificate, 0o644);
        let read = files.read(0).unwrap();
        assert!(read.config.alpn_protocols.iter().any(|name| name == b"http/1.1"));
        let at = |unix_s: u64| Timestamp::from_second(unix_s.cast_signed()).unwrap();
        assert!(read.from_unix_s < read.until_unix_s);
        assert_eq!(read.why_not_valid(at(read.until_unix_s)), None);
        assert_eq!(read.why_not_valid(at(read.until_unix_s + 1)), Some("has expired"));
        assert_eq!(read.why_not_valid(at(read.from_unix_s - 1)), Some("is not valid yet"));
        files.clone().read(0).unwrap();
        TlsFiles { client_ca: None, ..files }.read(0).unwrap();
    }

    #[test]
    fn every_refusal_names_key_file_and_what_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let (files, good, other) = (files(dir.path()), make(), make());
        let ca = files.client_ca.clone().unwrap();
        let not_x509 = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let cut = &good.certificate[..good.certificate.len() - 40];
        let cases: &[(&Path, String, u32, &str)] = &[
            (&files.certificate, String::new(), 0o644, "holds no certificate"),
            (&files.certificate, good.key.clone(), 0o644, "holds no certificate"),
            (&files.certificate, not_x509.to_owned(), 0o644, "no certificate of X.509"),
            (&files.certificate, cut.to_owned(), 0o644, "cannot be used"),
            (&files.certificate, good.certificate.repeat(17), 0o644, "holds more certificates"),
            (&files.certificate, "x".repeat(2 << 20), 0o644, "larger than 1048576 bytes"),
            (&files.key, good.key.clone(), 0o640, "has mode 0640; accepted: no access for group and others"),
            (&files.key, good.certificate.clone(), 0o600, "holds no key"),
            (&files.key, encrypted.to_owned(), 0o600, "the key is encrypted"),
            (&files.key, other.key, 0o600, "not the key of the certificate in"),
            (&ca, String::new(), 0o644, "holds no certificate"),
            (&ca, not_x509.to_owned(), 0o644, "cannot be used"),
        ];
        for (path, text, mode, why) in cases {
            let write_good = || {
                write(&files.certificate, &good.certificate, 0o644);
                write(&files.key, &good.key, 0o600);
                write(&ca, &good.certificate, 0o644);
            };
            write_good();
            files.read(0).unwrap();
            write(path, text, *mode);
            let error = files.read(3).unwrap_err().to_string();
            let key = match path {
                path if *path == files.certificate => "tls_certificate_file",
                path if *path == files.key => "tls_key_file",
                _ => "tls_client_ca_file",
            };
            let path = format!("{path:?}");
            for word in [&format!("gateway.listener[3].{key}"), path.as_str(), "accepted: ", why] {
                assert!(error.contains(word), "{word:?} is not in {error}");
            }
            write_good();
            fs::remove_file(dir.path().join("key")).unwrap();
            let error = files.read(0).unwrap_err().to_string();
            assert!(error.contains("cannot be read") && error.contains("BEGIN PRIVATE KEY"), "{error}");
        }
    }
}
