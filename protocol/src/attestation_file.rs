//! Attestations as plain text, for `narmesh quorum export`, `import` and `verify`.
//!
//! The first line is `narmesh-attestations-1;<store directory>`. Each further line is one attestation: five fields
//! separated by single spaces, namely the builder's public key as Nix writes it (`name:base64`), the Nix signature
//! (base64), the date (milliseconds since 1970), the second signature (base64), and the fingerprint, which is the rest of
//! the line. Empty lines and lines that begin with `#` are skipped. So the usual tools can sort, search and join such
//! files, and any Nix tool can check a line: `name:<Nix signature>` is a `Sig` over the fingerprint.

use crate::nar_url::parse_decimal;
use crate::{Attestation, BuilderKey, NarHash, NixPublicKey, Statement, StoreDir, StorePath, digest_text};
use data_encoding::BASE64;
use std::fmt::Write as _;

/// Beginning of the first line.
const HEADER: &str = "narmesh-attestations-1;";

/// Longest line, bytes. The largest attestation in the longest store directory takes less.
pub const LINE_BYTES_MAX: usize = 2 << 20;

/// Why a line is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// The first line is not a header.
    #[error("expected `{HEADER}` and the store directory on the first line")]
    Header,
    /// The line is longer than [`LINE_BYTES_MAX`].
    #[error("longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// The line has fewer than five fields.
    #[error(
        "expected five fields between single spaces: public key, Nix signature, time, second signature, fingerprint"
    )]
    Fields,
    /// The first field is not a public key.
    #[error("field 1: expected a public key as Nix writes it, `name:base64`")]
    Key,
    /// A signature field is not base-64 of 64 bytes.
    #[error("field {field}: expected base-64 of 64 bytes")]
    Signature {
        /// Number of the field: 2 or 4.
        field: u8,
    },
    /// The third field is not a date.
    #[error("field 3: expected milliseconds since 1970, decimal")]
    Time,
    /// The fifth field is not a canonical fingerprint of this store directory.
    #[error(
        "field 5: expected `1;<path>;sha256:<nix32>;<NarSize>;<references>`, in the store directory of the first line, references sorted"
    )]
    Fingerprint,
}

/// The first line, including its newline.
pub fn header(store_dir: &StoreDir) -> String {
    format!("{HEADER}{}\n", store_dir.as_str())
}

/// Parses the first line, given without its newline.
pub fn parse_header(line: &str) -> Result<StoreDir, LineError> {
    let directory = line.strip_prefix(HEADER).ok_or(LineError::Header)?;
    StoreDir::parse(directory).map_err(|_| LineError::Header)
}

/// The line for one attestation, including its newline. `key` is the builder's key; the line contains its name.
pub fn line(store_dir: &StoreDir, key: &NixPublicKey, attestation: &Attestation) -> String {
    let mut text = format!(
        "{key} {} {} {} ",
        BASE64.encode(&attestation.nix_signature),
        attestation.attested_at_ms,
        BASE64.encode(&attestation.dated_signature),
    );
    let statement = &attestation.statement;
    let references = statement.references.iter().map(|path| store_dir.display(path)).collect::<Vec<_>>().join(",");
    let path = store_dir.display(&statement.path);
    writeln!(text, "1;{path};{};{};{references}", statement.nar_hash, statement.nar_size)
        .expect("a String takes everything");
    text
}

/// Parses one line, given without its newline; `None` for an empty line or a comment. It does not verify the signatures; the
/// caller does that with the returned key, and decides whether that key is a builder's.
pub fn parse_line(store_dir: &StoreDir, line: &str) -> Result<Option<(NixPublicKey, Attestation)>, LineError> {
    // Before anything of it is parsed: a file may come from anybody.
    if line.len() > LINE_BYTES_MAX {
        return Err(LineError::TooLong);
    }
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    // The fingerprint comes last and keeps its blanks, which a store directory may have.
    let mut fields = line.splitn(5, ' ');
    let mut field = || fields.next().ok_or(LineError::Fields);
    let [key, nix_signature, time, dated_signature, fingerprint] = [field()?, field()?, field()?, field()?, field()?];
    let key = NixPublicKey::parse(key).map_err(|_| LineError::Key)?;
    let signature = |field, text| digest_text::parse_base64::<64>(text).ok_or(LineError::Signature { field });
    let attestation = Attestation {
        builder: BuilderKey(key.bytes()),
        nix_signature: signature(2, nix_signature)?,
        attested_at_ms: parse_decimal(time)
            .filter(|ms| *ms <= Attestation::ATTESTED_AT_MS_MAX)
            .ok_or(LineError::Time)?,
        dated_signature: signature(4, dated_signature)?,
        statement: parse_fingerprint(store_dir, fingerprint).ok_or(LineError::Fingerprint)?,
    };
    Ok(Some((key, attestation)))
}

