//! Whether the policy lets Nix have something. It is asked about a candidate's narinfo, about a remembered answer,
//! about our own paths, and again about the NAR, which Nix may ask for 30 days later.
//!
//! The gate comes after `trust`, never instead of it. A verdict comes from memory, in microseconds; the signatures of
//! builders are read from the disk once, when an answer is rendered.

use super::trust::Proof;
use crate::builders::Builders;
use crate::lookup_log::LookupEvent;
use crate::shared::Shared;
use narmesh_protocol::{BuilderKey, HashPart, NarInfo, NarUrl, NixPublicKey, NixSecretKey, Statement, StorePath};
use narmesh_quorum::{FingerprintDigest, Grounds, Mode, Policy, Preference, Refusal, Ruling, Served, State, WallMs};
use parking_lot::RwLock;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// The most signatures in one answer. Nix stores them all.
const SIGNATURES_MAX: usize = 16;

/// The part of the narinfo deadline that is kept for judging and rendering after builders were waited for in vain (a
/// guess, not measured: some signatures are read from the disk).
const AFTER_HEARING: Duration = Duration::from_millis(50);

/// The number of refusals by reason.
pub type Refused = Family<Reason, Counter>;

/// Why something was refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct Reason {
    /// [`Refusal::name`].
    pub reason: &'static str,
}

/// Applies the policy to what the gateway gives to Nix.
#[derive(Debug)]
pub(crate) struct Gate {
    shared: Arc<Shared>,
    builders: Arc<dyn Builders>,
    key: RwLock<Option<NixSecretKey>>,
    refused: Refused,
}

/// How the policy lets something through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Pass {
    /// [`Gate::stamp`] just before the policy was asked.
    pub(crate) stamp: u64,
    /// The builders whose word counted; their signatures go with the answer. Empty where signatures decide.
    pub(crate) voters: Vec<BuilderKey>,
    /// Whether another fingerprint is agreed on, so that other candidates are asked first.
    pub(crate) is_second_choice: bool,
    /// Whether agreement is demanded, so that the policy is asked again about the NAR.
    pub(crate) is_demanded: bool,
}

/// A narinfo that was judged and that the policy lets through.
#[derive(Clone, Debug)]
pub(crate) struct Passed {
    /// The narinfo, with trusted signatures only.
    pub(crate) info: NarInfo,
    /// What vouches for it without the policy.
    pub(crate) proof: Proof,
    /// How the policy lets it through.
    pub(crate) pass: Pass,
}

impl Pass {
    /// Whether an answer that was rendered under `other` can still be given under this pass.
    pub(crate) fn gives_as(&self, other: &Self) -> bool {
        (&self.voters, self.is_second_choice, self.is_demanded)
            == (&other.voters, other.is_second_choice, other.is_demanded)
    }
}

impl Gate {
    pub(crate) fn new(shared: Arc<Shared>, builders: Arc<dyn Builders>) -> Self {
        let key = RwLock::new(shared.settings().gateway_key.clone());
        Self { shared, builders, key, refused: Refused::default() }
    }

    /// Sets the key that signs all narinfos that go out.
    pub(crate) fn set_key(&self, key: Option<NixSecretKey>) {
        *self.key.write() = key;
    }

    /// The key that Nix has to trust, and no other, if there is one.
    pub(crate) fn public_key(&self) -> Option<NixPublicKey> {
        self.key.read().as_ref().map(NixSecretKey::public)
    }

    /// A number that changes when the policy has to be asked again about what it let through; always 0 if it is never
    /// asked.
    pub(crate) fn stamp(&self) -> u64 {
        match self.builders.policy().mode() {
            Mode::Off | Mode::Observe => 0,
            Mode::Prefer | Mode::Require => self.builders.revision() + 1,
        }
    }

    /// Counts a refusal of what Nix asked for: once, however many sources hold it.
    pub(crate) fn count_refusal(&self, refusal: Refusal) {
        self.refused.get_or_create(&Reason { reason: refusal.name() }).inc();
    }

