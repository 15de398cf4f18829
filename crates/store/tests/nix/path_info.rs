//! Compares registrations with the output of `nix path-info`, on all three kinds of store.

use crate::harness::{Kind, TestNix, info, read_all};
use narmesh_protocol::{HashPart, NarHash, StorePath};
use narmesh_store::NixStore;
use serde_json::Value;

fn assert_as_nix_says(nix: &TestNix, store: &NixStore, path: &StorePath) {
    let full = nix.full(path);
    // Without `--derivation`, Nix would describe the outputs of a derivation instead.
    let itself = if path.is_derivation() { "--derivation" } else { "--json" };
    let answer = nix.run("nix", &["path-info", "--json", itself, &full]);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let said = &answer[0];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let info = info(store, &path.hash_part());
    assert_eq!(info.path, *path);
    assert_eq!(info.nar_hash, NarHash::parse(said["narHash"].as_str().unwrap()).unwrap(), "{full}");
    assert_eq!(Some(info.nar_size), said["narSize"].as_u64());
    let references: Vec<_> = info.references.iter().map(|path| nix.full(path)).collect();
    let mut expected: Vec<_> = said["references"].as_array().unwrap().iter().filter_map(text).collect();
    expected.sort();
    assert_eq!(references, expected, "{full}");
    assert_eq!(info.deriver.as_ref().map(|path| nix.full(path)), text(&said["deriver"]));
    assert_eq!(info.ultimate, said["ultimate"].as_bool().unwrap_or(false), "{full}");
    assert_eq!(info.content_address.as_ref().map(ToString::to_string), text(&said["ca"]));
    let signatures: Vec<_> = info.signatures.iter().map(ToString::to_string).collect();
    let expected: Vec<_> = said["signatures"].as_array().into_iter().flatten().filter_map(text).collect();
    assert_eq!(signatures, expected);
    assert_eq!(Some(info.registration_time_s), said["registrationTime"].as_u64());
}

fn valid_paths(nix: &TestNix) -> Vec<StorePath> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = rusqlite::Connection::open_with_flags(nix.database(), flags).unwrap();
    let mut statement = connection.prepare("SELECT path FROM ValidPaths").unwrap();
    let paths = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
    paths.map(|path| nix.parse(&path.unwrap())).collect()
}

#[test]
fn relocated_store_is_read_as_by_nix() {
    let nix = TestNix::new(Kind::Relocated);
    let app = nix.build("app");
    for attribute in ["multi", "fod", "withsource", "empty"] {
        nix.build(attribute);
    }
    let key = nix.dir.path().join("key");
    let public = nix.dir.path().join("public");
    let (key, public) = (key.to_str().unwrap(), public.to_str().unwrap());
    nix.run("nix-store", &["--generate-binary-cache-key", "test-1", key, public]);
    nix.run("nix", &["store", "sign", "-k", key, &nix.full(&app)]);
    let store = nix.open();
    let paths = valid_paths(&nix);
    assert!(paths.len() > 12);
    assert_eq!(store.valid_paths(), paths.len());
    for path in &paths {
        assert!(store.contains(&path.hash_part()));
        assert_as_nix_says(&nix, &store, path);
    }
    assert_eq!(store.hash_parts(), paths.iter().map(StorePath::hash_part).collect());
    let info = info(&store, &app.hash_part());
    assert_eq!((info.signatures.len(), info.references.len(), info.ultimate), (1, 2, true));
    for absent in [HashPart([0; 20]), HashPart([255; 20]), HashPart([7; 20])] {
        assert!(!store.contains(&absent));
        assert_eq!(store.read_path_info(&absent).unwrap(), None);
    }
}

#[test]
fn chroot_store_and_store_with_other_real_directory_are_read_as_by_nix() {
    let nix = TestNix::new(Kind::Chroot);
    let app = nix.build("app");
    let store = nix.open();
    assert_eq!(store.store_dir().as_str(), "/nix/store");
    for path in &valid_paths(&nix) {
        assert_as_nix_says(&nix, &store, path);
    }
    let nar = read_all(store.open_nar(&info(&store, &app.hash_part())).unwrap(), 4096).unwrap();
    assert!(nar == nix.dump(&app));

    let copy = TestNix::new(Kind::Real);
    let file = copy.dir.path().join("derivations.nix");
    let source = copy.run("nix-store", &["--add", file.to_str().unwrap()]);
    let source = copy.parse(&source);
    let store = copy.open();
    assert_eq!(store.store_dir().as_str(), "/narmesh/logical/store");
    assert_eq!(store.valid_paths(), 1);
    assert_as_nix_says(&copy, &store, &source);
    let nar = read_all(store.open_nar(&info(&store, &source.hash_part())).unwrap(), 4096).unwrap();
    assert!(nar == copy.dump(&source));
}

#[test]
fn store_that_nix_has_not_created_yet_is_empty() {
    let nix = TestNix::new(Kind::Relocated);
    let mut location = nix.location.clone();
    location.state_dir = nix.dir.path().join("not/yet");
    let store = NixStore::open(location).unwrap();
    assert_eq!(store.valid_paths(), 0);
    assert_eq!(store.read_path_info(&HashPart([1; 20])).unwrap(), None);
}
