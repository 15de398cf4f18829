//! What may leave this machine: the rules, applied to one path.

use crate::derivation::{NotADerivation, forbids_substitutes};
use crate::{NixStore, PathInfo, Store as _, StoreError};
use narmesh_protocol::{
    ContentAddress, NamePattern, NixPublicKey, NixSecretKey, NixSignature, StoreDir, StorePath, TrustedKeys,
};
use std::fs::File;
use std::io::{self, Read as _};

/// Names that are withheld by default: they describe this machine rather than software.
const WITHHELD_NAMES: [&str; 3] = ["nixos-system-*", "etc", "unit-*"];
/// Bytes of a `.drv` file that are read at most; the largest in nixpkgs have under 1 MiB.
const DERIVATION_BYTES_MAX: u64 = 8 << 20;
/// Signatures in one narinfo at most; the rest is left out.
const SIGNATURES_MAX: usize = 16;

/// What the operator wants to leave this machine.
#[derive(Clone, Debug)]
pub struct OfferPolicy {
    /// Keys whose signatures are worth handing on.
    pub trusted: TrustedKeys,
    /// Signs what was built here; without one only paths that trusted keys or their contents vouch for are offered.
    pub builder_key: Option<NixSecretKey>,
    /// Patterns (`*`, `?`) over names of paths, of which one must match. References of a path need not match.
    pub include: Vec<String>,
    /// Patterns of which none may match, neither here nor in the closure.
    pub exclude: Vec<String>,
    /// Withhold what describes this machine, and what its derivation wants built locally, with all that refers to it.
    pub withhold_defaults: bool,
    /// Paths offered at most; the newest are withheld.
    pub paths_max: usize,
}

/// Why a path does not leave this machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Withheld {
    /// It was added, not built.
    Source,
    /// A pattern of `exclude` matches its name.
    Excluded,
    /// Its name is one of those withheld by default.
    ByDefault,
    /// Its derivation says `allowSubstitutes = false`.
    SubstitutesForbidden,
    /// Its derivation is here, but cannot be read, so nobody knows whether it may be substituted.
    DerivationUnreadable,
    /// Its closure holds a path that is withheld for one of the four reasons before.
    ClosureWithheld,
    /// No pattern of `include` matches its name.
    NotIncluded,
    /// No trusted key signed it, and it was not built here, or there is no builder key.
    NotVouchedFor,
    /// Our copy failed its hash, and was not changed since.
    CopyFailed,
    /// Its narinfo would be longer than 8 MiB: it has too many references.
    NarInfoTooLong,
    /// More paths than may be offered; this is one of the newest.
    TooMany,
    /// Not looked at yet.
    Unchecked,
}

impl Withheld {
    /// A sentence for the operator.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Source => "it is a source, not an output",
            Self::Excluded => "a pattern of advertise.exclude matches its name",
            Self::ByDefault => "its name is withheld by default (advertise.withhold_defaults)",
            Self::SubstitutesForbidden => "its derivation says allowSubstitutes = false",
            Self::DerivationUnreadable => "its derivation cannot be read",
            Self::ClosureWithheld => "its closure contains a withheld path",
            Self::NotIncluded => "no pattern of advertise.include matches its name",
            Self::NotVouchedFor => "no trusted key signed it, and our builder key does not vouch for it",
            Self::CopyFailed => "our copy of it failed its hash",
            Self::NarInfoTooLong => "its narinfo would have more than 8 MiB: it has too many references",
            Self::TooMany => "more paths than limits.advertised_paths_max; the newest are withheld",
            Self::Unchecked => "it was not looked at yet",
        }
    }
}

/// What a path's derivations say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BuildersWord {
    Silent,
    SubstitutesForbidden,
    Unreadable,
}

/// A policy made ready to be applied.
#[derive(Debug)]
pub(super) struct Rules {
    policy: OfferPolicy,
    builder_public: Option<NixPublicKey>,
    include: Vec<NamePattern>,
    exclude: Vec<NamePattern>,
    withheld: Vec<NamePattern>,
    store_dir: StoreDir,
    /// Which policy this is, counted from 1.
    pub(super) generation: u64,
}

