//! `docs/conformance.md`: what the gateway answers beside a static cache behind nginx, and what each Nix asks for. With
//! `NARMESH_WRITE_DOCS=1` the file is written, otherwise compared.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;

use narmesh_tests::{
    LoggingProxy, NixStoreFixture, NixVersion, PlainCache, TestMesh, TestNode, finish, hash_part, repository_root,
    request, scratch_dir, with_gateway,
};

const HEAD: &str = "# What the gateway answers

Made by the story `conformance`, which compares it at each run of the tests. `{hash}` is the hash part of a path that is there, \
`{nar}` the URL of its narinfo, `{drv}` its derivation, `{absent}` a hash part of nothing. *Length* is `Content-Length`, *ranges* \
`Accept-Ranges`, *time* `Last-Modified`. The narmesh is that of the holder, on its own listener; the other one is nginx over the \
directory that `nix copy --to 'file://…?compression=none&write-nar-listing=1'` wrote.

";

const CLIENTS: &str = "
## What each Nix asks for

The requests of a client with an empty store, through an nginx that logs them, each kind of request once. All commands succeed. \
harmonia's documentation names the same requests; it was not run here.

";

/// What is asked of both.
struct Case {
    /// The request, with `{hash}`, `{nar}` and `{drv}` in place of names.
    target: &'static str,
    method: &'static str,
    headers: &'static [(&'static str, &'static str)],
    /// Why the two answer differently, if they do.
    why: &'static str,
}

const fn case(method: &'static str, target: &'static str, why: &'static str) -> Case {
    Case { target, method, headers: &[], why }
}

const fn with(headers: &'static [(&'static str, &'static str)], target: &'static str, why: &'static str) -> Case {
    Case { target, method: "GET", headers, why }
}

const ABSENT: &str = "00000000000000000000000000000000";

const CASES: &[Case] = &[
    case("GET", "/nix-cache-info", "nginx guesses types by the name; Nix reads none"),
    case("HEAD", "/nix-cache-info", "as above"),
    case(
        "GET",
        "/{hash}.narinfo",
        "the type is the one that cache.nixos.org sends; a narinfo has no validators, as it is short",
    ),
    case("HEAD", "/{hash}.narinfo", "as above"),
    case("GET", "/{absent}.narinfo", ""),
    case("HEAD", "/{absent}.narinfo", ""),
    case("GET", "/%{hash as %xx}.narinfo", "as the narinfo"),
    case(
        "GET",
        "/{nar}",
        "the type of a NAR; a copy in a store has no time of change but 1, and what a URL with a NarHash names never changes",
    ),
    case("HEAD", "/{nar}", "as above"),
    with(&[("Range", "bytes=0-9")], "/{nar}", "as above"),
    with(&[("Range", "bytes=8-")], "/{nar}", "as above"),
    with(&[("Range", "bytes=-8")], "/{nar}", "as above"),
    with(&[("Range", "bytes=99999999999-")], "/{nar}", ""),
    with(
        &[("Range", "bytes=0-1,4-5")],
        "/{nar}",
        "several ranges are answered with the whole, overlapping or not: a server may ignore `Range` (RFC 9110, section 14.2), and no Nix asks for them",
    ),
    with(&[("Range", "pages=1-2")], "/{nar}", "as the NAR"),
    case(
        "GET",
        "/{hash}.ls",
        "a listing is computed while it is sent, so its length is not known before; nginx has the file that `nix copy` wrote",
    ),
    case("GET", "/log/{drv}", "`nix copy` writes no logs into a cache"),
    case("GET", "/log/{absent}-no.drv", ""),
    case("GET", "/debuginfo/0000000000000000000000000000000000000000", ""),
    case("GET", "/", "the gateway has no pages"),
    case("GET", "/nar/../nix-cache-info", "nginx resolves the dots; the gateway takes a path as it is written"),
    case(
        "GET",
        "/..%2f..%2fetc%2fpasswd",
        "nginx refuses what leads out of its directory; the gateway knows no such name",
    ),
    case("PUT", "/{hash}.narinfo", ""),
    case("POST", "/nix-cache-info", ""),
    case("GET", "/version", "a request of Nix's tools that a directory has no file for"),
    case("GET", "/healthz", "as above"),
    case("GET", "/metrics", "as above"),
];

/// What names stand for.
#[derive(Clone)]
struct Names {
    hash: String,
    drv: String,
    nar: String,
}

impl Names {
    fn target(&self, case: &Case) -> String {
        let encoded: String = self.hash.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let target = case.target.replace("%{hash as %xx}", &encoded).replace("{hash}", &self.hash);
        target.replace("/{nar}", &self.nar).replace("{drv}", &self.drv).replace("{absent}", ABSENT)
    }
}

/// The head of an answer in a few words, without what changes from run to run.
fn told(address: SocketAddr, case: &Case, names: &Names) -> String {
    let answer = request(address, case.method, &names.target(case), case.headers).unwrap();
    let header = |name: &str| answer.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    let mut told = answer.status.to_string();
    if (200..300).contains(&answer.status) {
        write!(told, ", `{}`", header("content-type").unwrap_or("no type")).unwrap();
        told += if header("content-length").is_some() { ", length" } else { ", no length" };
        for (name, word) in [("accept-ranges", "ranges"), ("etag", "ETag"), ("last-modified", "time")] {
            if header(name).is_some() {
                write!(told, ", {word}").unwrap();
            }
        }
    }
    told
}

