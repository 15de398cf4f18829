//! Tokens of a NAR, written into a buffer that the caller drains.
/// Writes a NAR's tokens in order; file contents are the caller's to append between `file` and `end_file`.
#[derive(Debug, Default)]
pub struct NarWriter { depth: usize, written: u64 }
impl NarWriter {
    /// Starts a NAR: writes the magic into `out`.
    pub fn start(out: &mut Vec<u8>) -> Self { let _ = out; todo!() }
    /// Opens a directory node.
    pub fn begin_directory(&mut self, out: &mut Vec<u8>) { let _ = out; todo!() }
    /// Opens an entry of the innermost directory; the caller gives names in ascending byte order.
    pub fn begin_entry(&mut self, out: &mut Vec<u8>, name: &[u8]) { let _ = (out, name); todo!() }
    /// Closes the entry.
    pub fn end_entry(&mut self, out: &mut Vec<u8>) { let _ = out; todo!() }
    /// Closes the directory.
    pub fn end_directory(&mut self, out: &mut Vec<u8>) { let _ = out; todo!() }
    /// A whole symlink node.
    pub fn symlink(&mut self, out: &mut Vec<u8>, target: &[u8]) { let _ = (out, target); todo!() }
    /// Opens a regular file up to and with its length; exactly `size_bytes` bytes of contents follow.
    pub fn begin_file(&mut self, out: &mut Vec<u8>, size_bytes: u64, executable: bool) { let _ = (out, size_bytes, executable); todo!() }
    /// Padding and end of the file whose contents of `size_bytes` were appended.
    pub fn end_file(&mut self, out: &mut Vec<u8>, size_bytes: u64) { let _ = (out, size_bytes); todo!() }
}
