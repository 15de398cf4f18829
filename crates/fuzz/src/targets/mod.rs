//! Every decoder of foreign bytes, with the invariants that it must keep.

mod attestations;
#[cfg(feature = "config")]
mod config;
mod content;
mod core;
mod exchange;
mod gateway;
mod lan;
mod mesh;
mod nar;
mod narinfo;
#[cfg(feature = "config")]
mod quorum_texts;
mod texts;

use std::hash::{DefaultHasher, Hash, Hasher};

/// One decoder under test.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name on the command line, and of the directory of its corpus.
    pub name: &'static str,
    /// Decodes an input, and panics when an invariant is broken.
    pub run: fn(&[u8]) -> Outcome,
    /// Valid inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Tokens of the input's grammar.
    pub words: &'static [&'static [u8]],
    /// The longest input that is made, bytes.
    pub input_bytes_max: usize,
}

/// What happened, as a number. Two inputs with the same outcome taught us the same. It stands in for coverage where
/// coverage is not measured.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Outcome(u64);

impl Outcome {
    /// The outcome of any facts that tell inputs apart. Numbers should go through [`magnitude`] first.
    pub fn of(facts: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        facts.hash(&mut hasher);
        Self(hasher.finish())
    }

    /// The outcome of a result: of the value's facts, or of the kind of error.
    pub fn of_result<T, E>(result: &Result<T, E>, facts_of_value: impl FnOnce(&T) -> u64) -> Self {
        match result {
            Ok(value) => Self::of((0, facts_of_value(value))),
            Err(error) => Self::of((1, std::mem::discriminant(error))),
        }
    }
}

/// The number of bits of a value: all values with the same number of bits count as one outcome.
pub fn magnitude(value: usize) -> u64 {
    u64::from(usize::BITS - value.leading_zeros())
}

/// All targets, in the order of the report.
pub fn all() -> Vec<Target> {
    let mut all = vec![narinfo::TARGET, nar::TARGET, content::TARGET];
    all.extend(mesh::TARGETS);
    all.extend(texts::TARGETS);
    all.extend(attestations::TARGETS);
    all.extend(exchange::TARGETS);
    all.extend([core::TARGET, gateway::TARGET, lan::TARGET]);
    #[cfg(feature = "config")]
    all.extend([[config::TARGET].as_slice(), &quorum_texts::TARGETS].concat());
    all
}

/// The target with this name.
pub fn by_name(name: &str) -> Option<Target> {
    all().into_iter().find(|target| target.name == name)
}

/// The NARs or narinfos of real Nix, without those that are longer than `bytes_max`.
fn golden(folder: &str, suffix: &str, bytes_max: usize) -> Vec<Vec<u8>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../protocol/tests/golden").join(folder);
    let entries = std::fs::read_dir(&folder).expect("the golden vectors lie beside this package");
    let mut files = entries.filter_map(|entry| Some(entry.ok()?.path())).collect::<Vec<_>>();
    files.retain(|file| file.to_string_lossy().ends_with(suffix));
    files.sort_unstable();
    files.iter().filter_map(|file| std::fs::read(file).ok()).filter(|bytes| bytes.len() <= bytes_max).collect()
}
