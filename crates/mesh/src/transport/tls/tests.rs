use super::*;
use futures::{AsyncReadExt, AsyncWriteExt};
use rustls::CipherSuite;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

type Pipe = Compat<tokio::io::DuplexStream>;

fn pipe() -> (Pipe, Pipe) {
    let (one, other) = tokio::io::duplex(64 << 10);
    (one.compat(), other.compat())
}

/// Both ends of a handshake: what the listener and what the dialler saw.
async fn handshake<L, D>(listener: L, dialler: D) -> (Result<L::Output, L::Error>, Result<D::Output, D::Error>)
where
    L: InboundConnectionUpgrade<Pipe, Info = &'static str>,
    D: OutboundConnectionUpgrade<Pipe, Info = &'static str>,
{
    let (here, there) = pipe();
    futures::join!(listener.upgrade_inbound(here, "/tls/1.0.0"), dialler.upgrade_outbound(there, "/tls/1.0.0"))
}

fn suite(stream: &TlsStream<Pipe>) -> CipherSuite {
    stream.get_ref().1.negotiated_cipher_suite().unwrap().suite()
}

#[tokio::test]
async fn both_sides_learn_who_is_there_and_use_aes() {
    let [a, b] = [(); 2].map(|()| Keypair::generate_ed25519());
    let of = |keypair| Tls::with_suites(keypair, AES_FIRST).unwrap();
    let (listened, dialled) = handshake(of(&a), of(&b)).await;
    let ((seen_by_a, mut here), (seen_by_b, mut there)) = (listened.unwrap(), dialled.unwrap());
    assert_eq!(seen_by_a, b.public().to_peer_id());
    assert_eq!(seen_by_b, a.public().to_peer_id());
    assert_eq!(suite(&here), CipherSuite::TLS13_AES_128_GCM_SHA256);
    there.write_all(b"nar").await.unwrap();
    there.flush().await.unwrap();
    let mut read = [0; 3];
    here.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"nar");
}

#[tokio::test]
async fn speaks_with_the_stock_upgrade_both_ways() {
    let [a, b] = [(); 2].map(|()| Keypair::generate_ed25519());
    let stock = |keypair| libp2p::tls::Config::new(keypair).unwrap();
    let ours = |keypair| Tls::with_suites(keypair, AES_FIRST).unwrap();
    let (listened, dialled) = handshake(ours(&a), stock(&b)).await;
    assert_eq!(suite(&listened.unwrap().1), CipherSuite::TLS13_AES_128_GCM_SHA256, "the listener's order counts");
    assert_eq!(dialled.unwrap().0, a.public().to_peer_id());
    let (listened, dialled) = handshake(stock(&a), ours(&b)).await;
    assert_eq!(listened.unwrap().0, b.public().to_peer_id());
    assert_eq!(dialled.unwrap().0, a.public().to_peer_id());
}

#[tokio::test]
async fn without_aes_instructions_both_sides_use_chacha() {
    let [a, b] = [(); 2].map(|()| Keypair::generate_ed25519());
    let (weak, strong) = (Tls::with_suites(&a, CHACHA_ONLY).unwrap(), Tls::with_suites(&b, AES_FIRST).unwrap());
    let (listened, dialled) = handshake(weak.clone(), strong.clone()).await;
    assert_eq!(suite(&listened.unwrap().1), CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    dialled.unwrap();
    let (listened, dialled) = handshake(strong, weak).await;
    assert_eq!(suite(&listened.unwrap().1), CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    dialled.unwrap();
}

/// A node that shows another's certificate and signs with a key of its own.
fn impostor(victim: &Keypair) -> Tls {
    let (certificate, _) = certificate::generate(victim).unwrap();
    let (_, own_key) = certificate::generate(&Keypair::generate_ed25519()).unwrap();
    with_certificates(vec![certificate], &own_key)
}

fn with_certificates(certificates: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'static>) -> Tls {
    let honest = Tls::new(&Keypair::generate_ed25519()).unwrap();
    let signing = aws_lc_rs::sign::any_ecdsa_type(key).unwrap();
    let shown = Arc::new(SingleCertAndKey::from(CertifiedKey::new(certificates, signing)));
    let (mut server, mut client) = ((*honest.server).clone(), (*honest.client).clone());
    server.cert_resolver = Arc::clone(&shown) as _;
    client.client_auth_cert_resolver = shown;
    Tls { server: Arc::new(server), client: Arc::new(client) }
}

#[tokio::test]
async fn a_certificate_without_its_key_is_refused_by_both_sides() {
    let victim = Keypair::generate_ed25519();
    let honest = || Tls::new(&Keypair::generate_ed25519()).unwrap();
    let (listened, _) = handshake(honest(), impostor(&victim)).await;
    assert!(matches!(listened, Err(TlsError::Handshake(_))), "as dialler");
    let (_, dialled) = handshake(impostor(&victim), honest()).await;
    assert!(matches!(dialled, Err(TlsError::Handshake(_))), "as listener");
}

#[tokio::test]
async fn a_chain_and_a_foreign_certificate_are_refused() {
    let honest = || Tls::new(&Keypair::generate_ed25519()).unwrap();
    let (certificate, key) = certificate::generate(&Keypair::generate_ed25519()).unwrap();
    let chain = with_certificates(vec![certificate.clone(), certificate.clone()], &key);
    assert!(handshake(honest(), chain.clone()).await.0.is_err());
    assert!(handshake(chain, honest()).await.1.is_err());
    // One bit of the extension's signature, of the node's public key, or of anything else.
    let bytes = certificate.as_ref();
    for position in (0..bytes.len()).step_by(7) {
        let mut changed = bytes.to_vec();
        changed[position] ^= 1;
        let forged = with_certificates(vec![CertificateDer::from(changed)], &key);
        assert!(handshake(honest(), forged).await.0.is_err(), "byte {position} of {}", bytes.len());
    }
}

#[tokio::test]
async fn no_session_is_resumed_and_no_secret_is_logged() {
    let [a, b] = [(); 2].map(|()| Keypair::generate_ed25519());
    let (listener, dialler) = (Tls::new(&a).unwrap(), Tls::new(&b).unwrap());
    for _ in 0..2 {
        let (listened, dialled) = handshake(listener.clone(), dialler.clone()).await;
        let (_, here) = listened.unwrap();
        dialled.unwrap();
        assert_eq!(here.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
    assert!(!listener.server.ticketer.enabled() && listener.server.send_tls13_tickets == 0);
    assert!(!listener.server.key_log.will_log("CLIENT_TRAFFIC_SECRET_0"));
    assert!(!dialler.client.key_log.will_log("CLIENT_TRAFFIC_SECRET_0"));
}
