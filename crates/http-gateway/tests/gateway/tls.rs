//! Tests a listener whose clients speak TLS.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use narmesh_http_gateway::{GatewayLimits, TlsSettings};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::{Connection, TestGateway, nar_url, part, pattern, request, until};
use crate::memory::{Fault, MemorySubstituter, Nar};

const SIZE: usize = 1_000_000;

/// A certificate that certifies itself, and may be replaced.
#[derive(Debug)]
pub(crate) struct Replaceable(RwLock<(Arc<ServerConfig>, CertificateDer<'static>)>);

impl Replaceable {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(RwLock::new(make())))
    }

    fn replace(&self) {
        *self.0.write().unwrap() = make();
    }

    fn certificate(&self) -> CertificateDer<'static> {
        self.0.read().unwrap().1.clone()
    }

    /// Connects to a gateway that has to have the certificate of now.
    async fn connect(&self, gateway: &TestGateway) -> io::Result<Connection<TlsStream<TcpStream>>> {
        Ok(Connection::new(self.shake_hands(gateway, b"http/1.1").await?))
    }

    /// The same, for a version of HTTP.
    pub(crate) async fn shake_hands(&self, gateway: &TestGateway, version: &[u8]) -> io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![version.to_vec()];
        let stream = TcpStream::connect(gateway.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

impl TlsSettings for Replaceable {
    fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.read().unwrap().0)
    }
}

fn make() -> (Arc<ServerConfig>, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let certificate = CertificateDer::from(made.cert.der().to_vec());
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.key_pair.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(vec![certificate.clone()], key).unwrap();
    config.alpn_protocols = [&b"h2"[..], b"http/1.1"].map(Vec::from).into();
    (Arc::new(config), certificate)
}

fn nars(nar: Nar, size: usize) -> MemorySubstituter {
    MemorySubstituter { nars: HashMap::from([(nar_url(1, size), nar)]), ..MemorySubstituter::default() }
}

fn nar_request(size: usize) -> String {
    request("GET", &format!("/{}", nar_url(1, size)), &[])
}

fn healthz() -> String {
    request("GET", "/healthz", &[])
}

#[tokio::test]
async fn requests_are_answered_over_tls() {
    let tls = Replaceable::new();
    let nar = nars(Nar::good(pattern(SIZE)), SIZE);
    let gateway = TestGateway::start_tls(nar, GatewayLimits::default(), tls.clone()).await;
    let mut connection = tls.connect(&gateway).await.unwrap();
    for _ in 0..20 {
        connection.send(request("GET", &format!("/{}.narinfo", part(9)), &[])).await;
        assert_eq!(connection.answer().await.status, 404);
        connection.send(nar_request(SIZE)).await;
        assert!(connection.answer().await.body == pattern(SIZE));
    }
    connection.send(request("GET", "/healthz", &["Connection: close"])).await;
    assert_eq!(connection.answer().await.status, 200);
    assert!(connection.is_closed().await);
}

#[tokio::test]
async fn what_came_before_a_failure_reaches_the_client() {
    let tls = Replaceable::new();
    let nar = Nar { fault: Some((500_000, Fault::Abort)), ..Nar::good(pattern(SIZE)) };
    let gateway = TestGateway::start_tls(nars(nar, SIZE), GatewayLimits::default(), tls.clone()).await;
    let mut connection = tls.connect(&gateway).await.unwrap();
    connection.send(nar_request(SIZE)).await;
    let answer = connection.answer().await;
    assert!(answer.is_short);
    assert!(answer.body == pattern(SIZE)[..500_000], "{} bytes came", answer.body.len());
}

