//! The text of a narinfo: parsed strictly, printed canonically.
//!
//! Text that Nix's own parser (`libstore/nar-info.cc`) would misread is refused. Values that Nix's parser
//! refuses but that we need not pass on (a malformed signature, deriver or content address) are dropped, since
//! we always print a narinfo anew.

use crate::nar_url::parse_decimal;
use crate::{ContentAddress, Fingerprint, NarHash, NarHashError, NixSignature, StoreDir, StorePath, StorePathError};
use std::fmt::Write as _;

/// Metadata of one path. Transport fields (URL, Compression, FileHash, FileSize) are not kept: we write our own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NarInfo {
    /// The store path that the narinfo describes.
    pub path: StorePath,
    /// SHA-256 of the NAR.
    pub nar_hash: NarHash,
    /// Size of the NAR in bytes, at least 1.
    pub nar_size: u64,
    /// The path's References, sorted and unique.
    pub references: Vec<StorePath>,
    /// The derivation that built the path, if known. No signature of Nix covers it, so a peer can claim any, see
    /// [`Self::without_hearsay`] and [`find_signed_deriver`](crate::find_signed_deriver).
    pub deriver: Option<StorePath>,
    /// The values of the `Sig` lines, unverified.
    pub signatures: Vec<NixSignature>,
    /// Content address, unverified. [`ContentAddress::Other`] is not printed: an older Nix could not read it.
    pub content_address: Option<ContentAddress>,
}

/// A narinfo field that this parser knows; it parses the value or only refuses a repetition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the narinfo")]
pub enum NarInfoField {
    StorePath,
    Url,
    Compression,
    FileHash,
    FileSize,
    NarHash,
    NarSize,
    References,
    Deriver,
    Sig,
    Ca,
}

/// Why a narinfo is refused, and because of which field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NarInfoError {
    /// The text is longer than [`NarInfo::BYTES_MAX`].
    #[error("narinfo of {bytes} bytes, limit {}", NarInfo::BYTES_MAX)]
    TooLong {
        /// Length of the text, bytes.
        bytes: usize,
    },
    /// The text is not UTF-8.
    #[error("narinfo is not UTF-8")]
    NotUtf8,
    /// The text contains a carriage return, which Nix would take as part of the value.
    #[error("narinfo holds a carriage return")]
    CarriageReturn,
    /// The last line has no newline: the text is perhaps cut off.
    #[error("narinfo: last line without newline")]
    Unterminated,
    /// A line is not `Name: value`. Nix skips the byte after the colon, whatever it is.
    #[error("narinfo line {line}: expected `Name: value`")]
    Line {
        /// Number of the line, from 1.
        line: usize,
    },
    /// A required field is absent.
    #[error("narinfo: {} missing", field.name())]
    Missing {
        /// The absent field: StorePath, URL, NarHash or NarSize.
        field: NarInfoField,
    },
    /// A field that may occur once occurs twice.
    #[error("narinfo: {} given twice", field.name())]
    Duplicate {
        /// The repeated field: never Sig, and References only where neither of the two lists is empty.
        field: NarInfoField,
    },
    /// A field that must not be empty is empty.
    #[error("narinfo: {} is empty", field.name())]
    Empty {
        /// The empty field: StorePath, URL, NarHash or NarSize.
        field: NarInfoField,
    },
    /// The value is not a store path, or one of another store directory.
    #[error("narinfo: {} is no such path", field.name())]
    Path {
        /// The field with the invalid path: StorePath or References.
        field: NarInfoField,
        /// What is wrong with the path.
        #[source]
        source: StorePathError,
    },
    /// The NarHash cannot be parsed.
    #[error("narinfo: NarHash")]
    NarHash(#[source] NarHashError),
    /// The NarSize cannot be parsed, or is 0.
    #[error("narinfo: NarSize: expected a decimal from 1 to 2^64-1")]
    NarSize,
    /// There are more signatures than [`NarInfo::SIGNATURES_MAX`], including malformed ones.
    #[error("narinfo: more than {} signatures", NarInfo::SIGNATURES_MAX)]
    TooManySignatures,
}

impl NarInfoField {
    /// The field's name in the text.
    pub fn name(self) -> &'static str {
        match self {
            Self::StorePath => "StorePath",
            Self::Url => "URL",
            Self::Compression => "Compression",
            Self::FileHash => "FileHash",
            Self::FileSize => "FileSize",
            Self::NarHash => "NarHash",
            Self::NarSize => "NarSize",
            Self::References => "References",
            Self::Deriver => "Deriver",
            Self::Sig => "Sig",
            Self::Ca => "CA",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        [
            Self::StorePath,
            Self::Url,
            Self::Compression,
            Self::FileHash,
            Self::FileSize,
            Self::NarHash,
            Self::NarSize,
            Self::References,
            Self::Deriver,
            Self::Sig,
            Self::Ca,
        ]
        .into_iter()
        .find(|field| field.name() == name)
    }
}

