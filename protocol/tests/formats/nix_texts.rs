//! Text formats of Nix: a printed value parses to the same value, and no text makes a parser panic.

use narmesh_protocol::{
    ContentAddress, Fingerprint, HashAlgorithm, HashPart, NarHash, NarInfo, NarInfoError, NarInfoField, NarUrl,
    NixPublicKey, NixSecretKey, NixSignature, StoreDir, StorePath, TrustedKeys, nix32,
};
use proptest::prelude::*;

const NAME: &str = "[0-9A-Za-z+_?=][0-9A-Za-z+._?=-]{0,40}";

fn any_store_dir() -> impl Strategy<Value = StoreDir> {
    "(/[a-z][a-z0-9 _.-]{0,8}){1,3}".prop_map(|text| StoreDir::parse(&text).unwrap())
}

fn any_store_path() -> impl Strategy<Value = StorePath> {
    (any::<[u8; 20]>(), NAME).prop_map(|(hash, name)| StorePath::new(HashPart(hash), &name).unwrap())
}

fn any_content_address() -> impl Strategy<Value = ContentAddress> {
    let algorithms = vec![HashAlgorithm::Md5, HashAlgorithm::Sha1, HashAlgorithm::Sha256, HashAlgorithm::Sha512];
    let fixed = (any::<bool>(), prop::sample::select(algorithms), any::<[u8; 64]>()).prop_map(
        |(recursive, algorithm, bytes)| ContentAddress::Fixed {
            recursive,
            algorithm,
            digest: bytes[..algorithm.digest_bytes()].to_vec(),
        },
    );
    prop_oneof![fixed, any::<[u8; 32]>().prop_map(|sha256| ContentAddress::Text { sha256 })]
}

fn any_signature() -> impl Strategy<Value = NixSignature> {
    let bytes = prop::collection::vec(any::<u8>(), 64).prop_map(|bytes| <[u8; 64]>::try_from(bytes).unwrap());
    ("[a-z0-9.é-]{1,20}", bytes).prop_map(|(key_name, bytes)| NixSignature { key_name, bytes })
}

fn any_narinfo() -> impl Strategy<Value = NarInfo> {
    (
        any_store_path(),
        any::<[u8; 32]>().prop_map(NarHash),
        1..=u64::MAX,
        prop::collection::btree_set(any_store_path(), 0..6),
        prop::option::of(any_store_path()),
        prop::collection::vec(any_signature(), 0..4),
        prop::option::of(any_content_address()),
        any::<bool>(),
    )
        .prop_map(|(path, nar_hash, nar_size, mut references, deriver, signatures, content_address, itself)| {
            if itself {
                references.insert(path.clone());
            }
            let references = references.into_iter().collect();
            NarInfo { path, nar_hash, nar_size, references, deriver, signatures, content_address }
        })
}

