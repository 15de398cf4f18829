//! libp2p's TLS 1.3 (`/tls/1.0.0`) with the cipher that is fastest on this machine.
//!
//! The protocol, its certificates and their rules are libp2p-tls' own
//! (<https://github.com/libp2p/specs/blob/master/tls/tls.md>), whose functions make and check the certificates; it
//! works with the stock upgrade in both directions. What differs: the order of the cipher suites (the stock one puts
//! ChaCha20 first and has no setter), no tickets, no resumption, and no `SSLKEYLOGFILE`.
//! docs/decisions/0012-aes-first.md has the reasons, the figures and the review of the verifier.

use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncWrite, FutureExt};
use futures_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use libp2p::PeerId;
use libp2p::core::UpgradeInfo;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use libp2p::identity::Keypair;
use libp2p::tls::certificate;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    SupportedCipherSuite,
};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

const ALPN: &[u8] = b"libp2p";

/// For processors with AES instructions: 1.9 times the rate of ChaCha20 at half of its CPU time.
const AES_FIRST: &[SupportedCipherSuite] = &[
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
];
/// For those without (Raspberry Pi 4 and older): AES in software is several times slower. Nothing else is offered,
/// because a listener that has the instructions takes AES from every list that names it.
const CHACHA_ONLY: &[SupportedCipherSuite] = &[cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];

/// The security upgrade of a node.
#[derive(Clone, Debug)]
pub struct Tls {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// Why a connection is not secure.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Our own certificate could not be made.
    #[error("no certificate could be made for the node key")]
    Certificate(#[from] certificate::GenError),
    /// The settings do not fit each other.
    #[error("TLS settings")]
    Settings(#[from] rustls::Error),
    /// The handshake failed: the other side does not speak TLS 1.3, or does not have the key of its certificate.
    #[error("TLS handshake")]
    Handshake(#[from] std::io::Error),
    /// The certificate does not carry a PeerId that signed it.
    #[error("the peer's certificate")]
    PeerCertificate(#[from] certificate::ParseError),
    /// The other side showed no certificate, or several.
    #[error("the peer showed {0} certificates, exactly one is accepted")]
    CertificateCount(usize),
}

impl Tls {
    /// Makes a new certificate for `keypair`, and chooses ciphers by the instructions of this processor.
    pub fn new(keypair: &Keypair) -> Result<Self, TlsError> {
        Self::with_suites(keypair, if has_aes_instructions() { AES_FIRST } else { CHACHA_ONLY })
    }

    fn with_suites(keypair: &Keypair, suites: &[SupportedCipherSuite]) -> Result<Self, TlsError> {
        let (certificate, key) = certificate::generate(keypair)?;
        let own = Arc::new(SingleCertAndKey::from(certified(certificate, &key)?));
        let provider = Arc::new(CryptoProvider { cipher_suites: suites.to_vec(), ..aws_lc_rs::default_provider() });
        let versions = &[&rustls::version::TLS13];

        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?
            .dangerous()
            // A peer's certificate is signed by its node key and by no authority; the verifier checks that signature.
            .with_custom_certificate_verifier(Arc::new(PeerCertificates))
            .with_client_cert_resolver(Arc::clone(&own) as _);
        client.alpn_protocols = vec![ALPN.to_vec()];
        // Each connection proves the keys of both sides anew.
        client.resumption = rustls::client::Resumption::disabled();
        // There is no host name: each dial expects a PeerId.
        client.enable_sni = false;

        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(Arc::new(PeerCertificates))
            .with_cert_resolver(own);
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        // Otherwise a stock dialler, which names ChaCha20 first, would decide.
        server.ignore_client_order = true;
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}

fn certified(
    certificate: CertificateDer<'static>,
    key: &PrivateKeyDer<'static>,
) -> Result<CertifiedKey, rustls::Error> {
    // Not `from_der`: it refuses the critical libp2p extension.
    Ok(CertifiedKey::new(vec![certificate], aws_lc_rs::sign::any_ecdsa_type(key)?))
}

fn has_aes_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has = false;
    has
}

impl UpgradeInfo for Tls {
    type Info = &'static str;
    type InfoIter = std::iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once("/tls/1.0.0")
    }
}

impl<C> InboundConnectionUpgrade<C> for Tls
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = (PeerId, TlsStream<C>);
    type Error = TlsError;
    type Future = BoxFuture<'static, Result<Self::Output, TlsError>>;

    fn upgrade_inbound(self, socket: C, _: &'static str) -> Self::Future {
        async move {
            let stream = TlsAcceptor::from(self.server).accept(socket).await?;
            Ok((peer_of(stream.get_ref().1)?, stream.into()))
        }
        .boxed()
    }
}

impl<C> OutboundConnectionUpgrade<C> for Tls
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = (PeerId, TlsStream<C>);
    type Error = TlsError;
    type Future = BoxFuture<'static, Result<Self::Output, TlsError>>;

    fn upgrade_outbound(self, socket: C, _: &'static str) -> Self::Future {
        async move {
            // The specification forbids a server name; an address sends none. The swarm compares the PeerId with the
            // one dialled.
            let nameless = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            let stream = TlsConnector::from(self.client).connect(nameless, socket).await?;
            Ok((peer_of(stream.get_ref().1)?, stream.into()))
        }
        .boxed()
    }
}

fn peer_of(connection: &CommonState) -> Result<PeerId, TlsError> {
    match connection.peer_certificates() {
        Some([certificate]) => Ok(certificate::parse(certificate)?.peer_id()),
        other => Err(TlsError::CertificateCount(other.map_or(0, <[_]>::len))),
    }
}

/// libp2p's rules for certificates, the same for both sides: exactly one, self-signed, valid now, with the extension by
/// which the node key signed the certificate's key (`certificate::parse` checks these), and a handshake signed by the
/// certificate's key.
#[derive(Debug)]
struct PeerCertificates;

impl PeerCertificates {
    fn verify(certificate: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        if !intermediates.is_empty() {
            return Err(rustls::Error::General("libp2p shows exactly one certificate".to_owned()));
        }
        certificate::parse(certificate).map(drop).map_err(rustls::Error::from)
    }

    /// Without this check anyone could show a certificate that it once saw.
    fn verify_handshake(
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        certificate::parse(certificate)?.verify_signature(signed.scheme, message, signed.signature())?;
        Ok(HandshakeSignatureValid::assertion())
    }

    /// The same list as in libp2p-tls.
    fn schemes() -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ED25519,
            SignatureScheme::RSA_PSS_SHA512,
            SignatureScheme::RSA_PSS_SHA384,
            SignatureScheme::RSA_PSS_SHA256,
            SignatureScheme::RSA_PKCS1_SHA512,
            SignatureScheme::RSA_PKCS1_SHA384,
            SignatureScheme::RSA_PKCS1_SHA256,
        ]
    }

    fn no_tls12() -> rustls::Error {
        rustls::Error::General("only TLS 1.3 is spoken".to_owned())
    }
}

impl ServerCertVerifier for PeerCertificates {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Self::verify(certificate, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(Self::no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::verify_handshake(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}

impl ClientCertVerifier for PeerCertificates {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Self::verify(certificate, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(Self::no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::verify_handshake(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}

#[cfg(test)]
mod tests;
