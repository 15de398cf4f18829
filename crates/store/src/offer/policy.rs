//! What may leave this machine: the rules, applied to one path.

use crate::derivation::{NotADerivation, forbids_substitutes};
use crate::{CopyFault, NixStore, PathInfo, Store as _};
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
    /// Sign as well what nobody signed and a derivation that is here makes: what a remote builder built and Nix copied back. Nix does
    /// not note where such a path came from, so whoever may import a path without a signature gets it signed.
    pub sign_remote_builds: bool,
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
    /// It was added, not built, no trusted key signed it, and nothing that is offered refers to it.
    Source,
    /// A pattern of `exclude` matches its name.
    Excluded,
    /// Its name is one of those withheld by default.
    ByDefault,
    /// Its derivation says `allowSubstitutes = false`.
    SubstitutesForbidden,
    /// Its derivation is here, but cannot be read, so nobody knows whether it may be substituted.
    DerivationUnreadable,
    /// Its content address is of a method that this version does not know, so that it may be a source, and no trusted key signed it.
    NotUnderstood,
    /// Its row in the Nix database cannot be read, so that nothing is known of it.
    RowUnreadable,
    /// Its closure holds a path that is withheld for one of the five reasons before, or a source that cannot travel with it.
    ClosureWithheld,
    /// Its closure holds a path whose row cannot be read.
    ClosureUnreadable,
    /// No pattern of `include` matches its name.
    NotIncluded,
    /// No trusted key signed it, and it was not built here, or there is no builder key.
    NotVouchedFor,
    /// Our copy failed its hash, and was not changed since.
    CopyFailed,
    /// Our copy is not on the disk, or a part of it is not.
    CopyGone,
    /// The disk does not give our copy.
    CopyUnreadable,
    /// It holds what a NAR cannot hold.
    NotArchivable,
    /// Its narinfo would be longer than 8 MiB: it has too many references.
    NarInfoTooLong,
    /// More paths than may be offered; this is one of the newest.
    TooMany,
    /// Not looked at yet.
    Unchecked,
}

impl Withheld {
    /// Whether nobody knows yet what may become of it, so that it is not told, and what was told is not taken back.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::Unchecked | Self::RowUnreadable | Self::ClosureUnreadable)
    }

    /// A sentence for the operator.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Source => "it is a source, and nothing that is offered needs it",
            Self::Excluded => "a pattern of advertise.exclude matches its name",
            Self::ByDefault => "its name is withheld by default (advertise.withhold_defaults)",
            Self::SubstitutesForbidden => "its derivation says allowSubstitutes = false",
            Self::DerivationUnreadable => "its derivation cannot be read",
            Self::NotUnderstood => {
                "this version does not know the method of its content address, and no trusted key signed it"
            }
            Self::RowUnreadable => "its row in the Nix database cannot be read",
            Self::ClosureWithheld => "its closure contains a withheld path",
            Self::ClosureUnreadable => "its closure contains a path whose row in the Nix database cannot be read",
            Self::NotIncluded => "no pattern of advertise.include matches its name",
            Self::NotVouchedFor => "no trusted key signed it, and our builder key does not vouch for it",
            Self::CopyFailed => "our copy of it failed its hash",
            Self::CopyGone => {
                "our copy of it is gone from the disk, or a part of it (`nix-store --verify` finds what Nix takes for valid)"
            }
            Self::CopyUnreadable => "our copy of it cannot be read from the disk",
            Self::NotArchivable => {
                "it holds what a NAR cannot: over 64 directories deep, a special file, or too long a name or link target"
            }
            Self::NarInfoTooLong => "its narinfo would have more than 8 MiB: it has too many references",
            Self::TooMany => "more paths than limits.advertised_paths_max; the newest are withheld",
            Self::Unchecked => "it was not looked at yet",
        }
    }
}

