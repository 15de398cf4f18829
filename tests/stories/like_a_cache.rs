//! What a plain binary cache gives beside narinfos and NARs: build logs, listings, single files, and the URLs of the programs
//! that served this store before.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use narmesh_tests::{
    NixStoreFixture, TestMesh, TestNode, finish, get, hash_part, head, promised, request, scratch_dir, wait_until,
    with_gateway,
};
use serde_json::Value;

/// The only line that the builder of `noisy` says.
const SAID: &str = "this is what the builder said";

fn start(mesh: &TestMesh, attributes: &[&str]) -> (TestNode, BTreeMap<String, String>) {
    let mut node = mesh.node("holder");
    let built = attributes.iter().map(|name| ((*name).to_owned(), node.store.build_one(name))).collect();
    node.start();
    (node, built)
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

fn nix_log(client: &NixStoreFixture, of: &str, holder: &TestNode) -> String {
    let mut command = client.nix("nix");
    command.args(["--extra-experimental-features", "nix-command", "log", of]);
    finish(with_gateway(&mut command, holder.gateway(), &[holder.builder_key()]))
        .expect_success(&format!("nix log {of}"))
}

#[test]
fn nix_log_reads_the_log_of_a_path_and_of_a_derivation() {
    let mesh = TestMesh::new();
    let (node, built) = start(&mesh, &["noisy"]);
    let path = &built["noisy"];
    let derivation = node.store.derivations(&[path]).remove(0);
    let scratch = scratch_dir("client");
    let client = NixStoreFixture::chroot(scratch.path());
    assert_eq!(nix_log(&client, path, &node).trim_end(), SAID);
    // Nix reads a derivation before it asks for its log, so it has to be there, as after an evaluation.
    assert_eq!(client.instantiate("noisy"), derivation);
    assert_eq!(nix_log(&client, &derivation, &node).trim_end(), SAID);
    let answer = get(node.gateway(), &format!("/log/{}", base_name(&derivation))).unwrap();
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/plain; charset=utf-8")));
    assert!(answer.header("content-encoding").is_none());

    // Nix writes plain logs too, if it is told to.
    let file = node.store.log_file(&derivation);
    fs::remove_file(&file).unwrap();
    fs::write(file.with_extension(""), format!("{SAID}, plainly\n")).unwrap();
    assert_eq!(nix_log(&client, &derivation, &node).trim_end(), format!("{SAID}, plainly"));
}

#[test]
fn listings_are_those_that_nix_copy_writes() {
    let mesh = TestMesh::new();
    let (node, built) = start(&mesh, &["lib", "app", "shapes", "files", "rootfile", "rootexe", "rootlink"]);
    let cache = mesh.path().join("cache");
    let mut copy = node.store.nix("nix");
    copy.args(["--extra-experimental-features", "nix-command", "copy", "--to"]);
    copy.arg(format!("file://{}?write-nar-listing=1&compression=none", cache.display()));
    finish(copy.args(built.values())).expect_success("nix copy");
    for (name, path) in &built {
        let file = format!("{}.ls", hash_part(path));
        let expected: Value = serde_json::from_slice(&fs::read(cache.join(&file)).unwrap()).unwrap();
        let answer = get(node.gateway(), &format!("/{file}")).unwrap();
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{name}");
        let given: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(given, expected, "{name}");
    }
}

#[test]
fn single_files_and_directories_are_served_and_nothing_outside_of_a_store_path() {
    let mesh = TestMesh::new();
    let (node, built) = start(&mesh, &["shapes", "lib", "rootfile"]);
    let at = |name: &str, rest: &str| format!("/serve/{}{rest}", hash_part(&built[name]));
    let get = |path: &str| get(node.gateway(), path).unwrap();

    let whole = get(&at("lib", "/lib/libmesh.txt"));
    let real = fs::read(node.store.real_path(&built["lib"]).join("lib/libmesh.txt")).unwrap();
    assert_eq!((whole.status, &whole.body), (200, &real));
    assert_eq!(whole.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(whole.header("last-modified"), Some("Thu, 01 Jan 1970 00:00:01 GMT"));
    assert_eq!(get(&at("lib", "/lib/link")).body, real, "a link to a file of the same store path");
    assert_eq!(get(&at("rootfile", "")).body, b"plain\n");

    let etag = whole.header("etag").unwrap().to_owned();
    let ask = |headers: &[(&str, &str)]| {
        request(node.gateway(), "GET", &at("lib", "/lib/libmesh.txt"), headers).unwrap().finish()
    };
    let part = ask(&[("Range", "bytes=100-199"), ("If-Range", &etag)]);
    assert_eq!((part.status, part.body.as_slice()), (206, &real[100..200]));
    assert_eq!(ask(&[("Range", "bytes=100-199"), ("If-Range", "\"other\"")]).status, 200);
    assert_eq!(ask(&[("Range", "bytes=-5")]).body, &real[real.len() - 5..]);
    assert_eq!(ask(&[("Range", "bytes=999999999-")]).status, 416);
    assert_eq!(ask(&[("If-None-Match", &etag)]).status, 304);

    let page = get(&at("shapes", "/")).text();
    for shown in ["empty-dir/", "seven", "dangling", "a/"] {
        assert!(page.contains(&format!(">{shown}</a>")), "{shown}: {page}");
    }
    assert!(get(&at("shapes", "/directory")).text().contains(">c/</a>"), "a link to a directory");

    for outside in [
        "/absolute",
        "/dangling",
        "/../",
        "/a/../../",
        "/%2e%2e/",
        "/a/%2e%2e/%2e%2e/",
        "/..%2f..%2fetc%2fpasswd",
        "/a%2f..%2f..",
        "/%252e%252e/",
        "/a//b",
        "/seven/x",
        "/nothing",
        "/a%00",
        "/%zz",
    ] {
        assert_eq!(get(&at("shapes", outside)).status, 404, "{outside}");
    }
    assert_eq!(get("/serve/00000000000000000000000000000000/").status, 404);
}

#[test]
fn urls_of_harmonia_and_nix_serve_lead_to_the_nar() {
    let mesh = TestMesh::new();
    let (node, built) = start(&mesh, &["lib", "app"]);
    let [lib, app] = ["lib", "app"].map(|name| &built[name]);
    let nar_hash = node.get_narinfo(lib).text();
    let nar_hash = nar_hash.lines().find_map(|line| line.strip_prefix("NarHash: sha256:")).unwrap();
    let ours = node.get_narinfo(lib).text();
    let ours = ours.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
    let nar = get(node.gateway(), &format!("/{ours}")).unwrap().body;
    let (part, other) = (hash_part(lib), hash_part(app));
    for url in [format!("/nar/{nar_hash}.nar?hash={part}"), format!("/nar/{part}-{nar_hash}.nar")] {
        let answer = get(node.gateway(), &url).unwrap();
        assert_eq!((answer.status, &answer.body), (200, &nar), "{url}");
        assert_eq!(head(node.gateway(), &url).unwrap().header("content-length"), Some(nar.len().to_string().as_str()));
        let rest = request(node.gateway(), "GET", &url, &[("Range", "bytes=64-")]).unwrap().finish();
        assert_eq!((rest.status, rest.body.as_slice()), (206, &nar[64..]), "{url}");
    }
    for url in [
        format!("/nar/{nar_hash}.nar?hash={other}"),
        format!("/nar/{other}-{nar_hash}.nar"),
        format!("/nar/{nar_hash}.nar"),
        format!("/nar/{nar_hash}.nar?hash="),
    ] {
        assert_eq!(get(node.gateway(), &url).unwrap().status, 404, "{url}");
    }
}

#[test]
fn version_and_readiness_are_told() {
    let mesh = TestMesh::new();
    let (node, _) = start(&mesh, &[]);
    assert!(get(node.gateway(), "/version").unwrap().text().starts_with("narmesh "));
    wait_until("it is ready", promised(Duration::from_secs(2)), || {
        get(node.gateway(), "/readyz").unwrap().text() == "ok\n"
    });
}

/// Memory that the daemon may take for what it lists, on top of its idle memory.
const LISTING_RISE_BYTES_MAX: u64 = 48 << 20;

#[test]
fn a_directory_of_100_000_entries_is_listed_in_bounded_memory() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("holder");
    let many = node.store.hold_entries(100_000);
    node.start();
    let peak = node.watch_memory();
    let (listing, page) = (format!("/{}.ls", hash_part(&many)), format!("/serve/{}/", hash_part(&many)));
    // Clients that begin to read and then do not go on.
    let held: Vec<_> = (0..16)
        .map(|count| request(node.gateway(), "GET", if count % 2 == 0 { &listing } else { &page }, &[]).unwrap())
        .collect();
    assert!(held.iter().all(|body| matches!(body.status, 200 | 429)));
    drop(held);
    let listed = |status: u16| status == 200;
    wait_until("the places are free again", promised(Duration::from_secs(2)), || {
        listed(get(node.gateway(), &listing).unwrap().status)
    });
    let listing = get(node.gateway(), &listing).unwrap();
    let json: Value = serde_json::from_slice(&listing.body).unwrap();
    assert_eq!(json.pointer("/root/entries").unwrap().as_object().unwrap().len(), 100_000);
    assert_eq!(get(node.gateway(), &page).unwrap().text().matches("<tr>").count(), 100_000);
    let rise = peak.rise_bytes();
    assert!(rise <= LISTING_RISE_BYTES_MAX, "{} MiB", rise >> 20);
}
