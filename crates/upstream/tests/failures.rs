//! Caches that fail in every way that a server can, over real sockets: each failure is told by its kind, and what has to
//! follow from it does.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::settings;
use narmesh_protocol::HashPart;
use narmesh_upstream::{
    Compression, Credentials, DecoderMemory, FailureKind, HealthState, NarLocation, ProxyChoice, Upstream,
};
use sha2::{Digest as _, Sha256};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const NAR: &[u8] = &[7; 100_000];

/// A server whose answer to each request is bytes written as they are.
struct Server {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl Server {
    /// Gives each connection, with the head of its first request, to `serve`.
    fn start(serve: impl Fn(&mut TcpStream, &str) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, requests) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let (serve, counted) = (Arc::new(serve), Arc::clone(&requests));
        std::thread::spawn(move || {
            for mut connection in listener.incoming().flatten() {
                let (serve, counted) = (Arc::clone(&serve), Arc::clone(&counted));
                std::thread::spawn(move || {
                    while let Some(head) = read_head(&mut connection) {
                        counted.fetch_add(1, Ordering::Relaxed);
                        serve(&mut connection, &head);
                    }
                });
            }
        });
        Self { address, requests }
    }

    /// The same answer to everything; the connection is closed behind it.
    fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |connection, _| {
            connection.write_all(&answer).ok();
            connection.shutdown(Shutdown::Both).ok();
        })
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

fn read_head(connection: &mut TcpStream) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if connection.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8(head).unwrap())
}

fn upstream(server: &Server) -> Arc<Upstream> {
    Upstream::new(settings(&format!("http://{}", server.address))).unwrap()
}

fn part() -> HashPart {
    HashPart::parse("0123456789abcdfghijklmnpqrsvwxyz").unwrap()
}

