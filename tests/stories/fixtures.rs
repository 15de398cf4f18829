//! The fixtures that all stories rely on have the properties that they claim, tested with Nix alone.

use narmesh_tests::{NixStoreFixture, hash_part, scratch_dir};

#[test]
fn the_derivations_have_the_properties_that_stories_rely_on() {
    let dir = scratch_dir("fixtures");
    let store = NixStoreFixture::chroot(dir.path());
    let row = |path: &str| store.row(path).expect("just built");

    let app = store.build_one("app");
    let lib = store.build_one("lib");
    assert_eq!(row(&app).references, [app.clone(), lib].into(), "app refers to itself and to lib");
    assert_eq!(store.build("multi").len() + store.build("multi.doc").len(), 2);
    assert!(row(&store.build_one("fod")).content_address.starts_with("fixed:sha256:"));
    assert!(row(&app).ultimate && row(&app).signatures.is_empty());

    let files = store.real_path(&store.build_one("files"));
    let count: usize =
        std::fs::read_dir(files).unwrap().map(|dir| std::fs::read_dir(dir.unwrap().path()).unwrap().count()).sum();
    assert_eq!(count, 2_000);
    let names = store.real_path(&store.build_one("names"));
    assert_eq!(std::fs::read_dir(names).unwrap().count(), 254 + 7, "254 bytes are allowed in a file name");
    let name_length = store.build_one("longname").len() - "/nix/store/".len() - 33;
    assert_eq!(name_length, 207, "with .drv the longest name of a store path, 211");
    assert_eq!(hash_part(&app).len(), 32);

    let eight_mib = 8 << 20;
    assert!(row(&store.build_one("small")).nar_size < eight_mib);
    assert!(row(&store.build_one("middle")).nar_size > eight_mib);
    assert!(row(&store.build_one("huge")).nar_size >= 300_000_000);
    store.verify_contents();
}

#[test]
fn two_stores_agree_on_a_deterministic_path_and_differ_on_the_other() {
    let (one, two) = (scratch_dir("one"), scratch_dir("two"));
    let stores = [NixStoreFixture::chroot(one.path()), NixStoreFixture::chroot(two.path())];
    let hashes = |attribute: &str| {
        stores.each_ref().map(|store| store.row(&store.build_one(attribute)).expect("just built").nar_hash)
    };
    let [first, second] = hashes("middle");
    assert_eq!(first, second);
    let [first, second] = hashes("nondet");
    assert_ne!(first, second);
}

#[test]
fn a_corrupted_file_is_noticed_by_nix() {
    let dir = scratch_dir("corrupt");
    let store = NixStoreFixture::chroot(dir.path());
    let lib = store.build_one("lib");
    store.verify_contents();
    store.corrupt_file(&lib, "lib/libmesh.txt");
    let checked = std::panic::catch_unwind(|| store.verify_contents());
    assert!(checked.is_err(), "a check that cannot fail checks nothing");
}

#[test]
fn a_relocated_store_builds_without_root() {
    let dir = scratch_dir("relocated");
    let store = NixStoreFixture::relocated_builder(&dir.path().join("a"), &dir.path().join("store"));
    let app = store.build_one("app");
    assert!(app.starts_with(dir.path().to_str().unwrap()) && store.has(&app));
    store.verify_contents();
}