impl NarInfo {
    /// Longest text that is parsed, bytes.
    pub const BYTES_MAX: usize = 8 << 20;
    /// Most `Sig` lines in one narinfo.
    pub const SIGNATURES_MAX: usize = 64;

    /// Parses a narinfo strictly.
    ///
    /// Refused: more than [`Self::BYTES_MAX`] bytes, text that is not UTF-8, a carriage return, a last line without
    /// newline, a line that is not `Name: value`, a repeated field (except `Sig`, `Deriver`, of which the last counts, as for
    /// Nix, and `References` if at most one of them is not empty), a missing `StorePath`, `URL`, `NarHash` or `NarSize`, a `StorePath` of another store directory,
    /// more than [`Self::SIGNATURES_MAX`] signatures. Ignored: unknown fields. Dropped: signatures that are not
    /// `name:base64(64 bytes)`, since Nix would fail the build at one; and a malformed `Deriver` or `CA`, since no
    /// signature covers them, and a path without `CA` needs a signature.
    pub fn parse(store_dir: &StoreDir, text: &[u8]) -> Result<Self, NarInfoError> {
        if text.len() > Self::BYTES_MAX {
            return Err(NarInfoError::TooLong { bytes: text.len() });
        }
        let text = std::str::from_utf8(text).map_err(|_| NarInfoError::NotUtf8)?;
        // Nix would take it as a part of the value.
        if text.contains('\r') {
            return Err(NarInfoError::CarriageReturn);
        }
        let lines = text.strip_suffix('\n').ok_or(NarInfoError::Unterminated)?;
        let mut fields = Fields::default();
        for (line, text) in (1..).zip(lines.split('\n')) {
            let (name, value) = text.split_once(": ").ok_or(NarInfoError::Line { line })?;
            // Nix would read `a:b: c` as the field `a`.
            if name.is_empty() || name.contains(':') {
                return Err(NarInfoError::Line { line });
            }
            if let Some(field) = NarInfoField::of_name(name) {
                fields.take(field, value)?;
            }
        }
        fields.into_narinfo(store_dir)
    }

    /// Prints the narinfo in Nix's canonical order, with `URL: <url>`, Compression none, FileHash =
    /// NarHash, FileSize = NarSize.
    pub fn render(&self, store_dir: &StoreDir, url: &str) -> String {
        let references = self.references.iter().map(StorePath::to_string).collect::<Vec<_>>().join(" ");
        let mut text = format!(
            "StorePath: {path}\nURL: {url}\nCompression: none\nFileHash: {hash}\nFileSize: {size}\nNarHash: {hash}\n\
             NarSize: {size}\nReferences: {references}\n",
            path = store_dir.display(&self.path),
            hash = self.nar_hash,
            size = self.nar_size,
        );
        let mut line = |field: NarInfoField, value: &dyn std::fmt::Display| {
            writeln!(text, "{}: {value}", field.name()).expect("a String takes everything");
        };
        if let Some(deriver) = &self.deriver {
            line(NarInfoField::Deriver, deriver);
        }
        for signature in &self.signatures {
            line(NarInfoField::Sig, signature);
        }
        match &self.content_address {
            Some(address @ (ContentAddress::Text { .. } | ContentAddress::Fixed { .. })) => {
                line(NarInfoField::Ca, address)
            }
            Some(ContentAddress::Other(_)) | None => {}
        }
        text
    }

    /// The narinfo without its deriver: nothing proves a deriver, even where signatures or a content address prove the rest.
    #[must_use]
    pub fn without_hearsay(self) -> Self {
        Self { deriver: None, ..self }
    }

    /// The fingerprint that its signatures must cover.
    pub fn fingerprint(&self, store_dir: &StoreDir) -> Fingerprint {
        Fingerprint::new(store_dir, &self.path, &self.nar_hash, self.nar_size, &self.references)
    }

    /// Whether the path is among its own References.
    pub fn has_self_reference(&self) -> bool {
        self.references.contains(&self.path)
    }

