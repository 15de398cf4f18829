//! `[[builder]]`, `[[revoked_builders]]` and `[quorum]`, checked.

use super::roster::free_name;
use super::{Count, NAME_FORM, PeerSettings, SettingsError, check_patterns, is_name, refused};
use crate::attestations::KeyNames;
use crate::config::{Config, DATE_FORM, QuorumConfig};
use libp2p::PeerId;
use narmesh_mesh::CountedBuilder;
use narmesh_protocol::{BuilderKey, HashPart, Member, NamePattern, NixPublicKey, StorePath};
use narmesh_quorum::{
    BUILDERS_MAX, Builder, Mode, Override, Policy, PolicyError, PolicyRules, PolicyWarning, Require, Revocation, WallMs,
};
use std::collections::BTreeSet;
use toml::value::{Datetime, Offset};

const KEY_FORM: &str = "a Nix public key, name:base64 of 32 bytes, as `narmesh id` prints it on that machine";
/// Most paths in `quorum.keep`.
const KEEP_MAX: usize = 10_000;

/// The builders and the rules, and the names of their keys.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct QuorumSettings {
    /// The rules without our own key, which is half of a secret and read with the secrets.
    rules: PolicyRules,
    /// The keys of the builders, in the order of the file; those of the roster follow.
    pub public_keys: Vec<NixPublicKey>,
    /// The node of each builder, in the same order; `None` for a builder without a node.
    pub peers: Vec<Option<PeerId>>,
    /// Hash parts of the paths whose attestations are all kept.
    pub keep: BTreeSet<HashPart>,
}

impl QuorumSettings {
    /// The policy, with our own builder key if we have one.
    ///
    /// # Errors
    /// Only those that depend on our own key; the check of the configuration has found all others.
    pub fn policy(&self, own: Option<&NixPublicKey>) -> Result<(Policy, Vec<PolicyWarning>), PolicyError> {
        Policy::new(PolicyRules { own: own.map(|key| BuilderKey(key.bytes())), ..self.rules.clone() })
    }

    /// The builders that count, each with its node; our own key is among them if our own rebuilds count.
    pub fn counted(&self, own: Option<&NixPublicKey>) -> Vec<CountedBuilder> {
        let builders = self.public_keys.iter().zip(&self.peers);
        let builders = builders.map(|(key, peer)| CountedBuilder { key: key.clone(), peer: *peer });
        let is_new = |own: &&NixPublicKey| self.public_key(&BuilderKey(own.bytes())).is_none();
        let own = own.filter(|_| self.rules.count_own_rebuild).filter(is_new);
        builders.chain(own.map(|key| CountedBuilder { key: key.clone(), peer: None })).collect()
    }

    /// Whether the builders of the roster count.
    pub fn takes_roster(&self) -> bool {
        self.rules.from_roster.is_some()
    }

    /// Whether the configuration revokes this key, from whatever time on.
    pub fn is_revoked(&self, key: &BuilderKey) -> bool {
        self.rules.revoked.iter().any(|revoked| revoked.key == *key)
    }

    /// Whether this builder counts because the roster names it.
    pub fn is_from_roster(&self, key: &BuilderKey) -> bool {
        self.rules.from_roster.as_ref().is_some_and(|keys| keys.contains(key))
    }

    /// Lets a builder of the roster count, if the configuration says so; `peer` is its node unless that is this machine. Of one
    /// that has a `[[builder]]` the name and group written there count, and only its node is taken of the roster. Returns why
    /// it does not count, if so.
    pub(super) fn add_member(&mut self, member: &Member, key: &NixPublicKey, peer: Option<PeerId>) -> Option<String> {
        let builder_key = BuilderKey(key.bytes());
        let known = self.public_keys.iter().position(|known| known.bytes() == key.bytes());
        let from_roster = self.rules.from_roster.as_mut()?;
        if let Some(node) = known.and_then(|at| self.peers.get_mut(at)) {
            *node = node.or(peer);
            return None;
        }
        if self.rules.builders.len() >= BUILDERS_MAX {
            return Some(format!("member {:?} does not count: there are {BUILDERS_MAX} builders already", member.name));
        }
        from_roster.insert(builder_key);
        let builders = &self.rules.builders;
        let name = free_name(&member.name, |name| builders.iter().all(|builder| builder.name != name));
        let group = member.group.clone();
        self.rules.builders.push(Builder { name, key: builder_key, group, signs_only_own_builds: false });
        self.public_keys.push(key.clone());
        self.peers.push(peer);
        None
    }

