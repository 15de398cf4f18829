//! Parses the path of a request into what it asks for.

use std::borrow::Cow;

use narmesh_protocol::{HashPart, NarHash, NarUrl, RealisationId, StorePath};

use crate::store_files::EntryPath;
use crate::zstd_body::ZSTD_SUFFIX;

/// How the path of a narinfo ends.
pub(crate) const NARINFO_SUFFIX: &str = ".narinfo";

/// How the path of a listing ends.
const LISTING_SUFFIX: &str = ".ls";
/// How the path of something inside of a store path begins.
const ENTRY_PREFIX: &str = "/serve/";

/// What a request path names. A name that does not parse is `None`: it is answered as an absent
/// path, never as a bad request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    CacheInfo,
    NarInfo(Option<HashPart>),
    Nar(Option<NarUrl>),
    /// The same compressed with zstd.
    ZstdNar(Option<NarUrl>),
    /// A NAR by a URL of harmonia or nix-serve.
    OtherNar(HashPart, NarHash),
    Log(Option<StorePath>),
    /// Which path an output of a derivation is.
    Realisation(Option<RealisationId>),
    Listing(Option<HashPart>),
    Entry(Option<(HashPart, EntryPath)>),
    Health,
    Readiness,
    Version,
    Metrics,
    Unknown,
}

impl Target {
    /// Parses the path of a URI, percent-encoded or not. Its query says something only for a NAR.
    pub(crate) fn parse(path: &str, query: Option<&str>) -> Self {
        // Names in a store path may hold bytes that no other path has.
        if let Some(rest) = path.strip_prefix(ENTRY_PREFIX) {
            return Self::Entry(parse_entry(rest));
        }
        let Some(path) = percent_decode(path) else { return Self::Unknown };
        let Some(name) = path.strip_prefix('/') else { return Self::Unknown };
        match name {
            "nix-cache-info" => Self::CacheInfo,
            "healthz" => Self::Health,
            "readyz" => Self::Readiness,
            "version" => Self::Version,
            "metrics" => Self::Metrics,
            _ => {
                // The longer ending first, or it would be taken for a part of the name.
                if let Some(file) = name.strip_prefix("nar/").and_then(|file| file.strip_suffix(ZSTD_SUFFIX)) {
                    Self::ZstdNar(NarUrl::parse_file_name(file).ok())
                } else if let Some(file) = name.strip_prefix("nar/") {
                    parse_other_nar(file, query).unwrap_or_else(|| Self::Nar(NarUrl::parse_file_name(file).ok()))
                } else if let Some(part) = name.strip_suffix(NARINFO_SUFFIX) {
                    Self::NarInfo(HashPart::parse(part).ok())
                } else if let Some(derivation) = name.strip_prefix("log/") {
                    Self::Log(StorePath::parse(derivation).ok().filter(StorePath::is_derivation))
                } else if let Some(file) = name.strip_prefix("realisations/") {
                    Self::Realisation(RealisationId::parse_file_name(file).ok())
                } else if let Some(part) = name.strip_suffix(LISTING_SUFFIX) {
                    Self::Listing(HashPart::parse(part).ok())
                } else {
                    Self::Unknown
                }
            }
        }
    }
}

/// Parses `<hash part>` and a path below it.
fn parse_entry(text: &str) -> Option<(HashPart, EntryPath)> {
    let (part, path) = text.split_at_checked(HashPart::TEXT_LEN)?;
    Some((HashPart::parse(part).ok()?, EntryPath::parse(path)?))
}

/// Parses `<NarHash>.nar` with the query `hash=<hash part>`, as harmonia writes it, and `<hash part>-<NarHash>.nar`, as
/// nix-serve does. Clients remember such URLs for 30 days.
fn parse_other_nar(file: &str, query: Option<&str>) -> Option<Target> {
    let stem = file.strip_suffix(".nar")?;
    let (part, nar_hash) = match stem.split_once('-') {
        Some(both) => both,
        None => (query?.split('&').find_map(|one| one.strip_prefix("hash="))?, stem),
    };
    Some(Target::OtherNar(HashPart::parse(part).ok()?, NarHash::parse(&format!("sha256:{nar_hash}")).ok()?))
}

