//! Tests how connections are kept, and how they end.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use narmesh_http_gateway::{GatewayLimits, ListenerRole};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{PATIENCE, TestGateway, nar_url, part, pattern, request, until};
use crate::memory::{Fault, MemorySubstituter, Nar};

const SIZE: usize = 1_000_000;

fn paused_nar(pause: Duration) -> MemorySubstituter {
    let nar = Nar { fault: Some((500_000, Fault::Pause(pause))), ..Nar::good(pattern(SIZE)) };
    MemorySubstituter { nars: HashMap::from([(nar_url(1, SIZE), nar)]), ..MemorySubstituter::default() }
}

async fn gateway(substituter: MemorySubstituter, limits: GatewayLimits) -> TestGateway {
    TestGateway::start_with(substituter, ListenerRole::local(), limits).await
}

fn healthz() -> String {
    request("GET", "/healthz", &[])
}

fn nar() -> String {
    request("GET", &format!("/{}", nar_url(1, SIZE)), &[])
}

#[tokio::test]
async fn connection_serves_many_requests() {
    let gateway = gateway(paused_nar(Duration::ZERO), GatewayLimits::default()).await;
    let mut connection = gateway.connect().await;
    for _ in 0..50 {
        connection.send(request("GET", &format!("/{}.narinfo", part(9)), &[])).await;
        assert_eq!(connection.answer().await.status, 404);
        connection.send(nar()).await;
        assert_eq!(connection.answer().await.body.len(), SIZE);
    }
    connection.send(request("GET", "/healthz", &["Connection: close"])).await;
    assert_eq!(connection.answer().await.status, 200);
    assert!(connection.is_closed().await);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let gateway = gateway(paused_nar(Duration::ZERO), GatewayLimits::default()).await;
    let mut connection = gateway.connect().await;
    let miss = request("GET", &format!("/{}.narinfo", part(9)), &[]);
    // The last request is not complete; the answers to the others must not wait for it.
    connection.send([healthz(), miss, nar(), healthz(), "GET /hea".to_owned()].concat()).await;
    for expected in [200, 404, 200, 200] {
        assert_eq!(connection.answer().await.status, expected);
    }
    connection.send("lthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(connection.answer().await.status, 200);
}

#[tokio::test]
async fn client_that_closes_its_sending_side_gets_its_answer() {
    let gateway = gateway(paused_nar(Duration::from_millis(50)), GatewayLimits::default()).await;
    let mut connection = gateway.connect().await;
    connection.send(nar()).await;
    connection.stream.shutdown().await.unwrap();
    assert_eq!(connection.answer().await.body.len(), SIZE);
    assert!(connection.is_closed().await);
}

#[tokio::test]
async fn slow_head_times_out() {
    let limits = GatewayLimits { header_read_timeout: Duration::from_millis(500), ..GatewayLimits::default() };
    let gateway = gateway(MemorySubstituter::default(), limits).await;

    let mut silent = gateway.connect().await;
    assert!(silent.is_closed().await, "a connection without a request");

    let mut dripping = gateway.connect().await;
    let started = Instant::now();
    for byte in healthz().bytes().cycle() {
        if dripping.stream.write_all(&[byte.max(b'a')]).await.is_err() {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "a byte now and then must not keep a head open");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let mut second = gateway.connect().await;
    second.send(healthz()).await;
    assert_eq!(second.answer().await.status, 200);
    tokio::time::sleep(Duration::from_millis(800)).await;
    second.send("GET /healthz HTTP/1.1\r\nHo").await;
    assert!(second.is_closed().await, "the head of a later request");
}

#[tokio::test]
async fn idle_connection_is_closed_by_the_idle_limit_only() {
    let limits = GatewayLimits {
        header_read_timeout: Duration::from_millis(50),
        idle_timeout: Duration::from_millis(1500),
        ..GatewayLimits::default()
    };
    let gateway = gateway(MemorySubstituter::default(), limits).await;
    let mut connection = gateway.connect().await;
    connection.send(healthz()).await;
    assert_eq!(connection.answer().await.status, 200);
    // The first request was answered by the router; these are answered from memory.
    for narinfo in [8, 9] {
        tokio::time::sleep(Duration::from_millis(300)).await;
        connection.send(request("GET", &format!("/{}.narinfo", part(narinfo)), &[])).await;
        assert_eq!(connection.answer().await.status, 404);
    }
    assert!(connection.is_closed().await);
}

#[tokio::test]
async fn client_that_stops_reading_is_closed() {
    let nar = Nar::good(vec![0; 64 * SIZE]);
    let nars = HashMap::from([(nar_url(1, 64 * SIZE), nar)]);
    let limits = GatewayLimits { stall_timeout: Duration::from_millis(300), ..GatewayLimits::default() };
    let gateway = gateway(MemorySubstituter { nars, ..MemorySubstituter::default() }, limits).await;
    let mut connection = gateway.connect().await;
    connection.send(request("GET", &format!("/{}", nar_url(1, 64 * SIZE)), &[])).await;
    until(|| gateway.metrics.counts().nar_client_gone == 1).await;
    let answer = connection.answer().await;
    assert!(answer.is_short);
    assert!(answer.body.len() < 1 << 20, "the kernel held {} bytes for it", answer.body.len());
}

/// One client reads nothing, one a little now and then, and one waits for a body that pauses.
#[tokio::test]
async fn when_memory_is_short_whoever_leaves_bytes_lying_is_closed_soon() {
    let paused = Nar { fault: Some((500_000, Fault::Pause(Duration::from_secs(5)))), ..Nar::good(pattern(SIZE)) };
    let nars =
        HashMap::from([(nar_url(1, 64 * SIZE), Nar::good(vec![0; 64 * SIZE])), (nar_url(2, SIZE), paused.clone())]);
    for is_short in [false, true] {
        let limits = GatewayLimits { short_stall_timeout: Duration::from_secs(1), ..GatewayLimits::default() };
        let substituter = MemorySubstituter { nars: nars.clone(), is_short, ..MemorySubstituter::default() };
        let gateway = gateway(substituter, limits).await;
        let [mut silent, mut dripping, mut waiting] =
            [gateway.connect().await, gateway.connect().await, gateway.connect().await];
        for large in [&mut silent, &mut dripping] {
            large.send(request("GET", &format!("/{}", nar_url(1, 64 * SIZE)), &[])).await;
        }
        waiting.send(request("GET", &format!("/{}", nar_url(2, SIZE)), &[])).await;
        let dripping = tokio::spawn(async move {
            let mut byte = [0];
            while dripping.stream.read_exact(&mut byte).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert_eq!(waiting.answer().await.body.len(), SIZE, "it took all that was there for it");
        let gone = if is_short { 2 } else { 0 };
        until(|| gateway.metrics.counts().nar_client_gone == gone).await;
        dripping.abort();
    }
}

#[tokio::test]
async fn longest_idle_connection_is_closed_at_the_limit() {
    let limits = GatewayLimits { connections_max: 3, ..GatewayLimits::default() };
    let gateway = gateway(paused_nar(Duration::from_secs(3)), limits).await;
    let mut connections = Vec::new();
    for _ in 0..3 {
        let mut connection = gateway.connect().await;
        connection.send(healthz()).await;
        assert_eq!(connection.answer().await.status, 200);
        connections.push(connection);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // One connection waits for the rest of a NAR, then the others are used again. So its bytes moved
    // least recently, but it is busy.
    connections[1].send(nar()).await;
    assert!(connections[1].more().await);
    for idle in [2, 0] {
        tokio::time::sleep(Duration::from_millis(20)).await;
        connections[idle].send(healthz()).await;
        assert_eq!(connections[idle].answer().await.status, 200);
    }

    let mut fourth = gateway.connect().await;
    fourth.send(healthz()).await;
    assert_eq!(fourth.answer().await.status, 200);
    assert!(connections[2].is_closed().await);
    assert_eq!(connections[1].answer().await.body.len(), SIZE, "a body under way is not touched");
    connections[0].send(healthz()).await;
    assert_eq!(connections[0].answer().await.status, 200);
}

/// All clients in a test belong to one user.
#[tokio::test]
async fn one_local_user_cannot_exceed_the_user_limit() {
    let limits = GatewayLimits { connections_max: 100, connections_per_user_max: 8, ..GatewayLimits::default() };
    let gateway = gateway(MemorySubstituter::default(), limits).await;
    let mut held = Vec::new();
    for _ in 0..30 {
        let mut connection = gateway.connect().await;
        connection.send(healthz()).await;
        assert_eq!(connection.answer().await.status, 200);
        held.push(connection);
    }
    until(|| format!("{:?}", gateway.metrics).contains("open_connections: Gauge { value: 8,")).await;
    assert!(held[0].is_closed().await);
    held[29].send(healthz()).await;
    assert_eq!(held[29].answer().await.status, 200);
}

#[tokio::test]
async fn new_connection_is_never_refused() {
    let limits = GatewayLimits { connections_max: 8, ..GatewayLimits::default() };
    let gateway = gateway(MemorySubstituter::default(), limits).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut connection = gateway.connect().await;
        connection.send(healthz()).await;
        assert_eq!(connection.answer().await.status, 200);
        held.push(connection);
    }
    let metrics = gateway.get("/metrics").await;
    assert!(
        metrics.text().contains("narmesh_gateway_closed_connections_total{reason=\"limit\"} 93\n"),
        "{}",
        metrics.text()
    );
    // The task of the connection closed last may still be ending.
    until(|| format!("{:?}", gateway.metrics).contains("open_connections: Gauge { value: 8,")).await;
}

#[tokio::test]
async fn shutdown_finishes_a_body_and_accepts_no_connection() {
    let gateway = gateway(paused_nar(Duration::from_millis(300)), GatewayLimits::default()).await;
    let mut idle = gateway.connect().await;
    idle.send(healthz()).await;
    assert_eq!(idle.answer().await.status, 200);
    let mut busy = gateway.connect().await;
    busy.send(nar()).await;
    assert!(busy.more().await);

    let address = gateway.address;
    let stopped = gateway.stop();
    assert!(idle.is_closed().await);
    let refused = tokio::net::TcpStream::connect(address).await;
    assert!(refused.is_err(), "nobody listens any more");
    let answer = busy.answer().await;
    assert!(answer.body == pattern(SIZE) && !answer.is_short);
    assert!(busy.is_closed().await);
    stopped.await.unwrap();
}

#[tokio::test]
async fn shutdown_answers_who_has_just_connected_and_waits_for_nobody_who_says_nothing() {
    let gateway = gateway(MemorySubstituter::default(), GatewayLimits::default()).await;
    let mut connected = gateway.connect().await;
    let mut silent = gateway.connect().await;
    until(|| gateway.connections.get() == 2).await;
    let stopped = gateway.stop();
    tokio::time::sleep(Duration::from_millis(100)).await;
    connected.send(healthz()).await;
    assert_eq!(connected.answer().await.status, 200, "its request was on its way");
    assert!(connected.is_closed().await && silent.is_closed().await);
    tokio::time::timeout(PATIENCE, stopped).await.unwrap().unwrap();
}

#[tokio::test]
async fn shutdown_ends_after_the_grace_time() {
    let limits = GatewayLimits { shutdown_grace: Duration::from_millis(200), ..GatewayLimits::default() };
    let gateway = gateway(paused_nar(Duration::from_secs(3600)), limits).await;
    let mut busy = gateway.connect().await;
    busy.send(nar()).await;
    assert!(busy.more().await);
    let stopped = gateway.stop();
    assert!(busy.answer().await.is_short);
    tokio::time::timeout(PATIENCE, stopped).await.unwrap().unwrap();
}