#[tokio::test]
async fn new_connections_show_a_certificate_that_was_replaced_and_old_ones_go_on() {
    let (tls, before) = (Replaceable::new(), Replaceable::new());
    let gateway = TestGateway::start_tls(MemorySubstituter::default(), GatewayLimits::default(), tls.clone()).await;
    assert!(before.connect(&gateway).await.is_err(), "another certificate");
    let mut old = tls.connect(&gateway).await.unwrap();
    tls.replace();
    let mut new = tls.connect(&gateway).await.unwrap();
    for connection in [&mut old, &mut new] {
        connection.send(healthz()).await;
        assert_eq!(connection.answer().await.status, 200);
    }
}

#[tokio::test]
async fn plain_http_is_told_to_use_tls_and_garbage_is_closed() {
    let tls = Replaceable::new();
    let gateway = TestGateway::start_tls(MemorySubstituter::default(), GatewayLimits::default(), tls.clone()).await;
    let mut plain = gateway.connect().await;
    plain.send(healthz()).await;
    let answer = plain.answer().await;
    assert_eq!((answer.status, answer.text()), (400, "this port speaks TLS: ask it by https://\n"));
    assert!(plain.is_closed().await);

    for garbage in [&b"\x00\x01\x02"[..], b"\x16\x03\x01\xff\xff garbage", b"\x80\x2e\x01\x03\x01", b"get / \r\n\r\n"] {
        let mut connection = gateway.connect().await;
        connection.send(garbage).await;
        connection.stream.shutdown().await.unwrap();
        while connection.more().await {}
    }
    until(|| gateway.connections.get() == 0).await;
}

#[tokio::test]
async fn slow_handshake_times_out() {
    let limits = GatewayLimits { tls_handshake_timeout: Duration::from_millis(500), ..GatewayLimits::default() };
    let tls = Replaceable::new();
    let gateway = TestGateway::start_tls(MemorySubstituter::default(), limits, tls.clone()).await;
    let (mut silent, mut dripping) = (gateway.connect().await, gateway.connect().await);
    let mut good = tls.connect(&gateway).await.unwrap();
    assert!(silent.is_closed().await, "a client that says nothing");
    let dripped = tokio::time::timeout(crate::client::PATIENCE, async {
        // The beginning of a handshake of 16 KiB that never ends.
        let mut head = b"\x16\x03\x01\x3f\xff\x01\x00\x3f\xfb".iter().copied().chain(std::iter::repeat(0));
        while dripping.stream.write_all(&[head.next().unwrap()]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    dripped.await.expect("a byte now and then must not keep a handshake open");
    // The time of a handshake is not that of what follows.
    good.send(healthz()).await;
    assert_eq!(good.answer().await.status, 200);
}

#[tokio::test]
async fn clients_that_do_not_shake_hands_shut_nobody_out() {
    let limits = GatewayLimits { connections_max: 8, connections_per_user_max: 8, ..GatewayLimits::default() };
    let tls = Replaceable::new();
    let gateway = TestGateway::start_tls(MemorySubstituter::default(), limits, tls.clone()).await;
    let mut held = Vec::new();
    for count in 0..50 {
        let mut connection = gateway.connect().await;
        if count % 2 == 0 {
            connection.send(b"\x16\x03\x01").await;
        }
        held.push(connection);
    }
    let mut good = tls.connect(&gateway).await.unwrap();
    good.send(healthz()).await;
    assert_eq!(good.answer().await.status, 200);
    until(|| gateway.connections.get() <= 8).await;
}

#[tokio::test]
async fn client_that_stops_reading_is_closed() {
    let limits = GatewayLimits { stall_timeout: Duration::from_millis(300), ..GatewayLimits::default() };
    let tls = Replaceable::new();
    let gateway = TestGateway::start_tls(nars(Nar::good(vec![0; 64 * SIZE]), 64 * SIZE), limits, tls.clone()).await;
    let mut connection = tls.connect(&gateway).await.unwrap();
    connection.send(nar_request(64 * SIZE)).await;
    until(|| gateway.metrics.counts().nar_client_gone == 1).await;
    let answer = connection.answer().await;
    assert!(answer.is_short);
    assert!(answer.body.len() < 1 << 20, "{} bytes were held for it", answer.body.len());
}