    /// The builders in the order of the file, each with its node; those of the roster follow.
    pub fn builders(&self) -> impl Iterator<Item = (&Builder, Option<PeerId>)> {
        self.rules.builders.iter().zip(self.peers.iter().copied())
    }

    /// The keys of builders that sign only their own builds, so that their bare signatures count.
    pub fn signers(&self) -> Vec<NixPublicKey> {
        let keys = self.public_keys.iter().zip(&self.rules.builders);
        keys.filter(|(_, builder)| builder.signs_only_own_builds).map(|(key, _)| key.clone()).collect()
    }

    /// What verdicts are used for.
    pub fn mode(&self) -> Mode {
        self.rules.mode
    }

    /// The public key of a builder, as written in the configuration.
    pub fn public_key(&self, key: &BuilderKey) -> Option<&NixPublicKey> {
        self.public_keys.iter().find(|known| known.bytes() == key.0)
    }

    /// The names of the keys: those in the configuration, and for our own key, if it is not among them, the name in its
    /// file.
    pub fn key_names(&self, own: Option<&NixPublicKey>) -> KeyNames {
        KeyNames::new(self.public_keys.iter().chain(own).cloned())
    }
}

pub(super) fn check(config: &Config, peers: &[PeerSettings]) -> Result<QuorumSettings, SettingsError> {
    let mut settings = QuorumSettings::default();
    for (index, builder) in config.builder.iter().enumerate() {
        let public_key = check_key(format!("builder[{index}].public_key"), &builder.public_key)?;
        check_name(format!("builder[{index}].name"), &builder.name)?;
        if let Some(group) = &builder.group {
            check_name(format!("builder[{index}].group"), group)?;
        }
        let peer = builder.peer.as_ref().map(|name| {
            let known = peers.iter().find(|peer| peer.name == *name).map(|peer| peer.peer_id);
            known.ok_or_else(|| refused(format!("builder[{index}].peer"), name, "the name of a [[peer]]"))
        });
        settings.peers.push(peer.transpose()?);
        settings.rules.builders.push(Builder {
            name: builder.name.clone(),
            key: BuilderKey(public_key.bytes()),
            group: builder.group.clone(),
            signs_only_own_builds: builder.signs_only_own_builds,
        });
        settings.public_keys.push(public_key);
    }
    for (index, revoked) in config.revoked_builders.iter().enumerate() {
        let public_key = check_key(format!("revoked_builders[{index}].public_key"), &revoked.public_key)?;
        let from = unix_ms(&revoked.from)
            .ok_or_else(|| refused(format!("revoked_builders[{index}].from"), revoked.from, DATE_FORM))?;
        // It is shown in reports and in the log.
        if revoked.why.len() > 1_000 || revoked.why.chars().any(char::is_control) {
            return Err(refused(
                format!("revoked_builders[{index}].why"),
                &revoked.why,
                "at most 1000 bytes without control characters",
            ));
        }
        settings.rules.revoked.push(Revocation {
            key: BuilderKey(public_key.bytes()),
            from: WallMs(from),
            why: revoked.why.clone(),
        });
    }
    settings.keep = check_keep(&config.quorum.keep)?;
    settings.rules.mode = check_mode(&config.quorum.mode)?;
    settings.rules.require = check_require(&config.quorum)?;
    settings.rules.from_roster = config.quorum.from_roster.then(BTreeSet::new);
    // What depends on our own key is checked when the secrets are read. A stand-in for it lets everything else be
    // checked now.
    let stand_in = config.quorum.count_own_rebuild && config.trust.builder_key_file.is_some();
    let rules = PolicyRules { own: stand_in.then_some(BuilderKey([0; 32])), ..settings.rules.clone() };
    settings.rules.count_own_rebuild = config.quorum.count_own_rebuild;
    Policy::new(PolicyRules { count_own_rebuild: config.quorum.count_own_rebuild, ..rules })
        .map_err(|error| explain(error, &config.quorum.mode))?;
    Ok(settings)
}

