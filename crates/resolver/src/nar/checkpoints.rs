//! Remembers what is known of the bytes that Nix got before a body broke off. When Nix resumes, only the rest is read,
//! but the whole is still verified from the first byte.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use narmesh_protocol::NarHash;
use narmesh_protocol::nar::NarVerifier;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::source::SourceId;

/// A verifier is kept each time this many bytes have passed. That is the most that is read twice after a break.
pub(super) const EVERY_BYTES: u64 = 1 << 20;
/// The most verifiers kept for one body: Nix may have lost what lay in sockets and buffers, which is far less than 16
/// MiB.
const KEPT_PER_BODY: usize = 16;
/// The most bodies remembered. A verifier takes some 300 bytes (a guess, not measured), so all of them take some 300
/// KiB.
const BODIES_MAX: usize = 64;
/// How long they are kept. Nix resumes within seconds or not at all (five attempts, a few seconds apart).
const KEPT_FOR: Duration = Duration::from_secs(120);

/// A verifier, and the sources of the bytes that it has seen.
pub(super) type Checkpoint = (NarVerifier, Vec<SourceId>);

/// The checkpoints of one body.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trail(VecDeque<Checkpoint>);

impl Trail {
    /// Keeps this verifier and the sources of its bytes, if the last one kept is far enough behind.
    pub(super) fn pass(&mut self, verifier: &NarVerifier, contributors: &[SourceId]) {
        let last = self.0.back().map_or(0, |(verifier, _)| verifier.fed_bytes());
        if verifier.fed_bytes() < last + EVERY_BYTES {
            return;
        }
        // Nix resumes near the end of what it has, so the latest are worth most.
        if self.0.len() == KEPT_PER_BODY {
            self.0.pop_front();
        }
        self.0.push_back((verifier.clone(), contributors.to_vec()));
    }
}

/// The trails of bodies that broke off.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    bodies: Mutex<HashMap<NarHash, (Instant, Trail)>>,
}

impl Checkpoints {
    /// Keeps the trail of a body that broke off.
    pub(crate) fn keep(&self, nar_hash: NarHash, trail: Trail) {
        if trail.0.is_empty() {
            return;
        }
        let mut bodies = self.bodies.lock();
        bodies.retain(|_, (at, _)| at.elapsed() < KEPT_FOR);
        if bodies.len() >= BODIES_MAX
            && let Some(oldest) = bodies.iter().min_by_key(|(_, (at, _))| *at).map(|(nar_hash, _)| *nar_hash)
        {
            bodies.remove(&oldest);
        }
        bodies.insert(nar_hash, (Instant::now(), trail));
    }

    /// The checkpoint that has seen the most bytes, but none beyond `offset`.
    pub(super) fn last_before(&self, nar_hash: &NarHash, offset: u64) -> Option<Checkpoint> {
        let bodies = self.bodies.lock();
        let (_, trail) = bodies.get(nar_hash).filter(|(at, _)| at.elapsed() < KEPT_FOR)?;
        trail.0.iter().rev().find(|(verifier, _)| verifier.fed_bytes() <= offset).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_is_resumed_from_the_last_checkpoint_before_the_offset() {
        let checkpoints = Checkpoints::default();
        let mut nar =
            b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0\x01\0\0\0\0\0\0\0(\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0type\0\0\0\0"
                .to_vec();
        nar.extend_from_slice(b"\x07\0\0\0\0\0\0\0regular\0\x08\0\0\0\0\0\0\0contents");
        nar.extend_from_slice(&(64_u64 << 20).to_le_bytes());
        let (mut verifier, mut trail, source) = (NarVerifier::new(), Trail::default(), SourceId::random());
        verifier.feed(&nar).unwrap();
        for _ in 0..40 {
            verifier.feed(&vec![7; 1 << 20]).unwrap();
            trail.pass(&verifier, &[source]);
        }
        let nar_hash = NarHash([1; 32]);
        checkpoints.keep(nar_hash, trail);
        let (verifier, contributors) = checkpoints.last_before(&nar_hash, 39 << 20).unwrap();
        let at = verifier.fed_bytes();
        assert_eq!(contributors, [source]);
        assert!((38 << 20..=39 << 20).contains(&at), "{at}");
        assert!(checkpoints.last_before(&nar_hash, 1 << 20).is_none(), "too far back");
    }
}
