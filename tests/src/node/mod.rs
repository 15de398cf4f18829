//! One machine of a mesh: a store, a configuration file, and a daemon that may be running.

mod daemon;
mod observed;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::binary::narmesh_binary;
use crate::config::{NodeConfig, PeerEntry};
use crate::network::Namespace;
use crate::nix::NixStoreFixture;
use crate::process::{Finished, finish};

use self::daemon::Ports;

/// The port that `narmesh init` writes; on a machine of its own nobody else uses it.
const LISTEN_PORT: u16 = 7280;

/// What another machine has to know about this one: the lines that `narmesh init` prints for it.
#[derive(Debug, Clone)]
pub struct PeerCard {
    /// The name that other machines give it in their configurations.
    pub name: String,
    /// The PeerId, in base58.
    pub peer_id: String,
    /// The public builder key in Nix's form, if there is one.
    pub builder_key: Option<String>,
}

/// A machine of the mesh.
#[derive(Debug)]
pub struct TestNode {
    /// Its name, also in the others' configurations.
    pub name: String,
    /// What is written to its configuration file at the next start or reload.
    pub config: NodeConfig,
    /// Its store.
    pub store: NixStoreFixture,
    card: PeerCard,
    dir: PathBuf,
    daemon: Option<Child>,
    ports: Option<Ports>,
    run_as: Option<u32>,
    notify_socket: Option<PathBuf>,
    run_under: Vec<String>,
    named_socket: Option<(String, OwnedFd)>,
    network: Option<Namespace>,
    /// The public keys that its Nix trusts; `None`: those that its daemon trusts.
    pub(crate) nix_keys: Option<Vec<String>>,
}

impl TestNode {
    /// Runs `narmesh init` in `dir`.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    #[must_use]
    pub fn init(name: &str, dir: &Path, store: NixStoreFixture) -> Self {
        let mut command = Command::new(narmesh_binary());
        command.args(["init", "--name", name, "--dir"]).arg(dir);
        finish(&mut command).expect_success("narmesh init");
        let mut node = Self {
            name: name.to_owned(),
            config: NodeConfig::new(store.place()),
            store,
            card: PeerCard { name: name.to_owned(), peer_id: String::new(), builder_key: None },
            dir: dir.to_owned(),
            daemon: None,
            ports: None,
            run_as: None,
            notify_socket: None,
            run_under: Vec::new(),
            named_socket: None,
            network: None,
            nix_keys: None,
        };
        let id = node.narmesh(&["id", "--json"]).expect_success("narmesh id --json");
        let id: serde_json::Value = serde_json::from_str(&id).expect("JSON");
        node.card.peer_id = id.pointer("/peer_id").and_then(serde_json::Value::as_str).expect("a peer id").to_owned();
        let builder_key = public_key_of(&dir.join("builder.key"));
        assert_eq!(id.pointer("/builder_key"), Some(&(*builder_key).into()), "Nix and narmesh read the same key");
        node.card.builder_key = Some(builder_key);
        // As in the file that `init` wrote: our own builds may come back from others, and our own gateway offers them.
        node.config.trusted_public_keys.extend(node.card.builder_key.clone());
        node
    }

    /// What others have to know about this node.
    #[must_use]
    pub fn card(&self) -> PeerCard {
        self.card.clone()
    }

    /// The directory of keys, configuration, state and log.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The public builder key of this node.
    ///
    /// # Panics
    /// When it has none.
    #[track_caller]
    #[must_use]
    pub fn builder_key(&self) -> String {
        self.card.builder_key.clone().expect("made by init")
    }

    /// Puts `other` on the allowlist, without an address, and trusts its builder key.
    pub fn allow(&mut self, other: &PeerCard) {
        let (name, peer_id) = (other.name.clone(), other.peer_id.clone());
        let entry = PeerEntry { name, peer_id, addresses: Vec::new(), upload_bytes_per_s: None, relay: false };
        self.config.peers.retain(|known| known.name != other.name);
        self.config.peers.push(entry);
        self.config.trusted_public_keys.extend(other.builder_key.clone());
    }

    /// Takes `name` off the allowlist.
    pub fn disallow(&mut self, name: &str) {
        self.config.peers.retain(|known| known.name != name);
    }

