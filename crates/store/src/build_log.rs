//! Logs of builds, as Nix keeps them: `drvs/<first two characters>/<rest of the base name of the derivation>`, compressed with
//! bzip2 or not.

use crate::{NixStore, StoreError};
use bzip2::read::MultiBzDecoder;
use bzip2::{Decompress, Status};
use narmesh_protocol::{HashPart, StorePath};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Take};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// An open log. It takes up to 4 MiB of memory when it is unpacked.
#[derive(Debug)]
pub struct BuildLog {
    file: File,
    size_bytes: u64,
    version: u64,
    is_compressed: bool,
}

/// The text of a log being read.
pub struct BuildLogText(Box<dyn Read + Send>);

impl std::fmt::Debug for BuildLogText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuildLogText").finish_non_exhaustive()
    }
}

impl BuildLog {
    /// Whether the file is compressed with bzip2.
    pub fn is_compressed(&self) -> bool {
        self.is_compressed
    }

    /// The size of the file, bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// A number that changes when another file takes the place of this one, or when it is written.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Reads up to `bytes_max` bytes of the file from `offset` on, fewer only at the end that it had when it was opened.
    /// Blocks.
    pub fn read_part(&self, offset: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
        let left = usize::try_from(self.size_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(bytes_max)];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Reads the bytes of the file, as many as it had when it was opened: a build may still be writing it.
    pub fn read_raw(self) -> BuildLogText {
        BuildLogText(Box::new(self.raw()))
    }

    /// Reads the text, unpacked if the file is compressed.
    pub fn read_text(self) -> BuildLogText {
        if self.is_compressed { BuildLogText(Box::new(MultiBzDecoder::new(self.raw()))) } else { self.read_raw() }
    }

    fn raw(self) -> Take<File> {
        self.file.take(self.size_bytes)
    }
}

impl BuildLogText {
    /// Appends up to `bytes_max` bytes to `out`; `false` after the last. Blocks.
    pub fn fill(&mut self, out: &mut Vec<u8>, bytes_max: usize) -> io::Result<bool> {
        let read = (&mut self.0).take(bytes_max as u64).read_to_end(out)?;
        Ok(read == bytes_max)
    }
}

/// Streams of bzip2 in one log. Nix writes one, and a person may have put some together. Each costs some 100 us to begin, and may
/// be of 14 bytes with nothing in it, so that a file of 64 MiB could keep a processor busy for minutes and say nothing.
const STREAMS_MAX: u32 = 1_024;

/// Unpacks a log that is compressed with bzip2 and comes in parts. It takes up to 4 MiB of memory.
pub struct LogUnpacker {
    decompress: Decompress,
    is_between_streams: bool,
    /// Streams that have ended.
    streams: u32,
}

impl std::fmt::Debug for LogUnpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogUnpacker").finish_non_exhaustive()
    }
}

impl Default for LogUnpacker {
    fn default() -> Self {
        Self { decompress: Decompress::new(false), is_between_streams: false, streams: 0 }
    }
}

impl LogUnpacker {
    /// Unpacks from the front of `packed`, up to `bytes_max` bytes; returns the text, and how many bytes of `packed` it took.
    /// When there is neither, more of `packed` is needed.
    ///
    /// # Errors
    /// When this is not bzip2, or of more than 1,024 streams.
    pub fn unpack(&mut self, packed: &[u8], bytes_max: usize) -> io::Result<(Vec<u8>, usize)> {
        // A log may be several streams one after the other, as `cat` makes of two.
        if self.is_between_streams {
            if packed.is_empty() {
                return Ok((Vec::new(), 0));
            }
            if self.streams == STREAMS_MAX {
                return Err(io::Error::other("more than 1,024 streams of bzip2"));
            }
            *self = Self { streams: self.streams, ..Self::default() };
        }
        let (mut text, before) = (Vec::with_capacity(bytes_max), self.decompress.total_in());
        let status = self.decompress.decompress_vec(packed, &mut text).map_err(io::Error::other)?;
        self.is_between_streams = status == Status::StreamEnd;
        self.streams += u32::from(self.is_between_streams);
        let taken = self.decompress.total_in().saturating_sub(before);
        Ok((text, usize::try_from(taken).unwrap_or(packed.len())))
    }

