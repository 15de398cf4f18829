//! One digest over all that happened: two runs with one seed must have the same.

use crate::faults::Fault;
use crate::machine::Number;
use narmesh_gossip::{Input, Output};
use sha2::{Digest, Sha256};
use std::fmt;

/// The running digest.
pub(crate) struct Trace(Sha256);

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trace")
    }
}

impl Trace {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Sha256::new().chain_update(b"narmesh-sim-1;").chain_update(seed.to_le_bytes()))
    }

    fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    pub(crate) fn input(&mut self, now_ms: u64, machine: Number, input: &Input) {
        self.number(now_ms);
        self.number(machine as u64);
        match input {
            Input::Announcement { id, bytes, .. }
            | Input::Request { id, bytes, .. }
            | Input::Response { id, bytes, .. } => {
                self.number(*id);
                self.0.update(bytes);
            }
            Input::Allowlist(peers) => peers.iter().for_each(|peer| self.0.update(peer.to_bytes())),
            Input::Connected(peer) | Input::Disconnected(peer) => self.0.update(peer.to_bytes()),
            Input::RequestFailed { id, .. } => self.number(*id),
            Input::Addresses(_)
            | Input::Paths(_)
            | Input::Probe { .. }
            | Input::Misbehaved { .. }
            | Input::Tick
            | Input::Goodbye => self.0.update(b"-"),
        }
    }

    pub(crate) fn output(&mut self, output: &Output) {
        match output {
            Output::Publish(bytes) | Output::Request { bytes, .. } | Output::Respond { bytes, .. } => {
                self.0.update(bytes)
            }
            Output::Persist(_) | Output::Judge { .. } | Output::Penalize { .. } | Output::Event(_) => {
                self.0.update(format!("{output:?}"));
            }
        }
    }

    pub(crate) fn fault(&mut self, now_ms: u64, machine: Number, fault: &Fault) {
        self.number(now_ms);
        self.number(machine as u64);
        self.0.update(format!("{fault:?}"));
    }

    /// The digest so far, in hexadecimal.
    pub(crate) fn digest(&self) -> String {
        self.0.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
