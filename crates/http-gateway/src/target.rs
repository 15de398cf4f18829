//! Parses the path of a request into what it asks for.

use std::borrow::Cow;

use narmesh_protocol::{HashPart, NarUrl};

/// How the path of a narinfo ends.
pub(crate) const NARINFO_SUFFIX: &str = ".narinfo";

/// What a request path names. A name that does not parse is `None`: it is answered as an absent
/// path, never as a bad request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    CacheInfo,
    NarInfo(Option<HashPart>),
    Nar(Option<NarUrl>),
    Health,
    Metrics,
    Unknown,
}

impl Target {
    /// Parses the path of a URI, without its query, percent-encoded or not.
    pub(crate) fn parse(path: &str) -> Self {
        let Some(path) = percent_decode(path) else { return Self::Unknown };
        let Some(name) = path.strip_prefix('/') else { return Self::Unknown };
        match name {
            "nix-cache-info" => Self::CacheInfo,
            "healthz" => Self::Health,
            "metrics" => Self::Metrics,
            _ => {
                if let Some(file) = name.strip_prefix("nar/") {
                    Self::Nar(NarUrl::parse_file_name(file).ok())
                } else if let Some(part) = name.strip_suffix(NARINFO_SUFFIX) {
                    Self::NarInfo(HashPart::parse(part).ok())
                } else {
                    Self::Unknown
                }
            }
        }
    }
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
    fn names_every_endpoint() {
        assert_eq!(Target::parse("/nix-cache-info"), Target::CacheInfo);
        assert_eq!(Target::parse("/healthz"), Target::Health);
        assert_eq!(Target::parse("/metrics"), Target::Metrics);
        let part = HashPart::parse(PART).unwrap();
        assert_eq!(Target::parse(&format!("/{PART}.narinfo")), Target::NarInfo(Some(part)));
    }

    #[test]
    fn decodes_escapes_once() {
        let part = HashPart::parse(PART).unwrap();
        assert_eq!(Target::parse("/nix%2Dcache%2dinfo"), Target::CacheInfo);
        assert_eq!(Target::parse(&format!("/%30{}.narinfo", &PART[1..])), Target::NarInfo(Some(part)));
        assert_eq!(Target::parse(&format!("/%2530{}.narinfo", &PART[1..])), Target::Unknown);
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
            assert_eq!(Target::parse(path), Target::Unknown, "{path}");
        }
    }

    #[test]
    fn malformed_name_is_an_absent_path() {
        for path in ["/.narinfo", "/x.narinfo", "/..narinfo", "/nar.narinfo", "/a/b.narinfo"] {
            assert_eq!(Target::parse(path), Target::NarInfo(None), "{path}");
        }
        // 32 characters, but `e`, `o`, `u`, `t` and capitals are not in the alphabet.
        for part in ["e".repeat(32), "T".repeat(32), "é".repeat(16)] {
            assert_eq!(Target::parse(&format!("/{part}.narinfo")), Target::NarInfo(None), "{part}");
        }
        for path in ["/nar/", "/nar/x", "/nar/../healthz", "/nar/x.nar.xz"] {
            assert_eq!(Target::parse(path), Target::Nar(None), "{path}");
        }
        for path in ["", "/", "//healthz", "/healthz/", "/nar", "*", "/../healthz"] {
            assert_eq!(Target::parse(path), Target::Unknown, "{path}");
        }
    }
}
