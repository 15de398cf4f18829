//! Logs of what peers built: shown by `nix log` where the peer offers an output, and nowhere else.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use narmesh_tests::{
    NixStoreFixture, Pair, TestMesh, TestNode, finish, free_address, get, head, promised, scratch_dir, wait_until,
    with_gateway,
};

/// What is offered follows a change within this.
const FOLLOWED: Duration = Duration::from_secs(2);
/// A log that nobody has is told absent within this.
const ABSENT_WITHIN: Duration = Duration::from_secs(1);
/// The only line that the builder of `noisy` says.
const SAID: &str = "this is what the builder said";

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

fn log_url(derivation: &str) -> String {
    format!("/log/{}", base_name(derivation))
}

fn log_status(gateway: SocketAddr, derivation: &str) -> u16 {
    get(gateway, &log_url(derivation)).unwrap().status
}

fn nix_log(store: &NixStoreFixture, of: &str, node: &TestNode) -> String {
    let mut command = store.nix("nix");
    command.args(["--extra-experimental-features", "nix-command", "log", of]);
    let keys = &node.config.trusted_public_keys;
    finish(with_gateway(&mut command, node.gateway(), keys)).expect_success(&format!("nix log {of}"))
}

#[test]
fn nix_log_shows_what_the_builder_of_a_peer_said() {
    let mut pair = Pair::on_loopback();
    let built = pair.holder.store.build_one("noisy");
    let derivation = pair.holder.store.derivations(&[&built]).remove(0);
    pair.start();
    pair.holder.wait_all_advertised(&[&pair.client]);
    // Nothing is known of the derivation here: every connected peer is asked.
    let answer = get(pair.client.gateway(), &log_url(&derivation)).unwrap();
    assert_eq!((answer.status, answer.text().trim_end()), (200, SAID));
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    assert!(answer.header("content-encoding").is_none(), "it is unpacked here");
    assert_eq!(head(pair.client.gateway(), &log_url(&derivation)).unwrap().status, 200);

    // After an evaluation the outputs are known, and those are asked whose filters claim one.
    assert_eq!(pair.client.store.instantiate("noisy"), derivation);
    assert_eq!(nix_log(&pair.client.store, &derivation, &pair.client).trim_end(), SAID);

    // Nix writes plain logs too, if it is told to.
    let file = pair.holder.store.log_file(&derivation);
    fs::remove_file(&file).unwrap();
    fs::write(file.with_extension(""), format!("{SAID}, plainly\n")).unwrap();
    assert_eq!(nix_log(&pair.client.store, &derivation, &pair.client).trim_end(), format!("{SAID}, plainly"));
    let plain = get(pair.client.gateway(), &log_url(&derivation)).unwrap();
    assert_eq!(plain.header("content-length"), Some((SAID.len() + ", plainly\n".len()).to_string().as_str()));
}

#[test]
fn nix_log_of_a_path_finds_the_log_where_nothing_was_evaluated() {
    let mut pair = Pair::on_loopback();
    let built = pair.holder.store.build_one("noisy");
    let derivation = pair.holder.store.derivations(&[&built]).remove(0);
    pair.start();
    pair.holder.wait_all_advertised(&[&pair.client]);
    // The path is not here yet.
    assert_eq!(nix_log(&pair.client.store, &built, &pair.client).trim_end(), SAID);
    // It is here: Nix has noted its deriver, and others that Nix asks are told it.
    pair.client.realise(std::slice::from_ref(&built)).expect_success("nix-store --realise");
    assert_eq!(pair.client.store.query(&["--query", "--deriver", &built]).trim(), derivation);
    assert!(!pair.client.store.has(&derivation), "only its name came");
    let scratch = scratch_dir("reader");
    let reader = NixStoreFixture::chroot(scratch.path());
    assert_eq!(nix_log(&reader, &built, &pair.client).trim_end(), SAID);
    pair.client.store.verify_contents();

    // What was remembered over a restart has it, too.
    pair.client.store.delete(std::slice::from_ref(&built));
    assert_eq!(pair.client.terminate().code(), Some(0));
    pair.client.start();
    assert!(!pair.client.store.has(&built));
    let again = pair.client.wait_narinfo(&built);
    let scratch = scratch_dir("later");
    let later = NixStoreFixture::chroot(scratch.path());
    assert_eq!(nix_log(&later, &built, &pair.client).trim_end(), SAID, "{again:?}");
}