/// Gives some errors a better text: if there is no builder at all, for instance, the bounds of `k` would read "1 to 0".
fn explain(error: PolicyError, mode: &str) -> SettingsError {
    match error {
        PolicyError::NoK { of: Some(0) } => SettingsError::NoBuilders { key: format!("quorum.mode = {mode:?}") },
        PolicyError::K { key, k, of: Some(0) } => SettingsError::NoBuilders { key: format!("{key} = {k}") },
        PolicyError::NoOwnKey => {
            refused("quorum.count_own_rebuild", true, "false, or trust.builder_key_file to sign with")
        }
        other => SettingsError::Policy(other),
    }
}

fn check_key(key: String, text: &str) -> Result<NixPublicKey, SettingsError> {
    NixPublicKey::parse(text).map_err(|_| refused(key, text, KEY_FORM))
}

fn check_name(key: String, name: &str) -> Result<(), SettingsError> {
    if is_name(name) { Ok(()) } else { Err(refused(key, name, NAME_FORM)) }
}

fn check_keep(paths: &[String]) -> Result<BTreeSet<HashPart>, SettingsError> {
    if paths.len() > KEEP_MAX {
        return Err(refused("quorum.keep", Count(paths.len(), "paths"), "at most 10000"));
    }
    let parse = |(index, text): (usize, &String)| {
        // With its directory or without, as people copy it.
        let base_name = text.rsplit('/').next().unwrap_or_default();
        let path = StorePath::parse(base_name);
        let form = "a store path, such as /nix/store/<32 characters>-<name>";
        path.map(|path| path.hash_part()).map_err(|_| refused(format!("quorum.keep[{index}]"), text, form))
    };
    paths.iter().enumerate().map(parse).collect()
}

fn check_mode(text: &str) -> Result<Mode, SettingsError> {
    match text {
        "off" => Ok(Mode::Off),
        "observe" => Ok(Mode::Observe),
        "prefer" => Ok(Mode::Prefer),
        "require" => Ok(Mode::Require),
        other => Err(refused("quorum.mode", other, "\"off\", \"observe\", \"prefer\" or \"require\"")),
    }
}

