//! Logs of builds, as Nix keeps them: `drvs/<first two characters>/<rest of the base name of the derivation>`, compressed with
//! bzip2 or not.

use crate::{NixStore, StoreError};
use bzip2::read::MultiBzDecoder;
use narmesh_protocol::StorePath;
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Take};
use std::path::{Path, PathBuf};

/// An open log. It takes up to 4 MiB of memory when it is unpacked.
#[derive(Debug)]
pub struct BuildLog {
    file: File,
    size_bytes: u64,
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

impl NixStore {
    /// The log of this derivation, if there is one. The derivation need not be valid any more. Blocks.
    pub fn find_log(&self, derivation: &StorePath) -> Result<Option<BuildLog>, StoreError> {
        for (path, is_compressed) in places(&self.location().log_dir, derivation) {
            match open_log(&path) {
                Ok(Some((file, size_bytes))) => return Ok(Some(BuildLog { file, size_bytes, is_compressed })),
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
fn open_log(path: &Path) -> Result<Option<(File, u64)>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match open(path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let stat = fstat(&file)?;
    let is_public = Mode::from_raw_mode(stat.st_mode).contains(Mode::ROTH);
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || !is_public {
        return Ok(None);
    }
    Ok(Some((file.into(), u64::try_from(stat.st_size).unwrap_or(0))))
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
            let (file, size_bytes) = open_log(&path).unwrap()?;
            Some(BuildLog { file, size_bytes, is_compressed })
        })
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
}
