//! The three daemons: this binary, run three times, as a user would run it.

use super::NAMES;
use super::stop::Stop;
use super::stores::DemoStore;
use crate::cli::init::{Keys, write_config};
use crate::config::{Config, PeerConfig};
use crate::control::{self, ControlReply, ControlRequest};
use crate::settings::{Secrets, Settings};
use crate::status::{Status, WhyReport};
use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A daemon that is not up after this has failed to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a stop may take. The daemon gives responses under way ten seconds.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// The time between two requests for a status.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// One node of the demo.
#[derive(Debug)]
pub(super) struct DemoNode {
    name: &'static str,
    file: PathBuf,
    config: Config,
    secrets: Secrets,
    socket: PathBuf,
    child: Option<Child>,
    gateway: String,
    listen: Vec<String>,
}

/// Writes the keys and configurations of all three; starts nothing.
pub(super) fn prepare(dir: &Path, stores: &[DemoStore; 3]) -> anyhow::Result<[DemoNode; 3]> {
    let mut nodes = Vec::new();
    for (name, store) in NAMES.into_iter().zip(stores) {
        let file = dir.join(name).join("narmesh.toml");
        let keys = Keys::prepare(&file, name, true)?;
        let mut config = Config { store: store.config(), ..Config::default() };
        keys.put_into(&mut config);
        config.node.listen = vec!["/ip4/127.0.0.1/tcp/0".to_owned()];
        config.node.advertise_loopback = true;
        config.gateway.listen = "127.0.0.1:0".to_owned();
        write_config(&file, &config, true)?;
        let settings = Settings::load(&file)?;
        let (secrets, socket) = (settings.read_secrets()?, settings.node.control_socket);
        let (child, gateway, listen) = (None, String::new(), Vec::new());
        nodes.push(DemoNode { name, file, config, secrets, socket, child, gateway, listen });
    }
    // Each node allows the others, and trusts what they build.
    let keys: Vec<_> = nodes.iter().filter_map(|node| Some(node.builder_key()?.to_owned())).collect();
    let cards: Vec<_> = nodes.iter().map(|node| (node.name, node.secrets.peer_id().to_string())).collect();
    for node in &mut nodes {
        node.config.trust.trusted_public_keys.clone_from(&keys);
        node.config.peer = cards
            .iter()
            .filter(|(name, _)| *name != node.name)
            .map(|(name, peer_id)| PeerConfig {
                name: (*name).to_owned(),
                peer_id: peer_id.clone(),
                addresses: Vec::new(),
            })
            .collect();
    }
    if let Some(key) = keys.first() {
        std::fs::write(dir.join("trusted-public-key"), key)?;
    }
    nodes.try_into().map_err(|_| anyhow::anyhow!("three names make three nodes"))
}

impl DemoNode {
    /// Starts the daemon, with the addresses of the `known` peers in its configuration.
    pub(super) fn start(&mut self, known: &[&Self], stop: &Stop) -> anyhow::Result<()> {
        for peer in &mut self.config.peer {
            let running = known.iter().find(|node| node.name == peer.name);
            peer.addresses = running.map_or_else(Vec::new, |node| node.listen.clone());
        }
        write_config(&self.file, &self.config, true)?;
        let log = File::create(self.file.with_file_name("log"))?;
        let program = std::env::current_exe().context("cannot find this binary")?;
        let mut command = Command::new(program);
        command.arg("--config").arg(&self.file).args(["run", "--until-stdin-ends"]);
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        // In a process group of its own, Ctrl-C does not reach it: the demo stops the daemons in order.
        command.process_group(0);
        self.child = Some(command.spawn().context("cannot start a daemon")?);
        let since = Instant::now();
        let status = loop {
            if let Ok(status) = self.ask_status()
                && !status.listen.is_empty()
            {
                break status;
            }
            stop.check()?;
            let ended = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
            if ended.is_some() || since.elapsed() > START_TIMEOUT {
                let log = std::fs::read_to_string(self.file.with_file_name("log")).unwrap_or_default();
                anyhow::bail!("daemon {} did not start:\n{log}", self.name);
            }
            std::thread::sleep(POLL);
        };
        (self.gateway, self.listen) = (status.gateway, status.listen);
        let peers: Vec<_> = known.iter().map(|node| node.name).collect();
        println!(
            "{}  daemon {} up after {} ms: gateway http://{}, mesh {}, knows the address of {}",
            self.name,
            status.peer_id,
            since.elapsed().as_millis(),
            self.gateway,
            self.listen.join(" "),
            if peers.is_empty() { "nobody".to_owned() } else { peers.join(", ") }
        );
        Ok(())
    }

    /// Sends SIGTERM and waits for the daemon to end.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("the daemon's process id")?;
        kill_process(pid, Signal::TERM)?;
        let since = Instant::now();
        while since.elapsed() < STOP_TIMEOUT {
            if let Some(status) = child.try_wait()? {
                anyhow::ensure!(status.success(), "daemon {} ended with {status}", self.name);
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
        child.kill()?;
        anyhow::bail!("daemon {} did not stop within {STOP_TIMEOUT:?}", self.name)
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// The gateway's `address:port`.
    pub(super) fn gateway(&self) -> String {
        self.gateway.clone()
    }

    /// The command line with which a user talks to this daemon.
    pub(super) fn command(&self) -> String {
        let program = std::env::current_exe().unwrap_or_else(|_| "narmesh".into());
        format!("{} --config {}", program.display(), self.file.display())
    }

    /// The public half of its builder key, which is the first trusted key in its configuration.
    pub(super) fn builder_key(&self) -> Option<&str> {
        self.config.trust.trusted_public_keys.first().map(String::as_str)
    }

    /// What `narmesh status` shows.
    pub(super) fn ask_status(&self) -> anyhow::Result<Status> {
        match self.ask(&ControlRequest::Status)? {
            ControlReply::Status(status) => Ok(*status),
            _ => Err(crate::cli::client::mismatched()),
        }
    }

    /// What `narmesh why` shows.
    pub(super) fn ask_why(&self, path: &str) -> anyhow::Result<WhyReport> {
        match self.ask(&ControlRequest::Why { path: path.to_owned() })? {
            ControlReply::Why(report) => Ok(*report),
            _ => Err(crate::cli::client::mismatched()),
        }
    }

    fn ask(&self, request: &ControlRequest) -> anyhow::Result<ControlReply> {
        Ok(control::ask(&self.socket, request, Duration::from_secs(5))?)
    }
}

impl Drop for DemoNode {
    /// A demo that failed half-way leaves nothing running.
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Closing its standard input asks for an ordinary stop; then it is killed and reaped.
            drop(child.stdin.take());
            if child.kill().and_then(|()| child.wait()).is_err() {
                eprintln!("narmesh: daemon {} may still be running, as process {}", self.name, child.id());
            }
        }
    }
}
