//! Attests what this machine built itself and others may hear of.

use super::ledger::{LedgerDbError, LiveLedger, StoredStatement};
use super::members::{read_rows, statement_of};
use super::verification::verify_attestation;
use super::{now, parse_path};
use anyhow::{Context as _, bail, ensure};
use narmesh_protocol::{Attestation, BuilderKey, HashPart, NixSecretKey};
use narmesh_quorum::{Evicted, FingerprintDigest, VerifiedStatement};
use narmesh_store::{NixStore, Offer, PathInfo, StoreError, Withheld};
use serde::{Deserialize, Serialize};
use std::thread;
use std::time::Duration;

/// How many attestations are signed before they are written together.
const BATCH: usize = 1_000;
/// How often at most we look whether the offer has checked a path again. Building a path again changes its row, and the
/// offer checks it within milliseconds.
const LOOKS_MAX: usize = 200;
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Signs attestations of the paths that Nix marks `ultimate`. Paths that peers may not hear of are not attested: an
/// attestation tells their name, references and hash to everybody who counts this builder, whoever relays it.
#[derive(Clone, Copy, Debug)]
pub struct OwnBuilds<'a> {
    /// The store.
    pub store: &'a NixStore,
    /// Says what peers may hear of. It has already checked the whole store.
    pub offer: &'a Offer,
    /// The ledger that takes the attestations.
    pub ledger: &'a LiveLedger,
    /// The builder key.
    pub key: &'a NixSecretKey,
}

/// What became of the paths that were to be attested.
#[derive(Debug, Default)]
pub struct Attested {
    /// How many were attested that were not before.
    pub new: usize,
    /// Paths of which the offer cannot say yet whether peers may hear of them.
    pub unchecked: Vec<HashPart>,
    /// Paths whose rows cannot be read, and why. The others are attested all the same.
    pub unread: Vec<(HashPart, StoreError)>,
}

/// The answer about one path that the user asked to attest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OwnStatement {
    /// The store path.
    pub path: String,
    /// Its derivation, from which it can be built again. `None` for a content-addressed path, which needs no
    /// attestation.
    pub deriver: Option<String>,
    /// The name of the key that signs.
    pub by: String,
    /// Whether the path, as it is in the store now, is attested.
    pub attested: bool,
}

