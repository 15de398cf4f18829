//! The configuration file of one node, `narmesh.toml`.

use std::path::PathBuf;
use toml::Value;

/// What the demo sets in the configuration of one node; all else keeps its default.
#[derive(Debug)]
pub(crate) struct Configuration {
    pub(crate) name: &'static str,
    pub(crate) store: StoreConfig,
    pub(crate) trusted_public_keys: Vec<String>,
    pub(crate) peers: Vec<Peer>,
}

/// `[store]`: where a Nix store is.
#[derive(Debug)]
pub(crate) struct StoreConfig {
    pub(crate) store_dir: PathBuf,
    pub(crate) real_dir: PathBuf,
    pub(crate) state_dir: PathBuf,
}

/// One `[[peer]]`.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) peer_id: String,
    pub(crate) addresses: Vec<String>,
}

impl Configuration {
    /// The text of the file. Everything listens on loopback, at ports that the kernel chooses.
    pub(crate) fn text(&self) -> String {
        let path = |path: &PathBuf| Value::from(path.to_string_lossy().as_ref());
        let StoreConfig { store_dir, real_dir, state_dir } = &self.store;
        let mut text = format!(
            "[node]\nname = {}\nlisten = [\"/ip4/127.0.0.1/tcp/0\"]\nadvertise_loopback = true\n\n\
             [gateway]\nlisten = \"127.0.0.1:0\"\n\n\
             [store]\nstore_dir = {}\nreal_dir = {}\nstate_dir = {}\n\n\
             [trust]\ntrusted_public_keys = {}\nbuilder_key_file = \"builder.key\"\n",
            Value::from(self.name),
            path(store_dir),
            path(real_dir),
            path(state_dir),
            Value::from(self.trusted_public_keys.clone()),
        );
        for Peer { name, peer_id, addresses } in &self.peers {
            let (name, addresses) = (Value::from(*name), Value::from(addresses.clone()));
            text += &format!("\n[[peer]]\nname = {name}\npeer_id = \"{peer_id}\"\naddresses = {addresses}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_says_what_was_set_even_if_a_path_has_quotes() {
        let dir = PathBuf::from("/tmp/it's \"here\"");
        let store =
            StoreConfig { store_dir: dir.join("store"), real_dir: dir.join("real"), state_dir: dir.join("var") };
        let peer = Peer { name: "b", peer_id: "12D3".to_owned(), addresses: vec!["/ip4/127.0.0.1/tcp/1".to_owned()] };
        let trusted_public_keys = vec!["a-narmesh-1:AAAA".to_owned(), "b-narmesh-1:BBBB".to_owned()];
        let text = Configuration { name: "a", store, trusted_public_keys, peers: vec![peer] }.text();
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["store"]["real_dir"].as_str(), Some("/tmp/it's \"here\"/real"));
        assert_eq!(table["trust"]["trusted_public_keys"][1].as_str(), Some("b-narmesh-1:BBBB"));
        assert_eq!(table["peer"][0]["addresses"][0].as_str(), Some("/ip4/127.0.0.1/tcp/1"));
    }
}
