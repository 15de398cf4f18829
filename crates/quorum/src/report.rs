//! The report: verdicts as text and numbers, ready for people, JSON and HTML.
//!
//! A report is produced part by part ([`ReportPart`]), because a path in words takes some kilobytes: all paths are judged
//! at once, but only one at a time is put into words. The parts in sequence are the fields of the report.

use crate::closure::{ClosurePath, ClosureVerdict, Judged, judge_closure};
use crate::ledger::{Ledger, Vote};
use crate::policy::{Mode, Policy};
use crate::ruling::Ruling;
use crate::statement::{FingerprintDigest, NameDigest, WallMs};
use crate::verdict::{Attested, Ballot, State, Uncounted, Verdict};
use crate::{Claim, Grounds, Served};
use narmesh_protocol::{HashPart, StorePath};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// All paths that were asked about, with their verdicts, the weakest first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    head: ReportHead,
    judged: ClosureVerdict,
}

/// One part of a report. They come in this order: the head, the conflicts, what is no longer agreed, the paths.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportPart {
    /// The head, once.
    Head(Box<ReportHead>),
    /// The base name of a path in conflict. These come first because somebody should look at them.
    Conflict(String),
    /// A path that was served because of a verdict that no longer stands.
    NoLongerAgreed(TurnedReport),
    /// A path that was asked about, the weakest first.
    Path(Box<PathReport>),
}

/// What a report says about all its paths together.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReportHead {
    /// The version of this format; new fields do not change it.
    pub version: u32,
    /// When the report was made, milliseconds since 1970.
    pub made_at_ms: u64,
    /// What the report covers.
    pub scope: ReportScope,
    /// What verdicts are used for.
    pub mode: Mode,
    /// How many groups must agree where no override applies; `None` when that is not configured.
    pub k: Option<usize>,
    /// How many groups of builders there are.
    pub of: usize,
    /// Whether every path is agreed, and our store holds only agreed results. False when there is no path at all.
    pub agreed: bool,
    /// The number of paths by verdict.
    pub totals: Totals,
    /// The weakest path of the closure, if the report covers a closure.
    pub weakest: Option<Link>,
    /// The names of the builders that count because the roster of the mesh names them.
    #[serde(default)]
    pub builders_from_roster: Vec<String>,
}

/// What a report covers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReportScope {
    /// One path, by its base name.
    Path(String),
    /// A path and all that it needs, by the base name of the root.
    Closure(String),
    /// All paths about which anything is known.
    All,
}

/// The number of paths by verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    /// All paths.
    pub paths: usize,
    /// Paths that are [`State::Agreed`].
    pub agreed: usize,
    /// Paths that are in [`State::Conflict`].
    pub conflict: usize,
    /// Paths that are [`State::Short`].
    pub short: usize,
    /// Paths that are in [`State::None`].
    pub none: usize,
    /// Paths that are [`State::ContentAddressed`].
    pub content_addressed: usize,
    /// Agreed paths about which some builders, in fewer than `k` groups, attest another result.
    pub disputed: usize,
    /// Paths of which our store holds another result than the agreed one.
    pub held_differs: usize,
}

/// The weakest path of a closure.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Link {
    /// `<hash part>-<name>`.
    pub path: String,
    /// Its state.
    pub verdict: State,
    /// The chain of references from the root to it, both included.
    pub chain: Vec<String>,
}

/// How the result in our store relates to the agreed one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Held {
    /// Our store holds the agreed result.
    Agreed,
    /// Another result is agreed on.
    Differs,
    /// Nothing is agreed on; our store holds one of the attested results.
    Attested,
    /// Nobody whose word counts attested what our store holds.
    Unattested,
}

