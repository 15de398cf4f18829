//! What a listener may do, as data: the handlers ask it and know nothing else about listeners.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hyper::header::{HOST, HeaderName, ORIGIN};
use hyper::{HeaderMap, Uri};

use crate::GatewayError;
use crate::access::Access;
use crate::proxies::TrustedProxies;
use crate::target::Target;

static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Which clients a listener answers, and on which endpoints.
#[derive(Clone, Debug)]
pub struct ListenerRole {
    /// Which hosts clients may name besides `127.0.0.1`, `[::1]` and `localhost`.
    pub host_check: HostCheck,
    /// Host names that clients may use as well: in lower case, without port.
    pub host_names: Vec<String>,
    /// The endpoints that exist on this listener.
    pub endpoints: Endpoints,
    /// Which tokens clients need; `None` if they need none.
    pub access: Option<Arc<dyn Access>>,
    /// What lines of the access log call this listener; `None` if there is no such log.
    pub access_log: Option<String>,
    /// Whether narinfos name NARs that are compressed with zstd while they are sent.
    pub zstd: bool,
    /// The proxies that are believed when they say for whom they ask.
    pub trusted_proxies: TrustedProxies,
}

/// Which hosts clients may name. The check is there for web pages: through a name of its own that points here, a page could
/// read what a browser behind a firewall can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostCheck {
    /// No others: for loopback.
    Loopback,
    /// Any IP address: for the network. A page reaches us by an address only if that is its own origin.
    Addresses,
    /// Any host: for Unix sockets, which no browser opens, and for whoever wants it so.
    Nothing,
}

/// The endpoints of a listener. One that is switched off answers 404 like any unknown path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Whether `/nix-cache-info`, narinfos, NARs, and what else a cache gives are served.
    pub substituter: bool,
    /// Whether `/healthz`, `/readyz` and `/version` are served.
    pub health: bool,
    /// Whether `/metrics` is served.
    pub metrics: bool,
}

impl ListenerRole {
    /// The listener on loopback for this machine's own Nix: all endpoints, for local programs.
    pub fn local() -> Self {
        let endpoints = Endpoints { substituter: true, health: true, metrics: true };
        let host_check = HostCheck::Loopback;
        let trusted_proxies = TrustedProxies::default();
        Self {
            host_check,
            host_names: Vec::new(),
            endpoints,
            access: None,
            access_log: None,
            zstd: false,
            trusted_proxies,
        }
    }

    /// A listener for others: no metrics, which are for this machine's operator.
    pub fn for_others(host_check: HostCheck, host_names: Vec<String>) -> Self {
        let endpoints = Endpoints { metrics: false, ..Self::local().endpoints };
        Self { host_check, host_names, endpoints, ..Self::local() }
    }

    /// Whether the endpoint exists on this listener.
    pub(crate) fn offers(&self, target: &Target) -> bool {
        match target {
            Target::ZstdNar(_) => self.endpoints.substituter && self.zstd,
            Target::CacheInfo
            | Target::NarInfo(_)
            | Target::Nar(_)
            | Target::OtherNar(..)
            | Target::Log(_)
            | Target::Realisation(_)
            | Target::Listing(_)
            | Target::Entry(_) => self.endpoints.substituter,
            Target::Health | Target::Readiness | Target::Version => self.endpoints.health,
            Target::Metrics => self.endpoints.metrics,
            Target::Unknown => false,
        }
    }

    /// Refuses requests that a web page makes, directly or through a rebound name.
    ///
    /// `Host` must be one of our names, and so must the host of a target in absolute form. Any `Origin` is refused,
    /// and so is every `Sec-Fetch-Site` except `none` and `same-origin`: a page from another local port is as
    /// foreign as one from the internet.
    pub(crate) fn admit(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), GatewayError> {
        // Two names would let a rebound one stand beside a good one.
        let mut hosts = headers.get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(GatewayError::ForeignHost) };
        if !self.is_ours(host.as_bytes()) {
            return Err(GatewayError::ForeignHost);
        }
        // A target in absolute form overrules `Host`, so it has to pass as well.
        if let Some(authority) = uri.authority()
            && !self.is_ours(authority.as_str().as_bytes())
        {
            return Err(GatewayError::ForeignHost);
        }
        if headers.contains_key(ORIGIN) {
            return Err(GatewayError::WebPage);
        }
        if headers.get_all(&SEC_FETCH_SITE).iter().any(|site| site != "none" && site != "same-origin") {
            return Err(GatewayError::WebPage);
        }
        Ok(())
    }

    /// Whether `name` or `name:port` is one of our names.
    fn is_ours(&self, authority: &[u8]) -> bool {
        const LOOPBACK_NAMES: [&[u8]; 3] = [b"127.0.0.1", b"localhost", b"[::1]"];
        LOOPBACK_NAMES.into_iter().any(|name| is_named(authority, name))
            || self.host_names.iter().any(|name| is_named(authority, name.as_bytes()))
            || match self.host_check {
                HostCheck::Loopback => false,
                HostCheck::Addresses => is_address(authority),
                HostCheck::Nothing => true,
            }
    }
}