#[test]
fn a_deriver_that_no_trusted_key_signed_is_not_passed_on() {
    let mut pair = Pair::on_loopback();
    let built = pair.holder.store.build_one("fod");
    pair.client.config.trusted_public_keys.clear();
    pair.start();
    pair.holder.wait_all_advertised(&[&pair.client]);
    let narinfo = pair.client.get_narinfo(&built);
    assert_eq!(narinfo.status, 200, "its content address proves it");
    assert!(!narinfo.text().contains("Deriver"), "{}", narinfo.text());
}

#[test]
fn a_long_log_comes_whole_in_parts_and_one_that_is_too_long_not_at_all() {
    let mut pair = Pair::on_loopback();
    let built = pair.holder.store.build_one("chatty");
    let derivation = pair.holder.store.derivations(&[&built]).remove(0);
    pair.start();
    pair.holder.wait_all_advertised(&[&pair.client]);
    let file = pair.holder.store.log_file(&derivation);
    assert!(fs::metadata(&file).unwrap().len() > 3 * (64 << 10), "it takes several parts");
    let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    let shown = get(pair.client.gateway(), &log_url(&derivation)).unwrap();
    assert!(shown.status == 200 && shown.text() == expected, "{} bytes", shown.body.len());
    assert_eq!(shown.body, get(pair.holder.gateway(), &log_url(&derivation)).unwrap().body);

    let plain = file.with_extension("");
    fs::remove_file(&file).unwrap();
    fs::write(&plain, &expected).unwrap();
    assert!(get(pair.client.gateway(), &log_url(&derivation)).unwrap().text() == expected);
    fs::write(&plain, "").unwrap();
    let empty = get(pair.client.gateway(), &log_url(&derivation)).unwrap();
    assert_eq!((empty.status, empty.body.len()), (200, 0));
    fs::File::create(&plain).unwrap().set_len((64 << 20) + 1).unwrap();
    assert_eq!(log_status(pair.client.gateway(), &derivation), 404);
    assert_eq!(head(pair.holder.gateway(), &log_url(&derivation)).unwrap().status, 200, "its own Nix may have it");
}

#[test]
fn the_log_of_a_withheld_path_is_absent_to_a_peer() {
    let mesh = TestMesh::new();
    let [mut holder, mut client] = ["holder", "client"].map(|name| mesh.node(name));
    let serve = free_address();
    client.config.more = format!("[[gateway.listener]]\naddress = '{serve}'\nrole = 'serve'\n");
    holder.config.exclude = vec!["mesh-noisy-*".to_owned()];
    let [noisy, other] = ["noisy", "lib"].map(|name| holder.store.build_one(name));
    let [private, offered] = [&noisy, &other].map(|path| holder.store.derivations(&[path]).remove(0));
    TestMesh::start_all(&mut [&mut holder, &mut client]);
    holder.wait_advertised(1, &[&client]);
    let status = |derivation: &str| log_status(client.gateway(), derivation);
    assert_eq!((status(&offered), status(&private)), (200, 404));
    assert_eq!(log_status(holder.gateway(), &private), 200, "its own Nix may have it");
    assert_eq!(log_status(serve, &offered), 404, "who asks another listener asks no peers");
    // An output is no derivation, and what nobody built has no log.
    let since = Instant::now();
    assert_eq!((status(&other), status("/nix/store/00000000000000000000000000000000-never.drv")), (404, 404));
    assert!(since.elapsed() < promised(ABSENT_WITHIN), "{:?}", since.elapsed());

    holder.config.exclude.clear();
    holder.write_config();
    holder.narmesh(&["reload"]).expect_success("reload");
    wait_until("it is offered", promised(FOLLOWED), || status(&private) == 200);
    holder.narmesh(&["serve", "off"]).expect_success("serve off");
    assert_eq!((status(&private), status(&offered)), (404, 404));
}
