//! What is said of a peer in words.

use super::escaped;
use crate::status::PeerStatus;

impl PeerStatus {
    /// What else is to be said of it, in words; nothing in them controls a terminal.
    pub fn remarks(&self) -> Vec<String> {
        let peer = self;
        let mut remarks = Vec::new();
        if let Some(why) = &peer.stats.why {
            remarks.push(escaped(why));
        }
        if let Some(relay) = &peer.relay_name {
            let why = peer.stats.not_direct.as_deref().unwrap_or("no address was known");
            remarks.push(format!("over the relay {}, because not directly: {}", escaped(relay), escaped(why)));
        }
        if peer.stats.allowed_there == Some(false) {
            remarks.push("this node is not in its allowlist".to_owned());
        }
        if let Some(dir) = &peer.stats.store_dir_differs {
            remarks.push(format!("its store directory is {}, so nothing can be shared", escaped(dir)));
        }
        if peer.stats.misdeeds > 0 {
            let last = peer.stats.last_misdeed.as_deref().map(escaped).unwrap_or_default();
            remarks.push(format!("misbehaved {} times, last: {last}", peer.stats.misdeeds));
        }
        if !peer.stats.connected && peer.stats.addresses.is_empty() {
            remarks.push("no address known: none configured, none learned yet".to_owned());
        }
        remarks
    }
}