/// How a path came to be, as far as this store can tell without anybody's word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// Built: by this store, as an output of a derivation that is here, or by somebody, since it is no address of its contents.
    Output,
    /// The address of its contents, and nothing here makes it: added (`builtins.path`, `toFile`, `nix-store --add`), or a fixed
    /// output from elsewhere. A source, unless a trusted key signed it.
    Added,
    /// The same with a content address that this version does not understand.
    Unknown,
}

/// Who vouches for a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Voucher {
    Nobody,
    /// Its contents, of which it is the address; perhaps our own key beside them.
    Contents,
    /// A trusted key, or ours for what was built here.
    Signature,
}

impl From<CopyFault> for Withheld {
    fn from(fault: CopyFault) -> Self {
        match fault {
            CopyFault::Corrupt => Self::CopyFailed,
            CopyFault::Gone => Self::CopyGone,
            CopyFault::Unreadable => Self::CopyUnreadable,
            CopyFault::NotArchivable => Self::NotArchivable,
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

    /// Whether it matters who signs that a derivation here makes the path.
    pub(super) fn asks_for_derivers(&self) -> bool {
        self.policy.sign_remote_builds
    }

    /// Whether our key signs it: what was built here, and what is taken for a build elsewhere on our behalf.
    fn signs(&self, info: &PathInfo, derivers: &[StorePath]) -> bool {
        let is_remote_build = || info.signatures.is_empty() && info.content_address.is_none() && !derivers.is_empty();
        info.ultimate || (self.policy.sign_remote_builds && is_remote_build())
    }

    /// Who vouches for a path that these derivations make, with the signatures that peers may see: none where its contents do.
    pub(super) fn vouchers(&self, info: &PathInfo, derivers: &[StorePath]) -> (Voucher, Vec<NixSignature>) {
        if info.nar_size == 0 {
            return (Voucher::Nobody, Vec::new());
        }
        let fingerprint = info.fingerprint(&self.store_dir);
        let mut signatures = Vec::new();
        let mut is_signed = false;
        if let (Some(key), true) = (&self.policy.builder_key, self.signs(info, derivers)) {
            signatures.push(key.sign(&fingerprint));
            is_signed = true;
        }
        for signature in &info.signatures {
            if signatures.len() >= SIGNATURES_MAX || signatures.contains(signature) {
                continue;
            }
            // Ed25519 verification is dear: only a signature that names a known key is tried.
            let is_ours = self.builder_public.as_ref().is_some_and(|key| key.verify(&fingerprint, signature));
            if is_ours || self.policy.trusted.verifies(&fingerprint, signature) {
                signatures.push(signature.clone());
                // `nix store sign --all` signs sources, too: that our own key signed one does not say that it may leave.
                is_signed |= !is_ours || info.content_address.is_none();
            }
        }
        let voucher = match is_signed {
            true => Voucher::Signature,
            false if info.is_certified_by_content(&self.store_dir) => Voucher::Contents,
            false => Voucher::Nobody,
        };
        (voucher, signatures)
    }
}

/// How the path came to be. Its `Deriver` says nothing about that: whoever handed it on may have made it up.
pub(super) fn origin(store: &NixStore, info: &PathInfo, derivers: &[StorePath]) -> Origin {
    if info.ultimate || !derivers.is_empty() {
        return Origin::Output;
    }
    match &info.content_address {
        None => Origin::Output,
        Some(ContentAddress::Other(_)) => Origin::Unknown,
        // Nor does a content address that is not true.
        Some(ContentAddress::Text { .. } | ContentAddress::Fixed { .. }) => {
            if info.is_certified_by_content(store.store_dir()) { Origin::Added } else { Origin::Output }
        }
    }
}

/// Asks all these derivations.
pub(super) fn builders_word(store: &NixStore, derivers: &[StorePath]) -> BuildersWord {
    let mut word = BuildersWord::Silent;
    for deriver in derivers {
        match read_derivation(store, deriver) {
            Ok(None) | Ok(Some(Ok(false))) => {}
            Ok(Some(Ok(true))) => return BuildersWord::SubstitutesForbidden,
            Ok(Some(Err(NotADerivation))) | Err(_) => word = BuildersWord::Unreadable,
        }
    }
    word
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
