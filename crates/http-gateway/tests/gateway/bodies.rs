//! Tests NAR bodies: whole, in part, and the ways in which they end.

use std::collections::HashMap;
use std::time::Duration;

use narmesh_http_gateway::{GatewayLimits, ListenerRole, NoNar};

use crate::client::{TestGateway, nar_url, part, pattern, request};
use crate::memory::{Fault, MemorySubstituter, Nar};

const SIZE: usize = 3_000_000;

fn url() -> String {
    format!("/{}", nar_url(1, SIZE))
}

async fn gateway_with(nar: Nar) -> TestGateway {
    TestGateway::start(MemorySubstituter {
        nars: HashMap::from([(nar_url(1, SIZE), nar)]),
        ..MemorySubstituter::default()
    })
    .await
}

#[tokio::test]
async fn whole_nar_is_served() {
    let gateway = gateway_with(Nar::good(pattern(SIZE))).await;
    let answer = gateway.get(&url()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-length"), SIZE.to_string());
    assert_eq!(answer.header("accept-ranges"), "bytes");
    assert_eq!(answer.header("content-encoding"), "");
    assert_eq!(answer.header("content-type"), "application/x-nix-nar");
    assert!(answer.body == pattern(SIZE), "the bytes differ");
    assert_eq!(gateway.metrics.counts().body_bytes, SIZE as u64);
}

#[tokio::test]
async fn single_ranges_are_served() {
    let gateway = gateway_with(Nar::good(pattern(SIZE))).await;
    let whole = pattern(SIZE);
    let mut connection = gateway.connect().await;
    let mut sent = 0;
    for (range, first, last) in [
        ("bytes=0-", 0, SIZE - 1),
        ("bytes=1-", 1, SIZE - 1),
        ("bytes=2999999-", SIZE - 1, SIZE - 1),
        ("bytes=100000-200000", 100_000, 200_000),
        ("bytes=5-5", 5, 5),
        ("bytes=2999990-9999999", 2_999_990, SIZE - 1),
        ("bytes=-10", SIZE - 10, SIZE - 1),
    ] {
        connection.send(request("GET", &url(), &[&format!("Range: {range}")])).await;
        let answer = connection.answer().await;
        assert_eq!(answer.status, 206, "{range}");
        assert_eq!(answer.header("content-range"), format!("bytes {first}-{last}/{SIZE}"));
        assert_eq!(answer.header("accept-ranges"), "bytes");
        assert!(answer.body == whole[first..=last], "{range}");
        sent += answer.body.len() as u64;
        assert_eq!(gateway.metrics.counts().body_bytes, sent, "what the range cuts off is not counted");
        assert_eq!(gateway.substituter.nar_calls.lock().unwrap().pop(), Some((first as u64, true)));
    }
}

#[tokio::test]
async fn other_ranges_get_the_whole_nar() {
    let gateway = gateway_with(Nar::good(pattern(SIZE))).await;
    let many = format!("bytes={}", vec!["0-"; 10_000].join(","));
    let several = ["bytes=0-1,4-5", "bytes=0-9,5-14", "bytes=0-1,9999999-", "bytes=9999999-,9999999-", &many];
    for range in several.into_iter().chain(["bytes=7-3", "lines=1-2", "bytes=x"]) {
        let answer = gateway.get_with(&url(), &[&format!("Range: {range}")]).await;
        let range = &range[..range.len().min(40)];
        assert_eq!((answer.status, answer.body.len()), (200, SIZE), "{range}");
        assert_eq!(answer.header("content-range"), "");
        assert_eq!(gateway.substituter.nar_calls.lock().unwrap().pop(), Some((0, true)));
    }
    assert_eq!(gateway.get(&url()).await.status, 200);
    assert_eq!(gateway.substituter.nar_calls.lock().unwrap().pop(), Some((0, false)));
}

#[tokio::test]
async fn range_beyond_the_end_is_refused() {
    let gateway = gateway_with(Nar::good(pattern(SIZE))).await;
    let range = [&*format!("Range: bytes={SIZE}-")];
    let answer = gateway.get_with(&url(), &range).await;
    assert_eq!((answer.status, answer.header("content-range")), (416, &*format!("bytes */{SIZE}")));
    let answer = gateway.get_with(&format!("/{}", nar_url(2, SIZE)), &range).await;
    assert_eq!(answer.status, 404, "gone comes before not satisfiable");
}

#[tokio::test]
async fn path_gone_when_resumed_is_404() {
    let fault = Some((1_000_000, Fault::Abort));
    let nar = Nar { fault, none_when_resumed: Some(NoNar::Gone), ..Nar::good(pattern(SIZE)) };
    let gateway = gateway_with(nar).await;
    let answer = gateway.get(&url()).await;
    assert!(answer.is_short);
    let answer = gateway.get_with(&url(), &["Range: bytes=1000000-"]).await;
    assert_eq!(answer.status, 404);
    let counts = gateway.metrics.counts();
    assert_eq!((counts.nar_served, counts.nar_aborted, counts.nar_absent), (0, 1, 1));
}

#[tokio::test]
async fn nar_that_cannot_be_had_now_is_to_be_asked_for_again() {
    let nar = Nar { none_when_resumed: Some(NoNar::NotNow), ..Nar::good(pattern(SIZE)) };
    let gateway = gateway_with(nar).await;
    let answer = gateway.get_with(&url(), &["Range: bytes=1000000-"]).await;
    assert_eq!((answer.status, answer.header("retry-after")), (429, "1"));
}

#[tokio::test]
async fn body_that_cannot_be_finished_is_closed_early() {
    for fault in [Fault::Abort, Fault::End] {
        for at in [1, 1_000_000, SIZE as u64 - 1] {
            let gateway = gateway_with(Nar { fault: Some((at, fault)), ..Nar::good(pattern(SIZE)) }).await;
            let mut connection = gateway.connect().await;
            connection.send(request("GET", &url(), &[])).await;
            let answer = connection.answer().await;
            assert_eq!((answer.status, answer.header("content-length")), (200, &*SIZE.to_string()));
            assert!(answer.is_short, "{fault:?} at {at}");
            assert_eq!(answer.body.len() as u64, at, "all bytes before the failure arrive");
            assert!(answer.body == pattern(SIZE)[..answer.body.len()]);
            assert!(connection.is_closed().await);
            assert_eq!(gateway.metrics.counts().nar_aborted, 1);
        }
    }
}

#[tokio::test]
async fn body_that_fails_before_its_first_byte_is_absent() {
    for fault in [Fault::Abort, Fault::End] {
        let gateway = gateway_with(Nar { fault: Some((0, fault)), ..Nar::good(pattern(SIZE)) }).await;
        let mut connection = gateway.connect().await;
        connection.send(request("GET", &url(), &[])).await;
        assert_eq!(connection.answer().await.status, 404);
        connection.send(request("GET", "/healthz", &[])).await;
        assert_eq!(connection.answer().await.status, 200, "the connection goes on");
    }
}

#[tokio::test]
async fn head_and_first_bytes_are_one_write() {
    let fault = Some((100, Fault::Pause(Duration::from_millis(500))));
    let gateway = gateway_with(Nar { fault, ..Nar::good(pattern(SIZE)) }).await;
    let stream = gateway.connect().await.stream;
    let mut socket = stream.into_std().unwrap();
    socket.set_nonblocking(false).unwrap();
    let read = tokio::task::spawn_blocking(move || {
        use std::io::{Read, Write};
        socket.write_all(request("GET", &url(), &[]).as_bytes()).unwrap();
        let mut buffer = [0; 8192];
        let length = socket.read(&mut buffer).unwrap();
        buffer[..length].to_vec()
    });
    let read = read.await.unwrap();
    let head_end = read.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(read[head_end..], pattern(SIZE)[..100]);
}

#[tokio::test]
async fn client_that_leaves_is_counted() {
    let fault = Some((1_000, Fault::Pause(Duration::from_millis(100))));
    let gateway = gateway_with(Nar { fault, ..Nar::good(pattern(SIZE)) }).await;
    let mut connection = gateway.connect().await;
    connection.send(request("GET", &url(), &[])).await;
    assert!(connection.more().await);
    drop(connection);
    crate::client::until(|| gateway.metrics.counts().nar_client_gone == 1).await;
}

#[tokio::test]
async fn listener_with_zstd_compresses_what_it_names_and_cuts_it_short_where_the_nar_ends() {
    let narinfo = format!("URL: {}\nCompression: none\nFileHash: x\nFileSize: 1\nNarSize: {SIZE}\n", nar_url(1, SIZE));
    let role = ListenerRole { zstd: true, ..ListenerRole::local() };
    for fault in [None, Some((2_000_000, Fault::Abort)), Some((2_000_000, Fault::End)), Some((0, Fault::Abort))] {
        let substituter = MemorySubstituter {
            narinfos: HashMap::from([(part(1), narinfo.clone().into())]),
            nars: HashMap::from([(nar_url(1, SIZE), Nar { fault, ..Nar::good(pattern(SIZE)) })]),
            ..MemorySubstituter::default()
        };
        let gateway = TestGateway::start_with(substituter, role.clone(), GatewayLimits::default()).await;
        let told = gateway.get(&format!("/{}.narinfo", part(1))).await;
        let url = format!("{}.zst", url());
        assert_eq!(told.text(), format!("URL: {}\nCompression: zstd\nNarSize: {SIZE}\n", &url[1..]));
        let answer = gateway.get_with(&url, &["Range: bytes=10-"]).await;
        match fault {
            Some((0, _)) => assert_eq!(answer.status, 404),
            Some(_) => assert!(answer.status == 200 && answer.is_short, "{fault:?}"),
            None => {
                assert_eq!((answer.status, answer.header("content-type")), (200, "application/zstd"));
                assert_eq!((answer.header("accept-ranges"), answer.header("content-length")), ("", ""));
                assert!(!answer.is_short && zstd::decode_all(&*answer.body).unwrap() == pattern(SIZE));
            }
        }
        assert_eq!(gateway.get(&format!("/{}.zst", nar_url(2, SIZE))).await.status, 404);
        let mut connection = gateway.connect().await;
        connection.send(request("HEAD", &url, &[])).await;
        let head = connection.answer_to("HEAD").await;
        assert_eq!((head.status, head.header("content-length")), (200, ""), "nobody knows its length before");
        assert_eq!(gateway.get(&format!("{url}.zst")).await.status, 404);
    }
    let plain = gateway_with(Nar::good(pattern(SIZE))).await;
    assert_eq!(plain.get(&format!("{}.zst", url())).await.status, 404, "only where narinfos name it");
}
