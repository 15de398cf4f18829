//! One digest over all that happened: two runs with one seed must have the same.

use crate::cores::gossip::{Event, Input, Output};
use crate::fault::Fault;
use crate::number::Number;
use sha2::{Digest, Sha256};
use std::fmt;

/// Of a long message only this many first and last bytes enter the digest, and its length. That is where messages differ.
const EDGE_BYTES: usize = 64;

/// The running digest.
pub(crate) struct Trace(Sha256);

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trace")
    }
}

impl Trace {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Sha256::new().chain_update(b"narmesh-sim-2;").chain_update(seed.to_le_bytes()))
    }

    pub(crate) fn add_number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    fn add_bytes(&mut self, bytes: &[u8]) {
        self.add_number(bytes.len() as u64);
        if bytes.len() <= 2 * EDGE_BYTES {
            self.0.update(bytes);
        } else {
            self.0.update(bytes.get(..EDGE_BYTES).unwrap_or_default());
            self.0.update(bytes.get(bytes.len() - EDGE_BYTES..).unwrap_or_default());
        }
    }

    pub(crate) fn add_input(&mut self, now_ms: u64, machine: Number, input: &Input) {
        self.add_number(now_ms);
        self.add_number(machine as u64);
        match input {
            Input::Announcement { id, bytes, .. }
            | Input::Request { id, bytes, .. }
            | Input::Response { id, bytes, .. } => {
                self.add_number(*id);
                self.add_bytes(bytes);
            }
            Input::Allowlist(peers) => self.add_number(peers.len() as u64),
            Input::Connected(peer) | Input::Disconnected(peer) => self.0.update(peer.to_bytes()),
            Input::RequestFailed { id, .. } => self.add_number(*id),
            Input::Addresses(_)
            | Input::Paths(_)
            | Input::Probe { .. }
            | Input::Misbehaved { .. }
            | Input::Tick
            | Input::Goodbye => self.0.update(b"-"),
        }
    }

    pub(crate) fn add_output(&mut self, output: &Output) {
        match output {
            Output::Publish(bytes) | Output::Request { bytes, .. } | Output::Respond { bytes, .. } => {
                self.add_bytes(bytes)
            }
            Output::Judge { id, verdict } => {
                self.add_number(*id);
                self.add_number(*verdict as u64);
            }
            Output::Event(Event::BodyPulled { owner, generation, bytes, .. }) => {
                self.0.update(owner.to_bytes());
                self.add_number(generation.epoch);
                self.add_number(generation.seq);
                self.add_number(*bytes as u64);
            }
            Output::Event(Event::Announced { generation, .. }) => {
                self.add_number(generation.epoch);
                self.add_number(generation.seq);
            }
            Output::Persist(_) => self.0.update(b"persist"),
            Output::Penalize { .. } | Output::Event(_) => self.0.update(format!("{output:?}")),
        }
    }

    pub(crate) fn add_fault(&mut self, now_us: u64, machine: Number, fault: &Fault) {
        self.add_number(now_us);
        self.add_number(machine as u64);
        self.0.update(format!("{fault:?}"));
    }

    pub(crate) fn add_scripted(&mut self, now_us: u64, machine: Number, what: u64) {
        self.add_number(now_us);
        self.add_number(machine as u64);
        self.add_number(what);
    }

    /// The digest so far, in hexadecimal.
    pub(crate) fn digest(&self) -> String {
        self.0.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
