//! Writes the tokens of a NAR into a buffer that the caller drains.

use super::{DEPTH_MAX, MAGIC, NAME_BYTES_MAX, TARGET_BYTES_MAX, padding};

/// Writes a NAR's tokens in order. The caller appends file contents between `begin_file` and `end_file`.
///
/// The calls must follow the grammar: one node (a file, a symlink or a directory), and in a directory any number of entries
/// with ascending names, each around one node. A debug build asserts that. A release build would write an archive that
/// nobody accepts, and the verifier that checks outgoing NARs finds it.
///
/// ```
/// # use narmesh_protocol::nar::{NarVerifier, NarWriter};
/// let mut out = Vec::new();
/// let mut writer = NarWriter::start(&mut out);
/// writer.begin_directory(&mut out);
/// writer.begin_entry(&mut out, b"greeting");
/// writer.begin_file(&mut out, 5, false);
/// out.extend_from_slice(b"hello");
/// writer.end_file(&mut out, 5);
/// writer.end_entry(&mut out);
/// writer.end_directory(&mut out);
/// let mut verifier = NarVerifier::new();
/// verifier.feed(&out)?;
/// assert_eq!(verifier.finish()?.nar_size, out.len() as u64);
/// # Ok::<(), narmesh_protocol::nar::NarError>(())
/// ```
#[derive(Debug, Default)]
pub struct NarWriter {
    /// The last name written in each open directory; empty before the first.
    last_names: Vec<Vec<u8>>,
    expected: Expected,
}

/// What the caller may call next.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
enum Expected {
    #[default]
    Node,
    EndFile {
        size_bytes: u64,
    },
    EndEntry,
    EntryOrEndDirectory,
    Nothing,
}

impl NarWriter {
    /// Starts a NAR: writes the magic into `out`.
    pub fn start(out: &mut Vec<u8>) -> Self {
        write_token(out, MAGIC);
        Self::default()
    }

    /// Opens a directory node.
    pub fn begin_directory(&mut self, out: &mut Vec<u8>) {
        self.begin_node(out, b"directory");
        self.last_names.push(Vec::new());
        self.expected = Expected::EntryOrEndDirectory;
    }

    /// Opens an entry of the innermost directory. The caller must give names in ascending byte order.
    pub fn begin_entry(&mut self, out: &mut Vec<u8>, name: &[u8]) {
        debug_assert_eq!(self.expected, Expected::EntryOrEndDirectory);
        debug_assert!(!name.is_empty() && name.len() <= NAME_BYTES_MAX, "name of {} bytes", name.len());
        debug_assert!(!matches!(name, b"." | b".."), "no entry is called `.` or `..`");
        debug_assert!(!name.contains(&b'/') && !name.contains(&0), "slash or NUL in a name");
        debug_assert!(self.last_names.len() < DEPTH_MAX, "deeper than Nix reads");
        let last_name = self.last_names.last_mut();
        debug_assert!(last_name.as_ref().is_some_and(|last| last.as_slice() < name), "names must ascend");
        if let Some(last_name) = last_name {
            last_name.clear();
            last_name.extend_from_slice(name);
        }
        write_tokens(out, &[b"entry", b"(", b"name", name, b"node"]);
        self.expected = Expected::Node;
    }

    /// Closes the innermost open entry.
    pub fn end_entry(&mut self, out: &mut Vec<u8>) {
        debug_assert_eq!(self.expected, Expected::EndEntry);
        write_token(out, b")");
        self.expected = Expected::EntryOrEndDirectory;
    }

    /// Closes the innermost open directory.
    pub fn end_directory(&mut self, out: &mut Vec<u8>) {
        debug_assert_eq!(self.expected, Expected::EntryOrEndDirectory);
        self.last_names.pop();
        self.end_node(out);
    }

    /// Writes a whole symlink node.
    pub fn write_symlink(&mut self, out: &mut Vec<u8>, target: &[u8]) {
        debug_assert!(!target.is_empty() && target.len() <= TARGET_BYTES_MAX, "target of {} bytes", target.len());
        debug_assert!(!target.contains(&0), "NUL in a symlink's target");
        self.begin_node(out, b"symlink");
        write_tokens(out, &[b"target", target]);
        self.end_node(out);
    }

    /// Writes a regular file node up to and including its length. The caller appends exactly `size_bytes` bytes of contents.
    pub fn begin_file(&mut self, out: &mut Vec<u8>, size_bytes: u64, executable: bool) {
        self.begin_node(out, b"regular");
        if executable {
            write_tokens(out, &[b"executable", b""]);
        }
        write_token(out, b"contents");
        out.extend_from_slice(&size_bytes.to_le_bytes());
        self.expected = Expected::EndFile { size_bytes };
    }

    /// Writes the padding and the end of a file, after the caller appended its `size_bytes` bytes of contents.
    pub fn end_file(&mut self, out: &mut Vec<u8>, size_bytes: u64) {
        debug_assert_eq!(self.expected, Expected::EndFile { size_bytes });
        pad(out, size_bytes);
        self.end_node(out);
    }

    fn begin_node(&mut self, out: &mut Vec<u8>, kind: &[u8]) {
        debug_assert_eq!(self.expected, Expected::Node);
        write_tokens(out, &[b"(", b"type", kind]);
    }

    fn end_node(&mut self, out: &mut Vec<u8>) {
        write_token(out, b")");
        self.expected = if self.last_names.is_empty() { Expected::Nothing } else { Expected::EndEntry };
    }
}

fn write_tokens(out: &mut Vec<u8>, tokens: &[&[u8]]) {
    for token in tokens {
        write_token(out, token);
    }
}

fn write_token(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = bytes.len() as u64;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
    pad(out, length);
}

fn pad(out: &mut Vec<u8>, length: u64) {
    out.resize(out.len() + padding(length), 0);
}