proptest! {
    #[test]
    fn nix32_survives_a_round_trip(short: [u8; 20], long: [u8; 32], bytes in prop::collection::vec(any::<u8>(), 64)) {
        prop_assert_eq!(nix32::decode(&nix32::encode(&short)), Some(short));
        prop_assert_eq!(nix32::decode(&nix32::encode(&long)), Some(long));
        let longest = <[u8; 64]>::try_from(bytes).unwrap();
        prop_assert_eq!(nix32::decode(&nix32::encode(&longest)), Some(longest));
    }

    #[test]
    fn nix32_has_one_spelling(text in "[0-9a-z]{52}", any in ".{0,60}") {
        for text in [text, any] {
            if let Some(bytes) = nix32::decode::<32>(&text) {
                prop_assert_eq!(nix32::encode(&bytes), text);
            }
        }
    }

    #[test]
    fn store_paths_survive_a_round_trip_and_sort_as_texts(dir in any_store_dir(), a in any_store_path(), b in any_store_path()) {
        prop_assert_eq!(StorePath::parse(&a.to_string()), Ok(a.clone()));
        prop_assert_eq!(dir.parse_path(&dir.display(&a)), Ok(a.clone()));
        prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        prop_assert_eq!(a.hash_part().cmp(&b.hash_part()), a.hash_part().to_string().cmp(&b.hash_part().to_string()));
    }

    #[test]
    fn store_paths_have_one_spelling(name in ".{0,4}", text in ".{0,60}") {
        for text in [format!("7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-{name}"), text] {
            if let Ok(path) = StorePath::parse(&text) {
                prop_assert_eq!(path.to_string(), text);
            }
        }
    }

    #[test]
    fn nar_hashes_parse_in_all_forms(bytes: [u8; 32]) {
        let hash = NarHash(bytes);
        let base16 = data_encoding::HEXLOWER.encode(&bytes);
        let base64 = data_encoding::BASE64.encode(&bytes);
        for text in [
            hash.to_string(),
            format!("sha256:{}", hash.nix32()),
            format!("sha256:{base16}"),
            format!("sha256:{}", base16.to_uppercase()),
            format!("sha256:{base64}"),
            format!("sha256-{base64}"),
        ] {
            prop_assert_eq!(NarHash::parse(&text), Ok(hash), "{}", text);
        }
    }

    #[test]
    fn nar_urls_survive_a_round_trip(part: [u8; 20], hash: [u8; 32], nar_size in 1..=u64::MAX, text in "[0-9a-z.-]{0,100}") {
        let url = NarUrl::new(HashPart(part), NarHash(hash), nar_size);
        prop_assert_eq!(NarUrl::parse_file_name(url.to_string().strip_prefix("nar/").unwrap()), Ok(url));
        prop_assert!(NarUrl::parse_file_name(&text).is_err());
    }

    #[test]
    fn content_addresses_survive_a_round_trip(address in any_content_address()) {
        prop_assert_eq!(ContentAddress::parse(&address.to_string()), Ok(address));
    }

    #[test]
    fn order_of_references_does_not_matter(info in any_narinfo(), dir in any_store_dir(), address in any_content_address()) {
        let mut mixed = info.references.clone();
        mixed.reverse();
        mixed.extend(info.references.first().cloned());
        let other = Fingerprint::new(&dir, &info.path, &info.nar_hash, info.nar_size, &mixed);
        prop_assert_eq!(info.fingerprint(&dir), other);
        let path = |references: &[StorePath]| address.store_path(&dir, "name", references, false);
        prop_assert_eq!(path(&info.references), path(&mixed));
    }

    #[test]
    fn keys_and_signatures_survive_a_round_trip(seed: [u8; 32], name in "[a-z0-9.-]{1,20}", info in any_narinfo(), dir in any_store_dir()) {
        let secret = NixSecretKey::from_seed(&name, &seed).unwrap();
        prop_assert_eq!(NixSecretKey::parse(&secret.expose_secret()).unwrap().expose_secret(), secret.expose_secret());
        let public = NixPublicKey::parse(&secret.public().to_string()).unwrap();
        prop_assert_eq!(&public, &secret.public());
        let fingerprint = info.fingerprint(&dir);
        let signature = NixSignature::parse(&secret.sign(&fingerprint).to_string()).unwrap();
        let trusted = TrustedKeys::new([public]).unwrap();
        prop_assert!(trusted.verifies(&fingerprint, &signature));
        let larger = NarInfo { nar_size: info.nar_size ^ 1, ..info };
        prop_assert!(!trusted.verifies(&larger.fingerprint(&dir), &signature));
    }

    #[test]
    fn narinfos_survive_a_round_trip(info in any_narinfo(), dir in any_store_dir()) {
        let text = info.render(&dir, "nar/x.nar");
        prop_assert_eq!(NarInfo::parse(&dir, text.as_bytes()), Ok(info));
    }

    #[test]
    fn changed_narinfos_never_panic(
        info in any_narinfo(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let dir = StoreDir::parse("/nix/store").unwrap();
        let mut text = info.render(&dir, "nar/x.nar").into_bytes();
        for (at, byte) in changes {
            let at = at.index(text.len());
            text[at] = byte;
        }
        if let Ok(parsed) = NarInfo::parse(&dir, &text) {
            // A content address of a form that is not known is left out.
            let known = parsed.content_address.clone().filter(|address| !matches!(address, ContentAddress::Other(_)));
            let rendered = parsed.render(&dir, "u");
            let parsed = NarInfo { content_address: known, ..parsed };
            prop_assert_eq!(NarInfo::parse(&dir, rendered.as_bytes()), Ok(parsed));
        }
    }

    #[test]
    fn arbitrary_texts_never_panic(text in ".{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let dir = StoreDir::parse("/nix/store").unwrap();
        prop_assert!(NarInfo::parse(&dir, &bytes).is_err() && NarInfo::parse(&dir, text.as_bytes()).is_err());
        prop_assert!(NixPublicKey::parse(&text).is_err() && NixSecretKey::parse(&text).is_err());
        let address = ContentAddress::parse(&text).ok();
        prop_assert!(NixSignature::parse(&text).is_err() && address.is_none_or(|it| it == ContentAddress::Other(text.as_str().into())));
        prop_assert!(NarHash::parse(&text).is_err() && dir.parse_path(&text).is_err());
        if let Ok(dir) = StoreDir::parse(&text) {
            prop_assert_eq!(dir.as_str(), text);
        }
    }
}

const BASE: &str = "StorePath: /nix/store/7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-x\nURL: nar/x\nCompression: none\n\
    NarHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\nNarSize: 8\n";

fn parse(text: &str) -> Result<NarInfo, NarInfoError> {
    NarInfo::parse(&StoreDir::parse("/nix/store").unwrap(), text.as_bytes())
}

#[test]
fn narinfos_accept_harmless_deviations() {
    let bare = parse(BASE).unwrap();
    assert!(bare.references.is_empty() && bare.deriver.is_none() && bare.content_address.is_none());
    for same in [
        format!("{BASE}References: \n"),
        format!("{BASE}References: \nReferences: \nDeriver: unknown-deriver\nCA: \n"),
        format!("X-Own: a: b\nFuture: \n{BASE}System: x86_64-linux\n"),
        format!("{BASE}Sig: \nSig: nonsense\nSig: a:AAAA\n"),
        format!("{BASE}Deriver: 7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-x.drv\nDeriver: unknown-deriver\n"),
    ] {
        assert_eq!(parse(&same).as_ref(), Ok(&bare), "{same}");
    }
    let (a, b) = ("0h7qgvs4kgzsn8a6rb273saxyqh4jxlz-b", "zh7qgvs4kgzsn8a6rb273saxyqh4jxlz-a");
    let references =
        parse(&format!("{BASE}References: \nReferences: {b} {a}  {b} \nReferences: \n")).unwrap().references;
    assert_eq!(references.iter().map(StorePath::to_string).collect::<Vec<_>>(), [a, b], "sorted and unique");
}

#[test]
fn narinfos_with_errors_are_refused_with_the_reason() {
    use NarInfoField as Field;
    let without = |field: &str| {
        BASE.lines().filter(|line| !line.starts_with(field)).fold(String::new(), |text, line| text + line + "\n")
    };
    let a = "7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-a";
    for (text, error) in [
        (String::new(), NarInfoError::Unterminated),
        ("\n".to_owned(), NarInfoError::Line { line: 1 }),
        (BASE.trim_end().to_owned(), NarInfoError::Unterminated),
        (BASE.replace('\n', "\r\n"), NarInfoError::CarriageReturn),
        (format!("{BASE}\n"), NarInfoError::Line { line: 6 }),
        (format!("{BASE}no colon\n"), NarInfoError::Line { line: 6 }),
        (format!("{BASE}References:\nSig: x\n"), NarInfoError::Line { line: 6 }),
        (format!("{BASE}: x\n"), NarInfoError::Line { line: 6 }),
        (format!("{BASE}a:b: c\n"), NarInfoError::Line { line: 6 }),
        (without("StorePath"), NarInfoError::Missing { field: Field::StorePath }),
        (without("URL"), NarInfoError::Missing { field: Field::Url }),
        (without("NarHash"), NarInfoError::Missing { field: Field::NarHash }),
        (without("NarSize"), NarInfoError::Missing { field: Field::NarSize }),
        (BASE.replace("nar/x", ""), NarInfoError::Empty { field: Field::Url }),
        (BASE.replace(": 8", ": 0"), NarInfoError::NarSize),
        (BASE.replace(": 8", ": +8"), NarInfoError::NarSize),
        (BASE.replace(": 8", ": 8 "), NarInfoError::NarSize),
        (BASE.replace(": 8", ": 18446744073709551616"), NarInfoError::NarSize),
        (format!("{BASE}NarSize: 8\n"), NarInfoError::Duplicate { field: Field::NarSize }),
        (format!("{BASE}Compression: xz\n"), NarInfoError::Duplicate { field: Field::Compression }),
        (format!("{BASE}CA: \nCA: \n"), NarInfoError::Duplicate { field: Field::Ca }),
        (format!("{BASE}References: {a}\nReferences: {a}\n"), NarInfoError::Duplicate { field: Field::References }),
        (format!("{BASE}{}", "Sig: x\n".repeat(65)), NarInfoError::TooManySignatures),
    ] {
        assert_eq!(parse(&text), Err(error), "{text}");
    }
    let foreign_dir = parse(&BASE.replace("/nix/store", "/gnu/store")).unwrap_err();
    assert!(matches!(foreign_dir, NarInfoError::Path { field: Field::StorePath, .. }));
    let full = parse(&format!("{BASE}References: /nix/store/{a}\n")).unwrap_err();
    assert!(matches!(full, NarInfoError::Path { field: Field::References, .. }), "base names only");
    // No signature covers these fields, so a value that we cannot read counts as absent.
    for unsigned in ["Deriver: \n", "Deriver: /nix/store/x.drv\n", "CA: fixed:sha1:xyz\n", "CA: fixed\n"] {
        assert_eq!(parse(&format!("{BASE}{unsigned}")), parse(BASE), "{unsigned}");
    }
    assert!(matches!(parse(&BASE.replace("sha256:", "")), Err(NarInfoError::NarHash(_))));
    let newer = parse(&format!("{BASE}CA: fixed:git:sha1:xyz\n")).unwrap();
    assert_eq!(newer.content_address, Some(ContentAddress::Other("fixed:git:sha1:xyz".into())));
    assert!(
        !newer.render(&StoreDir::parse("/nix/store").unwrap(), "nar/x").contains("CA"),
        "an older Nix could not read it"
    );
    let padding = format!("X: {}\n", "x".repeat(NarInfo::BYTES_MAX));
    assert!(matches!(parse(&format!("{BASE}{padding}")), Err(NarInfoError::TooLong { .. })));
    let dir = StoreDir::parse("/nix/store").unwrap();
    assert_eq!(NarInfo::parse(&dir, &[BASE.as_bytes(), b"X: \xff\n"].concat()), Err(NarInfoError::NotUtf8));
    assert_eq!(parse(&format!("{BASE}{}", "Sig: x\n".repeat(64))), parse(BASE));
}