    /// Whether what came so far is a whole file.
    pub fn is_whole(&self) -> bool {
        self.is_between_streams
    }
}

impl NixStore {
    /// The hash parts of the outputs of this derivation, as far as our store knows them: of a valid derivation all that can be
    /// known before it is built, else those that are here and came with the name of their derivation. Blocks.
    pub fn find_outputs(&self, derivation: &StorePath) -> Result<Vec<HashPart>, StoreError> {
        let known = self.read_outputs(&derivation.hash_part())?;
        if known.is_empty() { self.read_derived(derivation) } else { Ok(known) }
    }

    /// The log of this derivation, if there is one. The derivation need not be valid any more. Blocks.
    pub fn find_log(&self, derivation: &StorePath) -> Result<Option<BuildLog>, StoreError> {
        for (path, is_compressed) in places(&self.location().log_dir, derivation) {
            match open_log(&path) {
                Ok(Some((file, size_bytes, version))) => {
                    return Ok(Some(BuildLog { file, size_bytes, version, is_compressed }));
                }
                Ok(None) => {}
                Err(errno) => return Err(StoreError::Io { path, source: errno.into() }),
            }
        }
        Ok(None)
    }
}

/// Where Nix looks for a log, in its order (`LocalFSStore::getBuildLogExact`); the last two are of versions before 1.0.
fn places(log_dir: &Path, derivation: &StorePath) -> [(PathBuf, bool); 4] {
    let logs = log_dir.join("drvs");
    let name = derivation.to_string();
    // A base name begins with 32 characters of ASCII, and no character of a name is a slash.
    let (first, rest) = name.split_at_checked(2).unwrap_or_default();
    let file = |path: PathBuf, suffix: &str| {
        let mut text = path.into_os_string();
        text.push(suffix);
        PathBuf::from(text)
    };
    let (now, before) = (logs.join(first).join(rest), logs.join(&name));
    [(now.clone(), false), (file(now, ".bz2"), true), (before.clone(), false), (file(before, ".bz2"), true)]
}

