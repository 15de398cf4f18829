//! Narinfo texts from peers.

use super::{Outcome, Target, golden, magnitude};
use crate::memory::MemoryBound;
use narmesh_protocol::{ContentAddress, NarInfo, StoreDir, TrustedKeys, find_signed_deriver};

pub(super) const TARGET: Target = Target {
    name: "narinfo",
    run,
    seeds: || golden("cache", ".narinfo", usize::MAX),
    words: &[
        b"StorePath: ",
        b"URL: ",
        b"Compression: none",
        b"FileHash: ",
        b"FileSize: ",
        b"NarHash: ",
        b"NarSize: ",
        b"References: ",
        b"Deriver: ",
        b"DeriverSig: ",
        b"Sig: ",
        b"CA: ",
        b"\n",
        b"\r",
        b": ",
        b":",
        b" ",
        b"unknown-deriver",
        b"/nix/store/",
        b"sha256:",
        b"sha256-",
        b"fixed:",
        b"fixed:r:",
        b"fixed:git:",
        b"text:sha256:",
        b"md5:",
        b"sha1:",
        b"sha512:",
        b"\xff",
        b"..",
        b"7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-x",
        b"18446744073709551615",
        b"18446744073709551616",
    ],
    input_bytes_max: 16 << 10,
};

/// The text is borrowed while it is parsed. A reference of 34 bytes becomes a `StorePath` of 48 bytes and a name.
const MEMORY: MemoryBound = MemoryBound { per_byte: 12, constant: 4 << 10 };

fn run(input: &[u8]) -> Outcome {
    let store_dir = StoreDir::parse("/nix/store").expect("a store directory");
    let parsed = MEMORY.hold(input.len(), || NarInfo::parse(&store_dir, input));
    if let Ok(info) = &parsed {
        check(&store_dir, info);
        let nobody = TrustedKeys::default();
        assert_eq!(find_signed_deriver(&store_dir, input, &info.path, &nobody), None, "nobody is trusted");
    }
    match &parsed {
        Err(error) => Outcome::of(format!("{error:?}").split(|c: char| c.is_ascii_digit()).next()),
        Ok(info) => Outcome::of((
            magnitude(info.references.len()),
            info.signatures.len(),
            info.deriver.is_some(),
            info.content_address.as_ref().map(std::mem::discriminant),
            info.has_self_reference(),
        )),
    }
}

fn check(store_dir: &StoreDir, info: &NarInfo) {
    assert!(info.nar_size > 0);
    assert!(info.references.is_sorted_by(|a, b| a < b), "references sorted and unique");
    assert!(info.signatures.len() <= NarInfo::SIGNATURES_MAX);
    let url = "nar/x.nar";
    let text = info.render(store_dir, url);
    assert!(!text.contains('\r') && text.ends_with('\n'));
    // No value can end its line and begin another field.
    let prints_address = !matches!(info.content_address, None | Some(ContentAddress::Other(_)));
    let fields = 8 + usize::from(info.deriver.is_some()) + info.signatures.len() + usize::from(prints_address);
    assert_eq!(text.lines().count(), fields, "{text}");
    let again = NarInfo::parse(store_dir, text.as_bytes()).expect("what we print parses");
    let printed = if prints_address { info.clone() } else { NarInfo { content_address: None, ..info.clone() } };
    assert_eq!(again, printed, "what we print means the same");
    assert_eq!(again.fingerprint(store_dir), info.fingerprint(store_dir));
    assert_eq!(again.render(store_dir, url), text);
    if let Some(address) = info.proven_content_address(store_dir) {
        assert_eq!(Some(address), info.content_address.as_ref());
    }
}