/// Decodes `%xx`. `None` if an escape is malformed or stands for a slash, a percent sign, a space, a control byte or a byte
/// that is not ASCII, none of which occurs in any name here.
fn percent_decode(path: &str) -> Option<Cow<'_, str>> {
    if !path.contains('%') {
        return Some(Cow::Borrowed(path));
    }
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((plain, escaped)) = rest.split_once('%') {
        decoded.push_str(plain);
        let digits = escaped.get(..2)?;
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let byte = u8::from_str_radix(digits, 16).ok()?;
        if !byte.is_ascii_graphic() || byte == b'/' || byte == b'%' {
            return None;
        }
        decoded.push(char::from(byte));
        rest = escaped.get(2..)?;
    }
    decoded.push_str(rest);
    Some(Cow::Owned(decoded))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: &str = "0c0yaa1b2d3f4g5h6i7j8k9l0m1n2p3q";

    #[test]
    fn every_endpoint_is_known_by_its_path() {
        assert_eq!(Target::parse("/nix-cache-info", None), Target::CacheInfo);
        assert_eq!(Target::parse("/healthz", None), Target::Health);
        assert_eq!(Target::parse("/metrics", None), Target::Metrics);
        let part = HashPart::parse(PART).unwrap();
        assert_eq!(Target::parse(&format!("/{PART}.narinfo"), None), Target::NarInfo(Some(part)));
    }

    #[test]
    fn escapes_are_decoded_once() {
        let part = HashPart::parse(PART).unwrap();
        assert_eq!(Target::parse("/nix%2Dcache%2dinfo", None), Target::CacheInfo);
        assert_eq!(Target::parse(&format!("/%30{}.narinfo", &PART[1..]), None), Target::NarInfo(Some(part)));
        assert_eq!(Target::parse(&format!("/%2530{}.narinfo", &PART[1..]), None), Target::Unknown);
    }

    #[test]
    fn refuses_escapes_that_hide_separators_or_control_bytes() {
        for path in [
            "/nar%2fx.nar",
            "/%00healthz",
            "/healthz%",
            "/healthz%0",
            "/healthz%zz",
            "/%ff",
            "/%2e%2e%2fhealthz",
            "/%+1",
        ] {
            assert_eq!(Target::parse(path, None), Target::Unknown, "{path}");
        }
    }

    #[test]
    fn malformed_name_is_an_absent_path() {
        for path in ["/.narinfo", "/x.narinfo", "/..narinfo", "/nar.narinfo", "/a/b.narinfo"] {
            assert_eq!(Target::parse(path, None), Target::NarInfo(None), "{path}");
        }
        // 32 characters, but `e`, `o`, `u`, `t` and capitals are not in the alphabet.
        for part in ["e".repeat(32), "T".repeat(32), "é".repeat(16)] {
            assert_eq!(Target::parse(&format!("/{part}.narinfo"), None), Target::NarInfo(None), "{part}");
        }
        for path in ["/nar/", "/nar/x", "/nar/../healthz", "/nar/x.nar.xz"] {
            assert_eq!(Target::parse(path, None), Target::Nar(None), "{path}");
        }
        for path in ["", "/", "//healthz", "/healthz/", "/nar", "*", "/../healthz"] {
            assert_eq!(Target::parse(path, None), Target::Unknown, "{path}");
        }
    }

    #[test]
    fn names_what_else_a_cache_gives() {
        let part = HashPart::parse(PART).unwrap();
        let derivation = StorePath::parse(&format!("{PART}-x+y.drv")).unwrap();
        assert_eq!(Target::parse(&format!("/log/{PART}-x%2by.drv"), None), Target::Log(Some(derivation)));
        for name in [
            PART.to_owned(),
            format!("{PART}-x"),
            format!("../{PART}-x.drv"),
            format!("{PART}-x.drv.bz2"),
            String::new(),
        ] {
            assert_eq!(Target::parse(&format!("/log/{name}"), None), Target::Log(None), "{name}");
        }
        assert_eq!(Target::parse(&format!("/{PART}.ls"), None), Target::Listing(Some(part)));
        assert_eq!(Target::parse("/x.ls", None), Target::Listing(None));
        assert!(matches!(Target::parse(&format!("/serve/{PART}/a%20b"), None), Target::Entry(Some(_))));
        for rest in [
            "",
            "x",
            &format!("{PART}x"),
            &format!("{PART}/.."),
            &format!("{}/a", &PART[1..]),
            &format!("\u{e4}{PART}"),
        ] {
            assert_eq!(Target::parse(&format!("/serve/{rest}"), None), Target::Entry(None), "{rest}");
        }
        assert_eq!(Target::parse("/readyz", None), Target::Readiness);
        assert_eq!(Target::parse("/version", None), Target::Version);
    }

    #[test]
    fn names_realisations_as_each_version_of_nix_asks_for_them() {
        let id = format!("sha256:{}!dev", "0a".repeat(32));
        let wanted = Target::Realisation(Some(id.parse().unwrap()));
        assert_eq!(Target::parse(&format!("/realisations/{id}.doi"), None), wanted);
        assert_eq!(Target::parse(&format!("/realisations/{}.doi", id.replace('!', "%21")), None), wanted);
        for rest in ["", ".doi", "../x.doi", &id, &format!("{id}.doi.doi/"), &format!("x{id}.doi")] {
            assert_eq!(Target::parse(&format!("/realisations/{rest}"), None), Target::Realisation(None), "{rest}");
        }
        assert_eq!(Target::parse(&format!("/build-trace-v2/{PART}-x.drv/out.doi"), None), Target::Unknown);
    }

    #[test]
    fn nar_urls_of_other_programs_are_understood() {
        let (part, hash) = (HashPart::parse(PART).unwrap(), NarHash([9; 32]));
        let (wanted, n) = (Target::OtherNar(part, hash), hash.nix32());
        assert_eq!(Target::parse(&format!("/nar/{n}.nar"), Some(&format!("hash={PART}"))), wanted);
        assert_eq!(Target::parse(&format!("/nar/{n}.nar"), Some(&format!("a=b&hash={PART}&c"))), wanted);
        assert_eq!(Target::parse(&format!("/nar/{PART}-{n}.nar"), None), wanted);
        for (file, query) in [
            (format!("{n}.nar"), ""),
            (format!("{n}.nar"), "hash="),
            (format!("{n}.nar.xz"), PART),
            (format!("{PART}-{n}.nar.xz"), ""),
            (format!("{PART}-{n}-.nar"), ""),
            (format!("{n}-{PART}.nar"), ""),
        ] {
            assert_eq!(Target::parse(&format!("/nar/{file}"), Some(query)), Target::Nar(None), "{file}?{query}");
        }
    }
}