    /// Whether a verdict is required, and is enough without a trusted signature.
    pub(crate) fn demands(&self) -> bool {
        self.builders.policy().mode() == Mode::Require
    }

    /// Notes that our Nix asks for this path, so that attestations of it are kept.
    pub(crate) fn note_asked(&self, part: HashPart) {
        if self.builders.policy().mode() != Mode::Off {
            self.builders.note_asked(part);
        }
    }

    /// Asks the policy about a narinfo. From memory.
    pub(crate) fn decide(&self, info: &NarInfo, proof: &Proof) -> Result<Pass, Refusal> {
        let (stamp, policy) = (self.stamp(), self.builders.policy());
        let (decision, voters) = self.ask_policy(&policy, info, proof);
        let pass = |is_second_choice| {
            let is_demanded = policy.mode() == Mode::Require;
            Ok(Pass { stamp, voters, is_second_choice, is_demanded })
        };
        match decision {
            // The policy has changed since the narinfo was judged: no verdict is given now, and no trusted key signed
            // it.
            Ruling::NotAsked | Ruling::Prefer(_) if *proof == Proof::Verdict => Err(Refusal::NotAgreed(State::None)),
            Ruling::NotAsked | Ruling::Serve(_) => pass(false),
            Ruling::Prefer(preference) => pass(preference == Preference::Other),
            Ruling::Refuse(refusal) => Err(refusal),
        }
    }

    /// The ruling of the policy and the builders on whose word it rests, both from the same state of the ledger.
    fn ask_policy(&self, policy: &Policy, info: &NarInfo, proof: &Proof) -> (Ruling, Vec<BuilderKey>) {
        // These modes refuse nothing and prefer nothing, so no lookup waits for the ledger.
        if matches!(policy.mode(), Mode::Off | Mode::Observe) {
            return (Ruling::NotAsked, Vec::new());
        }
        let fingerprint = self.fingerprint(info);
        let is_addressed = *proof == Proof::ContentAddress;
        let mut decided = (Ruling::NotAsked, Vec::new());
        self.builders.read(&mut |ledger| {
            let decision = policy.decide(ledger, &info.path, fingerprint, is_addressed);
            let by_word = matches!(decision, Ruling::Serve(Grounds::Agreed | Grounds::Grace));
            let voters = if by_word { policy.find_vouching(ledger, &info.path, fingerprint) } else { Vec::new() };
            decided = (decision, voters);
        });
        decided
    }

    /// The path and fingerprint that are given on the word of these builders, if there are any. A report names them if
    /// they no longer hold.
    pub(crate) fn given_on_word(
        &self,
        info: &NarInfo,
        voters: &[BuilderKey],
    ) -> Option<(StorePath, FingerprintDigest)> {
        (!voters.is_empty()).then(|| (info.path.clone(), self.fingerprint(info)))
    }

    fn fingerprint(&self, info: &NarInfo) -> FingerprintDigest {
        FingerprintDigest::of(&self.shared.store_dir, &Statement::of(info))
    }

    /// Notes what Nix gets on the word of builders.
    pub(super) fn note_given(&self, on_word: Option<(StorePath, FingerprintDigest)>) {
        if let Some((path, fingerprint)) = on_word {
            self.builders.note_served(Served { path, fingerprint, at: wall_now() });
        }
    }

    /// The URL at which Nix asks for the NAR. It has the fingerprint if the policy is asked again at that time.
    pub(crate) fn nar_url(&self, info: &NarInfo, pass: &Pass) -> NarUrl {
        let fingerprint = || self.fingerprint(info).0;
        let plain = NarUrl::new(info.path.hash_part(), info.nar_hash, info.nar_size);
        NarUrl { fingerprint: pass.is_demanded.then(fingerprint), ..plain }
    }

