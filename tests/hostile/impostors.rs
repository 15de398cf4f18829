//! An impostor that has the certificate of a peer, and not its key.

use crate::report::{self, Meter};
use libp2p::identity::Keypair;
use narmesh_tests::{PeerCard, TestMesh, TestNode, promised};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{default_provider, sign::any_supported_type};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

/// The daemon is promised to answer within this.
const MEETING: Duration = Duration::from_secs(1);

/// Shows this certificate to a server that asks for one.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
    fn has_certs(&self) -> bool {
        true
    }
}

/// Accepts any server.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A certificate, and the private key that is used with it.
pub type Identity = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// Shows a certificate with a key to the daemon; returns the first bytes that the daemon sends inside TLS.
fn enter(node: &TestNode, identity: Identity) -> io::Result<Vec<u8>> {
    let mut stream = open(node, identity)?;
    let mut said = vec![0; 20];
    stream.read_exact(&mut said)?;
    Ok(said)
}

/// Shows a certificate with a key to the daemon, and asks for yamux.
pub fn open(node: &TestNode, (certificate, key): Identity) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut socket = TcpStream::connect(node.p2p_socket())?;
    socket.set_read_timeout(Some(promised(MEETING)))?;
    socket.write_all(b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n")?;
    let mut agreed = [0; 32];
    socket.read_exact(&mut agreed)?;
    assert_eq!(&agreed[..], b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n", "both speak of TLS");
    let shown = CertifiedKey::new(vec![certificate], any_supported_type(&key).unwrap());
    let mut config = ClientConfig::builder_with_provider(default_provider().into())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_client_cert_resolver(Arc::new(Shown(Arc::new(shown))));
    config.alpn_protocols = vec![b"libp2p".to_vec()];
    let name = ServerName::IpAddress("127.0.0.1".try_into().unwrap());
    let mut stream = StreamOwned::new(ClientConnection::new(config.into(), name).unwrap(), socket);
    stream.write_all(b"\x13/multistream/1.0.0\n\x0d/yamux/1.0.0\n")?;
    Ok(stream)
}

pub fn certificate_of(keys: &Keypair) -> Identity {
    libp2p::tls::certificate::generate(keys).unwrap()
}

/// A certificate with a key of its own that claims to be `victim`'s. It is valid only if `signer` is the victim.
fn claimed(victim: &Keypair, signer: &Keypair) -> Identity {
    let key = rcgen::KeyPair::generate().unwrap();
    let signed = [b"libp2p-tls-handshake:", &key.public_key_der()[..]].concat();
    let (public, signature) = (victim.public().encode_protobuf(), signer.sign(&signed).unwrap());
    let mut content = vec![0x30, u8::try_from(4 + public.len() + signature.len()).unwrap()];
    for part in [&public, &signature] {
        content.extend([0x04, u8::try_from(part.len()).unwrap()]);
        content.extend(part);
    }
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let oid = [1, 3, 6, 1, 4, 1, 53_594, 1, 1];
    params.custom_extensions.push(rcgen::CustomExtension::from_oid_content(&oid, content));
    let certificate = params.self_signed(&key).unwrap();
    (certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

#[test]
fn a_certificate_without_its_key_is_refused() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let [victim, thief] = [(); 2].map(|()| Keypair::generate_ed25519());
    let peer_id = victim.public().to_peer_id().to_string();
    node.allow(&PeerCard { name: "victim".to_owned(), peer_id, builder_key: None });
    node.start();
    let meter = Meter::start(&node);
    let (certificate, _) = certificate_of(&victim);
    let (_, other_key) = certificate_of(&thief);
    let stolen = enter(&node, (certificate, other_key));
    assert!(stolen.is_err(), "the key of the certificate has to sign: {stolen:?}");
    let unproven = enter(&node, claimed(&victim, &thief));
    assert!(unproven.is_err(), "the victim has to have signed the key of the certificate: {unproven:?}");
    let connected = |words: &str| node.log().lines().any(|line| line.contains(words) && line.contains("connected"));
    assert!(!connected(&victim.public().to_peer_id().to_string()), "{}", node.log());
    // The same two, done correctly, are accepted: nothing else kept the others out.
    for identity in [certificate_of(&victim), claimed(&victim, &victim)] {
        assert_eq!(enter(&node, identity).unwrap(), b"\x13/multistream/1.0.0\n");
    }
    report::note("certificate without its key", meter.take(&node), |row| row.outcome = "handshake refused".to_owned());
}
