//! A binary cache with made-up paths whose sizes, files and references are like those of a real store.
//!
//! Sizes are log-normal (p50 about 100 KB, p90 about 3 MB, five of 50 to 150 MB); half of the bytes compress like text, half
//! do not. Everything is drawn from one seed: two caches are equal byte for byte.

use anyhow::Context as _;
use narmesh_protocol::nar::{NarVerifier, NarWriter};
use narmesh_protocol::{HashPart, NarHash, NarInfo, NixPublicKey, NixSecretKey, StoreDir, StorePath};
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

const SEED: u64 = 42;
/// Contents may change between text and noise after this many bytes.
const ALTERNATION_BYTES: usize = 64 << 10;
/// A NAR is written out whenever this much of it is in memory, bytes.
const FLUSH_BYTES: usize = 1 << 20;
const WORDS: &str = "static const struct nix store path lib bin share include return void int char function module import export \
    from configuration default system package version build input output hash the of and to in is that for with on as are";

/// One path of the cache.
#[derive(Clone, Debug)]
pub(crate) struct SamplePath {
    /// Base name in `/nix/store`.
    pub(crate) path: StorePath,
    /// The NarHash of its contents.
    pub(crate) nar_hash: NarHash,
    /// Bytes of its NAR.
    pub(crate) nar_size: u64,
}

impl SamplePath {
    /// `/nix/store/…`.
    pub(crate) fn full(&self) -> String {
        store_dir().display(&self.path)
    }

    /// The target of its narinfo on any HTTP binary cache.
    pub(crate) fn narinfo_target(&self) -> String {
        format!("/{}.narinfo", self.path.hash_part())
    }

    /// The target of its NAR in this cache; elsewhere the narinfo says where the NAR is.
    pub(crate) fn nar_target(&self) -> String {
        format!("/nar/{}.nar", self.nar_hash.nix32())
    }
}

/// A cache that paths are added to.
#[derive(Debug)]
pub(crate) struct SampleCache {
    dir: PathBuf,
    key: NixSecretKey,
    rng: ChaCha8Rng,
    prose: Vec<u8>,
    paths: Vec<SamplePath>,
}

/// The layout of a path's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// Up to 400 files of about 24 KB in up to four directories, with a symlink.
    Tree,
    /// All bytes in one file.
    OneFile,
}

/// The store directory `/nix/store`.
pub(crate) fn store_dir() -> StoreDir {
    StoreDir::parse("/nix/store").expect("Nix's own store directory")
}

