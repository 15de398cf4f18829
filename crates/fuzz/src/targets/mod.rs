//! Every decoder of foreign bytes, with what must hold of it.

mod attestations;
#[cfg(feature = "config")]
mod config;
mod content;
mod core;
mod exchange;
mod gateway;
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
    /// As on the command line, and the directory of its corpus.
    pub name: &'static str,
    /// Decodes and panics when an invariant is broken.
    pub run: fn(&[u8]) -> Outcome,
    /// Valid inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Tokens of the grammar.
    pub words: &'static [&'static [u8]],
    /// Longest input made, bytes.
    pub input_bytes_max: usize,
}

/// What happened, as a number: two inputs with the same one taught us the same. Stands in for coverage where there is none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Outcome(u64);

impl Outcome {
    /// Of anything that tells outcomes apart; numbers should be bucketed by [`magnitude`] first.
    pub fn of(facts: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        facts.hash(&mut hasher);
        Self(hasher.finish())
    }

    /// Of a result whose error says why.
    pub fn of_result<T, E>(result: &Result<T, E>, facts_of_value: impl FnOnce(&T) -> u64) -> Self {
        match result {
            Ok(value) => Self::of((0, facts_of_value(value))),
            Err(error) => Self::of((1, std::mem::discriminant(error))),
        }
    }
}

/// The number of bits: values of one magnitude count as one outcome.
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
    all.extend([core::TARGET, gateway::TARGET]);
    #[cfg(feature = "config")]
    all.extend([[config::TARGET].as_slice(), &quorum_texts::TARGETS].concat());
    all
}

/// The target of that name.
pub fn by_name(name: &str) -> Option<Target> {
    all().into_iter().find(|target| target.name == name)
}

/// The NARs and narinfos that real Nix made, at most `bytes_max` each.
fn golden(folder: &str, suffix: &str, bytes_max: usize) -> Vec<Vec<u8>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../protocol/tests/golden").join(folder);
    let entries = std::fs::read_dir(&folder).expect("the golden vectors lie beside this package");
    let mut files = entries.filter_map(|entry| Some(entry.ok()?.path())).collect::<Vec<_>>();
    files.retain(|file| file.to_string_lossy().ends_with(suffix));
    files.sort_unstable();
    files.iter().filter_map(|file| std::fs::read(file).ok()).filter(|bytes| bytes.len() <= bytes_max).collect()
}
