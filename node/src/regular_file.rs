//! Opens a path only if it is a regular file: opening a FIFO, for instance, waits for a writer, perhaps for ever.

use rustix::fs::FlockOperation;
use std::fs::{self, File, FileType, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What is at a path, links followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lies {
    /// Nothing, or a link to nothing: a file may be created.
    Nothing,
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// Something else, in words.
    Other(&'static str),
}

impl Lies {
    /// Looks at `path` without opening it.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(Self::of(metadata.file_type())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::Nothing),
            // A loop of links, or a link whose path goes through a file.
            Err(_) if fs::symlink_metadata(path).is_ok_and(|link| link.is_symlink()) => {
                Ok(Self::Other("a link that leads nowhere"))
            }
            Err(error) => Err(error),
        }
    }

    fn of(kind: FileType) -> Self {
        match () {
            () if kind.is_file() => Self::File,
            () if kind.is_dir() => Self::Directory,
            () if kind.is_fifo() => Self::Other("a FIFO"),
            () if kind.is_socket() => Self::Other("a socket"),
            () if kind.is_block_device() || kind.is_char_device() => Self::Other("a device"),
            () => Self::Other("something unknown"),
        }
    }

    /// Why it cannot be read or written as a file; `None` if it can.
    pub(crate) fn why_no_file(self) -> Option<String> {
        match self {
            Self::Nothing | Self::File => None,
            Self::Directory => Some("it is a directory, not a file".to_owned()),
            Self::Other(what) => Some(format!("it is {what}, not a file")),
        }
    }
}

/// Opens a regular file without ever waiting. Anything else is an error of kind `InvalidInput`.
pub(crate) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    refuse_others(Lies::at(path)?)?;
    // It may have been replaced since: NONBLOCK avoids waiting, and what was opened is checked again.
    let file = options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    refuse_others(Lies::of(file.metadata()?.file_type()))?;
    Ok(file)
}

fn refuse_others(lies: Lies) -> io::Result<()> {
    lies.why_no_file().map_or(Ok(()), |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why)))
}

/// As [`open`], but does not follow a link: whoever may write into a directory must not choose which other file is
/// written.
pub(crate) fn open_itself(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    refuse_others(Lies::at(path)?)?;
    if fs::symlink_metadata(path).is_ok_and(|there| there.is_symlink()) {
        refuse_others(Lies::Other("a link"))?;
    }
    // It may have been replaced since.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    let file = options.custom_flags(flags.bits().cast_signed()).open(path)?;
    refuse_others(Lies::of(file.metadata()?.file_type()))?;
    Ok(file)
}

/// Opens a regular file for reading.
pub(crate) fn open_to_read(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().read(true))
}

/// The text of a file; `None` if it has more than `bytes_max` bytes, of which no more are read.
pub(crate) fn read_text(path: &Path, bytes_max: u64) -> io::Result<Option<String>> {
    let mut text = String::new();
    let file = open_to_read(path)?;
    if file.metadata()?.len() > bytes_max {
        return Ok(None);
    }
    file.take(bytes_max + 1).read_to_string(&mut text)?;
    Ok((text.len() as u64 <= bytes_max).then_some(text))
}

/// Replaces the text of a file in one step, that of the target if it is a link. Owner and mode stay; a new one has mode
/// 0644.
pub(crate) fn replace_text(path: &Path, text: &str) -> io::Result<()> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    replace(&target, text.as_bytes(), |file| match fs::metadata(&target) {
        Ok(before) => {
            file.set_permissions(before.permissions())?;
            if rustix::process::geteuid().is_root() {
                fchown(file, Some(before.uid()), Some(before.gid()))?;
            }
            Ok(())
        }
        Err(_) => file.set_permissions(Permissions::from_mode(0o644)),
    })
}

/// Replaces a file, or what else is there, in one step. `prepare` gives the new one its owner and mode; without it the mode is
/// 0600.
pub(crate) fn replace(path: &Path, bytes: &[u8], prepare: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let beside = with_suffix(path, ".new");
    // A process that was killed in the middle may have left one.
    clear(&beside)?;
    // With its mode from the first moment on, since it may hold a secret.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    prepare(&file)?;
    file.write_all(bytes)?;
    // Before it gets its name: after a power cut the name must not stand for an empty file.
    file.sync_all()?;
    fs::rename(&beside, path)
}

