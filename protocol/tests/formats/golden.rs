//! Compares with files that Nix 2.8.0 made (`../golden/make.sh`), byte for byte.

use crate::tree::Tree;
use narmesh_protocol::nar::NarVerifier;
use narmesh_protocol::{
    ContentAddress, HashPart, NarHash, NarInfo, NixPublicKey, NixSecretKey, StoreDir, StorePath, TrustedKeys, nix32,
};
use std::fs;
use std::path::PathBuf;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn read(name: &str) -> Vec<u8> {
    fs::read(golden(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn read_text(name: &str) -> String {
    String::from_utf8(read(name)).unwrap()
}

fn store_dir() -> StoreDir {
    StoreDir::parse("/nix/store").unwrap()
}

/// A narinfo of the golden binary cache, its text and the NAR at its URL.
struct Cached {
    text: String,
    url: String,
    info: NarInfo,
    nar: Vec<u8>,
}

fn cache() -> Vec<Cached> {
    let mut names = fs::read_dir(golden("cache"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".narinfo"))
        .collect::<Vec<_>>();
    names.sort_unstable();
    assert_eq!(names.len(), 35, "make.sh makes that many paths");
    let read_one = |name: &String| {
        let text = read_text(&format!("cache/{name}"));
        let url = text.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap().to_owned();
        let info = NarInfo::parse(&store_dir(), text.as_bytes()).unwrap();
        assert_eq!(format!("{}.narinfo", info.path.hash_part()), *name);
        let nar = read(&format!("cache/{url}"));
        Cached { text, url, info, nar }
    };
    names.iter().map(read_one).collect()
}

#[test]
fn narinfos_are_printed_as_nix_wrote_them() {
    for Cached { text, url, info, .. } in cache() {
        assert_eq!(info.render(&store_dir(), &url), text);
    }
}

#[test]
fn nars_have_the_hash_and_size_that_nix_signed() {
    for Cached { info, nar, .. } in cache() {
        let mut verifier = NarVerifier::new();
        verifier.feed(&nar).unwrap();
        let verified = verifier.finish().unwrap();
        assert_eq!((verified.nar_hash, verified.nar_size), (info.nar_hash, info.nar_size), "{}", info.path);
    }
}

#[test]
fn signatures_equal_those_of_nix() {
    let secret = NixSecretKey::parse(&read_text("secret.key")).unwrap();
    let public = NixPublicKey::parse(&read_text("public.key")).unwrap();
    assert_eq!(secret.public(), public);
    assert_eq!(secret.expose_secret(), read_text("secret.key").trim_end());
    assert_eq!(public.to_string(), read_text("public.key").trim_end());
    let trusted = TrustedKeys::new([public]).unwrap();
    for Cached { info, .. } in cache() {
        let fingerprint = info.fingerprint(&store_dir());
        let [signature] = info.signatures.as_slice() else { panic!("{}: one signature expected", info.path) };
        assert!(trusted.verifies(&fingerprint, signature), "{}", info.path);
        assert_eq!(secret.sign(&fingerprint), *signature, "Ed25519 is deterministic");
        let larger = NarInfo { nar_size: info.nar_size + 8, ..info.clone() };
        assert!(!trusted.verifies(&larger.fingerprint(&store_dir()), signature));
    }
}

#[test]
fn content_addresses_give_the_paths_that_nix_gave() {
    let (mut kinds, mut with_self_reference) = (std::collections::BTreeSet::new(), 0);
    for Cached { info, text, .. } in cache() {
        let Some(address) = &info.content_address else {
            assert!(!text.contains("\nCA: "));
            assert_eq!(info.proven_content_address(&store_dir()), None);
            continue;
        };
        assert_eq!(info.proven_content_address(&store_dir()), Some(address), "{}", info.path);
        let printed = address.to_string();
        kinds.insert(printed.rsplit_once(':').unwrap().0.to_owned());
        with_self_reference += usize::from(info.has_self_reference());

        let other_name = StorePath::new(info.path.hash_part(), "other").unwrap();
        let renamed = NarInfo { path: other_name, ..info.clone() };
        assert_eq!(renamed.proven_content_address(&store_dir()), None, "the name is part of the address");
        let elsewhere = StoreDir::parse("/gnu/store").unwrap();
        assert_eq!(info.proven_content_address(&elsewhere), None, "so is the directory");
        let mut more = info.clone();
        more.references.push(StorePath::new(HashPart([9; 20]), "more").unwrap());
        assert_eq!(more.proven_content_address(&store_dir()), None, "so are the references");
        let lie = NarInfo { nar_hash: NarHash([0; 32]), ..info.clone() };
        let implied = address.implied_nar_hash(info.has_self_reference());
        assert_eq!(lie.proven_content_address(&store_dir()).is_none(), implied.is_some(), "{}", info.path);
    }
    assert_eq!(
        kinds.into_iter().collect::<Vec<_>>(),
        [
            "fixed:md5",
            "fixed:r:md5",
            "fixed:r:sha1",
            "fixed:r:sha256",
            "fixed:r:sha512",
            "fixed:sha1",
            "fixed:sha256",
            "fixed:sha512",
            "text:sha256"
        ]
    );
    assert_eq!(with_self_reference, 3);
}

#[test]
fn contents_match_the_addresses_that_nix_gave() {
    for Cached { info, nar, .. } in cache() {
        let Some(address) = &info.content_address else { continue };
        let own = info.path.hash_part();
        let own = info.has_self_reference().then_some(&own);
        let matches = |nar: &[u8], piece: usize| {
            let mut verifier = address.verifier(own);
            nar.chunks(piece).for_each(|piece| verifier.feed(piece));
            verifier.matches()
        };
        for piece in [nar.len(), 1, 31, 32, 33, 100] {
            assert!(matches(&nar, piece), "{} in pieces of {piece}", info.path);
        }
        for at in (0..nar.len()).step_by(7) {
            let mut changed = nar.clone();
            changed[at] ^= 0x10;
            assert!(!matches(&changed, nar.len()), "{}: byte {at} changed", info.path);
        }
    }
}

#[test]
fn digests_parse_and_print_as_in_nix() {
    let digests = read_text("digests");
    let mut lines = 0;
    for line in digests.lines() {
        let [algorithm, base16, nix32, base64, sri] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        lines += 1;
        let canonical = format!("fixed:r:{algorithm}:{nix32}");
        for digest in [base16, nix32, base64] {
            let address = ContentAddress::parse(&format!("fixed:r:{algorithm}:{digest}")).unwrap();
            assert_eq!(address.to_string(), canonical);
        }
        if algorithm == "sha256" {
            let bytes = nix32::decode::<32>(nix32).unwrap();
            for form in [base16, nix32, base64].map(|digest| format!("sha256:{digest}")).iter().chain([&sri.to_owned()])
            {
                assert_eq!(NarHash::parse(form), Ok(NarHash(bytes)), "{form}");
            }
            assert_eq!(NarHash(bytes).to_string(), format!("sha256:{nix32}"));
        }
    }
    assert_eq!(lines, 12);
}

#[test]
fn the_writer_and_nix_make_the_same_nars() {
    let x = |count: usize| Tree::file("x".repeat(count));
    let sizes = [0, 1, 7, 8, 9, 15, 16, 1000].map(|size| (format!("size-{size}"), x(size)));
    let subsub = Tree::directory([("empty", Tree::directory::<&str>([])), ("file", Tree::file("deep\n"))]);
    let sub = Tree::directory([("run", Tree::executable("#!/bin/sh\n")), ("subsub", subsub)]);
    let links = [("absolute", Tree::symlink("/nix/store")), ("link", Tree::symlink("sub/subsub/file")), ("sub", sub)];
    let tree = Tree::directory(links.map(|(name, tree)| (name.to_owned(), tree)).into_iter().chain(sizes));
    let long = "n".repeat(255);
    let odd_names: [&[u8]; 16] = [
        long.as_bytes(),
        b"a",
        b"A",
        b"a.b",
        b"a-b",
        b"ab",
        b"a b",
        b"...",
        b".hidden",
        b"~",
        b"$x",
        b"new\nline",
        "é".as_bytes(),
        b"\xff\xfe",
        b"*",
        b"~nix~case~hack~1",
    ];
    let trees = [
        ("file", Tree::file("hello\n")),
        ("empty-file", Tree::file("")),
        ("executable", Tree::executable("#!/bin/sh\n")),
        ("symlink", Tree::symlink("../somewhere/else")),
        ("empty-directory", Tree::directory::<&str>([])),
        ("tree", tree),
        ("odd-names", Tree::directory(odd_names.map(|name| (name, x(1))))),
    ];
    let index = read_text("nar/index");
    let mut index = index.lines();
    for (name, tree) in trees {
        let nar = read(&format!("nar/{name}.nar"));
        assert!(tree.written() == nar, "{name}");
        let mut verifier = NarVerifier::new();
        verifier.feed(&nar).unwrap();
        let verified = verifier.finish().unwrap();
        let line = format!("{name} {} {}", verified.nar_hash.nix32(), verified.nar_size);
        assert_eq!(Some(line.as_str()), index.next());
    }
    assert_eq!(index.next(), None);
}