/// The report on one path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PathReport {
    /// `<hash part>-<name>`.
    pub path: String,
    /// Its state.
    pub verdict: State,
    /// How many groups must agree.
    pub k: usize,
    /// How many groups of builders there are.
    pub of: usize,
    /// The attested fingerprints, those with most groups first.
    pub fingerprints: Vec<FingerprintReport>,
    /// Names of the builders that attest something else than what is agreed on.
    pub disputed_by: Vec<String>,
    /// Whether a dissenting builder prevented agreement by its veto.
    pub vetoed: bool,
    /// Builders that made two different statements.
    pub void: Vec<VoidVote>,
    /// Builders whose statements are not counted.
    pub not_counted: Vec<NotCounted>,
    /// Names of the builders that said nothing.
    pub missing: Vec<String>,
    /// How the result in our store relates to the agreed one, if our store holds the path.
    pub held: Option<Held>,
    /// The path that refers to it in the closure that was asked about.
    pub needed_by: Option<String>,
    /// Whether its references are not known here, so that this report does not cover what else it needs.
    pub needs_unknown: bool,
    /// When our Nix last got it because of a verdict, milliseconds since 1970.
    pub served_at_ms: Option<u64>,
    /// Why that verdict no longer stands, if it does not.
    pub turned: Option<String>,
    /// What the policy does with it, in one sentence.
    pub policy: String,
    /// All the fields in sentences.
    pub sentences: Vec<String>,
}

/// One attested fingerprint.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FingerprintReport {
    /// The SHA-256 of the fingerprint, base-16.
    pub fingerprint: String,
    /// The NarHash, as in a narinfo.
    pub nar_hash: String,
    /// The NarSize, bytes.
    pub nar_size: u64,
    /// How many groups count for it.
    pub groups: usize,
    /// The builders that attest it.
    pub builders: Vec<String>,
    /// Those of them that do so by a bare Nix signature, which counts because of `signs_only_own_builds`.
    #[serde(default)]
    pub by_signature: Vec<String>,
    /// Whether another fingerprint has the same NarHash: then they differ in References or NarSize.
    pub same_nar_as_another: bool,
    /// Whether it is about another name than the path's, under the same hash part.
    #[serde(default)]
    pub other_name: bool,
}

/// A builder that made two different statements about one path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VoidVote {
    /// The builder's name in the policy.
    pub builder: String,
    /// The NarHashes that it attested.
    pub nar_hashes: Vec<String>,
    /// Always "not reproducible on this builder".
    pub why: Cow<'static, str>,
}

/// A builder whose statement is not counted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NotCounted {
    /// The builder's name in the policy.
    pub builder: String,
    /// The NarHash that it attested.
    pub nar_hash: String,
    /// Why its statement is not counted, in words.
    pub why: String,
}

/// A path that our Nix got because of a verdict that no longer stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TurnedReport {
    /// `<hash part>-<name>`.
    pub path: String,
    /// When it was last served, milliseconds since 1970.
    pub served_at_ms: u64,
    /// Builders that attested it and whose word is void now; empty when the verdict changed without a revocation.
    pub revoked_builders: Vec<String>,
    /// Why the verdict no longer stands, in words.
    pub why: String,
}

impl Report {
    /// The report on a closure.
    pub fn closure(policy: &Policy, ledger: &Ledger, root: &StorePath, members: &[ClosurePath], now: WallMs) -> Self {
        let judged = judge_closure(policy, ledger, root, members);
        let weakest = judged.breaks_at().or(judged.paths.first()).map(|weakest| Link {
            path: weakest.path.to_string(),
            verdict: weakest.verdict.state,
            chain: judged.find_chain(&weakest.path).iter().map(StorePath::to_string).collect(),
        });
        let mut report = Self::of(policy, ReportScope::Closure(root.to_string()), judged, now);
        report.head.weakest = weakest;
        report
    }

    /// The report on one or many paths, each judged by itself.
    pub fn paths(policy: &Policy, scope: ReportScope, mut paths: Vec<Judged>, now: WallMs) -> Self {
        paths.sort_by(Judged::cmp_weakest_first);
        Self::of(policy, scope, ClosureVerdict { paths }, now)
    }

    fn of(policy: &Policy, scope: ReportScope, judged: ClosureVerdict, now: WallMs) -> Self {
        let head = ReportHead {
            version: 1,
            made_at_ms: now.0,
            scope,
            mode: policy.mode(),
            k: policy.k_default(),
            of: policy.groups(),
            agreed: judged.is_agreed(),
            totals: count_totals(&judged.paths),
            weakest: None,
            builders_from_roster: policy.names_from_roster().map(str::to_owned).collect(),
        };
        Self { head, judged }
    }

    /// What the report says about all paths together.
    pub fn head(&self) -> &ReportHead {
        &self.head
    }

    /// The paths in conflict.
    pub fn conflicts(&self) -> impl Iterator<Item = &StorePath> {
        self.judged_paths().filter(|judged| judged.verdict.state == State::Conflict).map(|judged| &judged.path)
    }

