//! Whether the policy lets Nix have it: one question, asked of a candidate's narinfo, of an answer remembered, of our own
//! paths, and again of the NAR, which Nix may ask for 30 days later.
//!
//! It stands behind `trust`, never instead of it. A verdict comes from memory, in microseconds; the disk is read for the
//! signatures of builders, once, when an answer is rendered.

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

/// Signatures in one answer at most. Nix stores them all.
const SIGNATURES_MAX: usize = 16;

/// Of the narinfo deadline, what is left for judging and rendering when builders were waited for in vain (a guess, not
/// measured: some signatures are read from the disk).
const AFTER_HEARING: Duration = Duration::from_millis(50);

/// Refusals by reason.
pub type Refused = Family<Reason, Counter>;

/// Why something was not given.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct Reason {
    /// [`Refusal::name`].
    pub reason: &'static str,
}

/// The policy at the gateway.
#[derive(Debug)]
pub(crate) struct Gate {
    shared: Arc<Shared>,
    builders: Arc<dyn Builders>,
    key: RwLock<Option<NixSecretKey>>,
    refused: Refused,
}

/// What the policy says of something that it lets through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Pass {
    /// [`Gate::stamp`] before it was asked.
    pub(crate) stamp: u64,
    /// Builders whose word counted: their signatures go with the answer. None where signatures decide.
    pub(crate) voters: Vec<BuilderKey>,
    /// Something else is agreed on: others are asked first.
    pub(crate) is_second_choice: bool,
    /// It is let through because it is agreed on or proves itself, and goes out with the gateway's signature.
    pub(crate) is_demanded: bool,
}

/// A narinfo that was judged, and that the policy lets through.
#[derive(Clone, Debug)]
pub(crate) struct Passed {
    /// With trusted signatures only.
    pub(crate) info: NarInfo,
    /// What vouches for it without the policy.
    pub(crate) proof: Proof,
    /// What the policy said.
    pub(crate) pass: Pass,
}

impl Pass {
    /// Whether an answer that was rendered for `other` can be given for this.
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

    /// With which narinfos are signed that a policy which demands agreement lets through.
    pub(crate) fn set_key(&self, key: Option<NixSecretKey>) {
        *self.key.write() = key;
    }

    /// What Nix has to trust, if the policy demands agreement.
    pub(crate) fn public_key(&self) -> Option<NixPublicKey> {
        self.key.read().as_ref().map(NixSecretKey::public)
    }

    /// Another number when what was let through has to be asked about again; always 0 where nothing is asked.
    pub(crate) fn stamp(&self) -> u64 {
        match self.builders.policy().mode() {
            Mode::Off | Mode::Observe => 0,
            Mode::Prefer | Mode::Require => self.builders.generation() + 1,
        }
    }

    /// Counts what Nix asked for and does not get: once, however many hold it.
    pub(crate) fn not_given(&self, refusal: Refusal) {
        self.refused.get_or_create(&Reason { reason: refusal.name() }).inc();
    }

    /// Whether a verdict is needed, and enough.
    pub(crate) fn demands(&self) -> bool {
        self.builders.policy().mode() == Mode::Require
    }

    /// Our Nix asks for this path: what is attested of it is kept.
    pub(crate) fn asked(&self, part: HashPart) {
        if self.builders.policy().mode() != Mode::Off {
            self.builders.note_asked(part);
        }
    }

    /// Asks the policy about what a narinfo says. From memory.
    pub(crate) fn decide(&self, info: &NarInfo, proof: &Proof) -> Result<Pass, Refusal> {
        let (stamp, policy) = (self.stamp(), self.builders.policy());
        let (decision, voters) = self.decision(&policy, info, proof);
        let pass = |is_second_choice| {
            let is_demanded = policy.mode() == Mode::Require;
            Ok(Pass { stamp, voters, is_second_choice, is_demanded })
        };
        match decision {
            // The policy was another one when it was judged.
            Ruling::NotAsked | Ruling::Prefer(_) if *proof == Proof::Verdict => Err(Refusal::NotAgreed(State::None)),
            Ruling::NotAsked | Ruling::Serve(_) => pass(false),
            Ruling::Prefer(preference) => pass(preference == Preference::Other),
            Ruling::Refuse(refusal) => Err(refusal),
        }
    }

    /// What the policy says, and on whose word: of one state of the ledger.
    fn decision(&self, policy: &Policy, info: &NarInfo, proof: &Proof) -> (Ruling, Vec<BuilderKey>) {
        if matches!(policy.mode(), Mode::Off | Mode::Observe) {
            return (Ruling::NotAsked, Vec::new());
        }
        let fingerprint = self.fingerprint(info);
        let is_addressed = *proof == Proof::ContentAddress;
        let mut decided = (Ruling::NotAsked, Vec::new());
        self.builders.read(&mut |ledger| {
            let decision = policy.decide(ledger, &info.path, fingerprint, is_addressed);
            let by_word = matches!(decision, Ruling::Serve(Grounds::Agreed | Grounds::Grace));
            let voters = if by_word { policy.vouching(ledger, &info.path, fingerprint) } else { Vec::new() };
            decided = (decision, voters);
        });
        decided
    }