    /// The content address, if it fits the path: computed again with name and references it gives this very path, and if it
    /// implies a NarHash, that is the NarHash given. If it implies none, the contents must still be checked
    /// ([`ContentAddress::verifier`]).
    pub fn proven_content_address(&self, store_dir: &StoreDir) -> Option<&ContentAddress> {
        let content_address = self.content_address.as_ref()?;
        let self_reference = self.has_self_reference();
        let others = self.references.iter().filter(|path| **path != self.path).cloned().collect::<Vec<_>>();
        let path = content_address.store_path(store_dir, self.path.name(), &others, self_reference)?;
        let implied = content_address.implied_nar_hash(self_reference);
        (path == self.path && implied.is_none_or(|nar_hash| nar_hash == self.nar_hash)).then_some(content_address)
    }
}

/// The field values of a text before they are parsed.
#[derive(Default)]
struct Fields<'a> {
    store_path: Option<&'a str>,
    url: Option<&'a str>,
    compression: Option<&'a str>,
    file_hash: Option<&'a str>,
    file_size: Option<&'a str>,
    nar_hash: Option<&'a str>,
    nar_size: Option<&'a str>,
    references: Option<&'a str>,
    deriver: Option<&'a str>,
    content_address: Option<&'a str>,
    signatures: Vec<NixSignature>,
    signature_lines: usize,
}

impl<'a> Fields<'a> {
    fn take(&mut self, field: NarInfoField, value: &'a str) -> Result<(), NarInfoError> {
        let slot = match field {
            NarInfoField::StorePath => &mut self.store_path,
            NarInfoField::Url => &mut self.url,
            NarInfoField::Compression => &mut self.compression,
            NarInfoField::FileHash => &mut self.file_hash,
            NarInfoField::FileSize => &mut self.file_size,
            NarInfoField::NarHash => &mut self.nar_hash,
            NarInfoField::NarSize => &mut self.nar_size,
            NarInfoField::References => &mut self.references,
            NarInfoField::Deriver => &mut self.deriver,
            NarInfoField::Ca => &mut self.content_address,
            NarInfoField::Sig => return self.take_signature(value),
        };
        match slot {
            // As Nix does: a second list replaces an empty one, and two lists that are not empty are refused.
            Some("") if field == NarInfoField::References => *slot = Some(value),
            Some(_) if field == NarInfoField::References && value.is_empty() => {}
            Some(_) if field == NarInfoField::Deriver => *slot = Some(value),
            Some(_) => return Err(NarInfoError::Duplicate { field }),
            None => *slot = Some(value),
        }
        Ok(())
    }

    fn take_signature(&mut self, value: &str) -> Result<(), NarInfoError> {
        self.signature_lines += 1;
        if self.signature_lines > NarInfo::SIGNATURES_MAX {
            return Err(NarInfoError::TooManySignatures);
        }
        self.signatures.extend(NixSignature::parse(value));
        Ok(())
    }

    fn into_narinfo(self, store_dir: &StoreDir) -> Result<NarInfo, NarInfoError> {
        let required = |value: Option<&'a str>, field| match value {
            None => Err(NarInfoError::Missing { field }),
            Some("") => Err(NarInfoError::Empty { field }),
            Some(value) => Ok(value),
        };
        let bad_path = |field| move |source| NarInfoError::Path { field, source };
        let path = required(self.store_path, NarInfoField::StorePath)?;
        let path = store_dir.parse_path(path).map_err(bad_path(NarInfoField::StorePath))?;
        // Only its presence counts: where a NAR comes from is decided here.
        required(self.url, NarInfoField::Url)?;
        let nar_hash = required(self.nar_hash, NarInfoField::NarHash)?;
        let nar_hash = NarHash::parse(nar_hash).map_err(NarInfoError::NarHash)?;
        let nar_size = required(self.nar_size, NarInfoField::NarSize)?;
        let nar_size = parse_decimal(nar_size).filter(|size| *size > 0).ok_or(NarInfoError::NarSize)?;
        let mut references = Vec::new();
        for reference in self.references.unwrap_or("").split(' ').filter(|token| !token.is_empty()) {
            references.push(StorePath::parse(reference).map_err(bad_path(NarInfoField::References))?);
        }
        references.sort_unstable();
        // Nix holds them in a set, too, and signs them in that order.
        references.dedup();
        let deriver = match self.deriver {
            None | Some("unknown-deriver") => None,
            Some(deriver) => StorePath::parse(deriver).ok(),
        };
        let content_address = self.content_address.and_then(|text| ContentAddress::parse(text).ok());
        Ok(NarInfo { path, nar_hash, nar_size, references, deriver, signatures: self.signatures, content_address })
    }
}