    /// The paths, weakest first; [`PathReport::of`] puts one into words.
    pub fn judged_paths(&self) -> impl Iterator<Item = &Judged> {
        self.judged.paths.iter()
    }
}

impl PathReport {
    /// Puts a judgement into words.
    pub fn of(policy: &Policy, ledger: &Ledger, judged: &Judged) -> Self {
        let verdict = &judged.verdict;
        let served = ledger.served_of(&judged.path.hash_part());
        let name = |number: usize| policy.builders.get(number).map_or_else(String::new, |member| member.name.clone());
        let path_name = NameDigest::of(judged.path.name());
        let by_signature = |fingerprint: FingerprintDigest, number: usize| {
            let key = policy.builders.get(number).map(|member| member.key);
            let bare = |vote: &Vote| Some(vote.builder) == key && policy.is_by_signature(vote);
            ledger.votes(&judged.path.hash_part()).any(|vote| vote.claim.fingerprint == fingerprint && bare(&vote))
        };
        let mut report = Self {
            path: judged.path.to_string(),
            verdict: verdict.state,
            k: verdict.k,
            of: verdict.of,
            fingerprints: verdict
                .attested
                .iter()
                .map(|it| FingerprintReport::of(it, verdict, path_name, &name, &by_signature))
                .collect(),
            disputed_by: verdict.disputed_by().iter().flat_map(|it| it.builders.iter().map(|it| name(*it))).collect(),
            vetoed: verdict.vetoed,
            void: Vec::new(),
            not_counted: Vec::new(),
            missing: Vec::new(),
            held: judged.held.map(|_| held(judged)),
            needed_by: judged.needed_by.as_ref().map(StorePath::to_string),
            needs_unknown: !judged.known,
            served_at_ms: served.map(|served| served.at.0),
            turned: served.and_then(|served| report_if_turned(policy, ledger, served)).map(|turned| turned.why),
            policy: policy_sentence(policy, verdict),
            sentences: Vec::new(),
        };
        for (number, ballot) in verdict.ballots.iter().enumerate() {
            match ballot {
                Ballot::For(_) => {}
                Ballot::Missing => report.missing.push(name(number)),
                Ballot::Void(claims) => report.void.push(VoidVote {
                    builder: name(number),
                    nar_hashes: claims.iter().map(|claim| claim.nar_hash.to_string()).collect(),
                    why: "not reproducible on this builder".into(),
                }),
                Ballot::NotCounted(uncounted, claim) => report.not_counted.push(NotCounted {
                    builder: name(number),
                    nar_hash: claim.nar_hash.to_string(),
                    why: policy.why_not_counted(number, *uncounted),
                }),
            }
        }
        report.sentences = report.explain();
        report
    }
}

impl FingerprintReport {
    fn of(
        attested: &Attested,
        verdict: &Verdict,
        path_name: NameDigest,
        name: &impl Fn(usize) -> String,
        by_signature: &impl Fn(FingerprintDigest, usize) -> bool,
    ) -> Self {
        let Claim { fingerprint, nar_hash, nar_size, name: _ } = attested.claim;
        let same_nar = verdict.attested.iter().filter(|other| other.claim.nar_hash == nar_hash).count();
        Self {
            fingerprint: fingerprint.to_string(),
            nar_hash: nar_hash.to_string(),
            nar_size,
            groups: attested.groups,
            builders: attested.builders.iter().map(|number| name(*number)).collect(),
            by_signature: attested
                .builders
                .iter()
                .filter(|it| by_signature(fingerprint, **it))
                .map(|it| name(*it))
                .collect(),
            same_nar_as_another: same_nar > 1,
            other_name: attested.claim.name != path_name,
        }
    }
}

impl Policy {
    fn why_not_counted(&self, number: usize, uncounted: Uncounted) -> String {
        let member = self.builders.get(number);
        let revoked = member.and_then(|member| self.revoked.get(&member.key)).map_or("", |it| it.why.as_str());
        match uncounted {
            Uncounted::BareSignature => {
                "a Nix signature without a date, which other tools also put on what they substituted".to_owned()
            }
            Uncounted::Revoked => format!("its key is revoked, and this was stored here after that: {revoked}"),
            Uncounted::RevokedWithoutRecord => {
                format!("its key is revoked, and it is not on record when this was first stored here: {revoked}")
            }
            Uncounted::GroupDisagrees => "the builders of its group say different things".to_owned(),
        }
    }
}