    /// What is given on the word of these builders, if there are any: what a report names when it does not stand any more.
    pub(crate) fn on_word(&self, info: &NarInfo, voters: &[BuilderKey]) -> Option<(StorePath, FingerprintDigest)> {
        (!voters.is_empty()).then(|| (info.path.clone(), self.fingerprint(info)))
    }

    fn fingerprint(&self, info: &NarInfo) -> FingerprintDigest {
        FingerprintDigest::of(&self.shared.store_dir, &Statement::of(info))
    }

    /// Nix gets it.
    pub(super) fn note_given(&self, on_word: Option<(StorePath, FingerprintDigest)>) {
        if let Some((path, fingerprint)) = on_word {
            self.builders.note_served(Served { path, fingerprint, at: wall_now() });
        }
    }

    /// Where Nix is to ask for its NAR: with the fingerprint where that is decided on again then.
    pub(crate) fn nar_url(&self, info: &NarInfo, pass: &Pass) -> NarUrl {
        let fingerprint = || self.fingerprint(info).0;
        let plain = NarUrl::new(info.path.hash_part(), info.nar_hash, info.nar_size);
        NarUrl { fingerprint: pass.is_demanded.then(fingerprint), ..plain }
    }

    /// The narinfo as Nix gets it. Where agreement is demanded: signed with the gateway key, beside the signatures of the
    /// builders whose word counted, so that the copy in the store proves something to the next one. Reads the disk then.
    pub(crate) fn signed(&self, info: &NarInfo, pass: &Pass) -> NarInfo {
        let mut info = info.clone();
        let Some(key) = self.key.read().clone().filter(|_| pass.is_demanded) else { return info };
        let fingerprint = self.fingerprint(&info);
        match self.builders.signatures(fingerprint) {
            Ok(known) => {
                for (builder, signature) in known {
                    if pass.voters.contains(&builder) && !info.signatures.contains(&signature) {
                        info.signatures.push(signature);
                    }
                }
            }
            // The gateway's own is enough for our Nix.
            Err(error) => tracing::warn!(%error, path = %info.path, "signatures of builders cannot be read"),
        }
        info.signatures.truncate(SIGNATURES_MAX - 1);
        info.signatures.push(key.sign(&info.fingerprint(&self.shared.store_dir)));
        info
    }

    /// Narinfos and NARs that the policy did not give since the start, by reason, for `/metrics`.
    pub(crate) fn refusals(&self) -> &Refused {
        &self.refused
    }

    /// The same, for `status`: only reasons that occurred.
    pub(crate) fn refused(&self) -> BTreeMap<String, u64> {
        let count = |reason: &'static str| {
            let counter = self.refused.get(&Reason { reason })?;
            Some((reason.to_owned(), counter.get()))
        };
        Refusal::NAMES.into_iter().filter_map(count).collect()
    }

    /// Asks the policy about one of perhaps several that hold a path; a refusal is told by `why`, and counted by
    /// [`Gate::not_given`] if nobody holds what is let through.
    pub(crate) fn admitted(&self, info: &NarInfo, proof: &Proof) -> Result<Pass, Refusal> {
        self.decide(info, proof).inspect_err(|refusal| {
            tracing::debug!(store_path = %info.path, verdict = refusal.name(), "refused by the policy");
            self.shared.lookup_log.note(info.path.hash_part(), LookupEvent::Refused(*refusal, info.nar_hash));
        })
    }

    /// Asks peers what builders say of it, if more of them could decide otherwise; until shortly before the deadline at most.
    pub(crate) async fn hear_builders(&self, info: &NarInfo, proof: &Proof, deadline: Instant) {
        let lacks = || {
            let policy = self.builders.policy();
            let (decision, _) = self.decision(&policy, info, proof);
            match decision {
                Ruling::Refuse(Refusal::NotAgreed(state)) => state != State::ContentAddressed,
                // It stands only while no other builder says anything.
                Ruling::Serve(grounds) => grounds == Grounds::Grace,
                _ => false,
            }
        };
        if self.demands() && lacks() {
            let deadline = deadline.checked_sub(AFTER_HEARING).unwrap_or(deadline);
            self.builders.ask(info.path.hash_part(), deadline, Box::new(|| !lacks())).await;
        }
    }

    /// Takes what builders say by signatures in a narinfo, whoever sent it. What is new is written first; the disk is waited for
    /// until the deadline at most.
    pub(crate) async fn hear_signatures(&self, info: &NarInfo, deadline: Instant) {
        let settings = self.shared.settings();
        // A content address that is not true, and no signature covers it, silences nobody.
        if settings.signers.is_empty() || info.proven_content_address(&self.shared.store_dir).is_some() {
            return;
        }
        self.builders.hear_signatures(&settings.signers, info, deadline).await;
    }
}

/// Now, by the wall clock.
fn wall_now() -> WallMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Whether what is given now leads to the NAR that is asked for by an earlier URL.
pub(crate) fn leads_to(now: &NarUrl, asked: &NarUrl) -> bool {
    now.nar() == asked.nar() && (asked.fingerprint.is_none() || now.fingerprint == asked.fingerprint)
}
