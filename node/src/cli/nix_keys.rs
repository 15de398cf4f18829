//! Takes the keys that Nix already trusts into a new configuration.

use super::nix_conf::NixSettings;
use crate::settings::is_gateway_key;
use narmesh_protocol::{NixPublicKey, TrustedKeys};

/// Which of Nix's keys are taken, and why the others are not.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct NixKeys {
    /// At most one key of each name.
    pub(super) taken: Vec<NixPublicKey>,
    /// The keys and files left out, each with the reason, in words.
    left: Vec<String>,
    source: String,
}

impl NixKeys {
    /// Chooses the keys of `nix` that do not clash with this node's builder key. Gateway keys are left out, `gateway` and
    /// those of other state directories: what they signed, others signed first, and they must not vouch for it anew.
    pub(super) fn choose(nix: &NixSettings, own: Option<&NixPublicKey>, gateway: Option<&NixPublicKey>) -> Self {
        let mut keys = Self { source: nix.source.clone(), ..Self::default() };
        keys.left.extend(nix.unreadable.iter().map(|path| format!("{} cannot be read", path.display())));
        for text in nix.words("trusted-public-keys") {
            let Ok(key) = NixPublicKey::parse(text) else {
                keys.left.push(format!("{text:?} is not a public key of the form name:base64"));
                continue;
            };
            // Nix looks up a key by its name and uses the first one, so a second one would never count.
            let of_that_name = own.into_iter().chain(&keys.taken).find(|known| known.name() == key.name());
            match of_that_name {
                Some(known) if *known == key => {}
                Some(known) => {
                    keys.left.push(format!("{key} has the same name as {known}, and only one key per name is accepted"))
                }
                None if gateway == Some(&key) || is_gateway_key(key.name()) => {
                    keys.left.push(format!("{key} is a gateway key, which only Nix has to trust"))
                }
                None => keys.taken.push(key),
            }
        }
        keys
    }

    /// What `narmesh init` prints about the keys.
    pub(super) fn text(&self) -> String {
        let names: Vec<_> = self.taken.iter().map(NixPublicKey::name).collect();
        let mut text = if names.is_empty() {
            format!("Nix ({}) trusts no key that could be added to trusted_public_keys\n", self.source)
        } else {
            format!(
                "trusted_public_keys includes the keys that Nix ({}) trusts: {}. What they signed is taken from\n\
                 peers and passed on to them; --no-nix-keys leaves these keys out\n",
                self.source,
                names.join(", ")
            )
        };
        for left in &self.left {
            text += &format!("left out of trusted_public_keys: {left}\n");
        }
        text
    }
}

/// Warns of gateway keys among the trusted keys, in words: an earlier `init` took them from nix.conf.
pub(super) fn warn_of_gateway_keys(trusted: &TrustedKeys) -> Vec<String> {
    let gateway_keys = trusted.iter().filter(|key| is_gateway_key(key.name()));
    let warning = |key: &NixPublicKey| {
        format!(
            "trust.trusted_public_keys has {key}, which is a gateway key: take it out. What a gateway signed, others \
             signed first, and it would go on counting when they are no longer trusted"
        )
    };
    gateway_keys.map(warning).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::NixSecretKey;

    fn key(name: &str, seed: u8) -> NixPublicKey {
        NixSecretKey::from_seed(name, &[seed; 32]).unwrap().public()
    }

    fn nix(keys: &str) -> NixSettings {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nix.conf");
        std::fs::write(&file, format!("trusted-public-keys = {keys}\n")).unwrap();
        NixSettings::from_file(&file)
    }

    #[test]
    fn clashing_and_malformed_keys_are_left_out_with_the_reason() {
        let (own, gateway) = (key("own-1", 1), key("narmesh-gateway-x", 2));
        let (a, b, other_a, old_own) = (key("a-1", 3), key("b-1", 4), key("a-1", 5), key("own-1", 6));
        let chosen =
            NixKeys::choose(&nix(&format!("{a} {own} {b} {a} {other_a} {old_own} {gateway} oops")), Some(&own), None);
        let renamed = NixKeys::choose(&nix(&a.to_string()), None, Some(&a));
        assert!(renamed.taken.is_empty() && renamed.text().contains("gateway key"), "{renamed:?}");
        assert_eq!(chosen.taken, [a.clone(), b]);
        let text = chosen.text();
        assert!(text.contains("a-1, b-1") && text.contains("--no-nix-keys"), "{text}");
        for left in [other_a.to_string(), old_own.to_string(), gateway.to_string(), "\"oops\"".to_owned()] {
            assert!(text.lines().any(|line| line.starts_with("left out") && line.contains(&left)), "{left}: {text}");
        }
        assert_eq!(text.lines().filter(|line| line.starts_with("left out")).count(), 4, "{text}");
        assert_eq!(NixKeys::choose(&nix(&a.to_string()), None, None).taken, [a]);
    }

    #[test]
    fn nix_without_trusted_keys_gives_none() {
        let chosen = NixKeys::choose(&nix(""), None, None);
        assert!(chosen.taken.is_empty() && chosen.text().contains("trusts no key"), "{chosen:?}");
    }

    #[test]
    fn trusted_gateway_key_is_warned_of() {
        let trusted = TrustedKeys::new([key("a-1", 1), key("narmesh-gateway-x", 2)]).unwrap();
        let warnings = warn_of_gateway_keys(&trusted);
        assert!(warnings.len() == 1 && warnings[0].contains("narmesh-gateway-x:"), "{warnings:?}");
    }
}