impl SampleCache {
    /// An empty cache in `dir`, which is created.
    pub(crate) fn new(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir.join("nar"))?;
        fs::write(dir.join("nix-cache-info"), "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n")?;
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let prose = prose(&mut rng);
        let key = NixSecretKey::from_seed("bench-1", b"narmesh-bench: signs sample data")?;
        Ok(Self { dir: dir.to_owned(), key, rng, prose, paths: Vec::new() })
    }

    /// The cache as a Nix store URL.
    pub(crate) fn url(&self) -> String {
        format!("file://{}", self.dir.display())
    }

    /// The directory, as an HTTP server sees it.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The public key that verifies its signatures.
    pub(crate) fn public_key(&self) -> NixPublicKey {
        self.key.public()
    }

    /// All paths added so far.
    pub(crate) fn paths(&self) -> &[SamplePath] {
        &self.paths
    }

    /// Adds 199 paths of 2 to 60 KB and returns a path that refers to all of them: a closure of 200.
    pub(crate) fn add_small(&mut self) -> anyhow::Result<SamplePath> {
        let mut small = Vec::new();
        for number in 0..199 {
            let bytes = self.rng.random_range(2_000..60_000);
            let references = self.some_of(&small, 3);
            small.push(self.add(&format!("small-{number}"), bytes, references, Shape::Tree)?.path);
        }
        self.add("smallroot", 3_000, small, Shape::Tree)
    }

    /// Adds a closure of 2,000 paths and 2.9 GB, which includes the 200 of [`Self::add_small`], and returns its root.
    pub(crate) fn add_whole(&mut self) -> anyhow::Result<SamplePath> {
        self.add_small()?;
        let mut pool: Vec<_> = self.paths.iter().map(|sample| sample.path.clone()).collect();
        let big = [50, 60, 80, 100, 150];
        for number in 0..(2_000 - 200 - 1 - big.len()) {
            let bytes = (1.0e5_f64.ln() + 2.6 * self.normal()).exp().clamp(1_500.0, 30e6);
            let references = self.some_of(&pool, 7);
            let name = format!("pkg-{number}-1.{}", number % 10);
            pool.push(self.add(&name, whole_bytes(bytes), references, Shape::Tree)?.path);
        }
        for megabytes in big {
            let references = self.some_of(&pool, 3);
            let shape = if megabytes == 150 { Shape::OneFile } else { Shape::Tree };
            pool.push(self.add(&format!("big-{megabytes}M"), megabytes * 1_000_000, references, shape)?.path);
        }
        self.add("root", 2_000, pool, Shape::Tree)
    }

    /// Adds a path of one file of `bytes` bytes, without references.
    pub(crate) fn add_large(&mut self, bytes: usize) -> anyhow::Result<SamplePath> {
        self.add("large", bytes, Vec::new(), Shape::OneFile)
    }

    fn add(
        &mut self,
        name: &str,
        bytes: usize,
        mut references: Vec<StorePath>,
        shape: Shape,
    ) -> anyhow::Result<SamplePath> {
        references.sort();
        let mut hash_part = HashPart([0; 20]);
        self.rng.fill_bytes(&mut hash_part.0);
        let path = StorePath::new(hash_part, name)?;
        let unfinished = self.dir.join("nar/unfinished");
        let mut nar = NarFile::create(&unfinished)?;
        self.write_tree(&mut nar, bytes, &references, shape)?;
        let (nar_hash, nar_size) = nar.finish()?;
        let sample = SamplePath { path: path.clone(), nar_hash, nar_size };
        let target = sample.nar_target();
        fs::rename(&unfinished, self.dir.join(target.trim_start_matches('/')))?;
        let mut narinfo = NarInfo {
            path,
            nar_hash,
            nar_size,
            references,
            deriver: None,
            signatures: Vec::new(),
            content_address: None,
        };
        narinfo.signatures.push(self.key.sign(&narinfo.fingerprint(&store_dir())));
        let text = narinfo.render(&store_dir(), target.trim_start_matches('/'));
        fs::write(self.dir.join(sample.narinfo_target().trim_start_matches('/')), text)?;
        self.paths.push(sample.clone());
        Ok(sample)
    }

    fn write_tree(
        &mut self,
        nar: &mut NarFile,
        bytes: usize,
        references: &[StorePath],
        shape: Shape,
    ) -> anyhow::Result<()> {
        let note: String = references.iter().map(|path| store_dir().display(path) + "\n").collect();
        nar.writer.begin_directory(&mut nar.buffer);
        if shape == Shape::OneFile {
            self.write_file(nar, "blob", bytes, false)?;
        }
        for (dir, files) in if shape == Shape::Tree { self.layout(bytes) } else { BTreeMap::new() } {
            nar.writer.begin_entry(&mut nar.buffer, dir.as_bytes());
            if files.is_empty() {
                nar.writer.write_symlink(&mut nar.buffer, b"bin/f0000");
            } else if dir == "refs.txt" {
                nar.file(note.as_bytes(), false)?;
            } else {
                nar.writer.begin_directory(&mut nar.buffer);
                for (number, bytes) in files {
                    self.write_file(nar, &format!("f{number:04}"), bytes, number % 7 == 0)?;
                }
                nar.writer.end_directory(&mut nar.buffer);
            }
            nar.writer.end_entry(&mut nar.buffer);
        }
        if shape == Shape::OneFile {
            nar.writer.begin_entry(&mut nar.buffer, b"refs.txt");
            nar.file(note.as_bytes(), false)?;
            nar.writer.end_entry(&mut nar.buffer);
        }
        nar.writer.end_directory(&mut nar.buffer);
        Ok(())
    }

    /// The directories of a tree and the numbers and sizes of their files, in the order of a NAR. `link`, which has no
    /// files, becomes a symlink, and `refs.txt` becomes a file whose entry here is not read.
    fn layout(&mut self, bytes: usize) -> BTreeMap<&'static str, Vec<(usize, usize)>> {
        let count = (bytes / 24_000).clamp(1, 400);
        let weights: Vec<f64> = (0..count).map(|_| (1.3 * self.normal()).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut layout = BTreeMap::from([("link", Vec::new()), ("refs.txt", vec![(0, 0)])]);
        for ((number, weight), dir) in weights.iter().enumerate().zip(["bin", "lib", "share", "include"].iter().cycle())
        {
            let bytes = whole_bytes((bytes as f64 * weight / total).max(1.0));
            layout.entry(*dir).or_default().push((number, bytes));
        }
        layout
    }

    fn write_file(&mut self, nar: &mut NarFile, name: &str, bytes: usize, executable: bool) -> anyhow::Result<()> {
        nar.writer.begin_entry(&mut nar.buffer, name.as_bytes());
        nar.writer.begin_file(&mut nar.buffer, bytes as u64, executable);
        let mut left = bytes;
        while left > 0 {
            let piece = left.min(ALTERNATION_BYTES);
            let start = nar.buffer.len();
            if self.rng.random::<bool>() {
                let from = self.rng.random_range(0..self.prose.len() - piece);
                nar.buffer.extend_from_slice(self.prose.get(from..from + piece).context("within the prose")?);
            } else {
                nar.buffer.resize(start + piece, 0);
                self.rng.fill_bytes(nar.buffer.get_mut(start..).context("just added")?);
            }
            left -= piece;
            nar.flush_if_full()?;
        }
        nar.writer.end_file(&mut nar.buffer, bytes as u64);
        nar.writer.end_entry(&mut nar.buffer);
        Ok(())
    }

    /// Up to `most` different paths of `pool`.
    fn some_of(&mut self, pool: &[StorePath], most: usize) -> Vec<StorePath> {
        let count = self.rng.random_range(0..=most).min(pool.len());
        let mut chosen: Vec<StorePath> = Vec::new();
        while chosen.len() < count {
            let at = self.rng.random_range(0..pool.len());
            chosen.extend(pool.get(at).filter(|path| !chosen.contains(path)).cloned());
        }
        chosen
    }

    /// Normally distributed around 0 with a deviation of 1 (Box and Muller 1958).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.rng.random::<f64>()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.rng.random::<f64>()).cos()
    }
}

