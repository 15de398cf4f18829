//! Tests web pages, smuggled requests and malformed heads.

use std::collections::HashMap;

use narmesh_http_gateway::{GatewayLimits, ListenerRole, Reads};
use tokio::io::AsyncWriteExt;

use crate::client::{TestGateway, nar_url, part, pattern, request};
use crate::memory::{MemorySubstituter, Nar};

fn substituter() -> MemorySubstituter {
    MemorySubstituter {
        narinfos: HashMap::from([(part(1), "secret\n".into())]),
        nars: HashMap::from([(nar_url(1, 1000), Nar::good(pattern(1000)))]),
        ..MemorySubstituter::default()
    }
}

/// Every endpoint, known and unknown.
fn paths() -> Vec<String> {
    let narinfo = |byte| format!("/{}.narinfo", part(byte));
    ["/nix-cache-info", "/healthz", "/metrics", "/nothing"]
        .map(str::to_owned)
        .into_iter()
        .chain([narinfo(1), narinfo(2), format!("/{}", nar_url(1, 1000))])
        .collect()
}

async fn status_of(gateway: &TestGateway, request: &str) -> u16 {
    let mut connection = gateway.connect().await;
    connection.send(request).await;
    let answer = connection.answer().await;
    assert!(answer.headers.keys().all(|name| !name.starts_with("access-control-")), "CORS: {:?}", answer.headers);
    if answer.status != 200 && answer.status != 404 {
        assert!(!answer.text().contains("secret"));
    }
    answer.status
}

