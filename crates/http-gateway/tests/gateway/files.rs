//! Tests logs, listings, single files and directories.

use std::collections::HashMap;

use crate::client::{TestGateway, nar_url, part, pattern, request, until};
use crate::memory::{Fault, MemorySubstituter, Nar};

const DERIVATION: &str = "0c0yaa1b2d3f4g5h6i7j8k9l0m1n2p3q-x.drv";

fn files(entries: &[(&str, Nar)]) -> MemorySubstituter {
    let files = entries.iter().map(|(name, file)| ((*name).to_owned(), file.clone())).collect();
    MemorySubstituter { files, ..MemorySubstituter::default() }
}

fn entry(name: &str) -> String {
    format!("serve/{}/{name}", part(1))
}

#[tokio::test]
async fn log_is_text_or_packed_as_the_client_wants() {
    let name = format!("log/{DERIVATION}");
    let gateway = TestGateway::start(files(&[(&name, Nar::good(pattern(200_000)))])).await;
    let answer = gateway.get(&format!("/{name}")).await;
    assert_eq!((answer.status, answer.body), (200, pattern(200_000)));
    assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    assert!(!answer.headers.contains_key("content-encoding"));
    let answer = gateway.get_with(&format!("/{name}"), &["Accept-Encoding: gzip, bzip2"]).await;
    assert_eq!((answer.headers["content-encoding"].as_str(), answer.body), ("bzip2", pattern(200_000)));
    for other in [format!("/log/{}-x", part(1)), "/log/x.drv".to_owned(), format!("/log/{}-y.drv", part(1))] {
        assert_eq!(gateway.get(&other).await.status, 404, "{other}");
    }
    until(|| gateway.metrics.counts().body_bytes == 400_000).await;
}

#[tokio::test]
async fn body_without_a_length_that_cannot_be_finished_has_no_last_chunk() {
    {
        let fault = Fault::Abort;
        let listing = Nar { fault: Some((100_000, fault)), ..Nar::good(pattern(200_000)) };
        let gateway = TestGateway::start(files(&[(&format!("{}.ls", part(1)), listing)])).await;
        let answer = gateway.get(&format!("/{}.ls", part(1))).await;
        assert!(answer.is_short, "{fault:?}");
        assert_eq!(answer.body, pattern(200_000)[..100_000]);
    }
    let first = Nar { fault: Some((0, Fault::Abort)), ..Nar::good(pattern(1000)) };
    let gateway = TestGateway::start(files(&[(&format!("{}.ls", part(1)), first)])).await;
    assert_eq!(gateway.get(&format!("/{}.ls", part(1))).await.status, 404, "nothing was sent yet");
}

#[tokio::test]
async fn connection_stays_open_after_a_body_in_chunks() {
    let gateway = TestGateway::start(files(&[(&format!("{}.ls", part(1)), Nar::good(pattern(1000)))])).await;
    let mut connection = gateway.connect().await;
    for _ in 0..3 {
        connection.send(request("GET", &format!("/{}.ls", part(1)), &[])).await;
        let answer = connection.answer().await;
        assert_eq!((answer.status, answer.body), (200, pattern(1000)));
        connection.send(request("HEAD", &format!("/{}.ls", part(1)), &[])).await;
        let head = connection.answer_to("HEAD").await;
        assert_eq!((head.status, head.header("content-length")), (200, ""), "the length is not known");
    }
}

