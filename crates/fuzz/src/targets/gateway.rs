//! Requests of local programs: a method, a target and headers are given to the gateway's router.

use super::{Outcome, Target};
use axum::body::Body;
use axum::http::{Method, Request, Uri};
use bytes::Bytes;
use futures::FutureExt;
use narmesh_http_gateway::{
    BodyAborted, BuildLog, Busy, CacheInfo, ClientUser, EntryPath, GatewayMetrics, Lookup, NarBody, NoNar, StoreEntry,
    StoreFile, Substituter, TreeListing,
};
use narmesh_protocol::{HashPart, NarHash, NarUrl, RealisationId, StoreDir, StorePath};
use prometheus_client::registry::Registry;
use std::cell::RefCell;
use std::sync::Arc;
use tower::ServiceExt;

pub(super) const TARGET: Target = Target {
    name: "gateway",
    run,
    seeds,
    words: &[
        b"GET",
        b"HEAD",
        b"PUT",
        b"OPTIONS",
        b"\n",
        b"/",
        b"//",
        b"..",
        b"%2e",
        b"%2F",
        b"%00",
        b"%25",
        b"%",
        b"?",
        b"#",
        b".narinfo",
        b"/nar/",
        b".nar",
        b"/nix-cache-info",
        b"/healthz",
        b"/serve/",
        b"/log/",
        b".ls",
        b".drv",
        b"?hash=",
        b"If-None-Match: *",
        b"Accept-Encoding: bzip2",
        b"/metrics",
        b"http://127.0.0.1/",
        b"*",
        b"7h7qgvs4kgzsn8a6rb273saxyqh4jxlz",
        b"Host: localhost",
        b"Host: evil",
        b"Origin: null",
        b"Range: bytes=",
        b"-",
        b"Range: bytes=0-",
        b"Range: bytes=-1",
        b"If-Range: x",
        b"Sec-Fetch-Site: cross-site",
        b"18446744073709551616",
        b",",
        b"Content-Length: 0",
        b"Transfer-Encoding: chunked",
        b"X-Forwarded-For: x",
    ],
    input_bytes_max: 2 << 10,
};

/// NarSize of every NAR here. It is small, because each NAR is sent whole.
const NAR_BYTES: u64 = 112;

struct Everything;

impl Substituter for Everything {
    fn cache_info(&self) -> CacheInfo {
        CacheInfo { store_dir: StoreDir::parse("/nix/store").expect("a store directory"), priority: 30 }
    }

    fn look_up(&self, part: HashPart) -> Lookup {
        match part.0.first().copied().unwrap_or_default() % 3 {
            0 => Lookup::Absent,
            1 => Lookup::Found(Bytes::from_static(b"StorePath: x\n")),
            _ => Lookup::Ask,
        }
    }

    async fn find_narinfo(&self, part: HashPart, _: ClientUser) -> Option<Bytes> {
        (part.0.last() != Some(&0)).then(|| Bytes::from_static(b"StorePath: y\n"))
    }

    async fn has_nar(&self, url: NarUrl, _: ClientUser) -> bool {
        url.nar_size == NAR_BYTES
    }

    fn is_short_of_memory(&self) -> bool {
        false
    }

    fn is_ready(&self) -> bool {
        true
    }

    async fn find_log(&self, derivation: StorePath, accepts_bzip2: bool) -> Result<Option<BuildLog>, Busy> {
        assert!(derivation.is_derivation(), "only derivations have logs");
        Ok(Some(BuildLog {
            is_compressed: accepts_bzip2,
            size_bytes: accepts_bzip2.then_some(NAR_BYTES),
            body: body(0),
        }))
    }

    async fn find_realisation(&self, id: RealisationId, _: ClientUser) -> Option<Bytes> {
        assert!(!id.output().contains(['/', '?']), "an output that leads elsewhere: {id}");
        (id.output() != "out").then(|| Bytes::from(id.to_string()))
    }

    async fn list_tree(&self, part: HashPart) -> Result<Option<TreeListing>, Busy> {
        match part.0.first().copied().unwrap_or_default() % 3 {
            0 => Err(Busy),
            1 => Ok(None),
            _ => Ok(Some(TreeListing { nar_hash: NarHash([7; 32]), body: body(0) })),
        }
    }

    async fn find_entry(&self, _: HashPart, path: EntryPath) -> Result<Option<StoreEntry>, Busy> {
        for name in path.names() {
            let is_plain =
                !name.is_empty() && name != b"." && name != b".." && !name.iter().any(|it| b"/\0".contains(it));
            assert!(is_plain, "a name that leads elsewhere: {name:?}");
        }
        Ok(Some(StoreEntry::File(StoreFile {
            nar_hash: NarHash([7; 32]),
            name: path.names().last().cloned().unwrap_or_default(),
            size_bytes: NAR_BYTES,
            read_from: Box::new(body),
        })))
    }

