//! The operator's rules: who counts, how many must agree, and what follows.

use crate::ledger::BUILDERS_MAX;
use crate::statement::WallMs;
use narmesh_protocol::{BuilderKey, NamePattern};
use std::collections::{BTreeMap, BTreeSet};

/// What verdicts are used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// For nothing: signatures decide, as in Nix alone.
    #[default]
    Off,
    /// For reports and metrics.
    Observe,
    /// Holders of an agreed NAR are asked first.
    Prefer,
    /// Only what is agreed is substituted.
    Require,
}

/// One builder of the configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Builder {
    /// The name that people read. It is unique.
    pub name: String,
    /// The key that it signs with.
    pub key: BuilderKey,
    /// Builders of one owner share a group, which counts once.
    pub group: Option<String>,
    /// Whether its bare Nix signatures count too, because it signs nothing but its own builds.
    pub signs_only_own_builds: bool,
}

/// A key that is not believed any more from some time on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Revocation {
    /// The key that is not to be believed.
    pub key: BuilderKey,
    /// Statements that this node stored at this time or later are void.
    pub from: WallMs,
    /// The reason, for people.
    pub why: String,
}

/// Another `k` for paths with certain names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Override {
    /// The pattern for the name of a path, without its hash part. The first override that matches counts.
    pub name: NamePattern,
    /// How many groups must agree; at least 1.
    pub k: usize,
}

/// How many groups must agree. `k` is absolute: it does not shrink when builders are silent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Require {
    /// How many groups must attest the same fingerprint.
    pub k: usize,
    /// Exceptions from `k`; the first one that matches counts.
    pub overrides: Vec<Override>,
    /// Names of builders whose word alone is enough for a path that no other builder has. Our own builder key is always
    /// among them. `None` when no builder has this grace.
    pub grace: Option<Vec<String>>,
    /// Whether one dissenting builder is enough to prevent agreement.
    pub veto: bool,
}

/// Rules as configured, not checked yet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PolicyRules {
    /// The builders, at most [`BUILDERS_MAX`].
    pub builders: Vec<Builder>,
    /// Revoked keys. They need not belong to builders.
    pub revoked: Vec<Revocation>,
    /// What verdicts are used for.
    pub mode: Mode,
    /// How many must agree. `None` is allowed when the mode is [`Mode::Off`] and there is nothing to report.
    pub require: Option<Require>,
    /// This machine's own builder key.
    pub own: Option<BuilderKey>,
    /// Whether the rebuilds of this machine count although it is not a `[[builder]]`.
    pub count_own_rebuild: bool,
    /// The keys among the builders that the roster of a mesh names. `None` when builders stand in the configuration alone;
    /// otherwise they come and go, so a `k` that they do not reach is no error. None of them can have `grace`.
    pub from_roster: Option<BTreeSet<BuilderKey>>,
}

/// Rules that have been checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    pub(crate) mode: Mode,
    pub(crate) require: Require,
    pub(crate) builders: Vec<GroupedBuilder>,
    pub(crate) numbers: BTreeMap<BuilderKey, usize>,
    /// The groups by number. `None` for a builder without a group, which is a group by itself.
    pub(crate) groups: Vec<Option<String>>,
    pub(crate) revoked: BTreeMap<BuilderKey, Revocation>,
    pub(crate) own: Option<BuilderKey>,
    pub(crate) grace: Option<BTreeSet<usize>>,
    pub(crate) from_roster: Option<BTreeSet<BuilderKey>>,
}

/// A builder and the number of its group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct GroupedBuilder {
    pub(crate) name: String,
    pub(crate) key: BuilderKey,
    pub(crate) group: usize,
    pub(crate) signs_only_own_builds: bool,
}

/// Why rules are refused. The message names the key of the configuration, the value, and what would be accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PolicyError {
    /// There are more builders than [`BUILDERS_MAX`].
    #[error("[[builder]]: {count} builders; accepted: at most {BUILDERS_MAX}")]
    TooManyBuilders {
        /// How many builders are configured.
        count: usize,
    },
    /// Two builders have the same name.
    #[error("builder.name = {name:?} stands twice; accepted: names that differ")]
    NameTwice {
        /// The name that occurs twice.
        name: String,
    },
    /// The mode needs a `k`, and none is configured.
    #[error("quorum.mode needs quorum.k; accepted: {}", numbers(*of))]
    NoK {
        /// How many groups of builders there are; `None` where a roster decides that.
        of: Option<usize>,
    },
    /// `k` is 0, or greater than the number of groups.
    #[error("{key} = {k} is refused; accepted: {}", numbers(*of))]
    K {
        /// The configuration key: `quorum.k`, or that of an override.
        key: String,
        /// The value as written.
        k: usize,
        /// How many groups of builders there are; `None` where a roster decides that.
        of: Option<usize>,
    },
    /// A name in `grace` belongs to no builder.
    #[error("quorum.grace: {name:?} is not a builder; accepted: names of [[builder]]")]
    GraceName {
        /// The unknown name.
        name: String,
    },
    /// Our own rebuilds are to count, but there is no key to sign them with.
    #[error("quorum.count_own_rebuild = true needs trust.builder_key_file")]
    NoOwnKey,
}

