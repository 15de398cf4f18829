//! A cache in a directory of this machine, as `nix copy --to file://` makes it.

use crate::failure::{Failure, FailureKind};
use std::io;
use std::path::{Component, Path, PathBuf};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

/// The directory of a cache.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The whole of a small file; `None` if there is none.
    pub(crate) async fn read(&self, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, Failure> {
        let Some((file, bytes)) = self.open(name, 0).await? else { return Ok(None) };
        if bytes > bytes_max as u64 {
            return Err(Failure::new(FailureKind::BadNarInfo, format!("{name}: {bytes} bytes, limit {bytes_max}")));
        }
        let mut text = Vec::new();
        // The file may grow while it is read.
        let read = file.take(bytes_max as u64).read_to_end(&mut text).await;
        read.map_err(|error| failure(name, &error))?;
        Ok(Some(text))
    }

    /// A file from byte `offset` on, and its size; `None` if there is none.
    pub(crate) async fn open(&self, name: &str, offset: u64) -> Result<Option<(File, u64)>, Failure> {
        // The name comes from a narinfo: it must not lead out of the directory.
        let is_inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if !is_inside {
            return Err(Failure::new(FailureKind::BadNarInfo, "the URL leads out of the directory of the cache"));
        }
        let path = self.path.join(name);
        let mut is_file_there = false;
        let opened = async {
            // A FIFO would keep the thread that opens it.
            if !tokio::fs::metadata(&path).await?.is_file() {
                return Err(io::Error::other("not a regular file"));
            }
            is_file_there = true;
            let mut file = File::open(&path).await?;
            let bytes = file.metadata().await?.len();
            file.seek(io::SeekFrom::Start(offset)).await?;
            Ok((file, bytes))
        };
        match opened.await {
            Ok(opened) => Ok(Some(opened)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.is_there().await.map(|()| None),
            // One file says nothing about the others.
            Err(error) if is_file_there && error.kind() == io::ErrorKind::PermissionDenied => {
                Err(Failure::new(FailureKind::Unreadable, format!("{name}: {error}")))
            }
            Err(error) => Err(failure(name, &error)),
        }
    }

    /// An error if the directory itself is absent: then its files may only be absent for now.
    async fn is_there(&self) -> Result<(), Failure> {
        match tokio::fs::metadata(&self.path).await {
            Ok(found) if found.is_dir() => Ok(()),
            Ok(_) => Err(Failure::new(FailureKind::Connect, "not a directory")),
            Err(error) => Err(failure("the directory", &error)),
        }
    }
}

fn failure(name: &str, error: &io::Error) -> Failure {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied => FailureKind::Unauthorized,
        io::ErrorKind::NotFound => FailureKind::Connect,
        _ => FailureKind::Interrupted,
    };
    Failure::new(kind, format!("{name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn absent_file_is_an_answer_and_absent_directory_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.narinfo"), "text").unwrap();
        let cache = Directory::new(dir.path().to_owned());
        assert_eq!(cache.read("a.narinfo", 100).await.unwrap().unwrap(), b"text");
        assert_eq!(cache.read("b.narinfo", 100).await.unwrap(), None);
        assert_eq!(cache.read("a.narinfo", 3).await.unwrap_err().kind, FailureKind::BadNarInfo);
        let gone = Directory::new(dir.path().join("gone"));
        assert_eq!(gone.read("a.narinfo", 100).await.unwrap_err().kind, FailureKind::Connect);
    }

    #[tokio::test]
    async fn urls_that_lead_out_of_the_directory_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "text").unwrap();
        std::fs::create_dir(dir.path().join("cache")).unwrap();
        let cache = Directory::new(dir.path().join("cache"));
        for url in ["../secret", "/etc/passwd", "nar/../../secret", "."] {
            assert_eq!(cache.open(url, 0).await.unwrap_err().kind, FailureKind::BadNarInfo, "{url}");
        }
    }
}