#[tokio::test]
async fn ranges_and_validators_of_a_file() {
    let gateway = TestGateway::start(files(&[(&entry("a.html"), Nar::good(pattern(1000)))])).await;
    let path = format!("/{}", entry("a.html"));
    let whole = gateway.get(&path).await;
    let etag = whole.headers["etag"].clone();
    assert_eq!(whole.headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(whole.headers["content-security-policy"], "sandbox", "a stranger's page must not act as ours");
    assert_eq!(whole.headers["x-content-type-options"], "nosniff");
    for (headers, status, body) in [
        (vec!["Range: bytes=10-19".to_owned()], 206, &pattern(1000)[10..20]),
        (vec!["Range: bytes=-1".to_owned()], 206, &pattern(1000)[999..]),
        (vec!["Range: bytes=10-19".to_owned(), format!("If-Range: {etag}")], 206, &pattern(1000)[10..20]),
        (vec!["Range: bytes=10-19".to_owned(), "If-Range: \"x\"".to_owned()], 200, &pattern(1000)[..]),
        (vec!["Range: bytes=0-1,5-6".to_owned()], 200, &pattern(1000)[..]),
        (vec![format!("If-None-Match: {etag}")], 304, &[][..]),
        (vec!["If-None-Match: \"x\"".to_owned()], 200, &pattern(1000)[..]),
    ] {
        let headers: Vec<_> = headers.iter().map(String::as_str).collect();
        let answer = gateway.get_with(&path, &headers).await;
        assert_eq!((answer.status, answer.body.as_slice()), (status, body), "{headers:?}");
        assert_eq!(answer.headers["etag"], etag);
        assert_eq!(answer.headers["last-modified"], "Thu, 01 Jan 1970 00:00:01 GMT");
    }
    let answer = gateway.get_with(&path, &["Range: bytes=1000-"]).await;
    assert_eq!((answer.status, answer.headers["content-range"].as_str()), (416, "bytes */1000"));
    let mut connection = gateway.connect().await;
    connection.send(request("HEAD", &path, &[])).await;
    let head = connection.answer_to("HEAD").await;
    assert_eq!((head.status, head.headers["content-length"].as_str()), (200, "1000"));
}

#[tokio::test]
async fn empty_file_is_served() {
    let gateway = TestGateway::start(files(&[(&entry("empty"), Nar::good(Vec::new()))])).await;
    let answer = gateway.get(&format!("/{}", entry("empty"))).await;
    assert_eq!((answer.status, answer.headers["content-length"].as_str()), (200, "0"));
    assert_eq!(gateway.get_with(&format!("/{}", entry("empty")), &["Range: bytes=0-"]).await.status, 416);
}

#[tokio::test]
async fn directory_is_a_page_that_escapes_names() {
    let gateway = TestGateway::start(files(&[(&entry(""), Nar::good(Vec::new()))])).await;
    let answer = gateway.get(&format!("/serve/{}", part(1))).await;
    assert_eq!(answer.headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(answer.headers["content-security-policy"], "default-src 'none'");
    assert!(answer.text().contains("&lt;b&gt;/</a>") && !answer.text().contains("<b>"), "{}", answer.text());
}

#[tokio::test]
async fn nothing_above_a_store_path_is_asked_for() {
    let gateway = TestGateway::start(files(&[(&entry("a"), Nar::good(pattern(10)))])).await;
    for path in ["../a", "x/../a", "%2e%2e/a", "./a", "%2e/a", "a%2f", "a%00", "a%", "/a", "..%2fa", "a/.."] {
        assert_eq!(gateway.get(&format!("/{}", entry(path))).await.status, 404, "{path}");
    }
    assert_eq!(gateway.get(&format!("/{}", entry("%61"))).await.status, 200);
}

#[tokio::test]
async fn client_of_a_busy_gateway_is_told_to_ask_again() {
    let substituter = MemorySubstituter { is_busy: true, files: HashMap::new(), ..MemorySubstituter::default() };
    let gateway = TestGateway::start(substituter).await;
    let answer = gateway.get(&format!("/{}.ls", part(1))).await;
    assert_eq!((answer.status, answer.headers["retry-after"].as_str()), (429, "1"));
}

#[tokio::test]
async fn readiness_and_version_are_told() {
    let gateway = TestGateway::start(MemorySubstituter::default()).await;
    assert_eq!(gateway.get("/readyz").await.text(), "ok\n");
    assert!(gateway.get("/version").await.text().starts_with("narmesh "));
    let starting = MemorySubstituter { is_starting: true, ..MemorySubstituter::default() };
    let gateway = TestGateway::start(starting).await;
    assert_eq!((gateway.get("/readyz").await.status, gateway.get("/healthz").await.status), (404, 200));
}

#[tokio::test]
async fn nar_is_found_by_the_urls_of_other_programs() {
    let url = nar_url(1, 1000);
    let narinfo = format!("StorePath: x\nURL: {url}\nCompression: none\n");
    let substituter = MemorySubstituter {
        narinfos: HashMap::from([(part(1), narinfo.into()), (part(2), "no URL\n".into())]),
        nars: HashMap::from([(url, Nar::good(pattern(1000)))]),
        ..MemorySubstituter::default()
    };
    let gateway = TestGateway::start(substituter).await;
    let n = url.nar_hash.nix32();
    for path in [format!("/nar/{n}.nar?hash={}", part(1)), format!("/nar/{}-{n}.nar", part(1))] {
        assert_eq!(gateway.get(&path).await.body, pattern(1000), "{path}");
        assert_eq!(gateway.get_with(&path, &["Range: bytes=900-"]).await.body, pattern(1000)[900..], "{path}");
    }
    let other = nar_url(2, 1).nar_hash.nix32();
    for path in [
        format!("/nar/{other}.nar?hash={}", part(1)),
        format!("/nar/{}-{n}.nar", part(2)),
        format!("/nar/{}-{n}.nar", part(3)),
    ] {
        assert_eq!(gateway.get(&path).await.status, 404, "{path}");
    }
}