fn held(judged: &Judged) -> Held {
    let ours = |attested: &Attested| Some(attested.claim.fingerprint) == judged.held;
    match judged.verdict.agreed() {
        Some(agreed) if ours(agreed) => Held::Agreed,
        Some(_) => Held::Differs,
        None if judged.verdict.attested.iter().any(ours) => Held::Attested,
        None => Held::Unattested,
    }
}

fn count_totals(paths: &[Judged]) -> Totals {
    let mut totals = Totals { paths: paths.len(), ..Totals::default() };
    for path in paths {
        match path.verdict.state {
            State::Agreed => totals.agreed += 1,
            State::Conflict => totals.conflict += 1,
            State::Short => totals.short += 1,
            State::None => totals.none += 1,
            State::ContentAddressed => totals.content_addressed += 1,
        }
        totals.disputed += usize::from(path.verdict.disputed_by().iter().any(|it| !it.builders.is_empty()));
        totals.held_differs += usize::from(path.held_differs());
    }
    totals
}

fn policy_sentence(policy: &Policy, verdict: &Verdict) -> String {
    let (Some(first), k) = (verdict.attested.first(), verdict.k) else {
        return match (policy.mode(), verdict.state) {
            (Mode::Require, State::ContentAddressed) => "served: checked against its own address".to_owned(),
            (Mode::Require, _) => {
                format!("not served: {} of {} groups must agree, and none speaks", verdict.k, verdict.of)
            }
            (mode, _) => unasked(mode).to_owned(),
        };
    };
    match (policy.mode(), policy.rule_on(verdict, first.claim.fingerprint)) {
        (Mode::Off | Mode::Observe | Mode::Prefer, _) => unasked(policy.mode()).to_owned(),
        (Mode::Require, _) if verdict.state == State::ContentAddressed => {
            "served: checked against its own address".to_owned()
        }
        (Mode::Require, Ruling::Serve(Grounds::Grace)) => "served by grace: no other builder has it".to_owned(),
        (Mode::Require, Ruling::Serve(_)) => "served: agreed".to_owned(),
        (Mode::Require, _) => format!("not served: {k} of {} groups must agree", verdict.of),
    }
}

fn unasked(mode: Mode) -> &'static str {
    match mode {
        Mode::Off => "not asked (mode off)",
        Mode::Observe => "reported only (mode observe)",
        Mode::Prefer => "holders of what is agreed are asked first (mode prefer)",
        Mode::Require => "",
    }
}

/// Looks at the next `most` served paths after `after`: returns those that our Nix would not get now, and the last path
/// looked at if there may be more.
pub fn find_no_longer_agreed(
    policy: &Policy,
    ledger: &Ledger,
    after: Option<HashPart>,
    most: usize,
) -> (Vec<TurnedReport>, Option<HashPart>) {
    let (mut found, mut looked_at, mut last) = (Vec::new(), 0, None);
    for served in ledger.served_after(after).take(most) {
        found.extend(report_if_turned(policy, ledger, served));
        looked_at += 1;
        last = Some(served.path.hash_part());
    }
    (found, last.filter(|_| looked_at == most))
}

fn report_if_turned(policy: &Policy, ledger: &Ledger, served: &Served) -> Option<TurnedReport> {
    let verdict = policy.judge(ledger, &served.path);
    if matches!(policy.rule_on(&verdict, served.fingerprint), Ruling::Serve(_)) {
        return None;
    }
    let mut revoked_builders: Vec<String> = ledger
        .votes(&served.path.hash_part())
        .filter(|vote| vote.claim.fingerprint == served.fingerprint)
        .filter(|vote| policy.is_void(vote))
        .filter_map(|vote| policy.name_of(&vote.builder).map(str::to_owned))
        .collect();
    revoked_builders.sort_unstable();
    let why = match (revoked_builders.as_slice(), verdict.agreed()) {
        ([], Some(_)) => "something else is agreed on now".to_owned(),
        ([], None) => format!("its verdict is {} now", verdict.state.name()),
        (revoked, _) => format!("on the word of {}, revoked since", revoked.join(", ")),
    };
    Some(TurnedReport { path: served.path.to_string(), served_at_ms: served.at.0, revoked_builders, why })
}
