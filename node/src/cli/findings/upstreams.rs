//! What the `[[upstream]]` entries show without asking anybody.

use super::Finding;
use crate::settings::{ListenerAddress, Settings};
use narmesh_upstream::Place;
use std::net::{IpAddr, SocketAddr};

/// Warns of caches that can give nothing, or that are this node itself.
pub(super) fn upstream_findings(settings: &Settings) -> Vec<Finding> {
    let caches = settings.upstreams.iter().map(|upstream| &upstream.cache);
    let mut findings = Vec::new();
    for (index, cache) in caches.clone().enumerate() {
        let name = &cache.name;
        // Case, default ports and a last slash make no other cache.
        if let Some(first) = caches.clone().take(index).find(|first| first.place.to_string() == cache.place.to_string())
        {
            findings.push(Finding::warning(format!(
                "[[upstream]] {name:?} has the same url as {:?}, \"{}\": it is asked twice for what both may have. Remove one, or \
                 give them include and exclude patterns that divide what they are asked for",
                first.name, cache.place
            )));
        }
        if cache.trusted.iter().next().is_none() {
            findings.push(Finding::warning(format!(
                "[[upstream]] {name:?} has no public_keys: of what it has, this node accepts only what is \
                 content-addressed. Set public_keys to the keys that sign its narinfos"
            )));
        }
        match &cache.place {
            Place::Directory(path) if !path.is_dir() => findings.push(Finding::warning(format!(
                "[[upstream]] {name:?}: url = \"{}\" is no directory that this user can reach: it has nothing until that \
                 changes",
                cache.place
            ))),
            // Each question would come back here, and be refused as a circle only when it is asked.
            Place::Http(_) if leads_here(&cache.place, settings) => findings.push(Finding::warning(format!(
                "[[upstream]] {name:?}: url = \"{}\" leads back to this gateway, which would ask itself. Remove the entry",
                cache.place
            ))),
            Place::Directory(_) | Place::Http(_) => {}
        }
    }
    findings
}

/// Whether a URL names the address of one of our own listeners. A name or a proxy can lead there as well, which only shows
/// when the cache is asked.
fn leads_here(place: &Place, settings: &Settings) -> bool {
    let Place::Http(url) = place else { return false };
    let Some(port) = url.port_or_known_default() else { return false };
    let listeners = settings.gateway.listeners.iter().filter_map(|listener| match listener.address {
        ListenerAddress::Tcp(address) => Some(address),
        ListenerAddress::Unix(_) | ListenerAddress::Systemd(_) => None,
    });
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let ip: Option<IpAddr> = host.parse().ok();
    let is_loopback = host == "localhost" || ip.is_some_and(|ip| ip.is_loopback());
    let is_same = |own: SocketAddr| {
        ip == Some(own.ip())
            // A listener at all addresses is reached by loopback as well.
            || (is_loopback && own.ip().is_unspecified())
            || (host == "localhost" && own.ip().is_loopback())
    };
    listeners.chain([settings.gateway.listen]).any(|own| own.port() == port && is_same(own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use narmesh_protocol::NixSecretKey;

    fn warnings(upstream: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let config: Config = toml::from_str(&format!("[[upstream]]\nname = 'x'\n{upstream}\n")).unwrap();
        let settings = Settings::check(config, &dir.path().join("narmesh.toml")).unwrap();
        upstream_findings(&settings).into_iter().map(|finding| finding.found).collect()
    }

    #[test]
    fn caches_that_can_give_nothing_are_warned_of() {
        let key = NixSecretKey::from_seed("cache-1", &[7; 32]).unwrap().public();
        let with_key = |url: &str| warnings(&format!("url = '{url}'\npublic_keys = ['{key}']"));
        for good in ["https://cache.example", "file:///", "http://127.0.0.1:7282", "http://192.0.2.1:7281"] {
            assert_eq!(with_key(good), Vec::<String>::new(), "{good}");
        }
        for (url, words) in [
            ("file:///nonexistent", "\"file:///nonexistent\" is no directory"),
            ("http://127.0.0.1:7281", "leads back to this gateway"),
            ("http://localhost:7281", "leads back to this gateway"),
        ] {
            let warned = with_key(url);
            assert!(matches!(&*warned, [one] if one.contains(words) && one.contains("\"x\"")), "{warned:?}");
        }
        let warned = warnings("url = 'https://cache.example'");
        assert!(matches!(&*warned, [one] if one.contains("\"x\" has no public_keys")), "{warned:?}");
        assert_eq!(warnings("url = 'file:///nonexistent'\nenabled = false"), Vec::<String>::new());
    }

    #[test]
    fn two_entries_for_one_cache_are_warned_of() {
        let key = NixSecretKey::from_seed("cache-1", &[7; 32]).unwrap().public();
        let two = |one: &str, other: &str| {
            let other = format!("[[upstream]]\nname = 'y'\nurl = '{other}'\npublic_keys = ['{key}']");
            warnings(&format!("url = '{one}'\npublic_keys = ['{key}']\n{other}"))
        };
        for same in ["https://cache.example/a", "https://cache.example/a/", "https://Cache.Example:443/a"] {
            let warned = two("https://cache.example/a", same);
            assert!(matches!(&*warned, [one] if one.contains("\"y\" has the same url as \"x\"")), "{same}: {warned:?}");
        }
        assert_eq!(two("https://cache.example/a", "https://cache.example/b"), Vec::<String>::new());
        assert_eq!(two("https://cache.example", "https://cache.example'\nenabled = false #"), Vec::<String>::new());
    }
}
