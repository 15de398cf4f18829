//! Short texts: names, URLs, NarHashes, content addresses, keys.

use super::{Outcome, Target};
use crate::memory::MemoryBound;
use narmesh_protocol::{
    ContentAddress, HashPart, NarHash, NarUrl, NixPublicKey, NixSecretKey, NixSignature, StoreDir, StorePath,
    TrustedKeys, nix32,
};

const MEMORY: MemoryBound = MemoryBound { per_byte: 4, constant: 4 << 10 };
const WORDS: &[&[u8]] = &[
    b"7h7qgvs4kgzsn8a6rb273saxyqh4jxlz",
    b"0zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz",
    b"1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s",
    b"-",
    b"--",
    b".",
    b"..",
    b"/",
    b"/nix/store",
    b".drv",
    b".nar",
    b"nar/",
    b":",
    b"=",
    b"==",
    b"sha256:",
    b"sha256-",
    b"fixed:r:sha256:",
    b"fixed:sha512:",
    b"fixed:md5:",
    b"fixed:git:",
    b"text:sha256:",
    b" ",
    b"\n",
    b"\xc2\xa0",
    b"\0",
];

/// A target whose input is text. Input that is not UTF-8 is made so, as every caller of these parsers does.
macro_rules! text {
    ($name:literal, $check:path, $seeds:expr) => {{
        fn run(input: &[u8]) -> Outcome {
            $check(&String::from_utf8_lossy(input))
        }
        Target { name: $name, run, seeds: || $seeds.map(Vec::from).to_vec(), words: WORDS, input_bytes_max: 1 << 10 }
    }};
}

pub(super) const TARGETS: [Target; 6] = [
    text!(
        "nix32",
        nix32_text,
        [
            "7h7qgvs4kgzsn8a6rb273saxyqh4jxlz",
            "1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s",
            "00000000000000000000000000"
        ]
    ),
    text!(
        "store-path",
        store_path,
        [
            "7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-hello-2.10",
            "/nix/store/7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-x",
            "/nix/store",
            "/a/b"
        ]
    ),
    text!(
        "nar-url",
        nar_url,
        ["7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s-112.nar"]
    ),
    text!(
        "nar-hash",
        nar_hash,
        [
            "sha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s",
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="
        ]
    ),
    text!(
        "content-address",
        content_address,
        [
            "fixed:r:sha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s",
            "text:sha256:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=",
            "fixed:md5:900150983cd24fb0d6963f7d28e17f72",
            "fixed:git:sha1:a9993e364706816aba3e25717850c26c9cd0d89d"
        ]
    ),
    text!(
        "keys",
        keys,
        [
            "cache.example-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",
            "a:iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1wCaVNGsGq7OLlVBQGFCKrvbtTXXhRXuxUOeIPAtPhxDg==",
            "a:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQGKiOPddAnxlf1S2y08ul1yymcJvx2UEhvzdIgBtA9vXA=="
        ]
    ),
];

fn nix32_text(text: &str) -> Outcome {
    fn of_size<const N: usize>(text: &str) -> bool {
        let decoded = nix32::decode::<N>(text);
        if let Some(bytes) = decoded {
            assert_eq!(nix32::encode(&bytes), text, "one spelling");
        }
        decoded.is_some()
    }
    let sizes = [of_size::<16>(text), of_size::<20>(text), of_size::<32>(text), of_size::<64>(text)];
    let part = MEMORY.hold(text.len(), || HashPart::parse(text));
    assert_eq!(part.is_ok(), sizes.get(1).copied().unwrap_or_default());
    Outcome::of((sizes, text.len().min(128)))
}

fn store_path(text: &str) -> Outcome {
    let path = MEMORY.hold(text.len(), || StorePath::parse(text));
    if let Ok(path) = &path {
        assert_eq!(path.to_string(), text, "one spelling");
        assert!(!text.contains('/') && text.len() <= 33 + StorePath::NAME_BYTES_MAX);
        assert_eq!(StorePath::new(path.hash_part(), path.name()).as_ref(), Ok(path));
    }
    let store_dir = MEMORY.hold(text.len(), || StoreDir::parse(text));
    if let Ok(store_dir) = &store_dir {
        assert_eq!(store_dir.as_str(), text);
        assert!(text.len() <= StoreDir::BYTES_MAX && !text.split('/').any(|component| component == ".."));
    }
    let nix = StoreDir::parse("/nix/store").expect("a store directory");
    let full = nix.parse_path(text);
    if let Ok(path) = &full {
        assert_eq!(nix.display(path), text, "one spelling");
    }
    Outcome::of(format!("{:?}{:?}{:?}", path.err(), store_dir.err(), full.err()))
}

fn nar_url(text: &str) -> Outcome {
    let url = MEMORY.hold(text.len(), || NarUrl::parse_file_name(text));
    if let Ok(url) = &url {
        assert_eq!(url.to_string().strip_prefix("nar/"), Some(text), "one spelling");
        assert!(url.nar_size > 0);
    }
    Outcome::of((url.is_ok(), text.matches('-').count().min(9), text.ends_with(".nar"), super::magnitude(text.len())))
}

fn nar_hash(text: &str) -> Outcome {
    let hash = MEMORY.hold(text.len(), || NarHash::parse(text));
    if let Ok(hash) = &hash {
        assert_eq!(NarHash::parse(&hash.to_string()).as_ref(), Ok(hash));
    }
    Outcome::of((hash.map(|_| ()).map_err(|error| std::mem::discriminant(&error)), text.len().min(80)))
}

fn content_address(text: &str) -> Outcome {
    let address = MEMORY.hold(text.len(), || ContentAddress::parse(text));
    if let Ok(address) = &address {
        assert_eq!(ContentAddress::parse(&address.to_string()).as_ref(), Ok(address));
        let store_dir = StoreDir::parse("/nix/store").expect("a store directory");
        match (address, address.store_path(&store_dir, "name", &[], false)) {
            (ContentAddress::Other(_), path) => assert_eq!(path, None, "nothing follows from what is not known"),
            (_, path) => assert_eq!(path.expect("every address gives a path").name(), "name"),
        }
        assert!(!address.verifier(None).matches() || text.len() > 40);
    }
    Outcome::of(format!(
        "{:?} {:?}",
        address.as_ref().err(),
        address.as_ref().ok().map(|address| address.to_string().len())
    ))
}

fn keys(text: &str) -> Outcome {
    let public = MEMORY.hold(text.len(), || NixPublicKey::parse(text));
    if let Ok(key) = &public {
        assert_eq!(key.to_string(), text.trim(), "one spelling");
        TrustedKeys::new([key.clone(), key.clone()]).expect("one key twice is one key");
    }
    let secret = MEMORY.hold(text.len(), || NixSecretKey::parse(text));
    if let Ok(key) = &secret {
        assert_eq!(key.expose_secret(), text.trim(), "one spelling");
        assert!(!format!("{key:?}").contains(text.trim()));
    }
    let signature = MEMORY.hold(text.len(), || NixSignature::parse(text));
    if let Ok(signature) = &signature {
        assert_eq!(signature.to_string(), text, "one spelling");
        assert!(!text.contains(char::is_control) && text.lines().count() == 1, "fits on a line of a narinfo");
    }
    Outcome::of(format!("{:?}{:?}{:?}", public.err(), secret.err(), signature.err()))
}
