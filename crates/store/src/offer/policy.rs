//! The rules about what may leave this machine, applied to one path.

use crate::derivation::{NotADerivation, forbids_substitutes, output_names};
use crate::{CopyFault, NixStore, PathInfo};
use narmesh_protocol::{
    ContentAddress, NamePattern, NixPublicKey, NixSecretKey, NixSignature, StoreDir, StorePath, TrustedKeys,
    sign_deriver,
};
use std::fs::File;
use std::io::{self, Read as _};

/// Names that are withheld by default, because such paths describe this machine rather than software.
const WITHHELD_NAMES: [&str; 3] = ["nixos-system-*", "etc", "unit-*"];
/// Most bytes of a `.drv` file that are read; the largest in nixpkgs have under 1 MiB.
const DERIVATION_BYTES_MAX: u64 = 8 << 20;
/// Most signatures in one narinfo; the rest is left out.
const SIGNATURES_MAX: usize = 16;

/// Most bytes of a NAR that is offered, 256 TiB. A row that says more is wrong, for Nix counts the bytes that it packs: the
/// largest file of ext4 has 16 TiB. And it could not arrive: even at 100 Gbit/s it would take the six hours after which an
/// asker gives up its only source.
pub(super) const NAR_BYTES_MAX: u64 = 1 << 48;

/// The operator's policy on what may leave this machine.
#[derive(Clone, Debug)]
pub struct OfferPolicy {
    /// Trusted public keys. Their signatures are handed on and vouch for a path.
    pub trusted: TrustedKeys,
    /// Signs paths that were built here. Without it, only paths for which trusted keys or their
    /// own contents vouch are offered.
    pub builder_key: Option<NixSecretKey>,
    /// Also sign paths without a signature that are an output of a derivation here: a remote builder built them and Nix
    /// copied them back. Nix does not record where such a path came from, so anyone who may import a path without a
    /// signature gets it signed.
    pub sign_remote_builds: bool,
    /// Patterns (`*`, `?`) over path names, of which one must match. The references of a path need not match.
    pub include: Vec<String>,
    /// Patterns of which none may match the name of the path or of any path in its closure.
    pub exclude: Vec<String>,
    /// Withhold paths that describe this machine, paths whose derivation forbids substitutes, and
    /// everything that refers to them.
    pub withhold_defaults: bool,
    /// Whether derivations are offered as well, with the sources that they refer to. One is withheld, and with it whatever
    /// refers to it, where an output of it would be.
    pub derivations: bool,
    /// Most paths offered; beyond it the newest are withheld.
    pub paths_max: usize,
    /// Whether anything is offered now. If not, nothing else changes: what is known about paths, and what was told of them
    /// as private, stays.
    pub is_serving: bool,
}

/// Why a path is withheld.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Withheld {
    /// It was added and not built, no trusted key signed it, and no offered path refers to it.
    Source,
    /// It is a derivation, and these are not offered.
    Derivation,
    /// A pattern of `exclude` matches its name, or that of what it builds.
    Excluded,
    /// Its name is one of those withheld by default.
    ByDefault,
    /// Its derivation says `allowSubstitutes = false`.
    SubstitutesForbidden,
    /// Its derivation is here but cannot be read, so it is unknown whether the path may be substituted.
    DerivationUnreadable,
    /// Its content address has a method that this version does not know, so it may be a source,
    /// and no trusted key signed it.
    NotUnderstood,
    /// Its row in the Nix database cannot be read, so nothing is known about it.
    RowUnreadable,
    /// Its closure contains a path that is withheld for one of the five reasons from [`Self::Excluded`] to
    /// [`Self::NotUnderstood`], or a source that cannot be sent.
    ClosureWithheld,
    /// Its closure contains a path whose row cannot be read.
    ClosureUnreadable,
    /// No pattern of `include` matches its name.
    NotIncluded,
    /// No trusted key signed it, no builder that counts attests it, and it was not built here or there is no builder key.
    NotVouchedFor,
    /// Our copy failed its NarHash and has not changed since.
    CopyFailed,
    /// Our copy is not on the disk, or a part of it is not.
    CopyGone,
    /// The disk does not give our copy.
    CopyUnreadable,
    /// It holds what a NAR cannot hold.
    NotArchivable,
    /// Its row says that its NAR is larger than 256 TiB.
    NarTooLarge,
    /// Its narinfo would be longer than 8 MiB: it has too many references.
    NarInfoTooLong,
    /// There are more paths than may be offered, and this is one of the newest.
    TooMany,
    /// Nothing is offered now.
    NotServing,
    /// It was not checked yet.
    Unchecked,
}