impl OwnBuilds<'_> {
    /// Says whether one path is attested. If it was `rebuilt` with the same result and is not attested yet, it is
    /// attested now. Fails for a path that cannot be attested: it is not here, cannot be built again, or is withheld.
    pub fn attest_path(&self, path: &str, rebuilt: bool) -> anyhow::Result<OwnStatement> {
        let path = parse_path(self.store.store_dir(), path)?;
        // Nix has just written it, and the watcher may not have looked yet.
        self.store.refresh()?;
        // The hash part alone does not tell whether the name is right, too.
        let info = self.store.read_path_info(&path.hash_part())?.filter(|info| info.path == path);
        let info = info.with_context(|| format!("{path} is not in the store here"))?;
        let word = |deriver, attested| OwnStatement {
            path: path.to_string(),
            deriver,
            by: self.key.public().name().to_owned(),
            attested,
        };
        // It needs no word of anybody.
        if info.is_certified_by_content(self.store.store_dir()) {
            return Ok(word(None, false));
        }
        let Some(deriver) = self.store.read_derivers(&info)?.pop() else {
            bail!("{path} has no known derivation here, so it cannot be built again");
        };
        if let Some(why) =
            look_until(|| self.offer.why_withheld(&path, &info.references), |why| !why.is_some_and(Withheld::may_pass))
        {
            bail!("{path} is withheld, so it is not attested: {}", why.sentence());
        }
        if rebuilt {
            // Only what Nix says was built here is ever signed.
            ensure!(info.ultimate, "Nix does not say that {path} was built here, even after building it again");
            look_until(
                || self.attest([path.hash_part()]),
                |done| done.as_ref().map_or(true, |done| done.unchecked.is_empty()),
            )?;
        }
        let attested = self.is_attested(&info);
        ensure!(attested || !rebuilt, "{path} was built here, but paths of its kind are not attested");
        Ok(word(Some(deriver.to_string()), attested))
    }

    /// Attests those of `hash_parts` that were built here, that peers may hear of, and that are not attested yet as
    /// they are.
    pub fn attest(&self, hash_parts: impl IntoIterator<Item = HashPart>) -> Result<Attested, LedgerDbError> {
        let (mut attested, mut batch, mut unread) = (Attested::default(), Vec::new(), Vec::new());
        for info in read_rows(self.store, hash_parts, &mut unread) {
            if let Some(made) = self.make_attestation(&info) {
                let statement = &made.0.attestation.statement;
                match self.offer.why_withheld(&statement.path, &statement.references) {
                    None => batch.push(made),
                    // The offer has not looked at it yet, or cannot now.
                    Some(why) if why.may_pass() => attested.unchecked.push(info.path.hash_part()),
                    Some(_) => {}
                }
            }
            // One transaction for many: each of them is a sync of the disk.
            if batch.len() >= BATCH {
                attested.new += self.ledger.take(&batch, now())?.new;
                batch.clear();
            }
        }
        attested.new += self.ledger.take(&batch, now())?.new;
        attested.unread = unread;
        Ok(attested)
    }

    /// Takes back all attestations of paths that are withheld now, whether still in the store or gone. Returns how
    /// many.
    pub fn withdraw(&self) -> Result<usize, LedgerDbError> {
        let own = BuilderKey(self.key.public().bytes());
        self.withdraw_of(self.ledger.read(|ledger| ledger.hash_parts_of(&own)))
    }

    /// The same for these paths only.
    pub fn withdraw_of(&self, hash_parts: impl IntoIterator<Item = HashPart>) -> Result<usize, LedgerDbError> {
        let own = BuilderKey(self.key.public().bytes());
        let is_said = |part: &HashPart| self.ledger.read(|ledger| ledger.votes(part).any(|vote| vote.builder == own));
        let mut gone = Vec::new();
        for hash_part in hash_parts.into_iter().filter(is_said) {
            let said = self.ledger.read_attestations(&hash_part)?;
            for attestation in said.into_iter().map(|it| it.attestation).filter(|it| it.builder == own) {
                let statement = &attestation.statement;
                let why = self.offer.why_withheld(&statement.path, &statement.references);
                // What was told is not taken back for a reason that may pass.
                if why.is_some_and(|why| !why.may_pass()) {
                    let fingerprint = FingerprintDigest::of(self.store.store_dir(), statement);
                    gone.push(Evicted { builder: own, hash_part, fingerprint });
                }
            }
        }
        self.ledger.withdraw(&gone)?;
        Ok(gone.len())
    }

    /// The attestation of a path, if it was built here and is not attested yet. `None` for derivations, and for
    /// content-addressed paths (sources among them).
    fn make_attestation(&self, info: &PathInfo) -> Option<(StoredStatement, VerifiedStatement)> {
        let store_dir = self.store.store_dir();
        // Only a content address that is understood and true counts: any other proves nothing.
        let needs_no_word = info.is_certified_by_content(store_dir);
        if !info.ultimate || info.nar_size == 0 || info.path.is_derivation() || needs_no_word {
            return None;
        }
        if self.is_attested(info) {
            return None;
        }
        let (public, statement) = (self.key.public(), statement_of(info));
        let attestation = Attestation::sign(self.key, store_dir, statement, now().0);
        let verified = verify_attestation(store_dir, &public, &attestation)?;
        Some((StoredStatement { key: public, attestation }, verified))
    }

    /// Whether our key already attested the path as it is here now.
    fn is_attested(&self, info: &PathInfo) -> bool {
        let own = BuilderKey(self.key.public().bytes());
        let fingerprint = FingerprintDigest::of(self.store.store_dir(), &statement_of(info));
        let said = |vote: narmesh_quorum::Vote| vote.builder == own && vote.claim.fingerprint == fingerprint;
        self.ledger.read(|ledger| ledger.votes(&info.path.hash_part()).any(said))
    }
}

/// Calls `look` until its result is `settled`, but at most [`LOOKS_MAX`] times more, and returns the last result.
fn look_until<T>(mut look: impl FnMut() -> T, settled: impl Fn(&T) -> bool) -> T {
    let mut found = look();
    for _ in 0..LOOKS_MAX {
        if settled(&found) {
            break;
        }
        thread::sleep(LOOK);
        found = look();
    }
    found
}
