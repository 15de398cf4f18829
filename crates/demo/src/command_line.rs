//! The commands of `narmesh` that the demo uses, with the parts of their JSON that it reads.

use crate::process::run_for_output;
use anyhow::Context;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// `narmesh id --json`.
#[derive(Debug, Deserialize)]
pub(crate) struct Identity {
    pub(crate) peer_id: String,
    pub(crate) builder_key: String,
}

/// `narmesh status --json`.
#[derive(Debug, Deserialize)]
pub(crate) struct Status {
    pub(crate) peer_id: String,
    pub(crate) listen: Vec<String>,
    /// The gateway's `address:port`.
    pub(crate) gateway: String,
    pub(crate) own: Summary,
    pub(crate) peers: Vec<PeerStatus>,
    pub(crate) bytes: Bytes,
}

/// A summary, of the node itself or of a peer.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Summary {
    pub(crate) epoch: u64,
    pub(crate) seq: u64,
    pub(crate) paths: u64,
    pub(crate) filter_bits: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct PeerStatus {
    pub(crate) name: String,
    pub(crate) addresses: Vec<String>,
    pub(crate) summary: Option<Summary>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Bytes {
    /// NAR bytes to Nix.
    pub(crate) gateway_out: u64,
}

/// `narmesh why PATH --json`.
#[derive(Debug, Deserialize)]
pub(crate) struct WhyReport {
    pub(crate) peers: Vec<Candidate>,
    pub(crate) decisions: Vec<Decision>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Candidate {
    pub(crate) name: String,
    pub(crate) peer_id: String,
    pub(crate) would_ask: bool,
    pub(crate) reason: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Decision {
    /// What was decided, in words; peers appear by their ids.
    pub(crate) sentence: String,
}

/// The `narmesh` binary together with the configuration file of one node.
#[derive(Debug)]
pub(crate) struct CommandLine {
    pub(crate) program: PathBuf,
    pub(crate) config: PathBuf,
}

impl CommandLine {
    /// What a user types before the command.
    pub(crate) fn text(&self) -> String {
        format!("{} --config {}", self.program.display(), self.config.display())
    }

    /// Makes the keys of a node with this name, beside its configuration.
    pub(crate) fn init(&self, name: &str) -> anyhow::Result<()> {
        run_for_output(self.command().args(["init", "--no-nix-keys", "--name", name])).map(drop)
    }

    pub(crate) fn ask_identity(&self) -> anyhow::Result<Identity> {
        self.ask(&["id", "--json"])
    }

    pub(crate) fn ask_status(&self) -> anyhow::Result<Status> {
        self.ask(&["status", "--json"])
    }

    pub(crate) fn ask_why(&self, path: &str) -> anyhow::Result<WhyReport> {
        self.ask(&["why", "--json", path])
    }

    /// Starts the daemon, which ends with its standard input.
    pub(crate) fn run(&self, log: File) -> anyhow::Result<Child> {
        let mut command = self.command();
        command.args(["run", "--until-stdin-ends"]);
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        command.spawn().context("cannot start a daemon")
    }

    fn ask<T: DeserializeOwned>(&self, arguments: &[&str]) -> anyhow::Result<T> {
        let text = run_for_output(self.command().args(arguments))?;
        serde_json::from_str(&text).with_context(|| format!("narmesh {}", arguments.join(" ")))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&self.config);
        // In a process group of its own, Ctrl-C does not reach it: the demo stops the daemons in order.
        command.process_group(0);
        command
    }
}