/// Waits for the lock that a file stands for, and makes the file if there is none. Dropping what is returned releases the lock.
/// The file stays: whoever removed it could remove one that somebody has just locked.
pub(crate) fn lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = open_itself(path, &mut options)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

/// Renames whatever is at `path` to `<name>.corrupt-<unix time>`.
pub(crate) fn move_aside(path: &Path) -> io::Result<PathBuf> {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // Greater than all others even if the clock stands still or goes back, so that the oldest is always deleted first.
    let stamp = list_moved_aside(path)?.iter().map(|(taken, _)| taken + 1).max().unwrap_or(0).max(now_s);
    let moved_to = with_suffix(path, &format!(".corrupt-{stamp}"));
    fs::rename(path, &moved_to)?;
    Ok(moved_to)
}

/// What was moved aside from `path`, each with the number in its name.
pub(crate) fn list_moved_aside(path: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let prefix = format!("{name}.corrupt-");
    let mut found = Vec::new();
    for entry in fs::read_dir(path.parent().unwrap_or(Path::new(".")))? {
        let entry = entry?;
        let stamp = entry.file_name().to_str().and_then(|name| name.strip_prefix(&prefix)?.parse().ok());
        found.extend(stamp.map(|stamp: u64| (stamp, entry.path())));
    }
    Ok(found)
}

/// Makes room for a file at `path`: removes a file that is there, and moves a directory aside, because its contents may
/// be precious.
pub(crate) fn clear(path: &Path) -> io::Result<()> {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    if is_directory {
        return tell_moved(path, "a directory");
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Moves aside something that does not belong at `path`, and logs it.
pub(crate) fn tell_moved(path: &Path, what: &str) -> io::Result<()> {
    let moved_to = move_aside(path)?;
    tracing::warn!(moved_to = %moved_to.display(), "{} is {what}, which does not belong there: moved aside", path.display());
    Ok(())
}

/// The path with `suffix` appended to its last component.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes in `dir`, for tests, one of each kind that is not a regular file, and gives each with its description.
#[cfg(test)]
pub(crate) fn list_oddities(dir: &Path) -> Vec<(PathBuf, &'static str)> {
    let [fifo, directory, socket, circle] = ["fifo", "directory", "socket", "circle"].map(|name| dir.join(name));
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("precious"), "x").unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    std::os::unix::fs::symlink(&circle, &circle).unwrap();
    vec![
        (fifo, "a FIFO"),
        (directory, "a directory"),
        (socket, "a socket"),
        (circle, "a link that leads nowhere"),
        (PathBuf::from("/dev/null"), "a device"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened_and_nothing_waits() {
        let dir = tempfile::tempdir().unwrap();
        for (path, what) in list_oddities(dir.path()) {
            let mut write = OpenOptions::new();
            write.write(true).create(true).truncate(true);
            for error in [open_to_read(&path).unwrap_err(), open(&path, &mut write).unwrap_err()] {
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{what}");
                assert_eq!(error.to_string(), format!("it is {what}, not a file"));
            }
        }
        let file = dir.path().join("file");
        fs::write(&file, "text").unwrap();
        assert_eq!(read_text(&file, 4).unwrap().as_deref(), Some("text"));
        assert_eq!(read_text(&file, 3).unwrap(), None);
        assert_eq!(open_to_read(&dir.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn clear_removes_files_and_moves_directories_aside() {
        let dir = tempfile::tempdir().unwrap();
        for (path, _) in list_oddities(dir.path()).into_iter().filter(|(path, _)| path.starts_with(dir.path())) {
            clear(&path).unwrap();
            assert_eq!(fs::symlink_metadata(&path).unwrap_err().kind(), io::ErrorKind::NotFound, "{path:?}");
        }
        let moved = list_moved_aside(&dir.path().join("directory")).unwrap();
        assert_eq!(fs::read_to_string(moved[0].1.join("precious")).unwrap(), "x");
        clear(&dir.path().join("directory")).unwrap();
    }
}
