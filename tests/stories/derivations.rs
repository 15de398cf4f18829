//! Derivations (`.drv`): private by default, and given with all that they refer to where `advertise.derivations` says so.

use std::net::SocketAddr;
use std::time::Duration;

use narmesh_tests::{
    NixStoreFixture, NixVersion, TestMesh, TestNode, finish, free_address, get, hash_part, promised, scratch_dir,
    wait_until, with_gateway,
};

/// What is offered follows a change within this.
const FOLLOWED: Duration = Duration::from_secs(2);

fn status(gateway: SocketAddr, path: &str) -> u16 {
    get(gateway, &format!("/{}.narinfo", hash_part(path))).unwrap().status
}

fn is_advertised(node: &TestNode, path: &str) -> bool {
    node.narmesh(&["advertised", "--json"]).expect_success("advertised").contains(path)
}

/// `nix derivation show`, by the name that this version of Nix has for it.
fn show(store: &NixStoreFixture, derivation: &str) -> String {
    let mut command = store.nix("nix");
    command.args(["--extra-experimental-features", "nix-command"]);
    if store.nix_version() == NixVersion::V2_8 {
        command.arg("show-derivation");
    } else {
        command.args(["derivation", "show"]);
    }
    finish(command.arg(derivation)).expect_success("nix derivation show")
}

/// `nix-store --realise` of a derivation that is not here; nothing can be built.
fn realise(store: &NixStoreFixture, derivation: &str, gateway: SocketAddr, keys: &[String]) -> String {
    let mut command = store.nix("nix-store");
    command.args(["--realise", derivation, "--option", "max-jobs", "0"]);
    let said = finish(with_gateway(&mut command, gateway, keys)).expect_success("nix-store --realise");
    said.trim().to_owned()
}

#[test]
fn derivations_stay_private_until_they_are_offered_and_then_travel_with_their_sources() {
    let mesh = TestMesh::new();
    let [mut holder, mut client] = ["holder", "client"].map(|name| mesh.node(name));
    let serve = free_address();
    holder.config.exclude = vec!["mesh-lib-*".to_owned()];
    holder.config.more = format!("[[gateway.listener]]\naddress = '{serve}'\nrole = 'serve'\n");
    let built = holder.store.build_one("withsources");
    let derivation = holder.store.derivations(&[&built]).remove(0);
    // What they build is private: by a pattern, by what they refer to, and by their own word.
    let private = ["lib", "app", "private", "callsprivate"].map(|name| holder.store.instantiate(name));
    TestMesh::start_all(&mut [&mut holder, &mut client]);
    holder.wait_all_advertised(&[&client]);
    wait_until("the output is offered", promised(FOLLOWED), || status(serve, &built) == 200);

    assert_eq!((status(serve, &derivation), status(client.gateway(), &derivation)), (404, 404));
    assert_eq!(status(holder.gateway(), &derivation), 200, "its own Nix may have it");
    assert!(!is_advertised(&holder, &derivation));

    holder.config.derivations = true;
    holder.write_config();
    holder.narmesh(&["reload"]).expect_success("reload");
    wait_until("the derivation is offered", promised(FOLLOWED), || {
        status(serve, &derivation) == 200 && status(client.gateway(), &derivation) == 200
    });
    assert!(is_advertised(&holder, &derivation));
    for path in &private {
        assert_eq!((status(serve, path), status(client.gateway(), path)), (404, 404), "{path}");
        assert_eq!(status(holder.gateway(), path), 200);
    }

    assert_eq!(realise(&client.store, &derivation, client.gateway(), &client.config.trusted_public_keys), built);
    let scratch = scratch_dir("plain");
    let plain = NixStoreFixture::chroot(scratch.path());
    assert_eq!(realise(&plain, &derivation, serve, &[holder.builder_key()]), built);
    for store in [&client.store, &plain] {
        assert!(!store.row(&built).unwrap().ultimate, "nothing was built there");
        assert_eq!(show(store, &derivation), show(&holder.store, &derivation));
        assert_eq!(store.row(&derivation).unwrap().references, holder.store.row(&derivation).unwrap().references);
        store.verify_contents();
    }

    // A new one follows, and a reload takes all of them back at once.
    let later = holder.store.instantiate("files");
    wait_until("it is offered", promised(FOLLOWED), || status(serve, &later) == 200);
    holder.config.derivations = false;
    holder.write_config();
    holder.narmesh(&["reload"]).expect_success("reload");
    assert_eq!((status(serve, &derivation), status(serve, &later), status(serve, &built)), (404, 404, 200));
    wait_until("it is taken back", promised(FOLLOWED), || !is_advertised(&holder, &derivation));
}
