//! Tests what each endpoint answers.

use std::collections::HashMap;

use narmesh_http_gateway::{Endpoints, GatewayLimits, ListenerRole};

use crate::client::{TestGateway, nar_url, part, pattern, request};
use crate::memory::{MemorySubstituter, Nar};

fn substituter() -> MemorySubstituter {
    MemorySubstituter {
        narinfos: HashMap::from([(part(1), "in memory\n".into())]),
        asked: HashMap::from([(part(2), Some("asked for\n".into())), (part(3), None)]),
        nars: HashMap::from([(nar_url(1, 1000), Nar::good(pattern(1000)))]),
        ..MemorySubstituter::default()
    }
}

#[tokio::test]
async fn cache_info_has_the_settings_and_type() {
    let gateway = TestGateway::start(substituter()).await;
    let answer = gateway.get("/nix-cache-info").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text(), "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n");
    assert_eq!(answer.header("content-type"), "text/x-nix-cache-info");
    assert_eq!(gateway.get("/nix%2dcache%2Dinfo").await.status, 200);
}

#[tokio::test]
async fn narinfo_is_served_from_memory_and_after_asking() {
    let gateway = TestGateway::start(substituter()).await;
    for (byte, text) in [(1, "in memory\n"), (2, "asked for\n")] {
        let answer = gateway.get(&format!("/{}.narinfo", part(byte))).await;
        assert_eq!((answer.status, answer.text()), (200, text));
        assert_eq!(answer.header("content-type"), "text/x-nix-narinfo");
        assert_eq!(answer.header("content-length"), "10");
        assert_eq!(answer.header("transfer-encoding"), "");
    }
    for byte in [3, 4] {
        assert_eq!(gateway.get(&format!("/{}.narinfo", part(byte))).await.status, 404);
    }
    let counts = gateway.metrics.counts();
    assert_eq!((counts.narinfo_hits, counts.narinfo_misses, counts.body_bytes), (2, 2, 20));
}

#[tokio::test]
async fn narinfo_with_malformed_name_is_absent() {
    let gateway = TestGateway::start(substituter()).await;
    let good = part(1).to_string();
    let upper = good.to_ascii_uppercase();
    let names = [
        "x".to_owned(),
        String::new(),
        "e".repeat(32),
        good[1..].to_owned(),
        format!("{good}0"),
        format!("..%2f{good}"),
        format!("%00{}", &good[1..]),
        format!("../{good}"),
        format!("{good}%00"),
        "%".repeat(32),
        "x".repeat(10_000),
        format!("{good}-name"),
    ];
    for name in names.into_iter().chain((upper != good).then_some(upper)) {
        assert_eq!(gateway.get(&format!("/{name}.narinfo")).await.status, 404, "{name}");
    }
}

#[tokio::test]
async fn names_may_be_percent_encoded() {
    let gateway = TestGateway::start(substituter()).await;
    let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
    let answer = gateway.get(&format!("/{}", encode(&format!("{}.narinfo", part(1))))).await;
    assert_eq!((answer.status, answer.text()), (200, "in memory\n"));
    let url = nar_url(1, 1000).to_string();
    let file = url.strip_prefix("nar/").unwrap();
    let answer = gateway.get(&format!("/nar/{}?query=ignored", encode(file))).await;
    assert_eq!((answer.status, answer.body), (200, pattern(1000)));
}

#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let gateway = TestGateway::start(substituter()).await;
    let mut connection = gateway.connect().await;
    let nar = format!("/{}", nar_url(1, 1000));
    let narinfo = |byte| format!("/{}.narinfo", part(byte));
    for (path, status, length) in [
        (narinfo(1), 200, "10"),
        (narinfo(2), 200, "10"),
        (nar, 200, "1000"),
        ("/healthz".to_owned(), 200, "3"),
        ("/nix-cache-info".to_owned(), 200, "51"),
    ] {
        connection.send(request("HEAD", &path, &[])).await;
        let answer = connection.answer_to("HEAD").await;
        assert_eq!((answer.status, answer.header("content-length")), (status, length), "{path}");
    }
    for path in [narinfo(3), narinfo(4), format!("/{}", nar_url(2, 1000)), "/nothing".to_owned()] {
        connection.send(request("HEAD", &path, &[])).await;
        assert_eq!(connection.answer_to("HEAD").await.status, 404, "{path}");
    }
    assert!(gateway.substituter.nar_calls.lock().unwrap().is_empty(), "a HEAD opens no NAR");
    let counts = gateway.metrics.counts();
    assert_eq!((counts.nar_served, counts.nar_absent), (1, 1));
}

