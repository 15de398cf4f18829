//! The versions of Nix that users have, and how this machine runs each.

use std::env;
use std::path::{Path, PathBuf};

use crate::binary::repository_root;

/// Chooses the Nix of every store that a story does not give another one: `2.8`, `2.26` or `2.34`.
const NIX_VARIABLE: &str = "NARMESH_TEST_NIX";

/// A version of Nix that Debian packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NixVersion {
    /// Of Debian 12, which is this machine's own. It fetches one NAR at a time.
    V2_8,
    /// Of Debian 13. It fetches 16 NARs at a time.
    V2_26,
    /// Of Debian unstable. It fetches 16 NARs at a time, and pushes back when it is slower than they arrive.
    V2_34,
}

impl NixVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 3] = [Self::V2_8, Self::V2_26, Self::V2_34];

    /// What the environment variable `NARMESH_TEST_NIX` asks for; without it, this machine's own.
    ///
    /// # Panics
    /// When it asks for a version that is not one of these.
    #[must_use]
    pub fn from_environment() -> Self {
        let Ok(wanted) = env::var(NIX_VARIABLE) else { return Self::V2_8 };
        let known = Self::ALL.into_iter().find(|version| version.name() == wanted);
        known.unwrap_or_else(|| panic!("{NIX_VARIABLE}={wanted}; accepted: 2.8, 2.26, 2.34"))
    }

    /// As `nix --version` says it, without the last number.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V2_8 => "2.8",
            Self::V2_26 => "2.26",
            Self::V2_34 => "2.34",
        }
    }

    /// The words that run one of its programs, before the program.
    ///
    /// # Panics
    /// When `./test.sh` has not made its root.
    #[must_use]
    pub(super) fn command_prefix(self) -> Vec<String> {
        let suite = match self {
            Self::V2_8 => return Vec::new(),
            Self::V2_26 => "trixie",
            Self::V2_34 => "sid",
        };
        let script = repository_root().join("tests/nix-root.sh");
        let root = target_directory().join("nix-roots").join(suite);
        assert!(
            root.exists(),
            "no Nix {} here: tests/nix-root.sh make {suite} {} (./test.sh does it)",
            self.name(),
            root.display()
        );
        let text = |path: &Path| path.display().to_string();
        vec![text(&script), "run".to_owned(), text(&root)]
    }

    /// The directories of this machine that its root has to show, for the variable `SHARE` of `nix-root.sh`: the fixtures, and
    /// whatever stories put into their temporary directories.
    pub(super) fn shared_directories() -> String {
        format!("{}:{}", repository_root().display(), env::temp_dir().display())
    }
}

/// Cargo's: `CARGO_TARGET_DIR`, or where it is without.
fn target_directory() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository_root().join("target"), PathBuf::from)
}