fn is_named(authority: &[u8], name: &[u8]) -> bool {
    match authority.split_at_checked(name.len()) {
        Some((host, port)) => host.eq_ignore_ascii_case(name) && is_port(port),
        None => false,
    }
}

/// Whether the host is an IP address, with a port or without.
fn is_address(authority: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(authority) else { return false };
    match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        // A colon divides the groups of an IPv6 address as well, so the port comes after the bracket.
        Some((address, port)) => address.parse::<Ipv6Addr>().is_ok() && is_port(port.as_bytes()),
        None => {
            let (address, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            address.parse::<Ipv4Addr>().is_ok() && is_port(port.as_bytes())
        }
    }
}

/// Whether the text is empty, or a colon and up to five digits.
fn is_port(text: &[u8]) -> bool {
    match text.split_first() {
        None => true,
        Some((b':', digits)) => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn admit(host: &str) -> bool {
        let role = ListenerRole { host_names: vec!["cache.lan".to_owned()], ..ListenerRole::local() };
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(host).unwrap());
        role.admit(&Uri::from_static("/healthz"), &headers).is_ok()
    }

    #[test]
    fn admits_our_names_with_any_port() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:7281",
            "localhost:80",
            "LocalHost",
            "[::1]",
            "[::1]:65535",
            "cache.lan",
            "Cache.LAN:1",
            "localhost:",
        ] {
            assert!(admit(host), "{host}");
        }
    }

    #[test]
    fn request_with_another_host_name_is_refused() {
        for host in [
            "",
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:80",
            "evil@127.0.0.1",
            "127.0.0.1@evil",
            "127.0.0.2",
            "127.0.0.1:80:80",
            "127.0.0.1:123456",
            "127.0.0.1:x",
            "::1",
            "[::1",
            "localhost.",
            "cache.lan.",
            "0.0.0.0",
        ] {
            assert!(!admit(host), "{host}");
        }
    }

    #[test]
    fn listener_for_others_admits_addresses_and_the_names_that_are_given() {
        let admits = |host_check, host: &'static str| {
            let role = ListenerRole::for_others(host_check, vec!["cache.lan".to_owned()]);
            let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]);
            role.admit(&Uri::from_static("/healthz"), &headers).is_ok()
        };
        for host in
            ["192.0.2.7", "192.0.2.7:7282", "[2001:db8::1]:80", "[::ffff:192.0.2.7]", "cache.lan:1", "localhost"]
        {
            assert!(admits(HostCheck::Addresses, host), "{host}");
        }
        for host in [
            "evil.example",
            "192.0.2.7.evil.example",
            "192.0.2.7:x",
            "2001:db8::1",
            "[2001:db8::1",
            "[x]",
            "1",
            "0x7f.1",
            "",
        ] {
            assert!(!admits(HostCheck::Addresses, host), "{host}");
        }
        assert!(admits(HostCheck::Nothing, "host.docker.internal:7282"));
        let role = ListenerRole::for_others(HostCheck::Nothing, Vec::new());
        let headers = HeaderMap::from_iter([
            (HOST, HeaderValue::from_static("any")),
            (ORIGIN, HeaderValue::from_static("http://any")),
        ]);
        assert_eq!(role.admit(&Uri::from_static("/"), &headers), Err(GatewayError::WebPage));
    }

    #[test]
    fn refuses_web_pages_and_ambiguous_heads() {
        let role = ListenerRole::local();
        let uri = Uri::from_static("/healthz");
        let ours = || {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("localhost"));
            headers
        };
        assert_eq!(role.admit(&uri, &ours()), Ok(()));
        assert_eq!(role.admit(&uri, &HeaderMap::new()), Err(GatewayError::ForeignHost));

        let mut headers = ours();
        headers.append(HOST, HeaderValue::from_static("localhost"));
        assert_eq!(role.admit(&uri, &headers), Err(GatewayError::ForeignHost), "two Host headers");

        let absolute = Uri::from_static("http://evil.example/healthz");
        assert_eq!(role.admit(&absolute, &ours()), Err(GatewayError::ForeignHost));
        assert_eq!(role.admit(&Uri::from_static("http://127.0.0.1:1/healthz"), &ours()), Ok(()));

        for origin in ["null", "http://localhost", ""] {
            let mut headers = ours();
            headers.insert(ORIGIN, HeaderValue::from_static(origin));
            assert_eq!(role.admit(&uri, &headers), Err(GatewayError::WebPage), "{origin}");
        }
        for (site, admitted) in
            [("none", true), ("same-origin", true), ("cross-site", false), ("same-site", false), ("?", false)]
        {
            let mut headers = ours();
            headers.insert(&SEC_FETCH_SITE, HeaderValue::from_static(site));
            assert_eq!(role.admit(&uri, &headers).is_ok(), admitted, "{site}");
        }
    }
}