fn check_require(quorum: &QuorumConfig) -> Result<Option<Require>, SettingsError> {
    let Some(k) = quorum.k else {
        // Without `k` these rules would silently have no effect, so they are refused.
        let alone = [
            ("quorum.grace", quorum.grace.is_some()),
            ("quorum.veto = true", quorum.veto),
            ("[[quorum.override]]", !quorum.overrides.is_empty()),
        ];
        return match alone.iter().find(|(_, given)| *given) {
            Some((key, _)) => Err(SettingsError::Alone { key }),
            None => Ok(None),
        };
    };
    let mut overrides = Vec::new();
    for (index, special) in quorum.overrides.iter().enumerate() {
        check_patterns(&format!("quorum.override[{index}].name"), std::slice::from_ref(&special.name))?;
        overrides.push(Override { name: NamePattern::new(&special.name), k: count(special.k) });
    }
    Ok(Some(Require { k: count(k), overrides, grace: quorum.grace.clone(), veto: quorum.veto }))
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Milliseconds since 1970. A time needs a zone; a date alone means midnight UTC.
fn unix_ms(at: &Datetime) -> Option<u64> {
    let date = at.date?;
    let (hour, minute, second, nanosecond) = match at.time {
        Some(time) => (time.hour, time.minute, time.second.unwrap_or(0), time.nanosecond.unwrap_or(0)),
        None => (0, 0, 0, 0),
    };
    // A time without a zone would mean another moment on each machine.
    let east_of_utc_min = match (at.offset, at.time) {
        (Some(Offset::Z), _) | (None, None) => 0,
        (Some(Offset::Custom { minutes }), _) => i64::from(minutes),
        (None, Some(_)) => return None,
    };
    // Days since 1970 by counting years from March (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let (year, month) = (i64::from(date.year) - i64::from(date.month <= 2), i64::from(date.month));
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + i64::from(date.day) - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    let minutes = (days * 24 + i64::from(hour)) * 60 + i64::from(minute) - east_of_utc_min;
    let ms = (minutes * 60 + i64::from(second)) * 1_000 + i64::from(nanosecond / 1_000_000);
    u64::try_from(ms).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn parse_and_check(text: &str) -> Result<QuorumSettings, SettingsError> {
        check(&Config::parse(text, Path::new("x.toml")).unwrap(), &[])
    }

    fn key(seed: u8) -> String {
        narmesh_protocol::NixSecretKey::from_seed("b-1", &[seed; 32]).unwrap().public().to_string()
    }

    fn builders(count: u8) -> String {
        let builder = |seed| format!("[[builder]]\nname = 'b{seed}'\npublic_key = '{}'\n", key(seed));
        (1..=count).map(builder).collect()
    }

    #[test]
    fn rules_in_the_file_become_the_policy() {
        let text = format!(
            "{}group = 'acme'\nsigns_only_own_builds = true\n[[revoked_builders]]\npublic_key = '{}'\nfrom = 2026-11-01T12:00:00+01:00\n\
             why = 'stolen'\n[quorum]\nmode = 'require'\nk = 2\ngrace = ['b1']\nveto = true\nkeep = ['/nix/store/00000000000000000000000000000000-x']\n[[quorum.override]]\nname = 'linux-*'\nk = 3",
            builders(3),
            key(2)
        );
        let settings = parse_and_check(&text).unwrap();
        let (policy, warnings) = settings.policy(None).unwrap();
        assert_eq!((policy.mode(), policy.k("glibc"), policy.k("linux-6"), warnings.len()), (Mode::Require, 2, 3, 0));
        assert_eq!(settings.rules.revoked[0].from, WallMs(1_793_530_800_000));
        assert!(settings.rules.builders[2].signs_only_own_builds);
        assert_eq!(settings.signers(), settings.public_keys[2..]);
        assert_eq!(settings.keep, BTreeSet::from([HashPart([0; 20])]));
    }

    #[test]
    fn every_refusal_names_the_key() {
        let with =
            |builders_of: u8, rest: &str| parse_and_check(&(builders(builders_of) + rest)).unwrap_err().to_string();
        for (rest, key) in [
            ("[quorum]\nmode = 'enforce'", "quorum.mode = \"enforce\""),
            ("[quorum]\nmode = 'require'", "quorum.mode needs quorum.k"),
            ("[quorum]\nk = 4", "quorum.k = 4 is refused; accepted: 1 to 3"),
            ("[quorum]\nk = 0\nfrom_roster = true", "quorum.k = 0 is refused; accepted: 1 or more"),
            ("[quorum]\nmode = 'require'\nfrom_roster = true", "quorum.mode needs quorum.k; accepted: 1 or more"),
            ("[quorum]\nk = 2\ngrace = ['z']", "quorum.grace: \"z\""),
            ("[quorum]\nveto = true", "quorum.veto"),
            ("[quorum]\nkeep = ['/nix/store/short-x']", "quorum.keep[0]"),
            ("[quorum]\ncount_own_rebuild = true", "trust.builder_key_file"),
            ("[quorum]\nk = 2\n[[quorum.override]]\nname = 'a/b'\nk = 1", "quorum.override[0].name[0]"),
            ("[[builder]]\nname = 'x'\npublic_key = 'y'", "builder[3].public_key = \"y\""),
            (
                "[[builder]]\nname = ''\npublic_key = 'a:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY='",
                "builder[3].name",
            ),
        ] {
            let message = with(3, rest);
            assert!(message.contains(key), "{rest}: {message}");
        }
        let revoked = |from: &str| format!("[[revoked_builders]]\npublic_key = '{}'\nwhy = 'x'\nfrom = {from}", key(1));
        for from in ["2026-11-01T12:00:00", "1969-12-31", "'1969-12-31'"] {
            assert!(with(3, &revoked(from)).contains("revoked_builders[0].from"), "{from}");
        }
        for from in ["'yesterday'", "5", "true"] {
            let error = Config::parse(&revoked(from), Path::new("x.toml")).unwrap_err().to_string();
            assert!(error.contains("accepted: a date, or") && error.contains(from.trim_matches('\'')), "{error}");
        }
        let [quoted, bare] =
            ["'2026-11-01'", "2026-11-01"].map(|from| Config::parse(&revoked(from), Path::new("x.toml")));
        assert_eq!(quoted.unwrap(), bare.unwrap());
    }

    #[test]
    fn dates_become_milliseconds_since_1970() {
        for (text, ms) in [
            ("1970-01-01", 0),
            ("2000-02-29", 951_782_400_000),
            ("2026-11-21T07:26:20Z", 1_795_245_980_000),
            ("2026-11-21T07:26:20.5-01:00", 1_795_249_580_500),
        ] {
            assert_eq!(unix_ms(&text.parse().unwrap()), Some(ms), "{text}");
        }
    }
}