#[tokio::test]
async fn foreign_host_is_refused_everywhere() {
    let gateway = TestGateway::start(substituter()).await;
    for path in paths() {
        for host in [
            "Host: evil.example\r\n",
            "Host: 127.0.0.1.evil.example:7281\r\n",
            "Host:\r\n",
            "",
            "Host: localhost\r\nHost: evil.example\r\n",
        ] {
            let request = format!("GET {path} HTTP/1.1\r\n{host}\r\n");
            assert_eq!(status_of(&gateway, &request).await, 403, "{request}");
        }
        let absolute = format!("GET http://evil.example{path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(status_of(&gateway, &absolute).await, 403, "{absolute}");
        for host in ["127.0.0.1", "127.0.0.1:1", "[::1]:7281", "LOCALHOST:80"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_ne!(status_of(&gateway, &request).await, 403, "{request}");
        }
    }
}

#[tokio::test]
async fn configured_host_name_is_accepted() {
    let role = ListenerRole { host_names: vec!["cache.lan".to_owned()], ..ListenerRole::local() };
    let gateway = TestGateway::start_with(substituter(), role, GatewayLimits::default()).await;
    for (host, status) in [("cache.lan", 200), ("cache.lan:7281", 200), ("x.cache.lan", 403)] {
        let request = format!("GET /{}.narinfo HTTP/1.1\r\nHost: {host}\r\n\r\n", part(1));
        assert_eq!(status_of(&gateway, &request).await, status, "{host}");
    }
}

#[tokio::test]
async fn web_page_is_refused_everywhere() {
    let gateway = TestGateway::start(substituter()).await;
    for path in paths() {
        for header in
            ["Origin: http://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site"]
        {
            for method in ["GET", "OPTIONS"] {
                let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n");
                assert_eq!(status_of(&gateway, &request).await, 403, "{request}");
            }
        }
        let typed = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: none\r\n\r\n");
        assert_ne!(status_of(&gateway, &typed).await, 403);
    }
}

#[tokio::test]
async fn proxy_requests_and_upgrades_are_not_served() {
    let gateway = TestGateway::start(substituter()).await;
    assert_eq!(status_of(&gateway, "CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n").await, 403);
    assert_eq!(status_of(&gateway, "CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n").await, 404);
    assert_eq!(status_of(&gateway, "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n").await, 404);
    let upgrade = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n";
    assert_eq!(status_of(&gateway, upgrade).await, 200, "an upgrade is not taken up");
}

/// Each request hides a second one, for a narinfo, where another reader of the first may not look for it.
#[tokio::test]
async fn smuggled_requests_are_not_answered() {
    let gateway = TestGateway::start(substituter()).await;
    let hidden = format!("GET /{}.narinfo HTTP/1.1\r\nHost: localhost\r\n\r\n", part(1));
    let length = hidden.len();
    let shapes = [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Transfer-Encoding: xchunked\r\n\r\n{hidden}"),
        format!("Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{hidden}"),
        format!("Content-Length: {length}\r\n\r\n{hidden}"),
        format!("Content-Length: +{length}\r\n\r\n{hidden}"),
        format!("Content-Length: -1\r\n\r\n{hidden}"),
        format!("Content-Length: 0x10\r\n\r\n{hidden}"),
        format!("Content-Length : 0\r\n\r\n{hidden}"),
        format!("X: y\n Transfer-Encoding: chunked\r\n\r\n{hidden}"),
        format!("X: \0\r\n\r\n{hidden}"),
    ];
    for path in ["/healthz".to_owned(), format!("/{}.narinfo", part(2)), "/nothing".to_owned()] {
        for shape in &shapes {
            let mut connection = gateway.connect().await;
            connection.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{shape}")).await;
            let answer = connection.answer().await;
            assert_eq!(answer.status, 400, "{path} {shape:?}");
            assert!(connection.is_closed().await, "{path} {shape:?}");
        }
    }
    assert_eq!(gateway.metrics.counts().narinfo_hits, 0);
}

#[tokio::test]
async fn malformed_and_oversized_heads_are_bounded() {
    let gateway = TestGateway::start(substituter()).await;
    let long = "a".repeat(1024 * 1024);
    // Nothing, if the gateway closes before it has read all of a head, so that the client is told of that only.
    let (large, malformed): (&[&str], &[&str]) = (&["431", "414", ""], &["400", ""]);
    for (head, expected) in [
        (format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"), large),
        (format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n"), large),
        (format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(1000)), &["431"]),
        ("GET /health\0z HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), &["400"]),
        ("GET  /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), &["400"]),
        ("GET /healthz HTTP/3.7\r\nHost: localhost\r\n\r\n".to_owned(), malformed),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), malformed),
        ("\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}".to_owned(), malformed),
    ] {
        let mut connection = gateway.connect().await;
        // The gateway can close before it has read all of it.
        drop(connection.stream.write_all(head.as_bytes()).await);
        let status = connection.status_line().await;
        assert!(expected.contains(&status.as_str()), "{:.60}: {status:?}", head.escape_debug());
        while connection.more().await {}
    }
    let answer = gateway.get(&format!("/{}.narinfo", part(1))).await;
    assert_eq!((answer.status, answer.text()), (200, "secret\n"));
}

/// All spellings of a parent directory or of a hidden end are absent like any unknown path and never reach the substituter.
#[tokio::test]
async fn path_traversal_is_an_absent_path() {
    let gateway = TestGateway::start(substituter()).await;
    let (narinfo, nar) = (format!("{}.narinfo", part(1)), nar_url(1, 1000).to_string());
    let ways = [
        "..",
        "%2e%2e",
        "%2E.",
        ".%2e",
        "%252e%252e",
        "..%2f",
        "%2e%2e%2f",
        "..%5c",
        "..\\",
        "%c0%ae%c0%ae",
        "%uff0e%uff0e",
        "%ff",
        "%e2%80%ae",
    ];
    let ends = ["%00", "%0a", "%0d%0a", "%0d%0aHost:%20x", "%", "%0", "%zz", ";", ";/..", "%3f", "%23", "%20", "%09"];
    let mut paths: Vec<String> = ways
        .iter()
        .flat_map(|way| {
            [
                format!("/{way}/{narinfo}"),
                format!("/nar/{way}/{narinfo}"),
                format!("/{way}/etc/passwd"),
                format!("/nar/{way}{nar}"),
            ]
        })
        .collect();
    paths.extend(ends.iter().flat_map(|end| {
        [
            format!("/{narinfo}{end}"),
            format!("/{end}{narinfo}"),
            format!("/{nar}{end}"),
            format!("/{}{end}.narinfo", part(1)),
        ]
    }));
    paths.extend(["//", "///", "/./", "/nar/./"].map(|prefix| format!("{prefix}{narinfo}")));
    for path in paths {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(status_of(&gateway, &request).await, 404, "{path}");
    }
    assert_eq!(gateway.metrics.counts().narinfo_hits, 0);
}

/// Up to the limit of a head a long path is only unknown; beyond it the connection ends. Neither gives a server error.
#[tokio::test]
async fn paths_of_any_length_are_harmless() {
    let gateway = TestGateway::start(substituter()).await;
    for bytes in [1_000, 10_000, 60_000, 100_000, 1_000_000] {
        for path in [format!("/{}.narinfo", "0".repeat(bytes)), format!("/{}", "%2e%2e/".repeat(bytes / 7))] {
            let mut connection = gateway.connect().await;
            // The gateway can close before it has read all of it.
            drop(connection.stream.write_all(request("GET", &path, &[]).as_bytes()).await);
            let status = connection.status_line().await;
            let expected: &[&str] = if bytes <= 60_000 { &["404"] } else { &["414", "431", ""] };
            assert!(expected.contains(&status.as_str()), "{bytes} bytes: {status:?}");
        }
    }
    assert_eq!(gateway.get(&format!("/{}.narinfo", part(1))).await.status, 200);
}

/// Whatever the head of a well-formed narinfo request contains, the answer is one that Nix can handle: Nix up to 2.31
/// aborts a build on anything except 200, 403 and 404.
#[tokio::test]
async fn narinfo_request_is_answered_200_403_or_404() {
    let gateway = TestGateway::start(substituter()).await;
    let long = "x".repeat(30_000);
    let headers = [
        "Range: bytes=0-1",
        "Range: bytes=9-1",
        "Range: \u{7f}",
        "If-None-Match: *",
        "If-Range: x",
        "Expect: 100-continue",
        "Expect: x",
        "Accept: nonsense",
        "Accept-Encoding: \u{ff}",
        "Cookie: a=b; c",
        "TE: trailers",
        "Connection: keep-alive, x",
        "Upgrade: websocket",
        "Content-Length: 0",
        "Sec-Fetch-Site: cross-site",
        "Origin: x",
        "User-Agent: \u{e9}",
        "Via: \t",
        &format!("X: {long}"),
    ];
    for byte in [1, 2] {
        for header in headers {
            let path = format!("/{}.narinfo", part(byte));
            let answer = gateway.get_with(&path, &[header]).await;
            let expected = if header.starts_with("Sec-Fetch") || header.starts_with("Origin") {
                403
            } else if byte == 1 {
                200
            } else {
                404
            };
            // A control character in a header is not valid HTTP.
            let is_http = !header.contains('\u{7f}');
            assert_eq!(answer.status, if is_http { expected } else { 400 }, "{header}");
        }
    }
}

/// Takes one token for everything, and one for the own store.
#[derive(Debug)]
pub(crate) struct TwoTokens;

impl narmesh_http_gateway::Access for TwoTokens {
    fn admit(&self, token: &[u8]) -> Option<Reads> {
        match token {
            b"good" => Some(Reads::Everything),
            b"narrow" => Some(Reads::OwnStore),
            _ => None,
        }
    }
}

#[tokio::test]
async fn without_a_token_nothing_is_told_and_wrong_ones_are_tried_at_a_bounded_rate() {
    let role = ListenerRole { access: Some(std::sync::Arc::new(TwoTokens)), ..ListenerRole::local() };
    let gateway = TestGateway::start_with(substituter(), role, GatewayLimits::default()).await;
    for path in paths() {
        let answer = gateway.get(&path).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, "Basic realm=\"narmesh\""), "{path}");
        assert_ne!(gateway.get_with(&path, &["Authorization: Bearer good"]).await.status, 401, "{path}");
        let narrow = gateway.get_with(&path, &["Authorization: Bearer narrow"]).await.status;
        assert_eq!(narrow, 404, "{path}: nobody said what the own store has");
    }
    let narinfo = format!("/{}.narinfo", part(1));
    // `any:good`, as curl sends it for a netrc file.
    assert_eq!(gateway.get_with(&narinfo, &["Authorization: Basic YW55Omdvb2Q="]).await.status, 200);
    let mut statuses = Vec::new();
    for _ in 0..12 {
        statuses.push(gateway.get_with(&narinfo, &["Authorization: Bearer bad"]).await.status);
    }
    assert_eq!(statuses[..10], [401; 10]);
    assert!(statuses[10..].contains(&429), "{statuses:?}");
    assert_eq!(gateway.get_with(&narinfo, &["Authorization: Bearer good"]).await.status, 429, "else it could go on");
}
