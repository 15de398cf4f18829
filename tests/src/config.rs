//! The configuration file of a node, made from values that a story sets.

use std::path::PathBuf;

use toml::{Table, Value};

/// What the harness writes into `narmesh.toml`; keys that no story needs keep the daemon's defaults.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// `node.listen`.
    pub listen: Vec<String>,
    /// `node.advertise_loopback`: everything here runs on loopback.
    pub advertise_loopback: bool,
    /// `node.relay`, when a story sets it.
    pub relay: Option<bool>,
    /// `node.control_socket`, when it cannot be in the state directory.
    pub control_socket: Option<PathBuf>,
    /// `gateway.listen`.
    pub gateway_listen: String,
    /// `gateway.narinfo_deadline_ms`.
    pub narinfo_deadline_ms: u32,
    /// `[store]`: the logical store directory, where it really is, and Nix's state directory.
    pub store: StorePlace,
    /// `trust.trusted_public_keys`.
    pub trusted_public_keys: Vec<String>,
    /// `advertise.exclude`.
    pub exclude: Vec<String>,
    /// `advertise.derivations`.
    pub derivations: bool,
    /// `gateway.sign`.
    pub sign: bool,
    /// `gateway.prefer`, when a story needs another value than the default.
    pub prefer: Option<&'static str>,
    /// `advertise.serve_hours`.
    pub serve_hours: Vec<String>,
    /// `transfer.compress`.
    pub compress: &'static str,
    /// `transfer.stall_timeout_ms`, when a story needs another value than the default.
    pub stall_timeout_ms: Option<u32>,
    /// `limits.connections_gossip`, when a story needs another value than the default.
    pub connections_gossip: Option<u32>,
    /// `limits.upload_bytes_per_s`, when a story limits uploads.
    pub upload_bytes_per_s: Option<u32>,
    /// `limits.relay_bytes_per_s`, when a story limits a relay.
    pub relay_bytes_per_s: Option<u32>,
    /// `limits.partial_copies_bytes`, when a story needs another value than the default.
    pub partial_copies_bytes: Option<u32>,
    /// `mesh.key`, when a story writes it itself.
    pub mesh_key: Option<String>,
    /// `mesh.roster_file`.
    pub roster_file: Option<PathBuf>,
    /// `mesh.discover_lan`: off, unlike the default, so that no story multicasts on the networks of the machine that runs it.
    pub discover_lan: bool,
    /// `[[peer]]`: the allowlist.
    pub peers: Vec<PeerEntry>,
    /// Whether to write `trust.builder_key_file`, for the key that `init` made.
    pub builder_key: bool,
    /// Text of further sections, written at the end of the file.
    pub more: String,
}

/// One `[[peer]]`.
#[derive(Debug, Clone)]
pub struct PeerEntry {
    /// `name`.
    pub name: String,
    /// `peer_id`.
    pub peer_id: String,
    /// `addresses`; may be empty.
    pub addresses: Vec<String>,
    /// Its own limit of uploads, when a story sets one.
    pub upload_bytes_per_s: Option<u32>,
    /// Whether it relays.
    pub relay: bool,
}

/// Where a store is.
#[derive(Debug, Clone)]
pub enum StorePlace {
    /// A chroot store: `store.root`.
    Root(PathBuf),
    /// A relocated store.
    Relocated {
        /// `store.store_dir`.
        store_dir: PathBuf,
        /// `store.real_dir`.
        real_dir: PathBuf,
        /// `store.state_dir`.
        state_dir: PathBuf,
    },
}

impl NodeConfig {
    /// Listens on free loopback ports and allows no peer.
    #[must_use]
    pub fn new(store: StorePlace) -> Self {
        Self {
            listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
            advertise_loopback: true,
            relay: None,
            control_socket: None,
            gateway_listen: "127.0.0.1:0".to_owned(),
            narinfo_deadline_ms: 1_000,
            store,
            trusted_public_keys: Vec::new(),
            exclude: Vec::new(),
            derivations: false,
            sign: false,
            prefer: None,
            serve_hours: Vec::new(),
            compress: "auto",
            stall_timeout_ms: None,
            connections_gossip: None,
            upload_bytes_per_s: None,
            relay_bytes_per_s: None,
            partial_copies_bytes: None,
            mesh_key: None,
            roster_file: None,
            discover_lan: false,
            peers: Vec::new(),
            builder_key: true,
            more: String::new(),
        }
    }

