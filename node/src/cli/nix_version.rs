//! Which Nix is installed here.

use std::fmt;
use std::process::Command;

/// The release series of a Nix, such as 2.34.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct NixVersion {
    major: u32,
    minor: u32,
}

impl NixVersion {
    /// The first series in which `fallback = true` works. With it, 2.8 aborts: `SubstituterDisabled` is thrown in a
    /// noexcept function (fixed by b8faa837 of 2022-05-30, not in 2.8.1).
    pub(super) const FALLBACK_WORKS: Self = Self { major: 2, minor: 9 };

    /// The first series that goes on when a substituter refuses the connection (`docs/operations.md`, "Builds abort").
    pub(super) const REFUSALS_ARE_BORNE: Self = Self { major: 2, minor: 32 };

    /// Asks `nix --version`; `None` if there is no Nix or its answer cannot be parsed.
    pub(super) fn installed() -> Option<Self> {
        let output = Command::new("nix").arg("--version").output().ok()?;
        output.status.success().then(|| Self::parse(&String::from_utf8_lossy(&output.stdout)))?
    }

    /// Parses `nix (Nix) 2.34.8pre2026`, `nix (Lix, like Nix) 2.90.0`, …
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_whitespace().last()?.split('.').map(|part| {
            let digits = part.split(|character: char| !character.is_ascii_digit()).next().unwrap_or_default();
            digits.parse().ok()
        });
        Some(Self { major: numbers.next()??, minor: numbers.next()?? })
    }
}

impl fmt::Display for NixVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let works = |text: &str| NixVersion::parse(text).map(|version| version >= NixVersion::FALLBACK_WORKS);
        assert_eq!(works("nix (Nix) 2.8.0\n"), Some(false));
        assert_eq!(works("nix (Nix) 2.9.0"), Some(true));
        assert_eq!(works("nix (Nix) 2.34.8"), Some(true));
        assert_eq!(works("nix (Nix) 2.36pre20260822_88b09c6"), Some(true));
        assert_eq!(works("nix (Lix, like Nix) 2.90.0"), Some(true));
        assert_eq!(works("nix (Nix) 3.0"), Some(true));
        assert_eq!(works("nix (Nix) unknown"), None);
        assert_eq!(works(""), None);
    }
}
