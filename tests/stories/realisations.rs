//! Floating content-addressed derivations: which path an output is follows from no derivation, so Nix asks its substituters.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use narmesh_tests::{
    Finished, NixStoreFixture, NixVersion, Pair, PlainCache, TestMesh, TestNode, finish, free_address, get, head,
    promised, repository_root, scratch_dir, wait_until, with_gateway,
};
use serde_json::Value;

/// What is offered follows a change within this.
const FOLLOWED: Duration = Duration::from_secs(2);

/// A command of Nix over the fixtures, with the experimental feature.
fn ca_command(store: &NixStoreFixture, program: &str) -> Command {
    let mut command = store.nix(program);
    command.arg(repository_root().join("tests/fixtures/pkgs.nix"));
    command.args(["--option", "experimental-features", "nix-command ca-derivations"]);
    command
}

/// Builds a content-addressed package and returns its path. With `key_file`, Nix signs what it builds.
fn build(store: &NixStoreFixture, attribute: &str, key_file: Option<PathBuf>) -> String {
    let mut command = ca_command(store, "nix-build");
    command.args(["-A", attribute, "--no-out-link"]);
    if let Some(file) = key_file {
        command.args(["--option", "secret-key-files"]).arg(file);
    }
    finish(&mut command).expect_success("nix-build").trim().to_owned()
}

/// `nix-build` that may build nothing, through this gateway alone.
fn substitute(store: &NixStoreFixture, attribute: &str, gateway: SocketAddr, keys: &[String]) -> Finished {
    let mut command = ca_command(store, "nix-build");
    command.args(["-A", attribute, "--no-out-link", "--option", "max-jobs", "0"]);
    finish(with_gateway(&mut command, gateway, keys))
}

/// Where a gateway gives the realisations that a store knows, with their output paths.
fn realisations(store: &NixStoreFixture) -> Vec<(String, String)> {
    let rows = store.sql(
        "select drvPath || '!' || outputName, path from Realisations join ValidPaths on outputPath = ValidPaths.id",
    );
    let split = |row: &str| {
        let (id, path) = row.split_once('|').unwrap();
        (format!("/realisations/{id}.doi"), path.to_owned())
    };
    rows.lines().map(split).collect()
}

fn signers(text: &str) -> BTreeSet<String> {
    let json: Value = serde_json::from_str(text).unwrap();
    let signatures = json["signatures"].as_array().unwrap().iter();
    signatures.map(|one| one.as_str().unwrap().split(':').next().unwrap().to_owned()).collect()
}

fn name_of(key: &str) -> String {
    key.split(':').next().unwrap().to_owned()
}

/// A static cache of content-addressed packages, which `holder` built and signed.
fn cache_of(holder: &TestNode, attributes: &[&str]) -> PlainCache {
    let key = holder.dir().join("builder.key");
    let paths: Vec<_> = attributes.iter().map(|name| build(&holder.store, name, Some(key.clone()))).collect();
    let cache = PlainCache::on_loopback(holder, &paths, "xz");
    let mut copy = holder.store.nix("nix");
    copy.args(["--extra-experimental-features", "nix-command ca-derivations", "copy", "--no-check-sigs", "--to"]);
    copy.arg(format!("file://{}?secret-key={}", cache.dir().display(), key.display()));
    copy.arg("-f").arg(repository_root().join("tests/fixtures/pkgs.nix")).args(attributes);
    finish(&mut copy).expect_success("nix copy of realisations");
    cache
}

