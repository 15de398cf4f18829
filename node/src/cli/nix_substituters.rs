//! Takes the substituters that Nix already has into a new configuration, as upstream caches.

use super::nix_conf::{NixSettings, bare_url};
use crate::config::UpstreamConfig;
use crate::regular_file;
use crate::settings::find_login;
use narmesh_protocol::NixPublicKey;
use narmesh_upstream::{Place, PlaceError};
use std::net::SocketAddr;
use std::path::Path;

/// The tier of a cache without `priority` where another one has it: the priority that Nix assumes (`Priority` in Nix's
/// manual, "nix-cache-info").
const TIER_ASSUMED: u32 = 50;
/// The largest netrc file that is looked at, bytes.
const NETRC_BYTES_MAX: u64 = 64 << 10;
/// The longest name of an upstream cache, bytes.
const NAME_BYTES_MAX: usize = 64;

/// Which of Nix's substituters are taken, and why the others are not.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct NixSubstituters {
    /// The caches, in the order in which Nix names them.
    pub(super) taken: Vec<UpstreamConfig>,
    /// The URLs of the others, which stay in nix.conf.
    pub(super) left: Vec<String>,
    /// Why they stay, and what else should be known, in words.
    remarks: Vec<String>,
    source: String,
}

impl NixSubstituters {
    /// Chooses the substituters that are HTTP caches or directories. Nix accepts every key from every substituter; here
    /// a key whose name begins with the host of a cache is that cache's alone, and the others count for all.
    pub(super) fn choose(nix: &NixSettings, gateway: SocketAddr) -> Self {
        let mut chosen = Self { source: nix.source.clone(), ..Self::default() };
        let mut places: Vec<(Place, Option<u32>)> = Vec::new();
        for url in nix.substituters_besides(gateway) {
            match Place::parse(url) {
                Ok(place) if places.iter().any(|(known, _)| *known == place) => {}
                Ok(place) => places.push((place, priority(url))),
                Err(error) => {
                    chosen.left.push(url.to_owned());
                    chosen.remarks.push(left_because(url, &error));
                }
            }
        }
        let mut keys: Vec<NixPublicKey> = Vec::new();
        for key in nix.words("trusted-public-keys").into_iter().filter_map(|text| NixPublicKey::parse(text).ok()) {
            // Nix uses the first key of a name, so a second one would never count.
            if keys.iter().all(|known| known.name() != key.name()) {
                keys.push(key);
            }
        }
        let is_anybodys = |key: &&NixPublicKey| !places.iter().any(|(place, _)| is_key_of(key, place));
        // Where Nix orders them, so does this; otherwise they are asked as equals.
        let any_priority = places.iter().any(|(_, priority)| priority.is_some());
        for (place, priority) in &places {
            let counts = keys.iter().filter(|key| is_key_of(key, place) || is_anybodys(key));
            let tier = if any_priority { priority.unwrap_or(TIER_ASSUMED).min(u32::from(u8::MAX)) } else { 0 };
            chosen.remarks.extend(credentials_remark(nix, place));
            let name = chosen.name_for(place);
            let public_keys: Vec<_> = counts.map(NixPublicKey::to_string).collect();
            if public_keys.is_empty() {
                chosen.remarks.push(format!(
                    "{place}: Nix trusts no key that could be its own; only content-addressed paths are taken from it until public_keys has one"
                ));
            }
            chosen.taken.push(UpstreamConfig { public_keys, tier, ..UpstreamConfig::new(name, place.to_string()) });
        }
        chosen
    }