/// What an operator should know about rules that are accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PolicyWarning {
    /// Two disjoint sets of builders could both reach k.
    Minority {
        /// The configuration key: `quorum.k`, or that of an override.
        key: String,
        /// How many groups must agree.
        k: usize,
        /// How many groups there are.
        of: usize,
    },
    /// Two builders have one key. It counts once, under the first name.
    OneKeyTwoNames {
        /// The name that counts.
        first: String,
        /// The name that does not count.
        second: String,
    },
    /// A revoked key belongs to no builder; perhaps it is mistyped.
    RevokedStranger {
        /// The revoked key.
        key: BuilderKey,
    },
    /// Builders come with a roster, and are too few at the moment: nothing can be agreed on.
    OutOfReach {
        /// The configuration key: `quorum.k`, or that of an override.
        key: String,
        /// How many groups must agree.
        k: usize,
        /// How many groups there are.
        of: usize,
    },
}

/// The numbers that `k` may have.
fn numbers(of: Option<usize>) -> String {
    match of {
        Some(of) => format!("1 to {of}, the number of groups of builders"),
        None => "1 or more groups of builders".to_owned(),
    }
}

impl std::fmt::Display for PolicyWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Minority { key, k, of } => write!(
                f,
                "{key} = {k} of {of}: two sets of builders without a common member could both reach it; more than half, {}, cannot",
                of / 2 + 1
            ),
            Self::OneKeyTwoNames { first, second } => {
                write!(f, "builders {first:?} and {second:?} have the same key: it counts once, as {first:?}")
            }
            Self::OutOfReach { key, k, of } => write!(
                f,
                "{key} = {k} is out of reach: the configuration and the roster of the mesh name builders of {of} groups, so nothing is agreed"
            ),
            Self::RevokedStranger { key } => write!(f, "revoked_builders: {key} is the key of no [[builder]]"),
        }
    }
}

impl Policy {
    /// Checks the rules; returns the policy and what the operator should know about it.
    pub fn new(rules: PolicyRules) -> Result<(Self, Vec<PolicyWarning>), PolicyError> {
        let mut warnings = Vec::new();
        let mut policy = Self {
            mode: rules.mode,
            // Until `demand` sets it, nothing can be agreed.
            require: Require { k: usize::MAX, overrides: Vec::new(), grace: None, veto: false },
            builders: Vec::new(),
            numbers: BTreeMap::new(),
            groups: Vec::new(),
            revoked: BTreeMap::new(),
            own: rules.own,
            grace: None,
            from_roster: rules.from_roster,
        };
        if rules.builders.len() > BUILDERS_MAX {
            return Err(PolicyError::TooManyBuilders { count: rules.builders.len() });
        }
        let mut names = BTreeMap::new();
        for builder in rules.builders {
            if names.insert(builder.name.clone(), builder.key).is_some() {
                return Err(PolicyError::NameTwice { name: builder.name });
            }
            warnings.extend(policy.admit(builder));
        }
        if rules.count_own_rebuild {
            let key = rules.own.ok_or(PolicyError::NoOwnKey)?;
            // If this key is listed as a builder, it counts as that builder already.
            let own = Builder { name: "this machine".to_owned(), key, group: None, signs_only_own_builds: false };
            policy.admit_if_new(own);
        }
        for revocation in rules.revoked {
            if !policy.numbers.contains_key(&revocation.key) {
                warnings.push(PolicyWarning::RevokedStranger { key: revocation.key });
            }
            // Of two revocations the earlier one counts: it voids more.
            let earlier = policy.revoked.get(&revocation.key).is_some_and(|known| known.from <= revocation.from);
            if !earlier {
                policy.revoked.insert(revocation.key, revocation);
            }
        }
        match rules.require {
            Some(require) => policy.demand(require, &names, &mut warnings)?,
            // Nobody is asked, so no number is needed.
            None if rules.mode == Mode::Off => {}
            None => return Err(PolicyError::NoK { of: policy.fixed_groups() }),
        }
        Ok((policy, warnings))
    }

    /// What verdicts are used for.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether this key's statements are collected.
    pub fn knows(&self, key: &BuilderKey) -> bool {
        self.numbers.contains_key(key)
    }

    /// The keys of the builders that count, each once.
    pub fn keys(&self) -> impl Iterator<Item = BuilderKey> {
        self.builders.iter().map(|member| member.key)
    }

