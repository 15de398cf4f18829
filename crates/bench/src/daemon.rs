//! Real `narmesh` daemons, each with a directory, keys and a configuration of its own.

use crate::fetch;
use crate::nginx::free_address;
use crate::process::{Running, finish, tethered, wait_for};
use crate::scratch;
use anyhow::{Context as _, bail};
use narmesh_protocol::NixSecretKey;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The longest time that a daemon here may take to answer.
const START_MAX: Duration = Duration::from_secs(30);

/// A node, whose daemon may run or not.
#[derive(Debug)]
pub(crate) struct Node {
    /// The directory with its keys, state, configuration and log.
    dir: PathBuf,
    binary: PathBuf,
    name: String,
    /// Its PeerId as text.
    pub(crate) peer_id: String,
    /// Where its gateway listens when it runs.
    pub(crate) gateway: SocketAddr,
    mesh: SocketAddr,
    store_root: PathBuf,
    trusted_keys: Vec<String>,
    peers: String,
    config_extra: String,
    rules: String,
    tells_address: bool,
}

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Daemon<'n> {
    node: &'n Node,
    /// Its process.
    pub(crate) process: Running,
}

impl Node {
    /// Makes the node's keys in `dir` with `narmesh init`. It serves the chroot store at `store_root`, and has no peers
    /// yet.
    pub(crate) fn init(binary: &Path, dir: &Path, name: &str, store_root: &Path) -> anyhow::Result<Self> {
        finish("narmesh init", Command::new(binary).args(["init", "--name", name, "--dir"]).arg(dir))?;
        let mut node = Self {
            dir: dir.to_owned(),
            binary: binary.to_owned(),
            name: name.to_owned(),
            peer_id: String::new(),
            gateway: free_address()?,
            mesh: free_address()?,
            store_root: store_root.to_owned(),
            trusted_keys: Vec::new(),
            peers: String::new(),
            config_extra: String::new(),
            rules: String::new(),
            tells_address: true,
        };
        let id = finish("narmesh id", node.command().arg("id"))?;
        let mut words = id.split(|letter: char| !letter.is_ascii_alphanumeric());
        node.peer_id = words.find(|word| word.starts_with("12D3KooW")).context("no peer id")?.to_owned();
        let builder_key = node.builder_key()?;
        node.trust(&builder_key);
        Ok(node)
    }

    /// The public key that verifies what this node builds.
    pub(crate) fn builder_key(&self) -> anyhow::Result<String> {
        let text = fs::read_to_string(self.dir.join("builder.key"))?;
        Ok(NixSecretKey::parse(text.trim())?.public().to_string())
    }

    /// Makes the node serve another chroot store.
    pub(crate) fn serve(&mut self, store_root: &Path) {
        store_root.clone_into(&mut self.store_root);
    }

    /// Adds a trusted public key in Nix's form.
    pub(crate) fn trust(&mut self, key: &str) {
        self.trusted_keys.push(key.to_owned());
    }

    /// Puts a peer on the allowlist, with an address if there is one.
    pub(crate) fn allow(&mut self, name: &str, peer_id: &str, address: Option<&str>) {
        let addresses: Vec<_> = address.into_iter().collect();
        let entry = format!("[[peer]]\nname = {name:?}\npeer_id = {peer_id:?}\naddresses = {addresses:?}\n");
        self.peers.push_str(&entry);
    }

    /// Makes two nodes allow each other and trust each other's builds. The second dials the first.
    pub(crate) fn introduce(first: &mut Self, second: &mut Self) -> anyhow::Result<()> {
        first.allow(&second.name, &second.peer_id, None);
        second.allow(&first.name, &first.peer_id, Some(&first.multiaddr()));
        let keys = (first.builder_key()?, second.builder_key()?);
        first.trust(&keys.1);
        second.trust(&keys.0);
        Ok(())
    }

    /// Makes the node tell no peer where it listens.
    pub(crate) fn keep_address(&mut self) {
        self.tells_address = false;
    }

    /// Counts the attestations of `builder`; one builder is enough for agreement.
    pub(crate) fn count(&mut self, builder: &Self) -> anyhow::Result<()> {
        let (name, key) = (&builder.name, builder.builder_key()?);
        let entry = format!("[[builder]]\nname = {name:?}\npublic_key = {key:?}\npeer = {name:?}\n");
        self.peers.push_str(&format!("[quorum]\nmode = \"observe\"\nk = 1\n{entry}"));
        Ok(())
    }

    /// Adds lines at the end of `[limits]`.
    pub(crate) fn limit(&mut self, line: &str) {
        self.config_extra.push_str(line);
        self.config_extra.push('\n');
    }

    /// Sets the end of the configuration: `[quorum]` and `[[builder]]`, or `[[upstream]]`.
    pub(crate) fn follow(&mut self, rules: &str) {
        rules.clone_into(&mut self.rules);
    }

    /// Deletes its state database: the next start knows only what the configuration says.
    pub(crate) fn forget_everything(&self) {
        scratch::remove(&self.dir.join("state"));
    }

    /// Its name in the others' configurations.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens for peers.
    pub(crate) fn multiaddr(&self) -> String {
        format!("/ip4/127.0.0.1/tcp/{}", self.mesh.port())
    }

