//! The report on a path as sentences, for `narmesh quorum why`.

use crate::report::{FingerprintReport, Held, PathReport};
use crate::verdict::State;

impl PathReport {
    /// The state, who counts and who does not and why, what the policy does with it, and what would change it.
    pub(crate) fn explain(&self) -> Vec<String> {
        let mut sentences = vec![self.state_sentence()];
        sentences.extend(self.fingerprints.iter().map(|it| self.fingerprint_sentence(it)));
        for vote in &self.void {
            let hashes = vote.nar_hashes.join(" and ");
            sentences.push(format!(
                "{}: not reproducible on this builder: it attested {hashes}. Its vote is void for this path, and for no other.",
                vote.builder
            ));
        }
        for vote in &self.not_counted {
            sentences.push(format!("{} says {}, which does not count: {}.", vote.builder, vote.nar_hash, vote.why));
        }
        if !self.missing.is_empty() {
            sentences.push(format!("Not heard: {}. A missing builder casts no vote.", list(&self.missing)));
        }
        match self.held {
            Some(Held::Agreed) => sentences.push("What is in the store here is what was agreed on.".to_owned()),
            Some(Held::Differs) => {
                sentences.push("What is in the store here is NOT what was agreed on.".to_owned());
            }
            Some(Held::Attested) => sentences.push("What is in the store here is an attested result.".to_owned()),
            Some(Held::Unattested) => {
                sentences.push("No builder that counts attested what is in the store here.".to_owned());
            }
            None => {}
        }
        if self.needs_unknown {
            sentences.push("Its references are not known here, so what else it needs could not be judged.".to_owned());
        }
        match (self.served_at_ms, &self.turned) {
            (None, _) => {}
            (Some(_), None) => {
                sentences.push("It was given to Nix on the strength of a verdict, which stands.".to_owned());
            }
            (Some(_), Some(why)) => {
                sentences.push(format!("It was given to Nix on the strength of a verdict that does not stand: {why}."));
            }
        }
        sentences.push(format!("Policy: {}.", self.policy));
        sentences.push(self.change_sentence());
        sentences
    }

    fn state_sentence(&self) -> String {
        let Self { path, k, of, .. } = self;
        let most = self.fingerprints.first().map_or(0, |most| most.groups);
        match self.verdict {
            State::Agreed if self.disputed_by.is_empty() => {
                format!("{path} is agreed: {most} of {of} groups of builders got the same result; {k} are needed.")
            }
            State::Agreed => format!(
                "{path} is agreed: {most} of {of} groups of builders got the same result; {k} are needed. It is disputed by {}.",
                list(&self.disputed_by)
            ),
            State::Conflict if self.vetoed => format!(
                "{path} is in conflict: {most} of {of} groups got the same result and {k} are needed, but another result was attested, and the policy gives each builder a veto."
            ),
            State::Conflict => format!(
                "{path} is in conflict: builders got {} different results, and either none or more than one of them has {k} of {of} groups.",
                self.fingerprints.len()
            ),
            State::Short => format!("{path} is short: {most} of {of} groups attest one result; {k} are needed."),
            State::None => {
                format!("{path}: no builder that counts says anything of it; {k} of {of} groups are needed.")
            }
            State::ContentAddressed => {
                format!("{path} is its own content address: its contents are checked against it.")
            }
        }
    }

    fn fingerprint_sentence(&self, it: &FingerprintReport) -> String {
        let differs = if it.other_name {
            ", of another name under the same hash part: no override lowers how many must agree"
        } else if it.same_nar_as_another {
            ", with other References or another NarSize than another result with the same NarHash"
        } else {
            ""
        };
        let groups = if it.groups == 1 { "1 group".to_owned() } else { format!("{} groups", it.groups) };
        let signed = match it.by_signature.as_slice() {
            [] => String::new(),
            signed => format!(
                " {} by a bare Nix signature, without a date: it counts because the configuration says that what this key signs was built there (signs_only_own_builds).",
                list(signed)
            ),
        };
        format!(
            "{} ({} bytes{differs}): {}; counts for {groups}.{signed}",
            it.nar_hash,
            it.nar_size,
            list(&it.builders)
        )
    }

    fn change_sentence(&self) -> String {
        let most = self.fingerprints.first().map_or(0, |most| most.groups);
        let lacking = self.k.saturating_sub(most);
        let from = match self.missing.as_slice() {
            [] if self.of == 0 => "no builder counts here".to_owned(),
            [] => "every builder has spoken; a rebuild elsewhere, or another builder, is needed".to_owned(),
            missing => format!("not heard yet: {}", list(missing)),
        };
        let more = if lacking == 1 { "1 more group".to_owned() } else { format!("{lacking} more groups") };
        match self.verdict {
            State::ContentAddressed => "Nothing can change this: no builder's word is needed.".to_owned(),
            State::Agreed => format!("It would no longer be agreed if another result reached {} groups.", self.k),
            State::Conflict if self.vetoed => {
                "It would be agreed if the dissenting builder rebuilt it with the agreed result, which voids its vote."
                    .to_owned()
            }
            State::Conflict if lacking == 0 => {
                "Two results have enough groups: only a revoked builder, or a higher k, can tell them apart.".to_owned()
            }
            State::Conflict => format!("It would be agreed if one result got {more} ({from})."),
            State::Short | State::None => format!("It would be agreed if {more} attested the same result ({from})."),
        }
    }
}

/// The names as `a`, `a and b`, or `a, b and c`.
fn list(names: &[String]) -> String {
    match names {
        [] => "nobody".to_owned(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