#[tokio::test]
async fn health_and_metrics_are_served() {
    let gateway = TestGateway::start(substituter()).await;
    assert_eq!(gateway.get("/healthz").await.text(), "ok\n");
    gateway.get(&format!("/{}.narinfo", part(1))).await;
    gateway.get(&format!("/{}.narinfo", part(9))).await;
    gateway.get(&format!("/{}", nar_url(1, 1000))).await;
    let answer = gateway.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"));
    let open = gateway.get_with("/metrics", &["Accept: application/openmetrics-text; version=1.0.0"]).await;
    assert!(open.header("content-type").starts_with("application/openmetrics-text"));
    assert!(open.text().ends_with("# EOF\n") && !answer.text().contains("# EOF"));
    for line in [
        "narmesh_gateway_requests_total{kind=\"narinfo\",outcome=\"served\"} 1",
        "narmesh_gateway_requests_total{kind=\"narinfo\",outcome=\"absent\"} 1",
        "narmesh_gateway_requests_total{kind=\"nar\",outcome=\"served\"} 1",
        "narmesh_gateway_body_bytes_total{kind=\"nar\"} 1000",
        "narmesh_gateway_body_bytes_total{kind=\"narinfo\"} 10",
        "narmesh_gateway_answer_seconds_count{kind=\"narinfo\"} 2",
    ] {
        assert!(answer.text().lines().any(|found| found == line), "{line} in\n{}", answer.text());
    }
}

#[tokio::test]
async fn unknown_paths_are_404_with_a_request_id() {
    let gateway = TestGateway::start(substituter()).await;
    for path in [
        "/",
        "/nothing",
        "/nar/",
        "/nar",
        "/nar/x.nar",
        "/.well-known/x",
        "/log/x.drv",
        "/%2e%2e/etc/passwd",
        "/../healthz",
    ] {
        let answer = gateway.get(path).await;
        assert_eq!(answer.status, 404, "{path}");
        let id = answer.header("x-request-id");
        assert!(!id.is_empty());
        assert_eq!(answer.text(), format!("404 Not Found\nrequest {id}\n"));
    }
}

#[tokio::test]
async fn other_methods_than_get_and_head_are_refused() {
    let gateway = TestGateway::start(substituter()).await;
    for path in ["/nix-cache-info", "/healthz", &format!("/{}.narinfo", part(1)), &format!("/{}", nar_url(1, 1000))] {
        for method in ["PUT", "POST", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW"] {
            let mut connection = gateway.connect().await;
            connection.send(request(method, path, &[])).await;
            let answer = connection.answer().await;
            assert_eq!((answer.status, answer.header("allow")), (405, "GET, HEAD"), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn upload_is_refused_without_reading_it() {
    let gateway = TestGateway::start(substituter()).await;
    let mut connection = gateway.connect().await;
    connection.send(request("PUT", "/nix-cache-info", &["Content-Length: 22", "Expect: 100-continue"])).await;
    let answer = connection.answer().await;
    assert_eq!(answer.status, 405, "and no 100 Continue before it");
    assert!(connection.is_closed().await, "what follows is not read as a request");
}

#[tokio::test]
async fn listener_serves_only_the_endpoints_of_its_role() {
    let endpoints = |substituter, health, metrics| Endpoints { substituter, health, metrics };
    for (role, expected) in [
        (endpoints(false, true, true), [404, 404, 404, 200, 200]),
        (endpoints(true, false, false), [200, 200, 200, 404, 404]),
    ] {
        let role = ListenerRole { endpoints: role, ..ListenerRole::local() };
        let gateway = TestGateway::start_with(substituter(), role, GatewayLimits::default()).await;
        let narinfo = format!("/{}.narinfo", part(1));
        let nar = format!("/{}", nar_url(1, 1000));
        let mut found = Vec::new();
        for path in ["/nix-cache-info", &narinfo, &nar, "/healthz", "/metrics"] {
            found.push(gateway.get(path).await.status);
        }
        assert_eq!(found, expected);
    }
}