    /// Uses a peer that is on the allowlist as a relay.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn rely_on(&mut self, name: &str) {
        let entry = self.config.peers.iter_mut().find(|known| known.name == name).expect("allowed before");
        entry.relay = true;
    }

    /// Adds an address of a peer that is on the allowlist.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn learn_address(&mut self, name: &str, address: &str) {
        let entry = self.config.peers.iter_mut().find(|known| known.name == name).expect("allowed before");
        entry.addresses.push(address.to_owned());
    }

    /// From the next start on, the daemon runs as this user and group, which own its directory but not its store.
    pub fn run_as(&mut self, user: u32) {
        self.run_as = Some(user);
    }

    /// From the next start on, the daemon is told to report its readiness to this socket, as systemd tells it
    /// (`NOTIFY_SOCKET`).
    pub fn notify_socket(&mut self, path: &Path) {
        self.notify_socket = Some(path.to_owned());
    }

    /// Hands over this socket as well, under this name, whenever the gateway's socket is handed over.
    pub fn hand_over(&mut self, name: &str, socket: OwnedFd) {
        self.named_socket = Some((name.to_owned(), socket));
    }

    /// From the next start on, this command starts the daemon. It gets the daemon's own command as further arguments and
    /// has to `exec` it: `env NAME=VALUE`, `prlimit --nofile=64`, `unshare --mount …`.
    pub fn run_under(&mut self, command: &[&str]) {
        self.run_under = command.iter().map(|word| (*word).to_owned()).collect();
    }

    /// From the next start on, the daemon and its Nix are on this machine of a network. The daemon listens as a user's
    /// does: on all addresses of IPv4 and IPv6, though most of these machines have only one of the two, and on loopback for
    /// the gateway.
    pub fn live_on(&mut self, machine: &Namespace) {
        self.config.listen = ["/ip4/0.0.0.0", "/ip6/::"].map(|any| format!("{any}/tcp/{LISTEN_PORT}")).into();
        self.config.advertise_loopback = false;
        "127.0.0.1:7281".clone_into(&mut self.config.gateway_listen);
        self.store.run_nix_under(&machine.command_prefix());
        self.network = Some(machine.clone());
    }

    /// The machine of a network that this node is on, if any.
    #[must_use]
    pub fn network(&self) -> Option<&Namespace> {
        self.network.as_ref()
    }

    /// Writes the configuration file.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_config(&self) {
        fs::write(self.config_file(), self.config.to_toml()).expect("our own directory");
    }

    /// `narmesh.toml` of this node.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("narmesh.toml")
    }

    /// The public keys that its Nix trusts.
    fn nix_keys(&self) -> &[String] {
        self.nix_keys.as_deref().unwrap_or(&self.config.trusted_public_keys)
    }

    /// `nix-store --realise` on this machine: substitutes `paths` into its store through its gateway, with its trusted keys.
    pub fn realise(&self, paths: &[String]) -> Finished {
        self.store.realise(paths, self.gateway(), self.nix_keys())
    }

    /// `nix copy` from its gateway into its store.
    pub fn copy(&self, paths: &[String]) -> Finished {
        self.store.copy(paths, self.gateway(), self.nix_keys())
    }

    /// `nix-build` on this machine, with its gateway as the only substituter and without `fallback`.
    pub fn nix_build(&self, attribute: &str) -> Finished {
        self.store.nix_build(attribute, self.gateway(), self.nix_keys())
    }

    /// Runs `narmesh --config … arguments`, on the machine of a network that this node is on.
    pub fn narmesh(&self, arguments: &[&str]) -> Finished {
        let binary = narmesh_binary();
        let mut command = match &self.network {
            Some(machine) => machine.command(binary.to_str().expect("a path of UTF-8")),
            None => Command::new(binary),
        };
        finish(command.arg("--config").arg(self.config_file()).args(arguments))
    }

    /// The files of the daemon's state database, whether they exist or not.
    #[must_use]
    pub fn state_files(&self) -> Vec<PathBuf> {
        ["state.sqlite", "state.sqlite-wal", "state.sqlite-shm"].map(|name| self.dir.join("state").join(name)).into()
    }

    /// How many summaries of peers are kept in its state directory.
    #[must_use]
    pub fn summaries_kept(&self) -> usize {
        fs::read_dir(self.dir.join("state/summaries"))
            .map_or(0, |dir| dir.flatten().filter(|file| !file.file_name().to_string_lossy().ends_with(".new")).count())
    }

    /// The file in which the summary of this peer is kept.
    ///
    /// # Panics
    /// When nobody of that name is on the allowlist.
    #[track_caller]
    #[must_use]
    pub fn summary_file(&self, peer: &str) -> PathBuf {
        let peer = self.config.peers.iter().find(|known| known.name == peer).expect("on the allowlist");
        self.dir.join("state/summaries").join(&peer.peer_id)
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("log.txt")
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // It may have ended already.
            daemon.kill().ok();
            daemon.wait().ok();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(60).collect();
            let tail: Vec<_> = tail.into_iter().rev().collect();
            // `print!` is what the test runner captures and shows with a failure.
            #[expect(clippy::print_stdout, reason = "shown with the failed story")]
            {
                println!("--- the last lines of {}'s log\n{}", self.name, tail.join("\n"));
            }
        }
    }
}

/// The public key for a Nix signing key, as Nix itself prints it.
#[track_caller]
fn public_key_of(secret_key_file: &Path) -> String {
    let mut command = Command::new("nix");
    crate::nix::nix_client_environment(&mut command);
    command.args(["--extra-experimental-features", "nix-command", "key", "convert-secret-to-public"]);
    command.stdin(Stdio::from(File::open(secret_key_file).expect("init made a builder key")));
    let output = command.output().expect("nix starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
