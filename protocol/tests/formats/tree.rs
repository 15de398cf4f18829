//! File trees, and an independent NAR encoder for the tests that says which bytes the grammar fixes.

use narmesh_protocol::nar::NarWriter;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// The file tree in a NAR.
#[derive(Clone, Debug)]
pub(crate) enum Tree {
    File { contents: Vec<u8>, executable: bool },
    Symlink(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Self>),
}

impl Tree {
    pub(crate) fn file(contents: impl AsRef<[u8]>) -> Self {
        Self::File { contents: contents.as_ref().to_vec(), executable: false }
    }

    pub(crate) fn executable(contents: impl AsRef<[u8]>) -> Self {
        Self::File { contents: contents.as_ref().to_vec(), executable: true }
    }

    pub(crate) fn symlink(target: &str) -> Self {
        Self::Symlink(target.into())
    }

    pub(crate) fn directory<Name: AsRef<[u8]>>(entries: impl IntoIterator<Item = (Name, Self)>) -> Self {
        Self::Directory(entries.into_iter().map(|(name, tree)| (name.as_ref().to_vec(), tree)).collect())
    }

    /// A file inside `depth` nested directories.
    pub(crate) fn nested(depth: usize) -> Self {
        (0..depth).fold(Self::file("x"), |tree, _| Self::directory([("d", tree)]))
    }

    /// The NAR of this tree as the library's writer makes it.
    pub(crate) fn written(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = NarWriter::start(&mut out);
        self.write(&mut writer, &mut out);
        out
    }

    fn write(&self, writer: &mut NarWriter, out: &mut Vec<u8>) {
        match self {
            Self::File { contents, executable } => {
                writer.begin_file(out, contents.len() as u64, *executable);
                out.extend_from_slice(contents);
                writer.end_file(out, contents.len() as u64);
            }
            Self::Symlink(target) => writer.write_symlink(out, target),
            Self::Directory(entries) => {
                writer.begin_directory(out);
                for (name, tree) in entries {
                    writer.begin_entry(out, name);
                    tree.write(writer, out);
                    writer.end_entry(out);
                }
                writer.end_directory(out);
            }
        }
    }
}

/// A NAR by the independent encoder: its bytes, and for each whether the grammar fixes it (words
/// with their lengths, padding).
#[derive(Default)]
pub(crate) struct Oracle {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fixed: Vec<bool>,
}

impl Oracle {
    pub(crate) fn of(tree: &Tree) -> Self {
        let mut oracle = Self::default();
        oracle.words("nix-archive-1");
        oracle.node(tree);
        oracle
    }

    fn node(&mut self, tree: &Tree) {
        match tree {
            Tree::File { contents, executable } => {
                self.words("( type regular");
                if *executable {
                    self.words("executable");
                    self.token(b"", true);
                }
                self.words("contents");
                self.token(contents, false);
            }
            Tree::Symlink(target) => {
                self.words("( type symlink target");
                self.token(target, false);
            }
            Tree::Directory(entries) => {
                self.words("( type directory");
                for (name, tree) in entries {
                    self.words("entry ( name");
                    self.token(name, false);
                    self.words("node");
                    self.node(tree);
                    self.words(")");
                }
            }
        }
        self.words(")");
    }

    fn words(&mut self, words: &str) {
        words.split(' ').for_each(|word| self.token(word.as_bytes(), true));
    }

    fn token(&mut self, bytes: &[u8], fixed: bool) {
        self.push(&(bytes.len() as u64).to_le_bytes(), fixed);
        self.push(bytes, fixed);
        while !self.bytes.len().is_multiple_of(8) {
            self.push(&[0], true);
        }
    }

    fn push(&mut self, bytes: &[u8], fixed: bool) {
        self.bytes.extend_from_slice(bytes);
        self.fixed.resize(self.bytes.len(), fixed);
    }
}

/// Trees of up to a few dozen nodes, with names and contents of awkward lengths.
pub(crate) fn any_tree() -> impl Strategy<Value = Tree> {
    let contents = prop::collection::vec(any::<u8>(), 0..40);
    let leaf = prop_oneof![
        (contents, any::<bool>()).prop_map(|(contents, executable)| Tree::File { contents, executable }),
        prop::collection::vec(1..=255u8, 1..40).prop_map(Tree::Symlink),
    ];
    let name = prop::collection::vec(any::<u8>().prop_filter("NUL or slash", |byte| !matches!(byte, 0 | b'/')), 1..12)
        .prop_filter("reserved", |name| !matches!(name.as_slice(), b"." | b".."));
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop::collection::btree_map(name.clone(), inner, 0..6).prop_map(Tree::Directory)
    })
}