#[test]
fn what_one_store_built_another_one_takes_and_what_is_private_stays() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let serve = free_address();
    node.config.exclude = vec!["mesh-calib-*".to_owned()];
    node.config.more = format!("[[gateway.listener]]\naddress = '{serve}'\nrole = 'serve'\n");
    let [lone, app] = ["calone", "caapp"].map(|name| build(&node.store, name, None));
    node.start();
    wait_until("it is offered", promised(FOLLOWED), || {
        get(serve, &format!("/{}.narinfo", narmesh_tests::hash_part(&lone))).unwrap().status == 200
    });

    let keys = [node.builder_key()];
    for (gateway, attribute, path) in [(serve, "calone", &lone), (node.gateway(), "caapp", &app)] {
        let scratch = scratch_dir("client");
        let client = NixStoreFixture::chroot(scratch.path());
        let said = substitute(&client, attribute, gateway, &keys).expect_success("nix-build");
        assert_eq!(said.trim(), path);
        assert!(!client.row(path).unwrap().ultimate, "{path} was built there");
    }

    let all = realisations(&node.store);
    assert!(all.len() >= 3, "{all:?}");
    for (target, path) in &all {
        let here = get(node.gateway(), target).unwrap();
        assert_eq!((here.status, here.header("content-type")), (200, Some("application/json")), "{target}");
        assert_eq!(signers(&here.text()), BTreeSet::from([name_of(&keys[0])]), "{target}");
        let escaped = target.replace('!', "%21");
        assert_eq!(get(node.gateway(), &escaped).unwrap().body, here.body, "as Nix 2.34 asks");
        let length = here.body.len().to_string();
        assert_eq!(head(node.gateway(), target).unwrap().header("content-length"), Some(length.as_str()));
        // What is excluded, and what refers to it, leaves in no way.
        let there = get(serve, target).unwrap();
        assert_eq!(there.status, if *path == lone { 200 } else { 404 }, "{path}");
    }
    let unknown = all[0].0.replace(|digit: char| digit.is_ascii_digit(), "0");
    for target in [unknown.as_str(), "/realisations/", "/realisations/x.doi", "/build-trace-v2/x.drv/out.doi"] {
        assert_eq!(get(node.gateway(), target).unwrap().status, 404, "{target}");
    }
    node.narmesh(&["serve", "off"]).expect_success("serve off");
    assert!(all.iter().all(|(target, _)| get(serve, target).unwrap().status == 404));
}

#[test]
fn what_a_peer_built_is_substituted_and_what_it_withholds_is_not() {
    let mesh = TestMesh::new();
    let [mut holder, mut client] = ["holder", "client"].map(|name| mesh.node(name));
    holder.config.exclude = vec!["mesh-calib-*".to_owned()];
    let site = free_address();
    client.config.more = format!("[[gateway.listener]]\naddress = '{site}'\nrole = 'site'\n");
    let [lone, app] = ["calone", "caapp"].map(|name| build(&holder.store, name, None));
    TestMesh::start_all(&mut [&mut holder, &mut client]);
    wait_until("it is offered", promised(FOLLOWED), || client.get_narinfo(&lone).status == 200);
    let all = realisations(&holder.store);
    assert!(all.len() >= 3, "{all:?}");
    let builder = name_of(&holder.builder_key());
    for (target, path) in &all {
        let (local, of_site) = (get(client.gateway(), target).unwrap(), get(site, target).unwrap());
        let status = if *path == lone { 200 } else { 404 };
        assert_eq!((local.status, of_site.status), (status, status), "{path}");
        if status == 200 {
            assert_eq!(signers(&local.text()), BTreeSet::from([builder.clone()]));
        }
    }
    let keys = client.config.trusted_public_keys.clone();
    let said = substitute(&client.store, "calone", client.gateway(), &keys).expect_success("nix-build");
    assert_eq!(said.trim(), lone);
    assert!(!client.store.row(&lone).unwrap().ultimate, "nothing was built there");
    substitute(&client.store, "caapp", client.gateway(), &keys).expect_failure("it is withheld");

    holder.config.exclude.clear();
    holder.write_config();
    holder.narmesh(&["reload"]).expect_success("reload");
    wait_until("all of it is offered", promised(FOLLOWED), || {
        client.get_narinfo(&app).status == 200
            && all.iter().all(|(target, _)| get(client.gateway(), target).unwrap().status == 200)
    });
    let said = substitute(&client.store, "caapp", client.gateway(), &keys).expect_success("nix-build");
    assert_eq!(said.trim(), app);
    assert!(!client.store.row(&app).unwrap().ultimate, "nothing was built there");
    client.store.verify_contents();
}