impl Withheld {
    /// Whether the reason is temporary. Until it is settled, peers are told nothing new about the path, and
    /// nothing told before is taken back.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::Unchecked | Self::RowUnreadable | Self::ClosureUnreadable)
    }

    /// The reason as a sentence for the operator.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Source => "it is a source, and nothing that is offered needs it",
            Self::Derivation => "it is a derivation (advertise.derivations)",
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
            Self::NotVouchedFor => {
                "no trusted key signed it, no [[builder]] attests it as it is here, and our builder key does not vouch for it"
            }
            Self::CopyFailed => "our copy of it failed its hash",
            Self::CopyGone => {
                "our copy of it is gone from the disk, wholly or in part (`nix-store --verify` finds such paths)"
            }
            Self::CopyUnreadable => "our copy of it cannot be read from the disk",
            Self::NotArchivable => {
                "it holds what a NAR cannot: over 64 directories deep, a special file, or too long a name or link target"
            }
            Self::NarTooLarge => "its row in the Nix database says that its NAR has more than 256 TiB, which cannot be",
            Self::NarInfoTooLong => "its narinfo would have more than 8 MiB: it has too many references",
            Self::TooMany => "more paths than limits.advertised_paths_max; the newest are withheld",
            Self::NotServing => "this machine serves its peers nothing now (`narmesh serve`)",
            Self::Unchecked => "it was not looked at yet",
        }
    }
}

/// How a path came to be, as far as this store can tell without trusting anyone's claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// It was built: by this store, as an output of a derivation here, or by somebody else, since it
    /// has no valid content address.
    Output,
    /// It has a valid content address, and no derivation here makes it: it was added (`builtins.path`, `toFile`,
    /// `nix-store --add`), or is a fixed output from elsewhere. It counts as a source unless a trusted key signed it.
    Added,
    /// As `Added`, but with a content address that this version does not understand.
    Unknown,
}

/// Who vouches for a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Voucher {
    Nobody,
    /// Its contents, by a valid content address; our own key may have signed it as well.
    Contents,
    /// A trusted key, or our own key for a path that was built here.
    Signature,
    /// A builder that counts, by an attestation; no signature in the Nix database does.
    Attestation,
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

/// What a path's derivations say about substitutes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BuilderStatement {
    Silent,
    SubstitutesForbidden,
    Unreadable,
}

/// A policy prepared for use: its patterns are parsed.
#[derive(Debug)]
pub(super) struct Rules {
    policy: OfferPolicy,
    builder_public: Option<NixPublicKey>,
    include: Vec<NamePattern>,
    exclude: Vec<NamePattern>,
    withheld: Vec<NamePattern>,
    store_dir: StoreDir,
    /// Which policy this is, counted from 1: what was rendered under another one is rendered again.
    pub(super) number: u64,
}

impl Rules {
    pub(super) fn new(policy: OfferPolicy, store_dir: StoreDir, number: u64) -> Self {
        let patterns = |texts: &[String]| texts.iter().map(|text| NamePattern::new(text)).collect();
        let withheld: &[&str] = if policy.withhold_defaults { &WITHHELD_NAMES } else { &[] };
        Self {
            builder_public: policy.builder_key.as_ref().map(NixSecretKey::public),
            include: patterns(&policy.include),
            exclude: patterns(&policy.exclude),
            withheld: withheld.iter().map(|text| NamePattern::new(text)).collect(),
            policy,
            store_dir,
            number,
        }
    }

    pub(super) fn policy(&self) -> &OfferPolicy {
        &self.policy
    }

    pub(super) fn offers_derivations(&self) -> bool {
        self.policy.derivations
    }

    pub(super) fn paths_max(&self) -> usize {
        self.policy.paths_max
    }

    pub(super) fn is_serving(&self) -> bool {
        self.policy.is_serving
    }