impl Rules {
    pub(super) fn new(policy: OfferPolicy, store_dir: StoreDir, generation: u64) -> Self {
        let patterns = |texts: &[String]| texts.iter().map(|text| NamePattern::new(text)).collect();
        let withheld: &[&str] = if policy.withhold_defaults { &WITHHELD_NAMES } else { &[] };
        Self {
            builder_public: policy.builder_key.as_ref().map(NixSecretKey::public),
            include: patterns(&policy.include),
            exclude: patterns(&policy.exclude),
            withheld: withheld.iter().map(|text| NamePattern::new(text)).collect(),
            policy,
            store_dir,
            generation,
        }
    }

    pub(super) fn paths_max(&self) -> usize {
        self.policy.paths_max
    }

    /// Why this path, and whatever refers to it, stays here.
    pub(super) fn privacy(&self, name: &str, word: BuildersWord) -> Option<Withheld> {
        if self.exclude.iter().any(|pattern| pattern.matches(name)) {
            return Some(Withheld::Excluded);
        }
        if !self.policy.withhold_defaults {
            return None;
        }
        if self.withheld.iter().any(|pattern| pattern.matches(name)) {
            return Some(Withheld::ByDefault);
        }
        match word {
            BuildersWord::Silent => None,
            BuildersWord::SubstitutesForbidden => Some(Withheld::SubstitutesForbidden),
            BuildersWord::Unreadable => Some(Withheld::DerivationUnreadable),
        }
    }

    pub(super) fn includes(&self, name: &str) -> bool {
        self.include.iter().any(|pattern| pattern.matches(name))
    }

    /// The signatures that peers may see, or `None` if nothing vouches for the path. An empty list means that its
    /// contents do, and that it was built here.
    pub(super) fn vouchers(&self, info: &PathInfo) -> Option<Vec<NixSignature>> {
        if info.nar_size == 0 {
            return None;
        }
        let fingerprint = info.fingerprint(&self.store_dir);
        let mut signatures = Vec::new();
        if let (Some(key), true) = (&self.policy.builder_key, info.ultimate) {
            signatures.push(key.sign(&fingerprint));
        }
        for signature in &info.signatures {
            // Ed25519 verification is dear: only a signature that names a known key is tried.
            let is_ours = self.builder_public.as_ref().is_some_and(|key| key.verify(&fingerprint, signature));
            if signatures.len() < SIGNATURES_MAX
                && !signatures.contains(signature)
                && (is_ours || self.policy.trusted.verifies(&fingerprint, signature))
            {
                signatures.push(signature.clone());
            }
        }
        let built_here = info.ultimate && info.is_certified_by_content(&self.store_dir);
        (!signatures.is_empty() || built_here).then_some(signatures)
    }
}

/// Whether it was added (`builtins.path`, `toFile`, `nix-store --add`) rather than built: content-addressed, and nothing
/// is known that made it. A fixed output has a deriver, or was built here.
pub(super) fn is_source(info: &PathInfo) -> bool {
    match info.content_address {
        None => false,
        Some(ContentAddress::Text { .. }) => true,
        Some(ContentAddress::Fixed { .. }) => info.deriver.is_none() && !info.ultimate,
    }
}

/// Asks all derivations of the path that are here: the one that made it, and the valid ones that would.
pub(super) fn builders_word(store: &NixStore, info: &PathInfo) -> Result<BuildersWord, StoreError> {
    word_on(store, &info.path, info.deriver.as_ref())
}

/// The same of a path that need not be here.
pub(super) fn word_on(
    store: &NixStore,
    path: &StorePath,
    deriver: Option<&StorePath>,
) -> Result<BuildersWord, StoreError> {
    let mut derivers = store.derivers(path)?;
    derivers.extend(deriver.cloned());
    derivers.sort();
    derivers.dedup();
    let mut word = BuildersWord::Silent;
    for deriver in &derivers {
        match read_derivation(store, deriver) {
            Ok(None) | Ok(Some(Ok(false))) => {}
            Ok(Some(Ok(true))) => return Ok(BuildersWord::SubstitutesForbidden),
            Ok(Some(Err(NotADerivation))) | Err(_) => word = BuildersWord::Unreadable,
        }
    }
    Ok(word)
}

/// `None` if the file is not here.
fn read_derivation(store: &NixStore, path: &StorePath) -> io::Result<Option<Result<bool, NotADerivation>>> {
    if !path.is_derivation() || !store.contains(&path.hash_part()) {
        return Ok(None);
    }
    let file = match File::open(store.location().real_path(path)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut aterm = Vec::new();
    file.take(DERIVATION_BYTES_MAX).read_to_end(&mut aterm)?;
    Ok(Some(forbids_substitutes(&aterm)))
}