#[test]
fn a_realisation_of_a_peer_whose_key_is_not_trusted_is_not_passed_on() {
    let mut pair = Pair::on_loopback();
    let lone = build(&pair.holder.store, "calone", None);
    pair.client.config.trusted_public_keys.clear();
    pair.start();
    wait_until("it is offered", promised(FOLLOWED), || pair.client.get_narinfo(&lone).status == 200);
    for (target, _) in realisations(&pair.holder.store) {
        assert_eq!(get(pair.client.gateway(), &target).unwrap().status, 404, "{target}");
    }
}

#[test]
fn realisations_of_an_upstream_cache_spare_builds() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let cache = cache_of(&holder, &["calone", "caapp"]);
    let app = build(&holder.store, "caapp", None);
    for sign in [false, true] {
        let mut client = mesh.node(&format!("client-{sign}"));
        client.config.sign = sign;
        client.config.more = cache.upstream("cache", &holder);
        client.start();
        let keys = if sign { client.gateway_key() } else { holder.builder_key() };
        let said = substitute(&client.store, "caapp", client.gateway(), std::slice::from_ref(&keys));
        assert_eq!(said.expect_success("nix-build").trim(), app);
        let known = realisations(&client.store);
        assert!(!known.is_empty() && !client.store.row(&app).unwrap().ultimate);

        // Also what its own store now has is signed by whom its Nix trusts, and by the cache.
        let expected = BTreeSet::from([name_of(&holder.builder_key()), name_of(&keys)]);
        for (target, path) in realisations(&holder.store).iter().filter(|(_, path)| *path == app) {
            let answer = get(client.gateway(), target).unwrap();
            if answer.status == 200 {
                assert_eq!(signers(&answer.text()), expected, "{path}");
            }
        }
        let unknown = known[0].0.replace(|digit: char| digit.is_ascii_digit(), "0");
        assert_eq!(get(client.gateway(), &unknown).unwrap().status, 404);
        assert_eq!(client.status().text("/upstreams/0/state"), Some("up"));
    }
}

#[test]
fn a_realisation_that_nobody_trusted_signed_is_not_passed_on() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let cache = cache_of(&holder, &["calone"]);
    let directory = cache.dir().join("realisations");
    let file = fs::read_dir(&directory).unwrap().next().unwrap().unwrap().path();
    let target = format!("/realisations/{}", file.file_name().unwrap().to_str().unwrap());
    let good = fs::read_to_string(&file).unwrap();
    let json: Value = serde_json::from_str(&good).unwrap();
    let path = json["outPath"].as_str().unwrap();
    let key = name_of(&holder.builder_key());
    let other = format!("{}-{}", "1".repeat(32), "mesh-evil-1.0");
    for (number, (forged, status)) in [
        (good.clone(), 200),
        // A path of the liar's, under the signature of the true one.
        (good.replace(path, &other), 404),
        (good.replace("!out", "!doc"), 404),
        (good.replace(&format!("{key}:"), "stranger-1:"), 404),
        (good.split("\"signatures\":").next().unwrap().to_owned() + "\"signatures\":[]}", 404),
        ("not JSON".to_owned(), 404),
    ]
    .into_iter()
    .enumerate()
    {
        fs::remove_file(&file).unwrap();
        fs::write(&file, &forged).unwrap();
        let mut client = mesh.node(&format!("client-{number}"));
        client.config.more = cache.upstream("cache", &holder);
        client.start();
        assert_eq!(get(client.gateway(), &target).unwrap().status, status, "{forged}");
        if status != 200 && client.store.nix_version() == NixVersion::V2_8 {
            let keys = [holder.builder_key()];
            substitute(&client.store, "calone", client.gateway(), &keys).expect_failure("nothing may be built");
        }
    }
}