    /// Writes the configuration and starts the daemon, without waiting for it.
    pub(crate) fn spawn(&self) -> anyhow::Result<Daemon<'_>> {
        fs::write(self.config_file(), self.config()?)?;
        let log = File::create(self.dir.join("log"))?;
        let mut command = tethered(&self.binary);
        command
            .arg("--config")
            .arg(self.config_file())
            .arg("run")
            .env("NARMESH_LOG", std::env::var("NARMESH_LOG").unwrap_or_else(|_| "warn".to_owned()));
        command.stdout(Stdio::null()).stderr(Stdio::from(log));
        Ok(Daemon { node: self, process: Running::spawn("narmesh", &mut command)? })
    }

    /// Starts the daemon, and returns when it answers.
    pub(crate) fn start(&self) -> anyhow::Result<Daemon<'_>> {
        let mut daemon = self.spawn()?;
        wait_for("the daemon answers", START_MAX, || {
            daemon.must_run()?;
            Ok(daemon.status().ok())
        })?;
        Ok(daemon)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--config").arg(self.config_file());
        command
    }

    fn config_file(&self) -> PathBuf {
        self.dir.join("narmesh.toml")
    }

    fn config(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        writeln!(text, "[node]\nkey_file = \"node.key\"\nstate_dir = \"state\"\nlisten = [{:?}]", self.multiaddr())?;
        writeln!(text, "advertise_loopback = {}\n[gateway]\nlisten = \"{}\"", self.tells_address, self.gateway)?;
        writeln!(text, "[store]\nroot = {:?}", self.store_root)?;
        writeln!(text, "[trust]\ntrusted_public_keys = {:?}\nbuilder_key_file = \"builder.key\"", self.trusted_keys)?;
        writeln!(text, "[limits]\n{}{}{}", self.config_extra, self.peers, self.rules)?;
        Ok(text)
    }
}

impl Daemon<'_> {
    /// Sends it SIGTERM; dropping it waits for its end.
    pub(crate) fn tell_to_end(&self) {
        self.process.tell_to_end();
    }

    /// `narmesh status --json`.
    pub(crate) fn status(&self) -> anyhow::Result<Value> {
        let text = finish("narmesh status", self.node.command().args(["status", "--json"]))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Runs `narmesh quorum import`; the attestations count within a second.
    pub(crate) fn import(&self, file: &Path) -> anyhow::Result<()> {
        finish("narmesh quorum import", self.node.command().args(["quorum", "import"]).arg(file)).map(drop)
    }

    /// Runs `narmesh quorum report --all --json`; an error unless everything is agreed.
    pub(crate) fn report_all(&self) -> anyhow::Result<()> {
        finish("narmesh quorum report", self.node.command().args(["quorum", "report", "--all", "--json"])).map(drop)
    }

    /// Waits until it holds a summary of at least `paths_min` paths of each of `peers`, which are names.
    pub(crate) fn wait_for_summaries(
        &mut self,
        peers: &[&str],
        paths_min: usize,
        deadline: Duration,
    ) -> anyhow::Result<()> {
        let node = self.node.name();
        wait_for(&format!("{node} holds the summaries of {} peers", peers.len()), deadline, || {
            self.must_run()?;
            let status = self.status()?;
            let known = status.get("peers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let paths = |peer: &Value| peer.pointer("/summary/paths").and_then(Value::as_u64);
            let held: BTreeSet<_> = known
                .iter()
                .filter(|peer| paths(peer).is_some_and(|paths| paths >= paths_min as u64))
                .filter_map(|peer| peer.get("name").and_then(Value::as_str))
                .collect();
            Ok(peers.iter().all(|name| held.contains(name)).then_some(()))
        })
    }

    /// Waits until its gateway answers for `target`, and returns the answer.
    pub(crate) fn wait_for_answer(&mut self, target: &str) -> anyhow::Result<String> {
        wait_for(&format!("{} answers {target}", self.node.name()), START_MAX, || {
            self.must_run()?;
            fetch::text(self.node.gateway, target)
        })
    }

    /// Asks the gateway for `target` again and again, and returns the milliseconds until it answers 200.
    pub(crate) fn time_to_answer_ms(&mut self, started: Instant, target: &str) -> anyhow::Result<f64> {
        while started.elapsed() < START_MAX {
            if matches!(fetch::text(self.node.gateway, target), Ok(Some(_))) {
                return Ok(started.elapsed().as_secs_f64() * 1e3);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        bail!("{} does not answer {target}: {}", self.node.name(), self.log())
    }

    /// Milliseconds until the gateway answers for `target` at all. An error unless the answer is 200.
    pub(crate) fn time_to_first_answer_ms(&mut self, started: Instant, target: &str) -> anyhow::Result<f64> {
        while started.elapsed() < START_MAX {
            self.must_run()?;
            match fetch::text(self.node.gateway, target) {
                Ok(Some(_)) => return Ok(started.elapsed().as_secs_f64() * 1e3),
                Ok(None) => bail!("{} answers 404 for {target}, which its peer holds", self.node.name()),
                // The gateway does not listen yet.
                Err(_) => std::thread::sleep(Duration::from_micros(200)),
            }
        }
        bail!("{} does not answer {target}: {}", self.node.name(), self.log())
    }

    /// An error with the end of its log if the daemon has ended.
    fn must_run(&mut self) -> anyhow::Result<()> {
        match self.process.ended()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}: {}", self.node.name(), self.log()),
        }
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.node.dir.join("log")).unwrap_or_default();
        log.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
    }
}