    /// A name for the cache that no other has: its host, or the last part of its directory.
    fn name_for(&self, place: &Place) -> String {
        let name = match place {
            Place::Http(url) => url.host_str().unwrap_or_default().to_owned(),
            Place::Directory(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        // Room for a number, if another cache has the same host.
        let mut name: String =
            name.chars().filter(|letter| letter.is_ascii_graphic()).take(NAME_BYTES_MAX - 4).collect();
        if name.is_empty() {
            "cache".clone_into(&mut name);
        }
        let is_free = |name: &String| self.taken.iter().all(|taken| taken.name != *name);
        let numbered = (2..).map(|number: u16| format!("{name}-{number}"));
        std::iter::once(name.clone()).chain(numbered).find(is_free).unwrap_or(name)
    }

    /// What `narmesh init` prints about the substituters.
    pub(super) fn text(&self) -> String {
        let mut text = if self.taken.is_empty() {
            format!("Nix ({}) has no substituter that could become an [[upstream]]\n", self.source)
        } else {
            format!(
                "[[upstream]] has the substituters that Nix ({}) has; --no-upstreams leaves them to Nix:\n",
                self.source
            )
        };
        for UpstreamConfig { name, url, public_keys, .. } in &self.taken {
            let names: Vec<_> = public_keys.iter().filter_map(|key| key.split(':').next()).collect();
            text += &format!("    {name}: {url}, with the keys {}\n", names.join(", "));
        }
        for remark in &self.remarks {
            text += &format!("{remark}\n");
        }
        text
    }
}

/// Whether the name of the key begins with the host of the cache, as the keys of cache.nixos.org and of Cachix do.
fn is_key_of(key: &NixPublicKey, place: &Place) -> bool {
    let Place::Http(url) = place else { return false };
    let Some(rest) = url.host_str().and_then(|host| key.name().strip_prefix(host)) else { return false };
    rest.is_empty() || rest.starts_with('-')
}

/// `?priority=` of a substituter URL.
fn priority(url: &str) -> Option<u32> {
    let (_, query) = url.split_once('?')?;
    query.split('&').find_map(|pair| pair.strip_prefix("priority="))?.parse().ok()
}

/// Says so if Nix sends credentials to this cache: they are a secret of Nix's own, so they are not copied.
fn credentials_remark(nix: &NixSettings, place: &Place) -> Option<String> {
    let file = nix.value("netrc-file").unwrap_or("/etc/nix/netrc");
    let Place::Http(url) = place else { return None };
    let text = regular_file::read_text(Path::new(file), NETRC_BYTES_MAX).ok().flatten()?;
    find_login(&text, url.host_str()?).map(|_| {
        format!(
            "{place}: Nix sends it a password from {file}; narmesh sends none until this cache has a netrc_file that the \
             daemon's user alone may read"
        )
    })
}

fn left_because(url: &str, error: &PlaceError) -> String {
    match error {
        // A password in the URL must not be printed.
        PlaceError::Credentials => {
            let host = url.rsplit_once('@').map_or("", |(_, rest)| bare_url(rest));
            format!(
                "left to Nix: the substituter at {host}, whose URL has credentials; accepted: netrc_file, or user and password_file"
            )
        }
        error => format!("left to Nix: {url}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::NixSecretKey;

    fn key(name: &str, seed: u8) -> String {
        NixSecretKey::from_seed(name, &[seed; 32]).unwrap().public().to_string()
    }

    fn choose(nix_conf: &str) -> NixSubstituters {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nix.conf");
        std::fs::write(&file, nix_conf).unwrap();
        NixSubstituters::choose(&NixSettings::from_file(&file), "127.0.0.1:7281".parse().unwrap())
    }

    #[test]
    fn each_cache_gets_its_own_keys_and_those_of_nobody_in_particular() {
        let [nixos, team, office] = [key("cache.nixos.org-1", 1), key("team.cachix.org-1", 2), key("office", 3)];
        let chosen = choose(&format!(
            "substituters = http://127.0.0.1:7281 https://cache.nixos.org/ https://team.cachix.org file:///srv/cache\n\
             trusted-public-keys = {nixos} {team} {office} oops {}\n",
            key("office", 4)
        ));
        let found: Vec<_> = chosen.taken.iter().map(|it| (&*it.name, &*it.url, &it.public_keys[..], it.tier)).collect();
        assert_eq!(
            found,
            [
                ("cache.nixos.org", "https://cache.nixos.org", &[nixos.clone(), office.clone()][..], 0),
                ("team.cachix.org", "https://team.cachix.org", &[team.clone(), office.clone()], 0),
                ("cache", "file:///srv/cache", std::slice::from_ref(&office), 0),
            ]
        );
        let text = chosen.text();
        assert!(text.contains("--no-upstreams") && text.contains("cache.nixos.org-1, office"), "{text}");
    }

    #[test]
    fn what_is_no_cache_over_http_stays_with_nix() {
        let chosen = choose(
            "substituters = s3://bucket?region=x ssh://host https://me:secret@c.example/x https://a.example https://a.example/\n\
             trusted-public-keys =\n",
        );
        assert_eq!(chosen.left, ["s3://bucket?region=x", "ssh://host", "https://me:secret@c.example/x"]);
        assert_eq!(chosen.taken.len(), 1, "one and the same cache is taken once");
        let text = chosen.text();
        assert!(text.contains("s3://bucket") && text.contains("c.example/x") && !text.contains("secret"), "{text}");
        assert!(text.contains("https://a.example: Nix trusts no key"), "{text}");
    }

    #[test]
    fn priorities_become_tiers_and_caches_of_one_host_get_names_of_their_own() {
        let chosen = choose(
            "substituters = https://a.example/one?priority=10 https://a.example/two https://b.example?x=1&priority=999\n",
        );
        let found: Vec<_> = chosen.taken.iter().map(|it| (&*it.name, it.tier)).collect();
        assert_eq!(found, [("a.example", 10), ("a.example-2", 50), ("b.example", 255)]);
    }
}
