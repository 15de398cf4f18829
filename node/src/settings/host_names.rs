//! Names that requests may use for the gateway.

use super::{Count, SettingsError, refused};
use std::net::Ipv6Addr;

/// Most host names of the gateway besides those of loopback.
pub const HOST_NAMES_MAX: usize = 16;

/// Checks that each name may appear in a `Host` header: a DNS name, an IPv4 address, or an IPv6 address in brackets.
pub(super) fn check_names(key: &str, texts: &[String]) -> Result<Vec<String>, SettingsError> {
    if texts.len() > HOST_NAMES_MAX {
        return Err(refused(key, Count(texts.len(), "names"), "at most 16 names"));
    }
    let is_host = |text: &str| match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => {
            (1..=253).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        }
    };
    let check = |(index, text): (usize, &String)| {
        const FORM: &str = "a name or address without a port, such as \"cache.lan\" or \"[2001:db8::1]\"";
        let key = || format!("{key}[{index}]");
        // Names in `Host` are compared in lower case.
        if is_host(text) { Ok(text.to_ascii_lowercase()) } else { Err(refused(key(), text, FORM)) }
    };
    texts.iter().enumerate().map(check).collect()
}
