//! The content type of a file, by its name.

use hyper::header::HeaderValue;

/// What is not in the table.
const UNKNOWN: &str = "application/octet-stream";

/// The types of what packages hold that people look at, by the end of the name. The rest is for programs.
const TYPES: &[(&str, &str)] = &[
    ("css", "text/css; charset=utf-8"),
    ("csv", "text/csv; charset=utf-8"),
    ("conf", "text/plain; charset=utf-8"),
    ("drv", "text/plain; charset=utf-8"),
    ("gif", "image/gif"),
    ("gz", "application/gzip"),
    ("htm", "text/html; charset=utf-8"),
    ("html", "text/html; charset=utf-8"),
    ("ico", "image/vnd.microsoft.icon"),
    ("jpeg", "image/jpeg"),
    ("jpg", "image/jpeg"),
    ("js", "text/javascript; charset=utf-8"),
    ("json", "application/json"),
    ("log", "text/plain; charset=utf-8"),
    ("md", "text/markdown; charset=utf-8"),
    ("mjs", "text/javascript; charset=utf-8"),
    ("nix", "text/plain; charset=utf-8"),
    ("otf", "font/otf"),
    ("pdf", "application/pdf"),
    ("png", "image/png"),
    ("sh", "text/plain; charset=utf-8"),
    ("svg", "image/svg+xml"),
    ("tar", "application/x-tar"),
    ("toml", "text/plain; charset=utf-8"),
    ("ttf", "font/ttf"),
    ("txt", "text/plain; charset=utf-8"),
    ("wasm", "application/wasm"),
    ("webp", "image/webp"),
    ("woff", "font/woff"),
    ("woff2", "font/woff2"),
    ("xml", "application/xml"),
    ("xz", "application/x-xz"),
    ("yaml", "text/plain; charset=utf-8"),
    ("yml", "text/plain; charset=utf-8"),
    ("zip", "application/zip"),
    ("zst", "application/zstd"),
];

/// The content type of a file with this name.
pub(crate) fn content_type(name: &[u8]) -> HeaderValue {
    let extension = name.rsplit(|byte| *byte == b'.').next().filter(|extension| extension.len() < name.len());
    let known = extension.and_then(|extension| {
        TYPES.iter().find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(extension)).map(|(_, kind)| *kind)
    });
    HeaderValue::from_static(known.unwrap_or(UNKNOWN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_follows_from_the_end_of_the_name() {
        for (name, kind) in [
            ("README.md", "text/markdown; charset=utf-8"),
            ("INDEX.HTML", "text/html; charset=utf-8"),
            ("a.tar.gz", "application/gzip"),
            (".txt", "text/plain; charset=utf-8"),
            ("html", UNKNOWN),
            ("", UNKNOWN),
            (".", UNKNOWN),
            ("a.\u{e4}", UNKNOWN),
        ] {
            assert_eq!(content_type(name.as_bytes()), kind, "{name}");
        }
    }
}