    async fn fetch_nar(&self, url: NarUrl, first_byte: u64, _resumed: bool, _: ClientUser) -> Result<NarBody, NoNar> {
        assert!(first_byte < url.nar_size, "never asked for what is not there");
        if url.nar_size != NAR_BYTES {
            return Err(NoNar::Gone);
        }
        Ok(body(first_byte))
    }
}

fn body(first_byte: u64) -> NarBody {
    let bytes = vec![7; usize::try_from(NAR_BYTES - first_byte).expect("small")];
    let body: Result<Bytes, BodyAborted> = Ok(bytes.into());
    Box::pin(futures::stream::iter([body]))
}

thread_local! {
    static ROUTER: RefCell<axum::Router> = RefCell::new({
        let mut registry = Registry::default();
        let metrics = Arc::new(GatewayMetrics::default());
        metrics.register(&mut registry);
        narmesh_http_gateway::router(Arc::new(Everything), metrics, Arc::new(registry))
    });
}

fn run(input: &[u8]) -> Outcome {
    let Some(request) = request(input) else { return Outcome::of("hyper would refuse it") };
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let is_page = request.headers().contains_key("origin");
    // No client of Nix sends a body with a narinfo request, and one that does gets 400.
    let has_body = request.headers().contains_key("transfer-encoding")
        || request.headers().get("content-length").is_some_and(|length| length != "0");
    let router = ROUTER.with_borrow(Clone::clone);
    // Nothing behind this router waits, so a single poll must complete the answer.
    let response = router.oneshot(request).now_or_never().expect("answered at once").expect("infallible");
    let status = response.status();
    assert!(!status.is_server_error(), "{status}");
    assert!(!response.headers().keys().any(|name| name.as_str().starts_with("access-control-")), "no CORS header");
    assert!(!is_page || status == 403, "a page got {status}");
    // A file of a store path may be called like a narinfo.
    let is_narinfo = path.ends_with(".narinfo") && !path.starts_with("/serve/");
    if matches!(method, Method::GET | Method::HEAD) && is_narinfo && !has_body {
        assert!(matches!(status.as_u16(), 200 | 403 | 404), "a narinfo request got {status}");
    }
    let length = response.headers().get("content-length").and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).now_or_never().expect("sent at once");
    let body = body.expect("no body here is aborted");
    if let (Some(length), true) = (length, method != Method::HEAD) {
        assert_eq!(body.len(), length);
    }
    Outcome::of((status.as_u16(), method.as_str().len().min(9), body.len().min(256)))
}

/// Parses an input whose lines are method, target and headers. `None` for what hyper would not let through either.
fn request(input: &[u8]) -> Option<Request<Body>> {
    let mut lines = input.split(|byte| *byte == b'\n');
    let method = Method::from_bytes(lines.next()?).ok()?;
    let uri = Uri::try_from(lines.next()?).ok()?;
    let mut request = Request::builder().method(method).uri(uri);
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at(colon);
        request = request.header(name, value.get(1..)?.trim_ascii());
    }
    request.body(Body::empty()).ok()
}

fn seeds() -> Vec<Vec<u8>> {
    let nar = "/nar/7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s-112.nar";
    [
        "GET\n/nix-cache-info\nHost: 127.0.0.1:7281".to_owned(),
        "GET\n/7h7qgvs4kgzsn8a6rb273saxyqh4jxlz.narinfo\nHost: localhost".to_owned(),
        "HEAD\n/0h7qgvs4kgzsn8a6rb273saxyqh4jxly.narinfo\nHost: localhost".to_owned(),
        format!("GET\n{nar}\nHost: localhost\nRange: bytes=100-"),
        format!("HEAD\n{nar}\nHost: [::1]:80"),
        "GET\n/7h7qgvs4kgzsn8a6rb273saxyqh4jxlz.ls\nHost: localhost".to_owned(),
        "GET\n/log/7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-x.drv\nHost: localhost\nAccept-Encoding: bzip2".to_owned(),
        "GET\n/serve/7h7qgvs4kgzsn8a6rb273saxyqh4jxlz/a%20b/c.txt\nHost: localhost\nRange: bytes=1-".to_owned(),
        "GET\n/metrics\nHost: localhost\nOrigin: http://evil".to_owned(),
        "GET\nhttp://localhost/healthz\nHost: localhost".to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec()
}