fn write_answers(text: &mut String, gateway: (SocketAddr, &Names), cache: (SocketAddr, &Names)) {
    text.push_str("| request | narmesh | nginx over `nix copy` | the difference |\n|---|---|---|---|\n");
    let mut unexplained = Vec::new();
    for case in CASES {
        let [ours, theirs] = [gateway, cache].map(|(address, names)| told(address, case, names));
        if (ours != theirs) == case.why.is_empty() {
            unexplained.push(format!("{} {} {:?}: {ours} and {theirs}", case.method, case.target, case.headers));
        }
        let headers: String = case.headers.iter().map(|(name, value)| format!(" with `{name}: {value}`")).collect();
        writeln!(text, "| `{} {}`{headers} | {ours} | {theirs} | {} |", case.method, case.target, case.why).unwrap();
    }
    assert!(
        unexplained.is_empty(),
        "a difference without a reason, or a reason without a difference: {unexplained:#?}"
    );
}

/// What the log keeps of a request.
const LOGGED: &str = "$request_method $uri $status";

/// The kind of a target, by its ending and its first segment.
fn kind_of(uri: &str) -> &str {
    let segment = uri.split('/').nth(1).unwrap_or_default();
    match segment.rsplit_once('.') {
        Some((_, "narinfo")) => "/….narinfo",
        Some((_, "ls")) => "/….ls",
        _ if segment == "nar" => "/nar/…",
        _ if segment == "log" => "/log/…",
        _ if segment == "realisations" => "/realisations/…",
        _ => uri,
    }
}

/// What a client is made to do, and the words for it; `{store}` and `{path}` stand for the gateway's URL and the path.
const ACTS: &[(&str, &[&str])] = &[
    ("`nix-store --realise`", &["nix-store", "--realise", "{path}"]),
    ("`nix copy --from`", &["nix", "copy", "--from", "{store}", "{path}"]),
    ("`nix path-info --store`", &["nix", "path-info", "--store", "{store}", "{path}"]),
    ("`nix store ls --store`", &["nix", "store", "ls", "--store", "{store}", "{path}"]),
    ("`nix log`", &["nix", "log", "{path}"]),
];

fn write_requests(text: &mut String, holder: &TestNode, path: &str) {
    text.push_str("| command | Nix | requests and answers |\n|---|---|---|\n");
    for (act, words) in ACTS {
        for version in NixVersion::ALL {
            let scratch = scratch_dir("conformance");
            let proxy = LoggingProxy::start(&scratch.path().join("proxy"), holder.gateway(), LOGGED);
            let mut client = NixStoreFixture::chroot(&scratch.path().join("client"));
            client.use_nix(version);
            let store = format!("http://{}", proxy.address);
            let words: Vec<_> =
                words.iter().map(|word| word.replace("{store}", &store).replace("{path}", path)).collect();
            let mut command = client.nix(&words[0]);
            if words[0] == "nix" {
                command.args(["--extra-experimental-features", "nix-command"]);
            }
            command.args(&words[1..]);
            finish(with_gateway(&mut command, proxy.address, &[holder.builder_key()]))
                .expect_success(&format!("{act} of Nix {}", version.name()));
            let mut requests = BTreeSet::new();
            for line in proxy.end() {
                let [method, uri, status] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
                requests.insert(format!("`{method} {}` {status}", kind_of(uri)));
            }
            let told: Vec<String> = requests.into_iter().collect();
            writeln!(text, "| {act} | {} | {} |", version.name(), told.join("; ")).unwrap();
        }
    }
}

#[test]
fn the_gateway_answers_as_the_document_says_and_each_nix_asks_what_it_says() {
    let mesh = TestMesh::new();
    let mut holder = mesh.node("holder");
    let path = holder.store.build_one("noisy");
    let cache = PlainCache::on_loopback(&holder, std::slice::from_ref(&path), "none&write-nar-listing=1");
    holder.start();
    let derivation = holder.store.derivations(&[&path]).remove(0);
    let drv = derivation.rsplit('/').next().unwrap().to_owned();
    let nar = holder.wait_narinfo(&path).url;
    let ours = Names { hash: hash_part(&path).to_owned(), drv, nar };
    let theirs = Names { nar: cache.target(&path), ..ours.clone() };

    let mut text = HEAD.to_owned();
    write_answers(&mut text, (holder.gateway(), &ours), (cache.address, &theirs));
    text.push_str(CLIENTS);
    write_requests(&mut text, &holder, &path);
    let file = repository_root().join("docs/conformance.md");
    if std::env::var_os("NARMESH_WRITE_DOCS").is_some() {
        return fs::write(&file, text).unwrap();
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    let other = text.lines().zip(written.lines()).find(|(now, before)| now != before);
    assert!(written == text, "docs/conformance.md is out of date (NARMESH_WRITE_DOCS=1 writes it): {other:?}");
}