fn ok(body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

fn location(compression: Compression, file_size: Option<u64>) -> NarLocation {
    NarLocation { url: "nar/x.nar".to_owned(), compression, file_size, file_hash: None }
}

async fn narinfo_failure(answer: impl Into<Vec<u8>>) -> FailureKind {
    let server = Server::answering(answer);
    upstream(&server).narinfo(&part()).await.unwrap_err().kind
}

/// Reads the whole NAR from byte `offset` on.
async fn read_nar(upstream: &Arc<Upstream>, location: &NarLocation, offset: u64) -> Result<Vec<u8>, FailureKind> {
    let memory = DecoderMemory::default().take(location.decoder_bytes(NAR.len() as u64)).await;
    let opened =
        upstream.nar((&part(), location), offset, NAR.len() as u64, memory).await.map_err(|failure| failure.kind)?;
    let (mut body, mut nar) = (opened.expect("the cache has it"), Vec::new());
    while body.read(&mut nar, 1 << 20).await.map_err(|failure| failure.kind)? > 0 {}
    Ok(nar)
}

async fn nar_failure(answer: impl Into<Vec<u8>>, location: NarLocation) -> FailureKind {
    let server = Server::answering(answer);
    read_nar(&upstream(&server), &location, 0).await.unwrap_err()
}

#[tokio::test]
async fn a_404_is_an_answer_and_so_are_403_and_410() {
    for status in ["404 Not Found", "403 Forbidden", "410 Gone"] {
        let server = Server::answering(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"));
        let upstream = upstream(&server);
        for _ in 0..5 {
            assert_eq!(upstream.narinfo(&part()).await.unwrap(), None, "{status}");
        }
        assert_eq!(upstream.report_health().state, HealthState::Up, "{status}");
    }
}

#[tokio::test]
async fn statuses_that_are_no_answers_are_told_apart() {
    let status = |line: &str| narinfo_failure(format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n"));
    assert_eq!(status("500 Internal Server Error").await, FailureKind::ServerError);
    assert_eq!(status("503 Service Unavailable").await, FailureKind::ServerError);
    assert_eq!(status("429 Too Many Requests\r\nRetry-After: 3").await, FailureKind::RateLimited);
    assert_eq!(status("401 Unauthorized").await, FailureKind::Unauthorized);
    assert_eq!(status("407 Proxy Authentication Required").await, FailureKind::Unauthorized);
    assert_eq!(status("204 No Content").await, FailureKind::UnexpectedStatus);
    assert_eq!(status("302 Found\r\nLocation: ftp://elsewhere/").await, FailureKind::Redirect);
    assert_eq!(status("302 Found").await, FailureKind::Redirect);
}

#[tokio::test]
async fn broken_and_silent_servers_are_told_apart() {
    assert_eq!(narinfo_failure("not HTTP at all\r\n\r\n").await, FailureKind::Interrupted);
    assert_eq!(narinfo_failure("").await, FailureKind::Interrupted);
    assert_eq!(narinfo_failure("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await, FailureKind::Interrupted);
    let silent = Server::start(|_, _| std::thread::sleep(Duration::from_secs(5)));
    let since = Instant::now();
    assert_eq!(upstream(&silent).narinfo(&part()).await.unwrap_err().kind, FailureKind::Timeout);
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = Upstream::new(settings(&format!("http://{closed}"))).unwrap();
    assert_eq!(refused.narinfo(&part()).await.unwrap_err().kind, FailureKind::Connect);
    let nameless = Upstream::new(settings("http://no-such-host.invalid")).unwrap();
    assert_eq!(nameless.narinfo(&part()).await.unwrap_err().kind, FailureKind::Dns);
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let tls = Upstream::new(settings(&format!("https://{}", plain.local_addr().unwrap()))).unwrap();
    std::thread::spawn(move || {
        for mut connection in plain.incoming().flatten() {
            connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").ok();
        }
    });
    assert_eq!(tls.narinfo(&part()).await.unwrap_err().kind, FailureKind::Tls);
}

#[tokio::test]
async fn an_endless_narinfo_ends_at_its_bound() {
    let server = Server::start(|connection, _| {
        connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok();
        while connection.write_all(&[b'x'; 1 << 16]).is_ok() {}
    });
    assert_eq!(upstream(&server).narinfo(&part()).await.unwrap_err().kind, FailureKind::BadNarInfo);
}

#[tokio::test]
async fn a_cache_that_only_fails_for_seconds_is_left_alone() {
    let server = Server::answering("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n");
    let upstream = upstream(&server);
    for _ in 0..50 {
        assert!(upstream.narinfo(&part()).await.is_err());
    }
    assert!(upstream.may_be_asked(), "this may be one moment");
    // A request on a connection that was closed meanwhile is sent a second time.
    assert!(server.requests() >= 50);
    assert_eq!(upstream.report_health().state, HealthState::Degraded);
    let started = Instant::now();
    while upstream.may_be_asked() && started.elapsed() < Duration::from_secs(60) {
        assert!(upstream.narinfo(&part()).await.is_err());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(upstream.report_health().state, HealthState::Down);
    let asked = server.requests();
    assert!(upstream.narinfo(&part()).await.is_err());
    assert_eq!(server.requests(), asked, "it is down");
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_costs_no_failure() {
    // Answers one request on each connection, and closes it when the next one comes.
    let server = Server::start(|connection, _| {
        connection.write_all(&ok(b"x")).ok();
        read_head(connection);
        connection.shutdown(Shutdown::Both).ok();
    });
    let upstream = upstream(&server);
    for _ in 0..4 {
        assert_eq!(upstream.narinfo(&part()).await.unwrap().unwrap(), b"x");
    }
}

#[tokio::test]
async fn a_nar_comes_whole_and_from_any_byte_with_and_without_ranges() {
    for understands_ranges in [false, true] {
        let server = Server::start(move |connection, head| {
            let from = head.lines().find_map(|line| {
                let range = line.to_ascii_lowercase();
                range.strip_prefix("range: bytes=")?.trim_end_matches('-').parse::<usize>().ok()
            });
            let answer = match from {
                Some(from) if understands_ranges => {
                    let rest = &NAR[from..];
                    let (last, all, bytes) = (NAR.len() - 1, NAR.len(), rest.len());
                    let head = format!(
                        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{last}/{all}\r\nContent-Length: {bytes}\r\n\r\n"
                    );
                    [head.as_bytes(), rest].concat()
                }
                _ => ok(NAR),
            };
            connection.write_all(&answer).ok();
        });
        let upstream = upstream(&server);
        for offset in [0, 1, 60_000, 99_999] {
            let rest = read_nar(&upstream, &location(Compression::None, None), offset).await.unwrap();
            assert!(rest == NAR[usize::try_from(offset).unwrap()..], "from byte {offset}");
        }
    }
}

#[tokio::test]
async fn nars_of_the_wrong_length_are_found_before_or_at_their_end() {
    let plain = || location(Compression::None, None);
    assert_eq!(nar_failure(ok(&NAR[1..]), plain()).await, FailureKind::WrongLength);
    assert_eq!(nar_failure(ok(&[NAR, b"x"].concat()), plain()).await, FailureKind::WrongLength);
    assert_eq!(nar_failure(ok(b"<html>Welcome to the airport</html>"), plain()).await, FailureKind::WrongLength);
    let without_length = [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", &NAR[..60_000]].concat();
    assert_eq!(nar_failure(without_length, plain()).await, FailureKind::Truncated);
    let cut = [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", NAR.len()).as_bytes(), &NAR[..60_000]].concat();
    assert_eq!(nar_failure(cut, plain()).await, FailureKind::Interrupted);
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nxxxx\r\n0\r\n\r\n";
    assert_eq!(nar_failure(*chunked, plain()).await, FailureKind::Truncated, "a clean end is not complete");
    let range = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-9/10\r\nContent-Length: 5\r\n\r\nxxxxx";
    let server = Server::answering(range);
    assert_eq!(read_nar(&upstream(&server), &plain(), 7).await.unwrap_err(), FailureKind::WrongLength);
}

#[tokio::test]
async fn a_compressed_nar_that_is_damaged_cut_or_too_long_is_told_so() {
    let packed = tokio::task::spawn_blocking(|| zstd::encode_all(NAR, 3).unwrap()).await.unwrap();
    let file = |bytes: u64| location(Compression::Zstd, Some(bytes));
    let server = Server::answering(ok(&packed));
    let size = packed.len() as u64;
    assert!(read_nar(&upstream(&server), &file(size), 0).await.unwrap() == NAR);
    assert!(read_nar(&upstream(&server), &file(size), 77_777).await.unwrap() == NAR[77_777..]);
    assert_eq!(nar_failure(ok(&packed), file(size + 1)).await, FailureKind::WrongLength);
    assert_eq!(nar_failure(ok(b"<html>Welcome</html>"), location(Compression::Zstd, None)).await, FailureKind::BadNar);
    let without_length = [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", &packed[..packed.len() / 2]].concat();
    assert_eq!(nar_failure(without_length, file(size)).await, FailureKind::Truncated);
}

#[tokio::test]
async fn a_file_that_is_not_the_one_of_the_narinfo_is_told_from_a_wrong_nar() {
    let packed = tokio::task::spawn_blocking(|| zstd::encode_all(NAR, 3).unwrap()).await.unwrap();
    let other = tokio::task::spawn_blocking(|| zstd::encode_all(NAR, 19).unwrap()).await.unwrap();
    let named = |digest: [u8; 32]| NarLocation { file_hash: Some(digest), ..location(Compression::Zstd, None) };
    let right: [u8; 32] = Sha256::digest(&packed).into();
    let too_long = [&packed[..], &packed[..]].concat();
    for (file, kinds) in
        [(&packed, vec![]), (&other, vec![FailureKind::WrongFileHash]), (&too_long, vec![FailureKind::WrongLength])]
    {
        let server = Server::answering(ok(file));
        let upstream = upstream(&server);
        assert!(read_nar(&upstream, &named(right), 0).await.unwrap() == NAR, "the NAR itself is right");
        let failures = upstream.report_health().failures;
        assert_eq!(failures.keys().copied().collect::<Vec<_>>(), kinds);
    }
}

#[tokio::test]
async fn a_file_whose_end_does_not_come_delays_no_nar() {
    let packed = tokio::task::spawn_blocking(|| zstd::encode_all(NAR, 3).unwrap()).await.unwrap();
    let server = Server::start(move |connection, _| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", packed.len() + 1);
        connection.write_all(&[head.as_bytes(), &packed].concat()).ok();
        std::thread::sleep(Duration::from_secs(5));
    });
    let upstream = upstream(&server);
    let location = NarLocation { file_hash: Some([0; 32]), ..location(Compression::Zstd, None) };
    assert!(read_nar(&upstream, &location, 0).await.unwrap() == NAR);
    assert!(upstream.report_health().failures.is_empty(), "nothing is known of the file");
}

#[tokio::test]
async fn an_endless_body_gives_no_more_than_the_nar() {
    let server = Server::start(|connection, _| {
        connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok();
        while connection.write_all(&[7; 1 << 16]).is_ok() {}
    });
    let upstream = upstream(&server);
    assert!(read_nar(&upstream, &location(Compression::None, None), 0).await.unwrap() == NAR);
    assert_eq!(upstream.report_health().failures[&FailureKind::WrongLength], 1);
}

#[tokio::test]
async fn a_frozen_body_ends_after_the_stall_timeout() {
    let server = Server::start(|connection, _| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", NAR.len());
        connection.write_all(&[head.as_bytes(), &NAR[..1_000]].concat()).ok();
        std::thread::sleep(Duration::from_secs(5));
    });
    let upstream = upstream(&server);
    assert_eq!(read_nar(&upstream, &location(Compression::None, None), 0).await.unwrap_err(), FailureKind::Timeout);
}

#[tokio::test]
async fn credentials_go_to_the_cache_and_not_where_it_redirects() {
    let saw_credentials = |head: &str| head.to_ascii_lowercase().contains("authorization: bearer secret");
    let store = Server::start(move |connection, head| {
        let answer = if saw_credentials(head) { ok(b"stolen") } else { ok(b"text") };
        connection.write_all(&answer).ok();
    });
    let leads_to = store.address;
    let cache = Server::start(move |connection, head| {
        let answer = if saw_credentials(head) {
            format!(
                "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{leads_to}/signed\r\nContent-Length: 0\r\n\r\n"
            )
        } else {
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n".to_owned()
        };
        connection.write_all(answer.as_bytes()).ok();
    });
    let mut settings = settings(&format!("http://{}", cache.address));
    settings.credentials = Some(Credentials::Token("secret".to_owned()));
    let text = Upstream::new(settings).unwrap().narinfo(&part()).await.unwrap().unwrap();
    assert_eq!(String::from_utf8(text).unwrap(), "text");
}

/// A proxy that answers a request for any URL of `begins` with a redirect to `leads_to`, and every other one with "text".
fn redirecting_proxy(begins: &'static str, leads_to: String) -> Server {
    Server::start(move |connection, head| {
        let answer = if head.starts_with(&format!("GET {begins}")) {
            format!("HTTP/1.1 302 Found\r\nLocation: {leads_to}\r\nContent-Length: 0\r\n\r\n").into_bytes()
        } else {
            ok(b"text")
        };
        connection.write_all(&answer).ok();
    })
}

async fn narinfo_through(proxy: &Server, cache: &str) -> Result<String, FailureKind> {
    let mut settings = settings(cache);
    settings.proxy = ProxyChoice::Url(format!("http://{}", proxy.address).parse().unwrap());
    let text = Upstream::new(settings).unwrap().narinfo(&part()).await.map_err(|failure| failure.kind)?;
    Ok(String::from_utf8(text.expect("the cache has it")).unwrap())
}

#[tokio::test]
async fn behind_a_proxy_a_public_cache_does_not_redirect_to_private_hosts_either() {
    let here = Server::answering(ok(b"private"));
    let port = here.address.port();
    for host in [
        "127.0.0.1",
        "localhost",
        "a.localhost.",
        "router",
        "10.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
    ] {
        let proxy = redirecting_proxy("http://cache.example/", format!("http://{host}:{port}/x"));
        let failure = narinfo_through(&proxy, "http://cache.example").await;
        assert_eq!(failure, Err(FailureKind::Redirect), "{host}");
        assert_eq!(proxy.requests(), 1, "{host}");
    }
    assert_eq!(here.requests(), 0);
    let proxy = redirecting_proxy("http://cache.example/", "http://store.example/x".to_owned());
    assert_eq!(narinfo_through(&proxy, "http://cache.example").await.as_deref(), Ok("text"), "a name is the proxy's");
    let proxy = redirecting_proxy("http://10.0.0.1/", "http://10.0.0.2/x".to_owned());
    assert_eq!(narinfo_through(&proxy, "http://10.0.0.1").await.as_deref(), Ok("text"), "a private cache may");
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let server = Server::start(|connection, _| {
        connection.write_all(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n").ok();
    });
    assert_eq!(upstream(&server).narinfo(&part()).await.unwrap_err().kind, FailureKind::Redirect);
    assert_eq!(server.requests(), 6);
}

#[tokio::test]
async fn a_narinfo_that_names_another_host_is_not_followed() {
    let server = Server::answering(ok(NAR));
    let elsewhere = Server::answering(ok(NAR));
    let mut location = location(Compression::None, None);
    for url in [
        format!("http://{}/x.nar", elsewhere.address),
        format!("//{}/x.nar", elsewhere.address),
        "file:///etc/passwd".to_owned(),
    ] {
        location.url = url;
        assert_eq!(read_nar(&upstream(&server), &location, 0).await.unwrap_err(), FailureKind::BadNarInfo);
    }
    assert_eq!(elsewhere.requests(), 0);
}