    /// The name of the builder with this key.
    pub fn name_of(&self, key: &BuilderKey) -> Option<&str> {
        Some(self.builders.get(*self.numbers.get(key)?)?.name.as_str())
    }

    /// The revocation of this key, if it is revoked.
    pub fn revocation(&self, key: &BuilderKey) -> Option<&Revocation> {
        self.revoked.get(key)
    }

    /// The names of the builders that the roster of a mesh names.
    pub fn names_from_roster(&self) -> impl Iterator<Item = &str> {
        let keys = self.from_roster.iter().flatten();
        keys.filter_map(|key| self.name_of(key))
    }

    /// The number of groups of builders, over which `k` is counted.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// How many groups must agree where no override applies; `None` when that is not configured.
    pub fn k_default(&self) -> Option<usize> {
        Some(self.require.k).filter(|k| *k != usize::MAX)
    }

    /// How many groups must agree on a path of this name.
    pub fn k(&self, name: &str) -> usize {
        let special = self.require.overrides.iter().find(|special| special.name.matches(name));
        special.map_or(self.require.k, |special| special.k)
    }

    /// How many groups must agree when builders name two paths under one hash part. An override that asks for fewer does
    /// not apply to any of them; otherwise a builder that makes up a name could choose how many must agree.
    pub(crate) fn k_of_disputed_name(&self) -> usize {
        let all = self.require.overrides.iter().map(|special| special.k);
        all.fold(self.require.k, usize::max)
    }

    /// Whether this builder's word alone is enough for a path that no other builder has.
    pub(crate) fn has_grace(&self, number: usize) -> bool {
        let own = || self.builders.get(number).is_some_and(|member| Some(member.key) == self.own);
        self.grace.as_ref().is_some_and(|named| named.contains(&number) || own())
    }

    /// Whether a statement stored at that time is void because its key is revoked.
    pub(crate) fn is_revoked(&self, key: &BuilderKey, stored_at: Option<WallMs>) -> bool {
        self.revoked.get(key).is_some_and(|revocation| stored_at.is_none_or(|at| at >= revocation.from))
    }

    fn admit(&mut self, builder: Builder) -> Option<PolicyWarning> {
        if let Some(first) = self.name_of(&builder.key) {
            return Some(PolicyWarning::OneKeyTwoNames { first: first.to_owned(), second: builder.name });
        }
        self.admit_if_new(builder);
        None
    }

    fn admit_if_new(&mut self, builder: Builder) {
        // One key under two names is one builder, and counts once.
        if self.numbers.contains_key(&builder.key) {
            return;
        }
        // A builder that names no group is a group by itself.
        let known =
            builder.group.as_ref().and_then(|name| self.groups.iter().position(|known| known.as_ref() == Some(name)));
        let group = known.unwrap_or_else(|| {
            self.groups.push(builder.group);
            self.groups.len() - 1
        });
        self.numbers.insert(builder.key, self.builders.len());
        self.builders.push(GroupedBuilder {
            name: builder.name,
            key: builder.key,
            group,
            signs_only_own_builds: builder.signs_only_own_builds,
        });
    }

    /// How many groups there are, if no roster brings more.
    fn fixed_groups(&self) -> Option<usize> {
        self.from_roster.is_none().then_some(self.groups.len())
    }

    fn demand(
        &mut self,
        require: Require,
        names: &BTreeMap<String, BuilderKey>,
        warnings: &mut Vec<PolicyWarning>,
    ) -> Result<(), PolicyError> {
        let of = self.groups.len();
        let overrides =
            require.overrides.iter().enumerate().map(|(at, special)| (format!("quorum.override[{at}].k"), special.k));
        for (key, k) in std::iter::once(("quorum.k".to_owned(), require.k)).chain(overrides) {
            // More than there are groups could never be reached, and 0 would be agreement of nobody. A roster may yet bring
            // groups, and one that lost a builder must not keep the daemon from starting.
            if k == 0 || (k > of && self.from_roster.is_none()) {
                return Err(PolicyError::K { key, k, of: self.fixed_groups() });
            }
            if k > of {
                warnings.push(PolicyWarning::OutOfReach { key, k, of });
            } else if k * 2 <= of {
                // Then two different results can both have enough groups.
                warnings.push(PolicyWarning::Minority { key, k, of });
            }
        }
        if let Some(grace) = &require.grace {
            // A machine that joins a mesh may choose its name, and so may not come by this.
            let is_configured = |key: &&BuilderKey| self.from_roster.as_ref().is_none_or(|keys| !keys.contains(key));
            let number = |name: &String| {
                let key = names.get(name).filter(is_configured);
                let key = key.ok_or_else(|| PolicyError::GraceName { name: name.clone() })?;
                Ok(self.numbers.get(key).copied())
            };
            self.grace = Some(grace.iter().filter_map(|name| number(name).transpose()).collect::<Result<_, _>>()?);
        }
        self.require = require;
        Ok(())
    }
}
