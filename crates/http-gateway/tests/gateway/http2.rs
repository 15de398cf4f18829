//! Tests HTTP/2, with the client of hyper.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use futures::future::join_all;
use http_body_util::BodyExt as _;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use narmesh_http_gateway::GatewayLimits;
use tokio::task::JoinHandle;

use crate::client::{PATIENCE, TestGateway, nar_url, part, pattern, until};
use crate::memory::{Fault, MemorySubstituter, Nar};
use crate::tls::Replaceable;

const SIZE: usize = 1_000_000;

struct Client {
    send: SendRequest<Body>,
    ended: JoinHandle<hyper::Result<()>>,
}

impl Client {
    async fn connect(tls: &Replaceable, gateway: &TestGateway) -> Self {
        Self::connect_with(tls, gateway, &mut Builder::new(TokioExecutor::new())).await
    }

    async fn connect_with(tls: &Replaceable, gateway: &TestGateway, builder: &mut Builder<TokioExecutor>) -> Self {
        let stream = tls.shake_hands(gateway, b"h2").await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (send, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        Self { send, ended: tokio::spawn(connection) }
    }

    async fn ask(&self, path: &str) -> hyper::Result<Response<Incoming>> {
        let request = Request::get(format!("https://127.0.0.1{path}")).body(Body::empty()).unwrap();
        let mut send = self.send.clone();
        send.ready().await?;
        send.send_request(request).await
    }

    async fn get(&self, path: &str) -> (StatusCode, Vec<u8>) {
        let answered = tokio::time::timeout(PATIENCE, async {
            let response = self.ask(path).await.unwrap();
            let status = response.status();
            (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
        });
        answered.await.expect("the gateway does not answer")
    }

    async fn wait_ended(self) {
        drop(tokio::time::timeout(PATIENCE, self.ended).await.expect("the gateway does not end the connection"));
    }
}

async fn start(nar: Nar, size: usize, limits: GatewayLimits) -> (Arc<Replaceable>, TestGateway) {
    let tls = Replaceable::new();
    let nars = HashMap::from([(nar_url(1, size), nar)]);
    let substituter = MemorySubstituter { nars, ..MemorySubstituter::default() };
    let gateway = TestGateway::start_tls(substituter, limits, tls.clone()).await;
    (tls, gateway)
}

fn nar_path(size: usize) -> String {
    format!("/{}", nar_url(1, size))
}

#[tokio::test]
async fn many_requests_are_answered_over_one_connection() {
    let (tls, gateway) = start(Nar::good(pattern(SIZE)), SIZE, GatewayLimits::default()).await;
    let client = Client::connect(&tls, &gateway).await;
    let (miss, nar) = (format!("/{}.narinfo", part(9)), nar_path(SIZE));
    let asked = (0..60).map(|count| client.get(if count % 3 == 0 { &nar } else { &miss }));
    for (count, (status, body)) in join_all(asked).await.into_iter().enumerate() {
        assert_eq!(status.as_u16(), if count % 3 == 0 { 200 } else { 404 });
        assert!(count % 3 != 0 || body == pattern(SIZE), "{} bytes", body.len());
    }
    assert_eq!(gateway.connections.get(), 1);
    let foreign = Request::get("https://rebound.example/healthz").body(Body::empty()).unwrap();
    let refused = client.send.clone().send_request(foreign).await.unwrap();
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    // HTTP/1 leaves the body of an answer to HEAD out by itself.
    for path in ["/nix-cache-info", &nar] {
        let head = Request::head(format!("https://127.0.0.1{path}")).body(Body::empty()).unwrap();
        let answer = client.send.clone().send_request(head).await.unwrap();
        assert!(answer.headers()["content-length"] != "0", "{path}");
        assert!(answer.into_body().collect().await.unwrap().to_bytes().is_empty(), "{path}");
    }
}

#[tokio::test]
async fn what_came_before_a_failure_reaches_the_client_and_others_go_on() {
    let nar = Nar { fault: Some((500_000, Fault::Abort)), ..Nar::good(pattern(SIZE)) };
    let (tls, gateway) = start(nar, SIZE, GatewayLimits::default()).await;
    let client = Client::connect(&tls, &gateway).await;
    let mut body = client.ask(&nar_path(SIZE)).await.unwrap().into_body();
    let mut came = Vec::new();
    let failure = loop {
        match body.frame().await {
            Some(Ok(frame)) => came.extend(frame.into_data().unwrap()),
            Some(Err(failure)) => break failure,
            None => panic!("it ended as if it were whole"),
        }
    };
    assert!(came == pattern(SIZE)[..500_000], "{} bytes came before {failure}", came.len());
    assert_eq!(client.get("/healthz").await.0, StatusCode::OK);
}

/// Asks for something else again and again until the connection is closed.
async fn move_until_closed(client: &Client) {
    let started = Instant::now();
    while client.ask("/healthz").await.is_ok() {
        assert!(started.elapsed() < PATIENCE, "what else moves must not keep a body that nobody takes");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_body_that_is_left_lying_is_closed_while_others_move() {
    let limits = GatewayLimits { stall_timeout: Duration::from_millis(500), ..GatewayLimits::default() };
    let (tls, gateway) = start(Nar::good(vec![0; 64 * SIZE]), 64 * SIZE, limits).await;
    let client = Client::connect(&tls, &gateway).await;
    let held = client.ask(&nar_path(64 * SIZE)).await.unwrap();
    move_until_closed(&client).await;
    until(|| gateway.metrics.counts().nar_client_gone == 1 && gateway.connections.get() == 0).await;
    drop(held);
}

#[tokio::test]
async fn when_memory_is_short_a_body_that_is_left_lying_is_closed_soon() {
    let tls = Replaceable::new();
    let nars = HashMap::from([(nar_url(1, 64 * SIZE), Nar::good(vec![0; 64 * SIZE]))]);
    let substituter = MemorySubstituter { nars, is_short: true, ..MemorySubstituter::default() };
    let limits = GatewayLimits { short_stall_timeout: Duration::from_millis(500), ..GatewayLimits::default() };
    let gateway = TestGateway::start_tls(substituter, limits, tls.clone()).await;
    let client = Client::connect(&tls, &gateway).await;
    let held = client.ask(&nar_path(64 * SIZE)).await.unwrap();
    move_until_closed(&client).await;
    drop(held);
}

#[tokio::test]
async fn pings_keep_no_connection_open_that_asks_nothing() {
    let limits = GatewayLimits { idle_timeout: Duration::from_millis(500), ..GatewayLimits::default() };
    let (tls, gateway) = start(Nar::good(Vec::new()), 0, limits).await;
    let mut builder = Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(Duration::from_millis(20)).keep_alive_while_idle(true);
    let client = Client::connect_with(&tls, &gateway, &mut builder).await;
    assert_eq!(client.get("/healthz").await.0, StatusCode::OK);
    client.wait_ended().await;
}

#[tokio::test]
async fn narinfos_do_not_wait_for_nars_that_nobody_takes() {
    let (tls, gateway) = start(Nar::good(vec![0; 64 * SIZE]), 64 * SIZE, GatewayLimits::default()).await;
    // As curl has it, a body that is not taken leaves room for others.
    let mut builder = Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(64 << 10).initial_connection_window_size(16 << 20);
    let client = Client::connect_with(&tls, &gateway, &mut builder).await;
    let path = nar_path(64 * SIZE);
    let held = join_all((0..32).map(|_| client.ask(&path))).await;
    let waiting = tokio::time::timeout(Duration::from_millis(200), client.ask("/healthz"));
    assert!(waiting.await.is_err(), "more bodies wait for their turn");
    assert_eq!(client.get(&format!("/{}.narinfo", part(9))).await.0, StatusCode::NOT_FOUND);
    drop(held);
    assert_eq!(client.get("/healthz").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_stop_lets_responses_finish() {
    let nar = Nar { fault: Some((500_000, Fault::Pause(Duration::from_millis(300)))), ..Nar::good(pattern(SIZE)) };
    let (tls, gateway) = start(nar, SIZE, GatewayLimits::default()).await;
    let client = Client::connect(&tls, &gateway).await;
    let response = client.ask(&nar_path(SIZE)).await.unwrap();
    let stopped = gateway.stop();
    assert!(response.into_body().collect().await.unwrap().to_bytes() == pattern(SIZE));
    tokio::time::timeout(PATIENCE, stopped).await.expect("it stops").unwrap();
}