/// Parses only the spelling that [`Statement::fingerprint`] writes. Names contain no `;` or `,`, but store directories can.
fn parse_fingerprint(store_dir: &StoreDir, text: &str) -> Option<Statement> {
    let below = |text| str::strip_prefix(text, store_dir.as_str())?.strip_prefix('/');
    let (path, rest) = below(text.strip_prefix("1;")?)?.split_once(';')?;
    let (nar_hash, rest) = rest.split_once(';')?;
    let (nar_size, mut rest) = rest.split_once(';')?;
    let path = StorePath::parse(path).ok()?;
    // Another spelling of the same hash would be another fingerprint, which nobody signed.
    let hash = NarHash::parse(nar_hash).ok().filter(|hash| hash.to_string() == nar_hash)?;
    let nar_size = parse_decimal(nar_size).filter(|size| *size > 0)?;
    let mut references = Vec::new();
    while !rest.is_empty() {
        // Each reference is found by the store directory before it, because that may contain a comma.
        let (base_name, following) = match below(rest)?.split_once(',') {
            Some((_, "")) => return None,
            Some(parts) => parts,
            None => (below(rest)?, ""),
        };
        references.push(StorePath::parse(base_name).ok()?);
        rest = following;
    }
    references.is_sorted_by(|first, second| first < second).then_some(Statement {
        path,
        nar_hash: hash,
        nar_size,
        references,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NixSecretKey, NixSignature};

    fn written(directory: &str, references: &[&str]) -> (StoreDir, NixSecretKey, Attestation) {
        let key = NixSecretKey::from_seed("builder-1", &[3; 32]).unwrap();
        let store_dir = StoreDir::parse(directory).unwrap();
        let path = |name: &str| StorePath::parse(&format!("7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-{name}")).unwrap();
        let references = references.iter().map(|name| path(name)).collect();
        let statement = Statement { path: path("x"), nar_hash: NarHash([1; 32]), nar_size: 112, references };
        let attestation = Attestation::sign(&key, &store_dir, statement, 1_790_000_000_000);
        (store_dir, key, attestation)
    }

    #[test]
    fn lines_parse_back_in_any_store_directory() {
        for directory in ["/nix/store", "/my stores/a;b,c", "/x"] {
            for references in [&[][..], &["a"], &["a", "b", "x"]] {
                let (store_dir, key, attestation) = written(directory, references);
                let text = line(&store_dir, &key.public(), &attestation);
                let read = parse_line(&store_dir, text.strip_suffix('\n').unwrap()).unwrap().unwrap();
                assert_eq!(read, (key.public(), attestation));
                assert_eq!(parse_header(header(&store_dir).trim_end()).unwrap(), store_dir);
            }
        }
    }

    #[test]
    fn a_line_holds_what_a_nix_tool_needs() {
        let (store_dir, key, attestation) = written("/nix/store", &["a"]);
        let text = line(&store_dir, &key.public(), &attestation);
        let fields: Vec<&str> = text.trim_end().splitn(5, ' ').collect();
        assert_eq!(fields[4].as_bytes(), attestation.statement.fingerprint(&store_dir).as_bytes());
        let signature = NixSignature::parse(&format!("{}:{}", key.name(), fields[1])).unwrap();
        assert!(key.public().verify(&attestation.statement.fingerprint(&store_dir), &signature));
    }

    #[test]
    fn bad_lines_are_refused_with_the_field() {
        let (store_dir, key, attestation) = written("/nix/store", &["a", "b"]);
        let text = line(&store_dir, &key.public(), &attestation);
        let text = text.trim_end();
        let refusal = |from: &str, to: &str| {
            assert!(text.contains(from), "{from}");
            parse_line(&store_dir, &text.replacen(from, to, 1)).map(|_| ())
        };
        assert_eq!(parse_line(&store_dir, "").unwrap(), None);
        assert_eq!(parse_line(&store_dir, "# words").unwrap(), None);
        assert_eq!(parse_line(&store_dir, "a b c d").map(|_| ()), Err(LineError::Fields));
        assert_eq!(refusal("builder-1:", "builder-1"), Err(LineError::Key));
        assert_eq!(refusal(" 1790000000000 ", " 01790000000000 "), Err(LineError::Time));
        assert_eq!(refusal(" 1790000000000 ", "  1790000000000 "), Err(LineError::Time));
        assert_eq!(refusal("== 1790", "= 1790"), Err(LineError::Signature { field: 2 }));
        assert_eq!(refusal("== 1;", "= 1;"), Err(LineError::Signature { field: 4 }));
        for (from, to) in [
            (" 1;/nix", " 2;/nix"),
            ("/nix/store/", "/gnu/store/"),
            (";112;", ";0;"),
            (";112;", ";0112;"),
            ("sha256:", "sha256-"),
            ("xlz-a,", "xlz-c,"),
            ("xlz-b", "xlz-b,"),
            ("xlz-a,", "xlz-a,,"),
        ] {
            assert_eq!(refusal(from, to), Err(LineError::Fingerprint), "{from} -> {to}");
        }
        for bad in ["", "narmesh-attestations-2;/nix/store", "narmesh-attestations-1;nix", "narmesh-attestations-1;"] {
            assert_eq!(parse_header(bad), Err(LineError::Header), "{bad:?}");
        }
    }
}