    /// Why a path with this name and these derivations, and everything that refers to it, is withheld.
    pub(super) fn privacy(&self, name: &str, word: BuilderStatement) -> Option<Withheld> {
        // First: a pattern of the operator counts also where the defaults are switched off.
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
            BuilderStatement::Silent => None,
            BuilderStatement::SubstitutesForbidden => Some(Withheld::SubstitutesForbidden),
            BuilderStatement::Unreadable => Some(Withheld::DerivationUnreadable),
        }
    }

    pub(super) fn includes(&self, name: &str) -> bool {
        self.include.iter().any(|pattern| pattern.matches(name))
    }

    /// Whether signing depends on which derivations here make a path.
    pub(super) fn asks_for_derivers(&self) -> bool {
        self.policy.sign_remote_builds
    }

    /// Whether our key signs the path: if it was built here, or if it counts as a remote build for us.
    fn signs(&self, info: &PathInfo, derivers: &[StorePath]) -> bool {
        let is_remote_build = || info.signatures.is_empty() && info.content_address.is_none() && !derivers.is_empty();
        info.ultimate || (self.policy.sign_remote_builds && is_remote_build())
    }

    /// The line under which peers believe the deriver of a path that these derivations make: of what was built here, Nix noted
    /// it itself. What else the row says came with the path and is signed by nobody, so it has to be one of those that are
    /// here and make the path.
    pub(super) fn sign_deriver(&self, info: &PathInfo, derivers: &[StorePath]) -> Option<String> {
        let deriver = info.deriver.as_ref().filter(|deriver| deriver.is_derivation())?;
        if !info.ultimate && !derivers.contains(deriver) {
            return None;
        }
        let key = self.policy.builder_key.as_ref().filter(|_| self.signs(info, derivers))?;
        Some(sign_deriver(&self.store_dir, &info.path, deriver, key))
    }

    /// Who vouches for a path that these derivations make, and the signatures that peers may see. A path for which its
    /// contents vouch needs none.
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
            // Ed25519 verification is expensive, so only signatures that name a known key are verified.
            let is_ours = self.builder_public.as_ref().is_some_and(|key| key.verify(&fingerprint, signature));
            if is_ours || self.policy.trusted.verifies(&fingerprint, signature) {
                signatures.push(signature.clone());
                // `nix store sign --all` signs sources too, so a signature by our own key does not
                // mean that a source may leave.
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

/// How the path came to be. Its `Deriver` does not count, because whoever handed the path on may have invented it.
pub(super) fn origin(store: &NixStore, info: &PathInfo, derivers: &[StorePath]) -> Origin {
    if info.ultimate || !derivers.is_empty() {
        return Origin::Output;
    }
    match &info.content_address {
        None => Origin::Output,
        Some(ContentAddress::Other(_)) => Origin::Unknown,
        // A content address that does not fit the path does not count either.
        Some(ContentAddress::Text { .. } | ContentAddress::Fixed { .. }) => {
            if info.is_certified_by_content(store.store_dir()) { Origin::Added } else { Origin::Output }
        }
    }
}

/// What all these derivations together say about substitutes.
pub(super) fn read_builders_word(store: &NixStore, derivers: &[StorePath]) -> BuilderStatement {
    let mut word = BuilderStatement::Silent;
    // A derivation that is not valid here says nothing.
    for deriver in derivers.iter().filter(|path| path.is_derivation() && store.contains(&path.hash_part())) {
        match read_derivation(store, deriver) {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) => return BuilderStatement::SubstitutesForbidden,
            Ok(Err(NotADerivation)) | Err(_) => word = BuilderStatement::Unreadable,
        }
    }
    word
}

/// The names of the paths that a valid derivation builds; `None` if its file is not here or is no derivation.
pub(super) fn read_built_names(store: &NixStore, path: &StorePath) -> Option<Box<[String]>> {
    let stem = path.name().strip_suffix(".drv")?;
    let outputs = output_names(&read_file(store, path).ok()?).ok()?;
    let name = |output: String| if output == "out" { stem.to_owned() } else { format!("{stem}-{output}") };
    // Its own name without the suffix is that of no path if it has no output `out`, but it is what a pattern is written for.
    Some(outputs.into_iter().map(name).chain([stem.to_owned()]).collect())
}

/// Whether a valid derivation forbids substitutes. That its file is not here is an error: it may have forbidden them.
fn read_derivation(store: &NixStore, path: &StorePath) -> io::Result<Result<bool, NotADerivation>> {
    Ok(forbids_substitutes(&read_file(store, path)?))
}

fn read_file(store: &NixStore, path: &StorePath) -> io::Result<Vec<u8>> {
    let mut aterm = Vec::new();
    File::open(store.location().real_path(path))?.take(DERIVATION_BYTES_MAX).read_to_end(&mut aterm)?;
    Ok(aterm)
}