/// Opens a regular file that everybody may read, without following a link: whoever asks the gateway is anybody.
fn open_log(path: &Path) -> Result<Option<(File, u64, u64)>, Errno> {
    // NONBLOCK, or a pipe of this name would keep the thread until somebody writes to it.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match open(path, flags, Mode::empty()) {
        Ok(file) => file,
        // None of these is a log, so there is none; any other error says nothing about whether there is.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let stat = fstat(&file)?;
    let is_public = Mode::from_raw_mode(stat.st_mode).contains(Mode::ROTH);
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || !is_public {
        return Ok(None);
    }
    // Parts of one log are asked for one after the other, and must be of the same file.
    let mut version = DefaultHasher::new();
    (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec).hash(&mut version);
    Ok(Some((file.into(), u64::try_from(stat.st_size).unwrap_or(0), version.finish())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bzip2::write::BzEncoder;
    use std::fs;
    use std::io::Write as _;

    const NAME: &str = "0c0yaa1b2d3f4g5h6i7j8k9l0m1n2p3q-x.drv";

    fn text(log: BuildLog) -> io::Result<Vec<u8>> {
        let (mut out, mut text) = (Vec::new(), log.read_text());
        while text.fill(&mut out, 10)? {}
        Ok(out)
    }

    fn find(dir: &Path) -> Option<BuildLog> {
        let derivation = StorePath::parse(NAME).unwrap();
        places(dir, &derivation).into_iter().find_map(|(path, is_compressed)| {
            let (file, size_bytes, version) = open_log(&path).unwrap()?;
            Some(BuildLog { file, size_bytes, version, is_compressed })
        })
    }

    /// What an unpacker makes of the file in parts of this many bytes; `None` if it is not whole.
    fn unpack(file: &[u8], part_bytes: usize) -> Option<Vec<u8>> {
        let (mut unpacker, mut out) = (LogUnpacker::default(), Vec::new());
        for mut part in file.chunks(part_bytes) {
            loop {
                let (text, taken) = unpacker.unpack(part, 1_000).ok()?;
                assert!(text.len() <= 1_000, "{}", text.len());
                if (text.len(), taken) == (0, 0) {
                    assert!(part.is_empty(), "it goes on while there is something");
                    break;
                }
                out.extend(text);
                part = &part[taken..];
            }
        }
        unpacker.is_whole().then_some(out)
    }

    #[test]
    fn packed_logs_are_unpacked_in_parts_of_any_length() {
        let said: Vec<u8> = (0..300_000_u32).flat_map(|number| (number * 7919 % 65_537).to_le_bytes()).collect();
        let pack = |text: &[u8]| {
            let mut packed = BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            packed.write_all(text).unwrap();
            packed.finish().unwrap()
        };
        let file = [pack(&said), pack(b"the second of two streams")].concat();
        let expected = [said.as_slice(), b"the second of two streams"].concat();
        for part_bytes in [1_000, 65_536, file.len()] {
            assert_eq!(unpack(&file, part_bytes).as_deref(), Some(expected.as_slice()), "{part_bytes}");
        }
        assert_eq!(unpack(&pack(b""), 3).as_deref(), Some(&b""[..]));
        for bad in [&file[..file.len() - 1], b"text", b"", &file[1..]] {
            assert_eq!(unpack(bad, 1_000), None);
        }
    }

    #[test]
    fn a_log_is_read_in_parts_and_another_file_has_another_version() {
        let dir = tempfile::tempdir().unwrap();
        let (path, is_compressed) = places(dir.path(), &StorePath::parse(NAME).unwrap())[0].clone();
        assert!(!is_compressed);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, b"0123456789").unwrap();
        let log = find(dir.path()).unwrap();
        assert_eq!(log.read_part(0, 4).unwrap(), b"0123");
        assert_eq!(log.read_part(8, 4).unwrap(), b"89");
        assert!(log.read_part(10, 4).unwrap().is_empty() && log.read_part(u64::MAX, 4).unwrap().is_empty());
        assert_eq!(find(dir.path()).unwrap().version(), log.version());
        fs::write(&path, b"012345678").unwrap();
        assert_ne!(find(dir.path()).unwrap().version(), log.version());
        assert!(log.read_part(0, 99).is_err(), "it is shorter now");
    }

    #[test]
    fn logs_of_every_form_are_found_and_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        assert!(find(dir.path()).is_none());
        let said = b"some lines\nof a log\n".repeat(1000);
        let mut packed = BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        packed.write_all(&said).unwrap();
        let packed = packed.finish().unwrap();
        for (path, is_compressed) in places(dir.path(), &StorePath::parse(NAME).unwrap()) {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, if is_compressed { &packed } else { &said }).unwrap();
            assert_eq!(text(find(dir.path()).unwrap()).unwrap(), said, "{path:?}");
            // One that is still being written has no end yet.
            fs::write(&path, &packed[..packed.len() / 2]).unwrap();
            let torn = text(find(dir.path()).unwrap());
            assert_eq!(torn.is_err(), is_compressed, "{path:?}");
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
            assert!(find(dir.path()).is_none(), "not for everybody: {path:?}");
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
            assert!(find(dir.path()).is_none(), "a link: {path:?}");
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn streams_without_end_that_hold_nothing_are_refused() {
        let empty = BzEncoder::new(Vec::new(), bzip2::Compression::fast()).finish().unwrap();
        let many = |streams: u32| empty.repeat(streams as usize);
        assert_eq!(unpack(&many(STREAMS_MAX), 100), Some(Vec::new()));
        assert_eq!(unpack(&many(STREAMS_MAX + 1), 100), None);
    }
}
