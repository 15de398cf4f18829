//! The versions of Nix that users have, and how this machine runs each.

use std::env;
use std::path::{Path, PathBuf};

use crate::binary::{repository_root, target_directory};

/// Environment variable with the Nix of every store for which a story chooses none: `2.8`, `2.26` or `2.34`.
const NIX_VARIABLE: &str = "NARMESH_TEST_NIX";

/// A version of Nix that Debian packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NixVersion {
    /// The Nix of Debian 12, which this machine has installed. It fetches one NAR at a time.
    V2_8,
    /// The Nix of Debian 13. It fetches 16 NARs at a time.
    V2_26,
    /// The Nix of Debian unstable. It fetches 16 NARs at a time, and reads them no faster than it unpacks.
    V2_34,
}

impl NixVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 3] = [Self::V2_8, Self::V2_26, Self::V2_34];

    /// The version that the environment variable `NARMESH_TEST_NIX` names; without it, the one installed on this machine.
    ///
    /// # Panics
    /// When it names any other version.
    #[must_use]
    pub fn from_environment() -> Self {
        let Ok(wanted) = env::var(NIX_VARIABLE) else { return Self::V2_8 };
        let known = Self::ALL.into_iter().find(|version| version.name() == wanted);
        known.unwrap_or_else(|| panic!("{NIX_VARIABLE}={wanted}; accepted: 2.8, 2.26, 2.34"))
    }

    /// The version as `nix --version` prints it, without the last number.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V2_8 => "2.8",
            Self::V2_26 => "2.26",
            Self::V2_34 => "2.34",
        }
    }

    /// The root directory of a Debian that has this Nix.
    ///
    /// # Panics
    /// When `./test.sh` has not made it.
    #[must_use]
    pub(crate) fn root(self) -> PathBuf {
        let suite = match self {
            Self::V2_8 => return "/".into(),
            Self::V2_26 => "trixie",
            Self::V2_34 => "sid",
        };
        let root = target_directory().join("nix-roots").join(suite);
        assert!(
            root.exists(),
            "no Nix {} here: tests/nix-root.sh make {suite} {} (./test.sh does it)",
            self.name(),
            root.display()
        );
        root
    }

    /// The words that go before a program of this Nix to run it.
    ///
    /// # Panics
    /// As [`Self::root`].
    #[must_use]
    pub(super) fn command_prefix(self) -> Vec<String> {
        if self == Self::V2_8 {
            return Vec::new();
        }
        let script = repository_root().join("tests/nix-root.sh");
        let text = |path: &Path| path.display().to_string();
        vec![text(&script), "run".to_owned(), text(&self.root())]
    }

    /// The directories of this machine that a Debian root has to show, for the variable `SHARE` of `nix-root.sh`: the
    /// fixtures, and the temporary directories of stories.
    pub(super) fn shared_directories() -> String {
        format!("{}:{}", repository_root().display(), env::temp_dir().display())
    }
}