/// A NAR that is hashed as it is written to a file.
struct NarFile {
    file: File,
    buffer: Vec<u8>,
    writer: NarWriter,
    verifier: NarVerifier,
}

impl NarFile {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let mut buffer = Vec::with_capacity(2 * FLUSH_BYTES);
        let writer = NarWriter::start(&mut buffer);
        Ok(Self { file: File::create(path)?, buffer, writer, verifier: NarVerifier::new() })
    }

    fn file(&mut self, contents: &[u8], executable: bool) -> anyhow::Result<()> {
        self.writer.begin_file(&mut self.buffer, contents.len() as u64, executable);
        self.buffer.extend_from_slice(contents);
        self.writer.end_file(&mut self.buffer, contents.len() as u64);
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> anyhow::Result<()> {
        if self.buffer.len() >= FLUSH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.verifier.feed(&self.buffer)?;
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<(NarHash, u64)> {
        self.flush()?;
        let verified = self.verifier.finish()?;
        Ok((verified.nar_hash, verified.nar_size))
    }
}

/// About 1.3 MB of random words and numbers.
fn prose(rng: &mut ChaCha8Rng) -> Vec<u8> {
    let words: Vec<_> = WORDS.split_whitespace().collect();
    let mut prose = String::new();
    for _ in 0..200_000 {
        prose.push_str(words.get(rng.random_range(0..words.len())).copied().unwrap_or_default());
        if rng.random::<f64>() < 0.3 {
            prose.push_str(&rng.random_range(0..1_000).to_string());
        }
        prose.push(' ');
    }
    prose.into_bytes()
}

/// The number of whole bytes, rounded down. Sizes here are far from either end of the range.
#[expect(clippy::cast_possible_truncation, reason = "sizes are between 1 and 10^9")]
fn whole_bytes(bytes: f64) -> usize {
    bytes as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::TrustedKeys;

    #[test]
    fn two_caches_hold_the_same_signed_closure() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let caches = dirs.each_ref().map(|dir| {
            let mut cache = SampleCache::new(dir.path()).unwrap();
            let root = cache.add_small().unwrap();
            (cache, root)
        });
        let [(first, root), (second, _)] = &caches;
        let names = |cache: &SampleCache| cache.paths().iter().map(SamplePath::full).collect::<Vec<_>>();
        assert_eq!(first.paths().len(), 200);
        assert_eq!(names(first), names(second));
        let text = fs::read(dirs[0].path().join(&root.narinfo_target()[1..])).unwrap();
        assert_eq!(text, fs::read(dirs[1].path().join(&root.narinfo_target()[1..])).unwrap());
        let narinfo = NarInfo::parse(&store_dir(), &text).unwrap();
        assert_eq!(narinfo.references.len(), 199);
        let trusted = TrustedKeys::new([first.public_key()]).unwrap();
        assert!(trusted.verifies(&narinfo.fingerprint(&store_dir()), &narinfo.signatures[0]));
        let nar = fs::read(dirs[0].path().join(&root.nar_target()[1..])).unwrap();
        assert_eq!(nar.len() as u64, narinfo.nar_size);
    }

    #[test]
    fn a_large_path_is_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let large = SampleCache::new(dir.path()).unwrap().add_large(5_000_001).unwrap();
        assert!(large.nar_size > 5_000_001 && large.nar_size < 5_002_000);
    }
}
