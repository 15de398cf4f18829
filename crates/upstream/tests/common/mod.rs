//! What the tests of upstream caches share.

use narmesh_protocol::TrustedKeys;
use narmesh_upstream::{Place, ProxyChoice, UpstreamSettings};
use std::time::Duration;

/// The settings of a cache that is soon given up.
pub(crate) fn settings(url: &str) -> UpstreamSettings {
    UpstreamSettings {
        name: "test".to_owned(),
        place: Place::parse(url).unwrap(),
        trusted: TrustedKeys::new(Vec::new()).unwrap(),
        tier: 0,
        include: Vec::new(),
        exclude: Vec::new(),
        credentials: None,
        proxy: ProxyChoice::Direct,
        extra_certificates: Vec::new(),
        connect_timeout: Duration::from_millis(500),
        stall_timeout: Duration::from_millis(500),
    }
}
