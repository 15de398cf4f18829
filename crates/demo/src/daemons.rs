//! The three daemons: `narmesh`, run three times, as a user would run it.

use crate::NAMES;
use crate::command_line::{CommandLine, Status, WhyReport};
use crate::configuration::{Configuration, Peer};
use crate::stop::Stop;
use crate::stores::DemoStore;
use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

/// A daemon that is not up after this has failed to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a stop may take. The daemon gives responses under way ten seconds.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// The time between two requests for a status.
pub(crate) const POLL: Duration = Duration::from_millis(20);

/// One node of the demo.
#[derive(Debug)]
pub(crate) struct DemoNode {
    name: &'static str,
    line: CommandLine,
    config: Configuration,
    builder_key: String,
    child: Option<Child>,
    gateway: String,
    listen: Vec<String>,
}

/// Makes the keys and configurations of all three; starts nothing.
pub(crate) fn prepare(program: &Path, dir: &Path, stores: &[DemoStore; 3]) -> anyhow::Result<[DemoNode; 3]> {
    let (mut nodes, mut cards) = (Vec::new(), Vec::new());
    for (name, store) in NAMES.into_iter().zip(stores) {
        let line = CommandLine { program: program.to_owned(), config: dir.join(name).join("narmesh.toml") };
        line.init(name)?;
        let identity = line.ask_identity()?;
        cards.push((name, identity.peer_id));
        let config = Configuration { name, store: store.config(), trusted_public_keys: Vec::new(), peers: Vec::new() };
        let (child, gateway, listen) = (None, String::new(), Vec::new());
        nodes.push(DemoNode { name, line, config, builder_key: identity.builder_key, child, gateway, listen });
    }
    // Each node allows the others, and trusts what they build.
    let keys: Vec<_> = nodes.iter().map(|node| node.builder_key.clone()).collect();
    for node in &mut nodes {
        node.config.trusted_public_keys.clone_from(&keys);
        for (name, peer_id) in cards.iter().filter(|(name, _)| *name != node.name) {
            node.config.peers.push(Peer { name, peer_id: peer_id.clone(), addresses: Vec::new() });
        }
    }
    if let Some(key) = keys.first() {
        std::fs::write(dir.join("trusted-public-key"), key)?;
    }
    nodes.try_into().map_err(|_| anyhow::anyhow!("three names make three nodes"))
}

impl DemoNode {
    /// Starts the daemon, with the addresses of the `known` peers in its configuration.
    pub(crate) fn start(&mut self, known: &[&Self], stop: &Stop) -> anyhow::Result<()> {
        for peer in &mut self.config.peers {
            let running = known.iter().find(|node| node.name == peer.name);
            peer.addresses = running.map_or_else(Vec::new, |node| node.listen.clone());
        }
        std::fs::write(&self.line.config, self.config.text())?;
        let log = self.line.config.with_file_name("log");
        self.child = Some(self.line.run(File::create(&log)?)?);
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
                let log = std::fs::read_to_string(&log).unwrap_or_default();
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
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
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

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The gateway's `address:port`.
    pub(crate) fn gateway(&self) -> String {
        self.gateway.clone()
    }

    /// The command line with which a user talks to this daemon.
    pub(crate) fn command(&self) -> String {
        self.line.text()
    }

    /// The public half of its builder key.
    pub(crate) fn builder_key(&self) -> &str {
        &self.builder_key
    }

    pub(crate) fn ask_status(&self) -> anyhow::Result<Status> {
        self.line.ask_status()
    }

    pub(crate) fn ask_why(&self, path: &str) -> anyhow::Result<WhyReport> {
        self.line.ask_why(path)
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