    /// The text of the file.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let text = |text: &str| Value::String(text.to_owned());
        let texts = |texts: &[String]| Value::Array(texts.iter().map(|one| text(one)).collect());
        let path = |path: &PathBuf| Value::String(path.display().to_string());
        let mut node = Table::new();
        node.insert("key_file".into(), text("node.key"));
        node.insert("state_dir".into(), text("state"));
        node.insert("listen".into(), texts(&self.listen));
        node.insert("advertise_loopback".into(), Value::Boolean(self.advertise_loopback));
        if let Some(is_relay) = self.relay {
            node.insert("relay".into(), Value::Boolean(is_relay));
        }
        if let Some(socket) = &self.control_socket {
            node.insert("control_socket".into(), path(socket));
        }
        let mut gateway = Table::new();
        gateway.insert("listen".into(), text(&self.gateway_listen));
        gateway.insert("narinfo_deadline_ms".into(), Value::Integer(self.narinfo_deadline_ms.into()));
        gateway.insert("sign".into(), Value::Boolean(self.sign));
        if let Some(kind) = self.prefer {
            gateway.insert("prefer".into(), text(kind));
        }
        let mut store = Table::new();
        match &self.store {
            StorePlace::Root(root) => {
                store.insert("root".into(), path(root));
            }
            StorePlace::Relocated { store_dir, real_dir, state_dir } => {
                store.insert("store_dir".into(), path(store_dir));
                store.insert("real_dir".into(), path(real_dir));
                store.insert("state_dir".into(), path(state_dir));
            }
        }
        let mut trust = Table::new();
        trust.insert("trusted_public_keys".into(), texts(&self.trusted_public_keys));
        if self.builder_key {
            trust.insert("builder_key_file".into(), text("builder.key"));
        }
        let mut advertise = Table::new();
        advertise.insert("exclude".into(), texts(&self.exclude));
        advertise.insert("derivations".into(), Value::Boolean(self.derivations));
        advertise.insert("serve_hours".into(), texts(&self.serve_hours));
        let mut transfer = Table::new();
        transfer.insert("compress".into(), text(self.compress));
        if let Some(time) = self.stall_timeout_ms {
            transfer.insert("stall_timeout_ms".into(), Value::Integer(time.into()));
        }
        let mut limits = Table::new();
        if let Some(count) = self.connections_gossip {
            limits.insert("connections_gossip".into(), Value::Integer(count.into()));
        }
        if let Some(rate) = self.upload_bytes_per_s {
            limits.insert("upload_bytes_per_s".into(), Value::Integer(rate.into()));
        }
        if let Some(rate) = self.relay_bytes_per_s {
            limits.insert("relay_bytes_per_s".into(), Value::Integer(rate.into()));
        }
        if let Some(bytes) = self.partial_copies_bytes {
            limits.insert("partial_copies_bytes".into(), Value::Integer(bytes.into()));
        }
        let mut mesh = Table::new();
        mesh.insert("discover_lan".into(), Value::Boolean(self.discover_lan));
        if let Some(key) = &self.mesh_key {
            mesh.insert("key".into(), text(key));
        }
        if let Some(file) = &self.roster_file {
            mesh.insert("roster_file".into(), path(file));
        }
        let peers = self.peers.iter().map(|peer| {
            let mut entry = Table::new();
            entry.insert("name".into(), text(&peer.name));
            entry.insert("peer_id".into(), text(&peer.peer_id));
            entry.insert("addresses".into(), texts(&peer.addresses));
            if let Some(rate) = peer.upload_bytes_per_s {
                entry.insert("upload_bytes_per_s".into(), Value::Integer(rate.into()));
            }
            entry.insert("relay".into(), Value::Boolean(peer.relay));
            Value::Table(entry)
        });
        let mut file = Table::new();
        for (name, table) in [
            ("node", node),
            ("gateway", gateway),
            ("store", store),
            ("trust", trust),
            ("advertise", advertise),
            ("transfer", transfer),
            ("limits", limits),
            ("mesh", mesh),
        ] {
            file.insert(name.into(), Value::Table(table));
        }
        file.insert("peer".into(), Value::Array(peers.collect()));
        toml::to_string(&file).expect("a table of texts and numbers is TOML") + &self.more
    }
}