    /// The narinfo as Nix gets it: signed by the gateway key, if there is one. If agreement is demanded, the signatures
    /// of the builders whose word counted are added, so that they stay with the copy in the store. Reads the disk in
    /// that case.
    pub(crate) fn sign(&self, info: &NarInfo, pass: &Pass) -> NarInfo {
        let mut info = info.clone();
        let Some(key) = self.key.read().clone() else { return info };
        if pass.is_demanded {
            self.add_voters(&mut info, &pass.voters);
        }
        // Leaves room for the signature of the gateway, which is the one that our Nix trusts.
        info.signatures.truncate(SIGNATURES_MAX - 1);
        info.signatures.push(key.sign(&info.fingerprint(&self.shared.store_dir)));
        info
    }

    /// Adds the signatures of these builders. Reads the disk.
    fn add_voters(&self, info: &mut NarInfo, voters: &[BuilderKey]) {
        match self.builders.read_signatures(self.fingerprint(info)) {
            Ok(known) => {
                for (builder, signature) in known {
                    if voters.contains(&builder) && !info.signatures.contains(&signature) {
                        info.signatures.push(signature);
                    }
                }
            }
            // The signature of the gateway alone is enough for our Nix.
            Err(error) => tracing::warn!(%error, path = %info.path, "signatures of builders cannot be read"),
        }
    }

    /// How many narinfos and NARs the policy has refused since the start, by reason, for `/metrics`.
    pub(crate) fn refusals(&self) -> &Refused {
        &self.refused
    }

    /// The same, for `status`: only reasons that occurred.
    pub(crate) fn refusal_counts(&self) -> BTreeMap<String, u64> {
        let count = |reason: &'static str| {
            let counter = self.refused.get(&Reason { reason })?;
            Some((reason.to_owned(), counter.get()))
        };
        Refusal::NAMES.into_iter().filter_map(count).collect()
    }

    /// Asks the policy about a narinfo. `why` shows a refusal; it is counted by [`Gate::count_refusal`], and only if no
    /// source has anything that is let through.
    pub(crate) fn admit(&self, info: &NarInfo, proof: &Proof) -> Result<Pass, Refusal> {
        self.decide(info, proof).inspect_err(|refusal| {
            tracing::debug!(store_path = %info.path, verdict = refusal.name(), "refused by the policy");
            self.shared.lookup_log.note(info.path.hash_part(), LookupEvent::Refused(*refusal, info.nar_hash));
        })
    }

    /// Asks peers what builders say of a path, if further attestations could change the ruling. Returns shortly before
    /// the deadline at the latest.
    pub(crate) async fn hear_builders(&self, info: &NarInfo, proof: &Proof, deadline: Instant) {
        let lacks = || {
            let policy = self.builders.policy();
            let (decision, _) = self.ask_policy(&policy, info, proof);
            match decision {
                Ruling::Refuse(Refusal::NotAgreed(state)) => state != State::ContentAddressed,
                // This ruling holds only while no other builder says anything.
                Ruling::Serve(grounds) => grounds == Grounds::Grace,
                _ => false,
            }
        };
        if self.demands() && lacks() {
            let deadline = deadline.checked_sub(AFTER_HEARING).unwrap_or(deadline);
            self.builders.ask(info.path.hash_part(), deadline, Box::new(|| !lacks())).await;
        }
    }

    /// Takes the signatures of builders in a narinfo as their statements, whoever sent it. New ones are written first;
    /// waits for the disk until the deadline at most.
    pub(crate) async fn hear_signatures(&self, info: &NarInfo, deadline: Instant) {
        let settings = self.shared.settings();
        // Only a proven content address counts here: no signature covers it, so a false one could silence the builders.
        if settings.signers.is_empty() || info.proven_content_address(&self.shared.store_dir).is_some() {
            return;
        }
        self.builders.hear_signatures(&settings.signers, info, deadline).await;
    }
}

/// The time by the wall clock.
fn wall_now() -> WallMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Whether the URL that is given now leads to the NAR that is asked for, perhaps by an earlier URL.
pub(crate) fn leads_to(now: &NarUrl, asked: &NarUrl) -> bool {
    now.nar() == asked.nar() && (asked.fingerprint.is_none() || now.fingerprint == asked.fingerprint)
}
