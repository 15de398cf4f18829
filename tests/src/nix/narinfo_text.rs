//! What a story reads of a narinfo.

use std::process::Command;

use super::client::nix_client_environment;
use crate::process::finish;

/// Those fields of a narinfo that stories look at.
#[derive(Debug, Clone)]
pub struct NarInfoText {
    /// `URL`, with a leading slash.
    pub url: String,
    /// `NarHash`, as `sha256:` and hexadecimal digits.
    pub nar_hash: String,
    /// `NarSize` in bytes.
    pub nar_size: u64,
    /// Every `Sig`.
    pub signatures: Vec<String>,
}

impl NarInfoText {
    /// Parses the narinfo that a gateway answered.
    ///
    /// # Panics
    /// When a line that Nix demands is missing.
    #[track_caller]
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or_else(|| {
                panic!("no {name} in the narinfo:\n{text}");
            })
        };
        let mut command = Command::new("nix-hash");
        let nix32 = field("NarHash").trim_start_matches("sha256:");
        nix_client_environment(&mut command).args(["--type", "sha256", "--to-base16", nix32]);
        let digits = finish(&mut command).expect_success("nix-hash --to-base16");
        Self {
            url: format!("/{}", field("URL").trim_start_matches('/')),
            nar_hash: format!("sha256:{digits}"),
            nar_size: field("NarSize").parse().expect("a number"),
            signatures: text.lines().filter_map(|line| line.strip_prefix("Sig: ")).map(str::to_owned).collect(),
        }
    }
}

/// The 32 characters of `/nix/store/<hash part>-name`.
///
/// # Panics
/// When `path` is no store path.
#[track_caller]
#[must_use]
pub fn hash_part(path: &str) -> &str {
    let base = path.rsplit('/').next().unwrap_or_default();
    base.get(..32).filter(|_| base.get(32..33) == Some("-")).unwrap_or_else(|| panic!("no store path: {path}"))
}
